"""What commands print, for people, logs and machines; their pictures, and the commands that they advise."""

from __future__ import annotations

import html
import json
import re
import shlex
import sys
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import typer
from fixtures.terminal import RUN, TRAIN
from fixtures.tiny_run import DATA
from PIL import Image
from typer.testing import CliRunner

from scorebayes import progress
from scorebayes.cli.main import app
from scorebayes.explain.pictures import folder_of
from scorebayes.runs import reader
from scorebayes.runs.run import open_run

pytest_plugins = ["fixtures.terminal"]


# --- what is printed ----------------------------------------------------------------------------------------


def test_training_ends_with_its_figures(place):
    """U3: ``train`` ended without a figure."""
    told = (place / "trained.txt").read_text()
    for words in (
        "AUC",
        "sensitivity",
        "specificity",
        "threshold",
        "log-loss",
        "time",
        "steps",
        "12 of 6 patients",
    ):
        assert words in told, words
    assert f"next: scorebayes score '{RUN}' --split test" in told


def test_prediction_needs_no_file_and_prints_a_row_for_each_image(call):
    """U3: ``predict FILE`` demanded --out and said "1 of 1 files classified"."""
    done = call("predict", RUN, "images/case0.png", "bad.dcm", "--force")
    row, bad = (
        next(line for line in done.out.splitlines() if line.startswith(name)) for name in ("images", "bad")
    )
    frame = pd.read_csv(place_csv(call, "images/case0.png"))
    prob, error = frame.loc[0, "prob_malignant"], frame.loc[0, "log_odds_std_error"]
    assert f"{prob:.3f} ± {error * prob * (1 - prob):.3f}" in row
    assert row.split()[1] == frame.loc[0, "predicted"]
    assert "quarantined" in bad and "web page" in bad
    assert "1 of 2 files classified" in done.out


def place_csv(call: Any, file: str) -> Path:
    assert call("predict", RUN, file, "--out", "one.csv", "--force", "--quiet").code == 0
    return call.keywords["folder"] / "one.csv"


def test_a_table_goes_to_standard_output_and_nothing_else_does(call):
    """U3: ``--out -``."""
    done = call("predict", RUN, "images", "bad.dcm", "--out", "-", "--force")
    assert done.out.splitlines()[0].startswith("file,warning,predicted") and len(done.out.splitlines()) == 4
    assert "bad.dcm" in done.err


def test_an_explanation_says_what_it_explains(call, place):
    """U3: ``explain`` printed neither probability nor verdict."""
    done = call("explain", RUN, "images/case0.png", "--json", "--quiet")
    facts = json.loads(done.out)
    answer = json.loads(call("predict", RUN, "images/case0.png", "--json", "--force", "--quiet").out)[
        "answers"
    ][0]
    assert facts["posterior"]["malignant"] == pytest.approx(answer["prob_malignant"], abs=1e-6)
    assert (facts["verdict"], facts["decided"]) == (answer["verdict"], answer["decided"])
    told = call("explain", RUN, "images/case0.png", "--no-counterfactual").out
    assert (
        f"malignant {facts['posterior']['malignant']:.3f}" in told and f"verdict: {facts['verdict']}" in told
    )
    with chdir(place):
        assert f"{folder_of(open_run(RUN, 'cpu'), Path('images/case0.png'))}/evidence.png" in told


JSON = {
    "train": ("--resume", RUN),
    "tune": ("runs/copy",),
    "score": (RUN,),
    "baseline": (RUN, "logistic"),
    "evaluate": (RUN,),
    "recalibrate": (RUN, "--data", DATA, "--out", "runs/there"),
    "predict": (RUN, "images", "--force"),
    "explain": (RUN, "images/case0.png"),
    "sample": (RUN, "--per-class", "1", "--steps", "2"),
    "report": (RUN,),
    "doctor": (),
    "data check": (DATA, "--workers", "0"),
    "data show": (DATA, "-n", "2", "--size", "16"),
    "benchmark page": ("--results", "none", "--figures", "none", "--out", "page.md"),
}


