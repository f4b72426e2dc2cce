"""Feeds changed files to the readers of the library and counts what happens. To run it for longer than the tests do:

    PYTHONPATH=tests python -m fuzz.fuzz --seconds 600 --keep found

Every file is read in a process with 2 GB more memory than it needs to start. ``refused`` is an error of
``scorebayes.errors``; ``other`` is anything else: another exception, a death, more than 10 s, more than 2 GB. Files whose
answer is new are changed further, so that the search goes deeper than the first check.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import multiprocessing
import os
import random
import re
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path

from fuzz.kinds import KINDS
from fuzz.mutate import mutate
from scorebayes.errors import ScoreBayesError

SECONDS, MEMORY = 10, 2 * 2**30
GRACE = 10  # seconds for the start of a box and a busy machine
MOST_IN_CORPUS = 400


def answer(kind: str, path: Path) -> tuple[str, str]:
    """What the reader makes of the file, in one word, and what tells this answer from others."""
    start = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = str(KINDS[kind].read(path))[:80]
        word = "accepted"
    except ScoreBayesError as error:
        word, found = "refused", re.sub(r"\d+|'[^']*'", "N", str(error).replace(str(path.parent), ""))[:80]
        if "\n" in str(error):
            word, found = "other", f"several lines: {error}"
    except BaseException:
        word, found = "other", traceback.format_exc()
    if time.process_time() - start > SECONDS:
        word, found = "other", f"takes {time.process_time() - start:.0f} s; {found}"
    return word, found


def _serve(folder: Path, asked: Connection) -> None:
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = MEMORY + pages * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    while (kind := asked.recv()) is not None:
        place = folder / kind
        place.mkdir(exist_ok=True)
        path = place / KINDS[kind].name
        path.write_bytes(asked.recv_bytes())
        faulthandler.dump_traceback_later(SECONDS + GRACE, exit=True, file=sys.__stderr__)
        asked.send(answer(kind, path))
        faulthandler.cancel_dump_traceback_later()


class Reader:
    """A process that reads files, and is replaced when it dies."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("fork")
        self.here, there = context.Pipe()
        self.process = context.Process(target=_serve, args=(self.folder, there), daemon=True)
        self.process.start()
        there.close()

    def __call__(self, kind: str, data: bytes) -> tuple[str, str]:
        self.here.send(kind)
        self.here.send_bytes(data or b" ")
        try:
            word, found = self.here.recv()
        except EOFError:
            self.process.join()
            status = self.process.exitcode
            self._start()
            return "other", f"died ({status})"
        return word, found

    def end(self) -> None:
        with contextlib.suppress(OSError):
            self.here.send(None)
        self.process.join(5)
        self.process.kill()


def fuzz(
    kind: str,
    reader: Reader,
    *,
    tries: int = sys.maxsize,
    seconds: float = float("inf"),
    seed: int = 0,
    keep: Path | None = None,
) -> tuple[Counter[str], list[str]]:
    """Counts of accepted, refused and other, and what the others are. ``keep``: folder for the files that cause them."""
    draws, counts, others = random.Random(f"{kind} {seed}"), Counter[str](), []
    with tempfile.TemporaryDirectory() as place:
        corpus = KINDS[kind].seeds(Path(place))
    known = {reader(kind, data) for data in corpus}
    assert {word for word, _ in known} <= {"accepted", "refused"}, known
    start = time.monotonic()
    while counts.total() < tries and time.monotonic() - start < seconds:
        data = mutate(draws.choice(corpus), corpus, draws)
        word, found = reader(kind, data)
        counts[word] += 1
        if word == "other":
            others.append(found)
            if keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{kind}-{seed}-{len(others):03d}").write_bytes(data)
                (keep / f"{kind}-{seed}-{len(others):03d}.txt").write_text(found)
        elif (word, found) not in known and len(corpus) < MOST_IN_CORPUS:
            known.add((word, found))
            corpus.append(data)
    return counts, others


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--seconds", type=float, default=60, help="in all, shared by the kinds")
    options.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--keep", type=Path, help="folder for the files that cause anything else")
    asked = options.parse_args()
    sys.stdout.write("| kind | tried | accepted | refused | other |\n|---|---|---|---|---|\n")
    with tempfile.TemporaryDirectory() as place:
        reader = Reader(Path(place))
        for kind in asked.kinds:
            share = asked.seconds / len(asked.kinds)
            counts, _ = fuzz(kind, reader, seconds=share, seed=asked.seed, keep=asked.keep)
            figures = (counts.total(), counts["accepted"], counts["refused"], counts["other"])
            sys.stdout.write(f"| {kind} | {' | '.join(map(str, figures))} |\n")
            sys.stdout.flush()
        reader.end()


if __name__ == "__main__":
    main()
