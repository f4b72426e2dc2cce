"""What long work tells on standard error: bars in a terminal, plain lines in a log. Silent unless somebody asked.

The command line asks for it, other programs do so by ``with progress_shown(): ...``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from scorebayes.errors import printable

Advance = Callable[[int, str], None]

SECONDS_BETWEEN_LINES = 30.0
LEAST_SECONDS_BETWEEN_LINES = 5.0
SHARE_BETWEEN_LINES = 0.1
_shown: ContextVar[bool] = ContextVar("progress_shown", default=False)


@contextmanager
def progress_shown(shown: bool = True) -> Iterator[None]:
    """While it lasts, long work in this thread tells how far it is (or, with False, is silent)."""
    token = _shown.set(shown)
    try:
        yield
    finally:
        _shown.reset(token)


def began(work: str) -> None:
    """The first word of some work, before the libraries are loaded that take seconds."""
    if _shown.get():
        sys.stderr.write(f"{work} ...\n")
        sys.stderr.flush()


@contextmanager
def progress_bar(
    title: str, total: int, done: int = 0, *, limit: float | None = None, patience: float = 0.0
) -> Iterator[Advance]:
    """Yields ``advance(done, note)``, which sets how much is done and a short note next to it.

    limit: seconds after which the work ends, done or not. patience: work that is done within so many seconds is not
    mentioned.
    """
    work = _Work(title, total, done, limit)
    if not _shown.get() or done >= total:
        yield work.advance
        return
    view: _View = _Bar(work) if sys.stderr.isatty() else _Lines(work)
    begun = False

    def advance(now: int, note: str) -> None:
        nonlocal begun
        work.advance(now, note)
        if begun:
            view.update()
        elif now < total and work.elapsed >= patience:
            view.begin()
            begun = True

    if patience == 0:
        view.begin()
        begun = True
    try:
        yield advance
    finally:
        if begun:
            view.end()


@dataclass
class _Work:
    """How far some work is."""

    title: str
    total: int
    done: int
    limit: float | None
    note: str = ""
    first: int = field(init=False)
    start: float = field(init=False)

    def __post_init__(self) -> None:
        self.title = printable(self.title)
        self.first, self.start = self.done, time.monotonic()

    def advance(self, now: int, note: str) -> None:
        self.done, self.note = now, printable(note)

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.start

    @property
    def left(self) -> float | None:
        """Seconds until it is done or its time is over; None where nothing is known yet."""
        made = self.done - self.first
        by_speed = self.elapsed * (self.total - self.done) / made if made > 0 else None
        by_limit = None if self.limit is None else max(0.0, self.limit - self.elapsed)
        known = [seconds for seconds in (by_speed, by_limit) if seconds is not None]
        return min(known) if known else None


class _View(Protocol):
    def begin(self) -> None: ...

    def update(self) -> None: ...

    def end(self) -> None: ...


class _Bar:
    """In a terminal."""

    def __init__(self, work: _Work) -> None:
        self.work = work
        columns = (
            TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", markup=False), TextColumn("{task.fields[note]}", markup=False),
        )  # fmt: skip
        self.bar = Progress(*columns, console=Console(stderr=True))

    def begin(self) -> None:
        work = self.work
        self.task = self.bar.add_task(work.title, total=work.total, completed=work.done, left="", note="")
        self.bar.start()

    def update(self) -> None:
        left = self.work.left
        told = "" if left is None or self.work.done >= self.work.total else f"{clock(left)} left"
        self.bar.update(self.task, completed=self.work.done, left=told, note=self.work.note)

    def end(self) -> None:
        self.bar.stop()


class _Lines:
    """In a file or a pipe: a line at once, and then now and again."""

    def __init__(self, work: _Work) -> None:
        self.work = work
        self.told_at, self.told = 0.0, -1

    def begin(self) -> None:
        self._tell()

    def update(self) -> None:
        since, more = time.monotonic() - self.told_at, self.work.done - self.told
        much = more >= SHARE_BETWEEN_LINES * self.work.total and since >= LEAST_SECONDS_BETWEEN_LINES
        if much or since >= SECONDS_BETWEEN_LINES:
            self._tell()

    def end(self) -> None:
        if self.work.done != self.told:
            self._tell()

    def _tell(self) -> None:
        work = self.work
        parts = [f"{work.title}: {work.done} of {work.total}", clock(work.elapsed)]
        if work.left is not None and work.done < work.total:
            parts.append(f"{clock(work.left)} left")
        sys.stderr.write(", ".join([*parts, *filter(None, [work.note])]) + "\n")
        sys.stderr.flush()
        self.told_at, self.told = time.monotonic(), work.done


def clock(seconds: float) -> str:
    """0:01:05."""
    return str(timedelta(seconds=round(seconds)))
