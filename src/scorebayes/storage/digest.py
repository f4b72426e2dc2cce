"""The digest of a file, by which a run tells whether the file has changed; and of contents that carry their own."""

from __future__ import annotations

import hashlib
from pathlib import Path


def sha256_of(path: Path) -> str:
    """SHA-256 of the content, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def with_digest(content: bytes) -> bytes:
    """Content with its SHA-256 behind it, for files of a cache."""
    return content + hashlib.sha256(content).digest()


def without_digest(stored: bytes) -> bytes | None:
    """The inverse; None where the two do not belong together."""
    content, digest = stored[:-32], stored[-32:]
    return content if hashlib.sha256(content).digest() == digest else None