@pytest.mark.parametrize("command", JSON)
def test_machines_get_one_object_and_nothing_else(call, copy, command):
    """U3: ``--json`` only in ``data check``."""
    done = call(*command.split(), *JSON[command], "--json")
    assert done.code == 0, done.err
    facts = json.loads(done.out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert isinstance(facts, dict) and facts


def commands(group: Any, *before: str) -> list[tuple[str, Any]]:
    if not hasattr(group, "commands"):
        return [(" ".join(before), group)]
    return [found for name, of in group.commands.items() for found in commands(of, *before, name)]


@pytest.mark.parametrize(("name", "command"), commands(typer.main.get_command(app)))
def test_every_command_can_speak_to_machines_and_be_silent(name, command):
    """U3: one way for all commands."""
    options = {option for parameter in command.params for option in parameter.opts}
    assert {"--json", "--quiet"} <= options, name


# --- progress -----------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def work(clock: list[float], steps: int, seconds: float, done: int = 0, **options: Any) -> None:
    with progress.progress_bar("work", steps, done, **options) as advance:
        for step in range(done, steps):
            clock[0] += seconds
            advance(step + 1, f"note {step + 1}")


def test_a_log_gets_lines_now_and_again(clock, capsys):
    """U4: piped output was empty for minutes."""
    with progress.progress_shown():
        work(clock, 100, 1.0)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "work: 0 of 100, 0:00:00"
    assert lines[5] == "work: 50 of 100, 0:00:50, 0:00:50 left, note 50"
    assert lines[-1] == "work: 100 of 100, 0:01:40, note 100" and len(lines) == 11
    with progress.progress_shown():
        work(clock, 10, 200.0)
        work(clock, 1000, 0.001)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 11 + 2  # slow work at every step, fast work at its begin and end


def test_the_library_and_quiet_commands_are_silent(clock, capsys, monkeypatch, call):
    """U4: bars of a library in somebody else's program."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    work(clock, 10, 10.0)
    assert capsys.readouterr() == ("", "")
    monkeypatch.undo()
    done = CliRunner().invoke(app, ["data", "check", DATA, "--workers", "0", "--quiet"])
    assert not done.stderr
    assert "decode: 80 of 80" in CliRunner().invoke(app, ["data", "check", DATA, "--workers", "0"]).stderr


def test_the_time_left_knows_its_limit_and_where_it_began(clock):
    """U4: with --minutes the remaining time was wrong."""
    limited = progress._Work("train", 3000, 900, limit=120.0)
    assert limited.left == 120
    clock[0] += 100
    limited.advance(1000, "")
    assert limited.left == 20
    resumed = progress._Work("train", 1000, 900, limit=None)
    assert resumed.left is None
    clock[0] += 10
    resumed.advance(950, "")
    assert resumed.left == 10


def test_a_training_that_ran_out_of_time_says_so(call, tmp_path):
    """U4: the stop by --minutes was unexplained."""
    done = call(*TRAIN, "--out", tmp_path / "run", "--steps", "100000", "--minutes", "0.01")
    assert done.code == 0, done.err
    assert re.search(r"stopped after 0\.01 minutes at step \d+ of 100000, as --minutes asked", done.out), (
        done.out
    )


def test_images_from_the_cache_are_not_prepared_again_before_the_eyes_of_the_user(
    call, tmp_path, monkeypatch
):
    """U4: the "prepare" bar came 4 to 8 times in one command."""
    from scorebayes.data import open_source

    source = open_source(DATA)
    for record in source.records():
        name = tmp_path / "images" / source.info.classes[record.label] / f"{record.image_id}.png"
        name.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.rint(source.read(record) * 255).astype(np.uint8)).save(name)
    monkeypatch.setattr(reader, "PATIENCE", 1e-9)
    words = [DATA if word == DATA else word for word in TRAIN]
    words[words.index(DATA)] = f"folder:{tmp_path / 'images'}"
    done = call(*words, "--out", tmp_path / "run", "--steps", "2", "--size", "16")
    assert done.code == 0, done.err
    assert len(re.findall(r"^prepare: 80 of 80", done.err, re.MULTILINE)) == 1
    assert len(re.findall(r"^prepare: \d+ of \d+", done.err, re.MULTILINE)) <= 2


# --- commands to paste, pictures ----------------------------------------------------------------------------


def quoted(page: str) -> list[str]:
    """The commands in a report: in code, and between backticks in sentences."""
    found = re.findall(r"<code>(scorebayes .*?)</code>|`(scorebayes [^`]*)`", page)
    return sorted({html.unescape(a or b) for a, b in found})


def test_commands_in_the_report_can_be_pasted(call, place, copy):
    """U6: ``scorebayes explain mine`` fails where the run is runs/mine."""
    named = copy.rename(copy.with_name("of mine"))
    for name in ("samples.npz", "evidence.npz"):
        (named / name).unlink(missing_ok=True)
    try:
        assert call("report", "runs/of mine").code == 0
        found = quoted((named / "report.html").read_text())
        assert len(found) >= 5
        for line in found:
            program, words = typer.main.get_command(app), shlex.split(line)[1:]
            while hasattr(program, "commands"):
                program = program.commands[words.pop(0)]
            program.make_context("scorebayes", list(words))
            assert "runs/of mine" in words, line
        for name in ("explain", "sample"):
            line = next(line for line in found if line.split()[1] == name)
            done = call(*shlex.split(line)[1:])
            assert done.code == 0, (line, done.err)
    finally:
        named.rename(copy)


def test_commands_in_errors_can_be_pasted(call, copy):
    """U6: the advice of an error runs as it stands."""
    (copy / "calibration.json").unlink()
    done = call("predict", "runs/copy", "images")
    line = re.search(r"`(.*)`", done.err)
    assert done.code == 1 and line, done.err
    assert call(*shlex.split(line[1])[1:]).code == 0


def inside(figure: Any) -> None:
    """Every text of a figure lies on its page."""
    figure.canvas.draw()
    page = figure.bbox
    for text in figure.findobj(lambda artist: hasattr(artist, "get_text")):
        if text.get_visible() and text.get_text().strip():
            box = text.get_window_extent()
            assert page.x0 - 1 <= box.x0 and box.x1 <= page.x1 + 1, text.get_text()
            assert page.y0 - 1 <= box.y0 and box.y1 <= page.y1 + 1, text.get_text()


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved."""
    from matplotlib.figure import Figure

    saved, real = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **b: (saved.append(self), real(self, *a, **b)))
    return saved


@pytest.mark.parametrize("number", ["1", "3"])
def test_titles_of_samples_are_not_cut_off(call, figures, number):
    """U6: the titles of samples.png were cut off."""
    assert call("sample", RUN, "--per-class", number, "--steps", "2").code == 0
    inside(figures[-1])


def test_a_contact_sheet_is_about_square_and_its_titles_fit(call, figures, place, tmp_path):
    """U6: ``data show -n 60`` was one row of 15,120 pixels."""
    names = ["carcinoma in situ of the left breast, screening round two", "B"]
    for name in names:
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(30):
            pixels = np.full((8, 8), number, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number:02d}.png")
    done = call(
        "data", "show", f"folder:{tmp_path / 'images'}", "-n", "60", "--size", "8", "--out", "sheet.png"
    )
    assert done.code == 0 and "60 images" in done.out
    width, height = Image.open(place / "sheet.png").size
    assert max(width, height) < 4000 and 0.5 < width / height < 2
    inside(figures[-1])
    call("data", "show", f"folder:{tmp_path / 'images'}", "-n", "1", "--size", "8", "--out", "sheet.png")
    inside(figures[-1])
