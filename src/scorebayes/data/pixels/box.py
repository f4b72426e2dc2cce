"""Files from strangers are decoded in a process that may die: it has little time and memory, and costs that file only.

Decoders are C and C++ code, and a few changed bytes make some of them crash, loop or fill the memory. Here is the side that
asks. The other, ``box_worker``, is started at the first file and kept; every thread that reads has one of its own. It is a
plain process that talks through pipes: nothing is imported again, so that scripts, notebooks and daemons can start one.
Answers are numbers and words, never code (``wire``). docs/decisions/0025 says why it is done this way.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import selectors
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scorebayes.data.pixels import wire
from scorebayes.data.pixels.numbers import Stored
from scorebayes.errors import DataError

SECONDS = 10  # of processor time a file may take
SECONDS_AT_ALL = 60  # also where it waits, as for a disk
MEMORY = 2 * 2**30  # bytes
OUT_OF_MEMORY = 86  # exit status of a worker that has noticed it
START_SECONDS = 120  # until a worker must be there

_AGAIN = "Copy or download it again, or leave it out."


def read(path: Path, modalities: Sequence[str] = ()) -> tuple[Stored, str, str]:
    """The numbers of an image file, with laterality and view of a DICOM header; see ``formats.read_content``."""
    facts, arrays = _ask(path, {"what": "read", "modalities": list(modalities)})
    curve = arrays[1] if len(arrays) > 1 else None
    stored = Stored(arrays[0], facts["depth"], facts["white_is_zero"], curve)
    return stored, facts["laterality"], facts["view"]


def bits(path: Path) -> int:
    """Bits of a grey value or colour component; see ``formats.read_bits``."""
    return int(_ask(path, {"what": "bits"})[0]["bits"])


class _Gone(Exception):
    """The worker ended before it answered. ``status``: as of ``Popen.returncode``."""

    def __init__(self, status: int | None) -> None:
        super().__init__()
        self.status = status


class _Worker:
    """One process, for one thread at a time."""

    def __init__(self) -> None:
        self.used = False
        roots = [os.path.abspath(p) for p in sys.path if p]  # noqa: PTH100
        single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        self.process = subprocess.Popen(
            # -P: a file named numpy.py in the working directory is not imported.
            [sys.executable, "-P", "-W", "ignore", "-m", "scorebayes.data.pixels.box_worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
            env={**os.environ, **single, "PYTHONPATH": os.pathsep.join(roots)}, **_OWN_GROUP,
        )  # fmt: skip
        assert self.process.stdin is not None and self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        _enlarge(self.stdout.fileno())
        _all.add(self)

    def ask(self, path: Path, request: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
        """Facts and arrays. _Gone if the process ends; ValueError if it answers nonsense."""
        try:
            wire.send(self.stdin.write, request)  # type: ignore[arg-type]
            answer = wire.receive(self.stdout.readinto, path)  # type: ignore[attr-defined]
        except (EOFError, OSError):
            raise _Gone(self.end()) from None
        self.used = True
        return answer

    def is_there(self) -> bool:
        """Whether the process has started, which is waited for."""
        if sys.platform != "win32":  # where one can't wait for a pipe
            with selectors.DefaultSelector() as selector:
                selector.register(self.stdout, selectors.EVENT_READ)
                if not selector.select(START_SECONDS):
                    return False
        return self.stdout.read(1) == b"!"

    def end(self, seconds: float = 0.0) -> int | None:
        """Let the process end, in any case after so many seconds, and return its exit status."""
        with contextlib.suppress(OSError):
            self.stdin.close()
        try:
            status = self.process.wait(seconds or 1.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        self.stdout.close()
        _all.discard(self)
        return status


_OWN_GROUP: dict[str, Any] = (
    {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}  # type: ignore[attr-defined, unused-ignore]
    if sys.platform == "win32"
    else {"process_group": 0}  # so that Ctrl-C reaches only who can tell what it means
)
_all: set[_Worker] = set()
_idle: list[_Worker] = []
_lock = threading.Lock()
_slots = threading.BoundedSemaphore(os.cpu_count() or 1)
_cannot_start = False


def _ask(path: Path, request: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    try:
        folder = "" if path.is_absolute() else str(Path.cwd())
    except OSError:
        raise DataError(
            f"{path} does not exist, nor does the working directory.", "Give the whole path."
        ) from None
    request = {**request, "path": str(path), "folder": folder}
    with _slots:
        answer = _asked(path, request)
    facts, _ = answer
    if "problem" in facts:
        raise DataError(facts["problem"], facts["remedy"])
    return answer


def _asked(path: Path, request: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """The answer of a worker. Where one that has read other files dies, those may be the cause: a new one is asked."""
    for fresh in (False, True):
        worker = _take(fresh)
        if worker is None:
            return _without(request)
        used = worker.used
        try:
            answer = worker.ask(path, request)
        except _Gone as gone:
            if not used or gone.status in _BY_TIME:
                raise DataError(f"{path} {_cause(gone.status)}.", _AGAIN) from None
            continue
        except (ValueError, TypeError, KeyError):
            worker.process.kill()
            worker.end()
            raise DataError(f"{path} misled the process that decoded it.", _AGAIN) from None
        except BaseException:  # Ctrl-C: half an answer may be on its way
            worker.process.kill()
            worker.end()
            raise
        if answer[0].get("out_of_memory"):
            worker.end()
            if used:
                continue
            raise DataError(f"{path} {_cause(OUT_OF_MEMORY)}.", _AGAIN) from None
        with _lock:
            _idle.append(worker)
        return answer
    raise AssertionError("a fresh worker gave no answer")


_BY_TIME = tuple(-getattr(signal, name) for name in ("SIGPROF", "SIGALRM") if hasattr(signal, name))


def _cause(status: int | None) -> str:
    if status in _BY_TIME:
        return f"takes more than {SECONDS} s to decode"
    if status == OUT_OF_MEMORY:
        return f"needs more than {MEMORY / 2**30:.0f} GB of memory to be decoded"
    return "crashed the process that decoded it"


def _take(fresh: bool) -> _Worker | None:
    """A worker that is there; None where none can be started."""
    global _cannot_start
    with _lock:
        if _idle and not fresh:
            return _idle.pop()
    if _cannot_start:
        return None
    worker = _start()
    if worker is None:
        _cannot_start = True
        warnings.warn(
            "no process can be started to decode images in, so this one decodes them; a hostile file can crash it.",
            RuntimeWarning,
            stacklevel=6,
        )
    return worker


def _start() -> _Worker | None:
    if not sys.executable or getattr(sys, "frozen", False):
        return None
    try:
        worker = _Worker()
    except OSError:
        return None
    there = False
    try:
        there = worker.is_there()
    finally:  # also where Ctrl-C comes
        if not there:
            worker.process.kill()
            worker.end()
    return worker if there else None


def _without(request: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """The answer of this process."""
    from scorebayes.data.pixels import box_worker

    facts, arrays = box_worker.answer({**request, "folder": ""})
    if facts.get("out_of_memory"):
        raise DataError(f"{request['path']} needs more memory than there is.", _AGAIN)
    return facts, arrays


def _enlarge(pipe: int) -> None:
    """Let a pipe hold more than 64 kB, where the system can and allows it."""
    with contextlib.suppress(ImportError, AttributeError, OSError):
        import fcntl

        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 1 << 20)


@atexit.register
def _end_all() -> None:
    with _lock:
        workers = list(_idle)
        _idle.clear()
    for worker in workers:
        worker.end()


def _forget() -> None:
    """In the child of a fork: the workers are the parent's."""
    global _lock, _slots
    _lock, _slots = threading.Lock(), threading.BoundedSemaphore(os.cpu_count() or 1)
    for worker in list(_all):
        for end in (worker.stdin, worker.stdout):
            with contextlib.suppress(OSError):
                end.close()
        worker.process.returncode = 0  # nothing is to be said about it when it is forgotten
    _all.clear()
    _idle.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
