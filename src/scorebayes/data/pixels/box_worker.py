"""The process in the box: reads image files for another one, within limits of time and memory (``box``).

It begins with "!" on standard output, answers requests from standard input in turn, and ends when that does.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from scorebayes.data.pixels import wire
from scorebayes.data.pixels.box import MEMORY, OUT_OF_MEMORY, SECONDS, SECONDS_AT_ALL
from scorebayes.data.pixels.formats import read_bits, read_content
from scorebayes.errors import DataError

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


def answer(request: dict[str, Any]) -> tuple[dict[str, Any], list[NDArray]]:
    """Facts and arrays for one request."""
    path = Path(request["path"])
    try:
        if request["folder"]:
            os.chdir(request["folder"])
        if request["what"] == "bits":
            return {"bits": read_bits(path)}, []
        content = read_content(path, request["modalities"])
    except DataError as error:
        return {"problem": error.problem, "remedy": error.remedy}, []
    except MemoryError:
        return {"out_of_memory": True}, []
    except OSError as error:
        return {"problem": f"{path} cannot be read: {error.strerror}.", "remedy": "Check the disk."}, []
    except Exception as error:  # no list of what decoders raise has ever been complete
        return {
            "problem": f"{path} cannot be decoded ({type(error).__name__}).",
            "remedy": "Leave it out.",
        }, []
    stored = content.stored
    facts = {
        "depth": stored.depth,
        "white_is_zero": stored.white_is_zero,
        "laterality": content.laterality,
        "view": content.view,
    }
    return facts, [array for array in (stored.values, stored.curve) if array is not None]


def main() -> None:
    """Answer until nobody asks any more."""
    fill, write = os.fdopen(os.dup(0), "rb", 0).readinto, os.fdopen(os.dup(1), "wb", 0).write
    silent = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1):  # what decoders print must not get among the answers
        os.dup2(silent, standard)
    _limit_memory()
    if hasattr(signal, "setitimer"):  # whatever those who started this process have done with the signals
        timers = {signal.SIGPROF, signal.SIGALRM}
        for number in timers:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, timers)
    write(b"!")
    while True:
        try:
            request, _ = wire.receive(fill)
        except EOFError:
            return
        _limit_time(True)
        facts, arrays = answer(request)
        wire.send(write, facts, arrays)
        _limit_time(False)


def _limit_time(on: bool) -> None:
    """The default action of these signals ends the process, whatever it is doing."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, SECONDS if on else 0)
        signal.setitimer(signal.ITIMER_REAL, SECONDS_AT_ALL if on else 0)
    else:
        import faulthandler

        if on:
            faulthandler.dump_traceback_later(SECONDS, exit=True)
        else:
            faulthandler.cancel_dump_traceback_later()


def _limit_memory() -> None:
    if resource is None:
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # it would hold the image
    if sys.platform == "linux":
        pages, resident = map(int, Path("/proc/self/statm").read_text().split()[:2])
        most = MEMORY + (pages - resident) * resource.getpagesize()  # libraries reserve more than they use
        there = [limit for limit in resource.getrlimit(resource.RLIMIT_AS) if limit != resource.RLIM_INFINITY]
        most = min([most, *there])
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    else:  # others accept the limit and don't keep to it
        threading.Thread(target=_watch_memory, daemon=True).start()


def _watch_memory() -> None:
    unit = 1 if sys.platform == "darwin" else 1024
    while resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit < MEMORY:
        time.sleep(0.05)
    os._exit(OUT_OF_MEMORY)


if __name__ == "__main__":
    main()
