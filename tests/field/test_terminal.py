"""The command line as a newcomer meets it: what it prints, how it is stopped and resumed, its exit codes, its commands."""

from __future__ import annotations

import html
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
import typer
from fixtures.tiny_run import DATA, LAYER, train_tiny, write_pictures
from PIL import Image
from typer.testing import CliRunner

from scorebayes import progress
from scorebayes.cli.main import app, main
from scorebayes.explain.pictures import folder_of
from scorebayes.runs import reader
from scorebayes.runs.run import open_run
from scorebayes.stages.evaluate import evaluate
from scorebayes.stages.score import score_split

GUIDE = Path(__file__).parents[2] / "docs" / "guide.md"
RUN = "runs/my run"  # with a blank: commands must be quoted
CONFIG = """
seed = 6

[net]
channels = [8, 16]
blocks = 1
attention = 1

[train]
batch = 8
validate_every = 4
warmup = 2
precision = "fp32"

[likelihood]
levels = 4
repeats = 1
"""
TRAIN = ("train", "--data", DATA, "--preset", "tiny", "--config", "config.toml")


class Ended(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a trained, scored and evaluated run, and some pictures. ``trained``: what training printed."""
    path = tmp_path_factory.mktemp("terminal")
    (path / "config.toml").write_text(CONFIG)
    here = Path.cwd()
    os.chdir(path)
    try:
        done = CliRunner().invoke(app, [*TRAIN, "--out", RUN, "--steps", "12"])
        assert done.exit_code == 0, done.output
        run = open_run(path / RUN, "cpu")
        score_split(run, "test")
        evaluate(run, "test")
        (path / "images").mkdir()
        write_pictures(path / "images", 2)
        for name in ("a", "b"):
            (path / name).mkdir()
        shutil.copy(path / "images" / "case0.png", path / "a" / "1-1.png")
        shutil.copy(path / "images" / "case1.png", path / "b" / "1-1.png")
        Image.fromarray(255 - np.asarray(Image.open(path / "images" / "case0.png"))).save(
            path / "inverted.png"
        )
        (path / "bad.dcm").write_text("<html>not found</html>")
        (path / "trained.txt").write_text(done.stdout)
    finally:
        os.chdir(here)
    return path


@pytest.fixture
def call(place, monkeypatch, capsys):
    """The program with these words, in the folder ``place``."""

    def call(*words: str) -> Ended:
        monkeypatch.chdir(place)
        monkeypatch.setattr(sys, "argv", ["scorebayes", *map(str, words)])
        monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        return Ended(code, *capsys.readouterr())

    return call


@pytest.fixture
def copy(place):
    """A copy of the run that a test may change."""
    path = place / "runs" / "copy"
    shutil.copytree(place / RUN, path)
    yield path
    shutil.rmtree(path)


def start(folder: Path, *words: str) -> subprocess.Popen:
    code = "from scorebayes.cli.main import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *words], cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def final_weights(path: Path) -> dict[str, torch.Tensor]:
    checkpoints = open_run(path, "cpu").checkpoints
    return checkpoints.load(checkpoints.best())


# --- resuming ------------------------------------------------------------------------------------------------


def test_a_run_is_resumed_by_its_name_and_nothing_else(call, copy):
    """U1: ``train --resume RUN`` asked for --data, and then for options that were never given."""
    (copy / "calibration.json").unlink()
    before = (copy / "config.toml").read_text()
    done = call("train", "--resume", copy)
    assert done.code == 0, done.err
    assert (copy / "calibration.json").exists() and (copy / "config.toml").read_text() == before
    assert call("train", "--out", copy, "--resume").code == 0
    assert call("train", "--out", copy, "--resume", "--data", DATA, "--steps", "12", "--seed", "6").code == 0


def test_an_option_that_contradicts_the_run_is_named_and_no_other(call, copy):
    """U1: the error named options that the user had not given."""
    before = (copy / "config.toml").read_text()
    done = call("train", "--resume", copy, "--steps", "13", "--seed", "6")
    assert done.code == 1
    assert "than --steps 13: train.steps: 12 -> 13." in done.err
    assert "--data" not in done.err and "--seed" not in done.err and "--preset" not in done.err
    done = call("train", "--resume", copy, "--data", "phantom:n_patients=41")
    assert done.code == 1 and "--data phantom:n_patients=41" in done.err
    assert (copy / "config.toml").read_text() == before


def test_what_the_weights_do_not_depend_on_may_change_on_resuming(call, copy, place):
    """U1: a file with more evaluations is all that a finished run needs."""
    (place / "more.toml").write_text("[likelihood]\nrepeats = 2\n")
    done = call("train", "--resume", copy, "--config", "more.toml")
    assert done.code == 0, done.err
    own = open_run(copy, "cpu").config.sections["likelihood"]
    assert (own["levels"], own["repeats"]) == (4, 2)


def test_what_cannot_be_resumed_says_what_is_missing(call):
    """U1: a typing error in the name of the run."""
    done = call("train", "--resume", "runs/absent")
    assert done.code == 1 and "no run to go on with" in done.err
    assert call("train").code == 2 and call("train", "runs/absent").code == 2


# --- stopping ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_training_says_where_it_stands_and_how_to_go_on(tmp_path, number, code):
    """U2: Ctrl-C printed nothing."""
    (tmp_path / "config.toml").write_text(CONFIG)
    process = start(tmp_path, *TRAIN, "--out", RUN, "--steps", "12000")
    manifest, deadline = tmp_path / RUN / "checkpoints" / "manifest.json", time.monotonic() + 120
    while not manifest.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert not out and "Traceback" not in err
    found = re.search(r"^stopped at step (\d+) of 12000; resume with: (.*)$", err, re.MULTILINE)
    assert found, err
    assert shlex.split(found[2]) == ["scorebayes", "train", "--resume", RUN]
    entries = open_run(tmp_path / RUN, "cpu").checkpoints.entries("state")
    assert int(found[1]) - 4 <= entries[-1]["step"] <= int(found[1])  # 4 steps: between two checkpoints


def test_stopped_and_resumed_the_weights_are_those_of_an_undisturbed_run(tmp_path, monkeypatch, place, call):
    """U2: a stop between two steps loses nothing."""
    from scorebayes.training import loop

    real = loop._step

    def step(plan: Any, state: Any) -> float:
        if state.step == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return real(plan, state)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_step", step)
        done = call(*TRAIN, "--out", tmp_path / "run", "--steps", "12")
    assert done.code == 130 and re.search(r"stopped at step [67] of 12;", done.err), done.err
    assert call("train", "--resume", tmp_path / "run").code == 0
    resumed, whole = final_weights(tmp_path / "run"), final_weights(place / RUN)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


@pytest.mark.parametrize(
    ("words", "stage", "says"),
    [
        (
            ("score", RUN),
            "scorebayes.stages.score.score_split",
            "stopped; run the same command again to resume\n",
        ),
        (("predict", RUN, "images"), "scorebayes.stages.predict.predict_files", "stopped\n"),
    ],
)
def test_other_commands_promise_to_resume_only_where_they_do(call, monkeypatch, words, stage, says):
    """U2: "stopped" with the truth about what happens next."""

    def interrupted(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)

    monkeypatch.setattr(stage, interrupted)
    done = call(*words)
    assert done.code == 130 and done.err.endswith(says) and not done.out
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# --- what is printed -----------------------------------------------------------------------------------------


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
    return Path("one.csv")


def test_a_table_goes_to_standard_output_and_nothing_else_does(call):
    """U3: ``--out -``."""
    done = call("predict", RUN, "images", "bad.dcm", "--out", "-", "--force")
    assert done.out.splitlines()[0].startswith("file,warning,predicted") and len(done.out.splitlines()) == 4
    assert "bad.dcm" in done.err


def test_an_explanation_says_what_it_explains(call):
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


# --- progress ------------------------------------------------------------------------------------------------


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


# --- exit codes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("predict", RUN, "images", "--force"), 0),
        (("predict", RUN, "inverted.png"), 3),  # declined
        (("predict", RUN, "bad.dcm", "images", "--force"), 3),  # unusable
        (("predict", RUN, "bad.dcm", "--out", "bad.csv"), 3),
        (("predict", RUN, "absent.png"), 1),
        (("predict", "absent-run", "images"), 1),
        (("predict", RUN), 2),
        (("predict", RUN, "images", "--nonsense"), 2),
        (("explain", RUN, "bad.dcm"), 1),
        (("explain", RUN, "absent.png"), 1),
        (("train", "--data", "nonsense:x", "--out", "runs/n"), 1),
        (("train", "--data", DATA), 2),
        (("doctor", "--data-root", "absent"), 1),
        (("evaluate", RUN, "--split", "nonsense"), 1),
        (("nonsense",), 2),
    ],
)
def test_the_exit_code_follows_one_rule(call, words, code):
    """U5: 8 of 8 declined files gave 0."""
    done = call(*words)
    assert done.code == code, done
    assert "Traceback" not in done.err


def test_a_failed_image_in_a_table_counts_as_unanswered(call, copy):
    """U5: the rule holds for splits as for files."""
    part = next((copy / "evidence-test.parquet").glob("part-*.parquet"))
    frame = pd.read_parquet(part)
    frame.loc[frame["image_id"] == frame["image_id"].iloc[0], "status"] = "not finite"
    frame.to_parquet(part)
    done = call("evaluate", copy, "--json", "--quiet")
    assert json.loads(done.out)["failed"] == 1 and done.code == 3


def test_the_exit_codes_are_documented():
    """U5: in the guide and in --help."""
    told = " ".join(
        CliRunner().invoke(app, ["--help"], env={"COLUMNS": "300", "TERM": "dumb"}).output.split()
    )
    guide = GUIDE.read_text(encoding="utf-8")
    for code in (0, 1, 2, 3, 130, 143):
        assert f"{code} " in told.partition("Exit codes")[2], code
        assert re.search(rf"^\| {code} \|", guide, re.MULTILINE), code


# --- commands to paste, pictures -----------------------------------------------------------------------------


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


# --- nothing lost, nothing left ------------------------------------------------------------------------------


def test_a_failed_training_leaves_nothing(call, place, tmp_path):
    """U7: an empty --out folder was left."""
    for words in (
        ("--data", "folder:nowhere"),
        ("--data", DATA, "--preset", "smal"),
        ("--data", "phantom:n_patients=2"),
    ):
        done = call("train", *words, "--out", tmp_path / "new" / "deep")
        assert done.code == 1, done
        assert not (tmp_path / "new").exists(), words
    (tmp_path / "old" / "cache").mkdir(parents=True)
    (tmp_path / "old" / "cache" / "kept.bin").write_text("")
    assert call("train", "--data", "folder:nowhere", "--out", tmp_path / "old").code == 1
    assert (tmp_path / "old" / "cache" / "kept.bin").exists()
    assert {entry.name for entry in (tmp_path / "old").iterdir()} == {"cache"}


def test_files_of_one_name_are_explained_in_folders_of_their_own(call, place):
    """L2: every CBIS file is 1-1.dcm, so the second explanation overwrote the first."""
    for name in ("a", "b", "a"):
        assert call("explain", RUN, f"{name}/1-1.png", "--no-counterfactual").code == 0
    folders = sorted(folder.name for folder in (place / RUN / "explained").iterdir() if "1-1" in folder.name)
    assert len(folders) == 2
    assert re.search(r"-a-1-1-[0-9a-f]{8}$", folders[0]) and re.search(r"-b-1-1-[0-9a-f]{8}$", folders[1])
    told = {
        json.loads((place / RUN / "explained" / name / "evidence.json").read_text())["file"]
        for name in folders
    }
    assert told == {"a/1-1.png", "b/1-1.png"}


def test_a_file_named_by_a_uid_keeps_its_whole_name(place):
    """L2: ".113" at the end of a UID is no suffix."""
    run = open_run(place / RUN, "cpu")
    assert "1.2.840.113-" in folder_of(run, Path("1.2.840.113")).name
    assert folder_of(run, Path("x/1.dcm")).name == folder_of(run, Path("y/../x/1.dcm")).name


def test_a_mistyped_name_costs_no_table(call, place):
    """L8: a typing error overwrote a good table with one quarantined row."""
    (place / "good.csv").write_text("precious")
    done = call("predict", RUN, "nwe", "images", "--out", "good.csv")
    assert done.code == 1 and "nwe" in done.err and not done.out
    assert (place / "good.csv").read_text() == "precious"


def test_a_table_is_replaced_whole_or_not_at_all(call, place, monkeypatch):
    """L8: half a table."""
    from scorebayes.storage import atomic

    (place / "good.csv").write_text("precious")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    done = call("predict", RUN, "images", "--force", "--out", "good.csv")
    assert done.code == 1 and "No space left on device" in done.err
    assert (place / "good.csv").read_text() == "precious"


@pytest.mark.parametrize("cut", [1, 2, 20, 60])
def test_a_log_cut_at_its_end_does_not_stop_resuming(tmp_path, cut):
    """T3: a cut last line of train.jsonl stopped --resume."""
    run = train_tiny(tmp_path / "run")
    whole = (run.path / "train.jsonl").read_bytes()
    (run.path / "train.jsonl").write_bytes(whole[:-cut])
    (run.path / "calibration.json").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train_tiny(run.path, resume=True)
    left = (run.path / "train.jsonl").read_bytes()
    assert left.endswith(b"}\n") and whole.startswith(left[:-1])
    assert all(json.loads(line) for line in left.splitlines())


def test_what_a_power_cut_left_in_a_log_is_left_out_with_a_warning(tmp_path):
    """T3: a damaged line in the middle."""
    run = train_tiny(tmp_path / "run", train={**LAYER["train"], "steps": 20})
    lines = (run.path / "train.jsonl").read_bytes().splitlines()
    (run.path / "train.jsonl").write_bytes(
        b"\n".join([lines[0], b'{"step": 4, "lo\xff', *lines[2:], b"\0\0\0"])
    )
    with pytest.warns(UserWarning, match=r"train\.jsonl: 1 damaged lines are left out \(line 2\)"):
        train_tiny(run.path, resume=True, train={**LAYER["train"], "steps": 20})
    left = [json.loads(line) for line in (run.path / "train.jsonl").read_bytes().splitlines()]
    assert left == [json.loads(line) for line in [lines[0], *lines[2:]]]


def test_a_damaged_index_of_the_cache_costs_only_its_images(tmp_path):
    """T3: the same for the other log that is appended to."""
    from scorebayes.data import open_source
    from scorebayes.data.load import load
    from scorebayes.data.prepare import Prepare

    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(2):
            pixels = np.full((8, 8), 10 * number, dtype=np.uint8)
            pixels[0] = 200
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")
    source, prepare = open_source(f"folder:{tmp_path / 'images'}"), Prepare(8)
    first, _ = load(source, source.records(), prepare, cache=tmp_path / "cache")
    (index,) = (tmp_path / "cache").rglob("*.jsonl")
    lines = index.read_bytes().splitlines()
    index.write_bytes(b"\n".join([lines[0][:-3], *lines[1:], b'["cut', b""]))
    again, _ = load(source, source.records(), prepare, cache=tmp_path / "cache")
    np.testing.assert_array_equal(again.images, first.images)
