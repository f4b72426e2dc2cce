"""Training that is killed, stopped, resumed, fed nonsense, or started twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from fixtures.tiny_run import DATA, LAYER, train_tiny
from safetensors.torch import load_file

from scorebayes import open_run
from scorebayes.errors import ConfigError, DataError, NumericalError
from scorebayes.stages import train as stages
from scorebayes.training import loop as training

ROOT = Path(__file__).parents[1]
SCRIPT = """
import sys, time, torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from pathlib import Path
from scorebayes.training import loop as training
from fixtures.tiny_run import train_tiny
step = training._step
def slow_step(*args):
    time.sleep(0.15)  # so that the signal arrives in the middle of training
    return step(*args)
training._step = slow_step
train_tiny(Path({path!r}))
"""


def final_weights(run):
    stored = load_file(run.path / "checkpoints" / run.checkpoints.entries("state")[-1]["file"])
    return {
        name: tensor.clone() for name, tensor in stored.items()
    }  # the file is mapped, and may be damaged next


def start_and_wait_for(path: Path, step: int) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(tests=str(ROOT), path=str(path))],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    manifest = path / "checkpoints" / "manifest.json"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if manifest.exists() and any(e["step"] >= step for e in json.loads(manifest.read_text())):
            return process
        time.sleep(0.02)
    raise AssertionError(f"training ended or hung before step {step}")


def test_killed_and_resumed_the_weights_are_bitwise_those_of_an_undisturbed_run(tmp_path):
    process = start_and_wait_for(tmp_path / "killed", step=4)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "calibration.json").exists()
    resumed = train_tiny(tmp_path / "killed", resume=True)
    undisturbed = train_tiny(tmp_path / "undisturbed")
    a, b = final_weights(resumed), final_weights(undisturbed)
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name
    losses = [
        [json.loads(line).get("loss") for line in (run.path / "train.jsonl").read_text().splitlines()]
        for run in (resumed, undisturbed)
    ]
    assert losses[0] == losses[1]


def test_sigterm_saves_before_it_stops(tmp_path):
    process = start_and_wait_for(tmp_path / "run", step=4)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) != 0
    entries = open_run(tmp_path / "run").checkpoints.entries("state")
    assert 4 <= entries[-1]["step"] <= 12
    assert train_tiny(tmp_path / "run", resume=True).checkpoints.entries("state")[-1]["step"] == 12


def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path):
    run = train_tiny(tmp_path / "run")
    before = final_weights(run)
    newest = run.path / "checkpoints" / run.checkpoints.entries("state")[-1]["file"]
    newest.write_bytes(newest.read_bytes()[:-7])
    with pytest.warns(UserWarning, match="Continuing from the previous state"):
        again = train_tiny(tmp_path / "run", resume=True)
    for name, tensor in final_weights(again).items():
        assert torch.equal(tensor, before[name]), name


def test_a_directory_in_use_or_not_empty_is_refused(tmp_path):
    run = train_tiny(tmp_path / "run")
    with pytest.raises(ConfigError, match="--resume"):
        train_tiny(tmp_path / "run")
    with run.locked(), pytest.raises(ConfigError, match="another process"):
        train_tiny(tmp_path / "run", resume=True)


def test_resuming_under_another_configuration_names_the_difference(tmp_path):
    train_tiny(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"train\.lr: 0\.002 -> 0\.5"):
        train_tiny(tmp_path / "run", resume=True, train={**LAYER["train"], "lr": 0.5})


def test_resumed_under_another_estimator_the_run_decides_as_its_directory_says(tmp_path):
    before = train_tiny(tmp_path / "run").calibration.to_dict()
    resumed = train_tiny(tmp_path / "run", resume=True, likelihood={"levels": 4, "repeats": 3})
    stored = open_run(tmp_path / "run").calibration.to_dict()
    assert resumed.calibration.to_dict()["weights"] == stored["weights"] != before["weights"]


def test_a_loss_that_is_not_finite_rolls_back_at_half_the_rate(tmp_path, monkeypatch):
    real, calls = training._step, []

    def sometimes_nan(run, state, *rest):
        calls.append(state.step)
        return float("nan") if len(calls) == 7 else real(run, state, *rest)

    monkeypatch.setattr(training, "_step", sometimes_nan)
    run = train_tiny(tmp_path / "run")
    last = run.checkpoints.entries("state")[-1]
    assert last["step"] == 12 and last["rollbacks"] == 1 and last["rate_factor"] == 0.5
    assert calls[7] == 4  # back at the last checkpoint


def test_a_loss_that_stays_not_finite_is_an_error_with_a_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_step", lambda *_: float("nan"))
    with pytest.raises(NumericalError, match="Lower"):
        train_tiny(tmp_path / "run")


def test_where_memory_ends_the_batch_goes_in_parts(tmp_path, monkeypatch):
    real, sizes = training._accumulate, []

    def small_memory(*args):
        *_, size, _ = args
        sizes.append(size)
        if size > 4:
            raise torch.OutOfMemoryError
        return real(*args)

    monkeypatch.setattr(training, "_accumulate", small_memory)
    run = train_tiny(tmp_path / "run", net={**LAYER["net"], "dropout": 0.0})
    assert sizes[:2] == [8, 4]
    monkeypatch.undo()
    whole = train_tiny(tmp_path / "whole", net={**LAYER["net"], "dropout": 0.0})
    a, b = final_weights(run), final_weights(whole)
    assert all(torch.allclose(a[n].float(), b[n].float(), atol=1e-3) for n in a if n.startswith("model."))


def test_the_time_cap_ends_training_in_a_usable_run(tmp_path):
    run = train_tiny(tmp_path / "run", train={**LAYER["train"], "steps": 100_000, "minutes": 0.02})
    assert run.checkpoints.entries("state")[-1]["step"] < 100_000
    assert run.calibration.n > 0


def test_data_that_changed_since_training_are_noticed(tmp_path):
    run = train_tiny(tmp_path / "run")
    split = run.split
    split.loc[0, "image_id"] = "not-there"
    split.to_parquet(run.path / "split.parquet")
    with pytest.raises(DataError, match="not-there"):
        run.images(split.loc[0, "split"])


def test_a_class_without_images_is_refused_before_training(tmp_path):
    with pytest.raises(DataError, match="two images of every class"):
        stages.train(
            tmp_path / "run", DATA.replace("40,views=2", "6,views=1"), [LAYER], "tiny", torch.device("cpu")
        )
