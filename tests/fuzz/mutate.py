"""Changes a file at random in ways that readers stumble over: bits, numbers, lengths, pieces, and words of its format."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence

NUMBERS = (
    0,
    1,
    2,
    7,
    127,
    128,
    255,
    256,
    32767,
    32768,
    65535,
    65536,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63,
    2**64 - 1,
)
WORDS = (
    *(b"(", b"((((", b"[" * 50, b"{", b'"', b"'", b"\\", b"\0", b"\n", b"\r", b",", b";", b"\t", b"=", b"#", b"\x1b["),
    *(b"nan", b"inf", b"-inf", b"1e999", b"-1", b"9" * 30, b"0x", b"1.2.3", b"../", b"/dev/zero", b"true", b"null"),
    *(b"\xff\xfe", b"\xef\xbb\xbf", b"\xff\xd8", b"\xff\xd9", b"\xff\xc0", b"\xff\x4f\xff\x51", b"IDAT", b"iCCP", b"DICM"),
    *(b"SQ", b"OW", b"UN", b"\xff\xff\xff\xff", b"\xe0\x7f\x10\x00", b"\xfe\xff\x00\xe0", b"<!DOCTYPE", b"<!ENTITY", b"</"),
    *("\u0301".encode(), "\u202e".encode(), "ß".encode(), b"\x80", b"=1+1"),
)  # fmt: skip


def mutate(data: bytes, others: Sequence[bytes], draws: random.Random) -> bytes:
    """One to eight changes, fewer more often."""
    changed = bytearray(data)
    for _ in range(1 + int(draws.expovariate(0.7)) % 8):
        draws.choice(CHANGES)(changed, others, draws)
    return bytes(changed[:1_000_000])


def _place(data: bytearray, draws: random.Random) -> int:
    """Anywhere; half of the time near the beginning, where headers are."""
    length = max(1, len(data))
    return draws.randrange(min(length, 512)) if draws.random() < 0.5 else draws.randrange(length)


def _bit(data: bytearray, others: Sequence[bytes], draws: random.Random) -> None:
    if data:
        data[_place(data, draws)] ^= 1 << draws.randrange(8)


def _byte(data: bytearray, others: Sequence[bytes], draws: random.Random) -> None:
    if data:
        data[_place(data, draws)] = draws.randrange(256)


def _number(data: bytearray, others: Sequence[bytes], draws: random.Random) -> None:
    size = draws.choice("BHIQ")
    form = draws.choice("<>") + size
    at, width = _place(data, draws), struct.calcsize(form)
    data[at : at + width] = struct.pack(form, draws.choice(NUMBERS) % 256**width)


def _word(data: bytearray, others: Sequence[bytes], draws: random.Random) -> None:
    at, word = _place(data, draws), draws.choice(WORDS)
    data[at : at + (len(word) if draws.random() < 0.5 else 0)] = word


def _cut(data: bytearray, others: Sequence[bytes], draws: random.Random) -> None:
    at = _place(data, draws)
    del data[at : at + draws.choice((1, 2, 4, 16, 100, len(data)))]


def _repeat(data: bytearray, others: Sequence[bytes], draws: random.Random) -> None:
    at = _place(data, draws)
    piece = bytes(data[at : at + draws.choice((1, 2, 8, 64, 512))])
    data[at:at] = piece * draws.choice((1, 2, 10, 200))


def _splice(data: bytearray, others: Sequence[bytes], draws: random.Random) -> None:
    other = draws.choice(others)
    at, start = _place(data, draws), _place(bytearray(other), draws)
    piece = other[start : start + draws.choice((4, 32, 256, len(other)))]
    data[at : at + (len(piece) if draws.random() < 0.5 else 0)] = piece


CHANGES = (_bit, _bit, _byte, _byte, _number, _number, _word, _word, _cut, _repeat, _splice)
