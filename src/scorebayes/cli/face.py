"""What all commands share: ``--json`` and ``--quiet``, how they print, how they are stopped, and their exit codes."""

from __future__ import annotations

import functools
import inspect
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from scorebayes.errors import Stopped, printable
from scorebayes.progress import began, progress_shown

DONE, FAULT, USAGE, SOME_UNANSWERED, STOPPED = 0, 1, 2, 3, 128
EXIT_CODES = (
    "Exit codes: 0 done; 1 a fault in the input or in the value of an option; 2 the command cannot be understood; 3 done, "
    "but some images got no answer (unusable or declined); 130 stopped by Ctrl-C; 143 stopped by a kill."
)
AGAIN = "run the same command again to resume"
_OPTIONS = (
    ("as_json", "--json", "Print the result as one JSON object, and nothing else, on standard output."),
    ("quiet", "--quiet", "Don't show the progress on standard error."),
)


@dataclass(frozen=True)
class Told:
    """What a command has to say.

    facts: for machines. words: the same for people; empty where standard output belongs to something else. warnings: go to
    standard error. code: at exit. table: goes to standard output byte for byte in place of the words, unless that is a
    terminal.
    """

    facts: dict[str, Any]
    words: str
    warnings: tuple[str, ...] = ()
    code: int = DONE
    table: str = ""


def face(
    function: Callable[..., Told], *, resume: Callable[[dict[str, Any]], str] | str = ""
) -> Callable[..., None]:
    """A function as a command that prints what the function returns.

    resume: what somebody who stopped it can do, in words; by its arguments, if it depends on them.
    """

    @functools.wraps(function)
    def run(*, as_json: bool, quiet: bool, **arguments: Any) -> None:
        try:
            with progress_shown(not quiet), _stoppable():
                began(function.__name__.removesuffix("_command"))
                told = function(**arguments)
        except Stopped as stop:
            remedy = resume if isinstance(resume, str) else resume(arguments)
            say("; ".join(filter(None, [f"stopped {stop.where}".strip(), remedy])), err=True)
            raise typer.Exit(STOPPED + stop.number) from None
        for text in told.warnings:
            say(f"warning: {text}", err=True)
        if as_json:
            from scorebayes.storage.json_text import json_text

            say(json_text(told.facts))
        elif told.table and not sys.stdout.isatty():
            # With color, typer leaves escape sequences in.
            typer.echo(told.table.encode("utf-8", "backslashreplace").decode("utf-8"), nl=False, color=True)
        elif told.words or told.table:
            say(told.words or told.table.rstrip("\n"))
        if told.code:
            raise typer.Exit(told.code)

    keyword = inspect.Parameter.KEYWORD_ONLY
    shared = [
        inspect.Parameter(
            name, keyword, default=False, annotation=Annotated[bool, typer.Option(flag, help=told)]
        )
        for name, flag, told in _OPTIONS
    ]
    own = inspect.signature(function, eval_str=True)
    parameters = [of.replace(kind=keyword) for of in own.parameters.values()]
    run.__signature__ = inspect.Signature([*parameters, *shared])  # type: ignore[attr-defined]
    run.__annotations__ = {of.name: of.annotation for of in (*parameters, *shared)}
    return run


def say(text: str, err: bool = False) -> None:
    """Print lines of text; what the terminal cannot show or would obey, such as bytes of a file name, in escapes."""
    typer.echo(printable(text, keep="\n"), err=err)


def aligned(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows of cells as columns of plain text."""
    rows = [tuple(map(printable, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


@contextmanager
def _stoppable() -> Iterator[None]:
    """Ctrl-C and SIGTERM end the work by ``Stopped``. A training saves its state before it lets go."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _frame: Any) -> None:
        raise Stopped(number)

    before = [(number, signal.signal(number, end)) for number in (signal.SIGTERM, signal.SIGINT)]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)
