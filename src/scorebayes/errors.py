"""What users see when something goes wrong: what came, what was expected and what to do, with the command to paste."""

from __future__ import annotations

import shlex


class ScoreBayesError(Exception):
    """Base of all errors that are the input's fault, not the program's: shown as one line, without a traceback.

    Parameters
    ----------
    problem: what came and what was expected, naming the file, column or option.
    remedy: what the user can do about it.
    """

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(" ".join(f"{problem} {remedy}".split()))  # file names may hold line feeds
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
