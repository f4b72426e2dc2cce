"""File names come from strangers: they steer no terminal, are no markup, and lead nowhere else."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
import unicodedata

import pytest
from fixtures.terminal import RUN

from scorebayes import progress
from scorebayes.errors import DataError, printable
from scorebayes.progress import progress_bar, progress_shown
from scorebayes.tasks.answer import Answer

pytest_plugins = ["fixtures.terminal"]

NAMES = (
    "\x1b]0;owned\x07\x1b[31mred.png",
    "\x9b31mc1.png",
    "[/x].png",
    "[red]a[bold",
    "a\r\nb\tc.png",
    "\u202egnp.exe.png",
    "=1+1.png",
    "ä 乳.png",
)


def steers(text: str) -> list[str]:
    """Characters that a terminal obeys or that reorder what it shows."""
    return [c for c in text if (unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c != "\n")]


@pytest.fixture(scope="module")
def strange(place):
    """Folders with a good image and one that is none, for each of the names."""
    for number, name in enumerate(NAMES):
        for folder, content in ("good", place / "images/case0.png"), ("bad", place / "bad.dcm"):
            target = place / "strange" / str(number) / f"{folder} {name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(content, target)
    return [
        place / "strange" / str(number) / f"{kind} {name}"
        for kind in ("good", "bad")
        for number, name in enumerate(NAMES)
    ]


@pytest.mark.parametrize("terminal", [False, True])
def test_no_name_steers_the_terminal_and_the_table_is_exact(call, place, strange, monkeypatch, terminal):
    if terminal:
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
        monkeypatch.setattr("scorebayes.progress.Console", lambda **_: progress_console())
    for form in ([], ["--json"], ["--out", "names.csv"], ["--out", "-"]):
        done = call("predict", RUN, *strange, "--force", *form)
        assert done.code == 3 and (done.err.count("\n") < 40)
        out = done.out
        if form == ["--out", "-"]:
            assert [row[0].lstrip("'") for row in csv.reader(io.StringIO(out))][1:] == [
                str(p) for p in strange
            ]
            out = ""
        if form == ["--json"]:
            assert [of["file"] for of in json.loads(out)["answers"]] == [str(path) for path in strange]
        assert not steers(out) and not steers(done.err)
    with (place / "names.csv").open(newline="") as file:
        assert [row["file"] for row in csv.DictReader(file)] == [str(path) for path in strange]


def progress_console():
    from rich.console import Console

    return Console(stderr=True, force_terminal=False)


def test_a_table_that_is_shown_in_a_terminal_does_not_steer_it(call, strange, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert not steers(call("predict", RUN, *strange, "--out", "-").out)


@pytest.mark.parametrize("command", [("data", "check"), ("data", "show")])
def test_the_names_of_a_data_set_neither(call, place, strange, command):
    root = place / "classes [/x] \x1b[31m"
    for number, path in enumerate(strange):
        target = root / ("b [/x]", "m \x1b[31m")[number % 2] / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    for form in ([], ["--json"]):
        done = call(*command, f"folder:{root}", *form)
        assert done.out and not steers(done.out) and not steers(done.err)
    shutil.rmtree(root)


def test_explain_shows_a_file_of_any_name(call, strange):
    for path in strange[:2]:
        done = call("explain", RUN, path, "--no-counterfactual")
        assert done.code == 0 and not steers(done.out) and not steers(done.err)


def test_a_title_and_a_note_are_no_markup(monkeypatch, capsys):
    """A bar with the name of a data set in its title failed after the work was done."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(progress, "Console", lambda **_: progress_console())
    with progress_shown(), progress_bar("evidence [/x] \x1b[31m", 2) as advance:
        advance(1, "[/note] \x9b")
        advance(2, "[bold]")
    told = capsys.readouterr().err
    assert "[/x]" in told and r"\x1b[31m" in told and not steers(told)


def test_messages_and_answers_can_be_printed():
    for name in NAMES:
        for shown in (str(DataError(f"{name} is bad.", name)), str(Answer(name, "malignant", reason=name))):
            assert not steers(shown)
    assert printable("a\x1bb\x9bc\udcff\n", keep="\n") == "a\\x1bb\\u009bc\\udcff\n"
    assert printable("ä 乳 é") == "ä 乳 é"


def test_links_that_leave_the_folder_are_set_apart_and_others_are_followed(call, place):
    """``predict FOLDER`` opened what a link in it pointed to."""
    folder = place / "linked"
    folder.mkdir()
    shutil.copy(place / "images/case0.png", folder / "a.png")
    (folder / "b.png").symlink_to("a.png")
    (folder / "c.png").symlink_to(place / "images/case1.png")
    (folder / "d.png").symlink_to("../images/case1.png")
    (folder / "e.png").symlink_to("e.png")
    (folder / "f.png").symlink_to("/dev/zero")
    answers = {
        of["file"][-5]: of
        for of in json.loads(call("predict", RUN, "linked", "--force", "--json").out)["answers"]
    }
    assert {name for name, of in answers.items() if of["status"] == "ok"} == {"a", "b"}
    assert all("a link that points outside" in answers[name]["status"] for name in "cd")
    assert "cannot be opened" in answers["e"]["status"] and "device" in answers["f"]["status"]
    named = json.loads(call("predict", RUN, "linked/c.png", "--force", "--json").out)  # named by the user
    assert named["answers"][0]["status"] == "ok"
