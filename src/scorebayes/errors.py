"""What users see when something goes wrong: what came, what was expected and what to do, with the command to paste."""

from __future__ import annotations

import re
import shlex

_STEERING = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, keep: str = "") -> str:
    """Text that may be shown in a terminal. File names come from strangers: control characters, such as begin a
    command to the terminal, line ends, changes of the direction of writing and what is no character become escapes,
    ``\\x1b`` or ``\\u202e``, which JSON takes as well where it may hold such characters. ``keep``: those that stay."""
    return _STEERING.sub(lambda found: found[0] if found[0] in keep else _escape(ord(found[0])), text)


def _escape(point: int) -> str:
    return f"\\x{point:02x}" if point < 0x20 else f"\\u{point:04x}"


class ScoreBayesError(Exception):
    """Base of all errors that are the input's fault, not the program's: shown as one line, without a traceback.

    Parameters
    ----------
    problem: what came and what was expected, naming the file, column or option.
    remedy: what the user can do about it.
    """

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(printable(" ".join(f"{problem} {remedy}".split())))  # file names may hold line feeds
        self.problem = problem
        self.remedy = remedy


class DataError(ScoreBayesError):
    """A file, table or image cannot be used."""


class ConfigError(ScoreBayesError):
    """An option, a configuration file or a run directory does not fit."""


class NumericalError(ScoreBayesError):
    """A computation gave no usable number (NaN loss, failed solve)."""


class Stopped(KeyboardInterrupt):
    """Somebody stopped the program, and what was done is safe.

    Parameters
    ----------
    number: of the signal (2 for Ctrl-C, 15 for a polite kill).
    where: how far it came, such as "at step 900 of 3000".
    """

    def __init__(self, number: int, where: str = "") -> None:
        super().__init__()
        self.number = number
        self.where = where


def command(*words: object) -> str:
    """A command line of this program that can be pasted into a shell as it stands: ``command("report", run.path)``."""
    return shlex.join(["scorebayes", *(str(word) for word in words)])
