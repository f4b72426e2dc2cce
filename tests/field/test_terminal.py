"""How commands are stopped and resumed, their exit codes, and that nothing is lost and nothing is left."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from fixtures.terminal import CONFIG, RUN, TRAIN
from fixtures.tiny_run import DATA, LAYER, train_tiny, trained_tiny
from PIL import Image
from typer.testing import CliRunner

from scorebayes.cli.main import app
from scorebayes.explain.pictures import folder_of
from scorebayes.runs.run import open_run
from scorebayes.storage import sealed

pytest_plugins = ["fixtures.terminal"]
GUIDE = Path(__file__).parents[2] / "docs" / "guide.md"


def start(folder: Path, *words: str) -> subprocess.Popen:
    code = "from scorebayes.cli.main import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *words], cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def final_weights(path: Path) -> dict[str, torch.Tensor]:
    checkpoints = open_run(path, "cpu").checkpoints
    return checkpoints.load(checkpoints.best())


# --- resuming -----------------------------------------------------------------------------------------------


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


# --- stopping -----------------------------------------------------------------------------------------------


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

    def step(plan: Any, goal: Any, state: Any) -> float:
        if state.step == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return real(plan, goal, state)

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


# --- exit codes ---------------------------------------------------------------------------------------------


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
    sealed.accept(copy)
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


# --- nothing lost, nothing left -----------------------------------------------------------------------------


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
    run = trained_tiny(tmp_path / "run")
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
