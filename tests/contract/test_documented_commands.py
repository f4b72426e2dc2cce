"""Every command that the documents show is one that the program takes: its name, its options and how many arguments."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from scorebayes.cli.main import app

PROJECT = Path(__file__).parents[2]
DOCUMENTS = [
    PROJECT / "README.md",
    PROJECT / "CONTRIBUTING.md",
    PROJECT / "benchmarks" / "README.md",
    *(PROJECT / "docs").rglob("*.md"),
]


def shown(document: Path) -> list[str]:
    """The commands in its shell blocks, without what follows a number sign."""
    blocks = re.findall(r"^```sh\n(.*?)^```", document.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = (line.partition(" #")[0] for block in blocks for line in block.splitlines())
    return [
        part.strip() for line in lines for part in line.split("&&") if part.strip().startswith("scorebayes ")
    ]


def mentioned(document: Path) -> list[str]:
    """The commands within a sentence, which may leave out arguments."""
    return re.findall(r"`(scorebayes [a-z][^`]*)`", document.read_text(encoding="utf-8"))


COMMANDS = sorted({(d.relative_to(PROJECT).as_posix(), c) for d in DOCUMENTS for c in shown(d)})
MENTIONS = sorted({(d.relative_to(PROJECT).as_posix(), c) for d in DOCUMENTS for c in mentioned(d)})


def found(command: str) -> tuple[typer.main.TyperCommand, list[str]]:
    """The command of the program, and the words that follow its name."""
    group, words = typer.main.get_command(app), shlex.split(command)[1:]
    while words and hasattr(group, "commands"):
        assert words[0] in group.commands, f"no command {words[0]!r}"
        group = group.commands[words.pop(0)]
    return group, words


@pytest.mark.parametrize(("document", "command"), COMMANDS)
def test_a_command_that_is_shown_would_be_taken(document, command):
    program, words = found(command)
    program.make_context("scorebayes", words)  # raises for an unknown option or argument, or one that lacks


@pytest.mark.parametrize(("document", "command"), MENTIONS)
def test_a_command_in_a_sentence_has_options_that_there_are(document, command):
    program, words = found(command)
    known = {
        option for parameter in program.params for option in (*parameter.opts, *parameter.secondary_opts)
    }
    assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known


def test_the_documents_show_commands():
    assert len(COMMANDS) > 20 and len(MENTIONS) > 20
