"""Training that is killed, stopped, resumed, fed nonsense, or started twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from fixtures.tiny_run import DATA, LAYER, train_tiny, trained_tiny
from safetensors.torch import load_file

from scorebayes import open_run
from scorebayes.errors import ConfigError, DataError, NumericalError, Stopped
from scorebayes.stages import train as stages
from scorebayes.storage import sealed
from scorebayes.training import class_score
from scorebayes.training import loop as training

ROOT = Path(__file__).parents[1]
ALONE = {"sources": ["pixels"]}  # the wavelets are learned after the training that is disturbed here
SCRIPT = """
import signal, sys, time, torch
signal.signal(signal.SIGTERM, signal.default_int_handler)  # as the command line does
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from pathlib import Path
from scorebayes.training import loop as training
from fixtures.tiny_run import train_tiny
step = training._step
def slow_step(*args):
    time.sleep(0.15)  # so that the signal arrives in the middle of training
    Path({path!r} + f"-{{args[2].step}}").touch()
    return step(*args)
training._step = slow_step
train_tiny(Path({path!r}), evidence={alone!r})
"""


def final_weights(run):
    stored = load_file(run.path / "checkpoints" / run.checkpoints.entries("state")[-1]["file"])
    return {
        name: tensor.clone() for name, tensor in stored.items()
    }  # the file is mapped, and may be damaged next


def start_and_wait_for(path: Path, step: int) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(tests=str(ROOT), path=str(path), alone=ALONE)],
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
    resumed = train_tiny(tmp_path / "killed", resume=True, evidence=ALONE)
    undisturbed = trained_tiny(tmp_path / "undisturbed", evidence=ALONE)
    a, b = final_weights(resumed), final_weights(undisturbed)
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name
    losses = [
        [json.loads(line).get("loss") for line in (run.path / "train.jsonl").read_text().splitlines()]
        for run in (resumed, undisturbed)
    ]
    assert losses[0] == losses[1]


def test_a_signal_that_interrupts_saves_before_it_stops(tmp_path):
    process = start_and_wait_for(tmp_path / "run", step=4)
    while not (tmp_path / "run-6").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) > 0  # an end of its own, not by the signal
    entries = open_run(tmp_path / "run").checkpoints.entries("state")
    assert 4 < entries[-1]["step"] < 12
    assert (
        train_tiny(tmp_path / "run", resume=True, evidence=ALONE).checkpoints.entries("state")[-1]["step"]
        == 12
    )


@pytest.mark.parametrize(
    ("where", "call", "saved"),
    [("_accumulate", 7, 6), ("what_is_logged", 3, 12), ("_take", 7, 4)],
    ids=["in a gradient", "in the last validation", "in the middle of a step, which cannot be saved"],
)
def test_interrupted_anywhere_and_resumed_the_weights_are_those_of_an_undisturbed_run(
    tmp_path, monkeypatch, where, call, saved
):
    module = class_score if where == "what_is_logged" else training
    real, calls = getattr(module, where), []

    def interrupted(*args):
        calls.append(None)
        if len(calls) < call:
            return real(*args)
        if where == "_take":
            args[1].changing = True
        raise KeyboardInterrupt

    monkeypatch.setattr(module, where, interrupted)
    with pytest.raises(Stopped) as stopped:
        train_tiny(tmp_path / "run", evidence=ALONE)
    assert stopped.value.where == f"at step {min(call - 1, 12) if where != 'what_is_logged' else 12} of 12"
    monkeypatch.undo()
    assert open_run(tmp_path / "run").checkpoints.entries("state")[-1]["step"] == saved
    resumed = train_tiny(tmp_path / "run", resume=True, evidence=ALONE)
    undisturbed = trained_tiny(tmp_path / "undisturbed", evidence=ALONE)
    a, b = final_weights(resumed), final_weights(undisturbed)
    assert all(torch.equal(a[name], b[name]) for name in b) and a.keys() == b.keys()
    assert resumed.checkpoints.best()["val_log_loss"] == undisturbed.checkpoints.best()["val_log_loss"]


def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path):
    run = trained_tiny(tmp_path / "run")
    before = final_weights(run)
    newest = run.path / "checkpoints" / run.checkpoints.entries("state")[-1]["file"]
    newest.write_bytes(newest.read_bytes()[:-7])
    with pytest.warns(UserWarning, match="Continuing from the previous state"):
        again = train_tiny(tmp_path / "run", resume=True)
    for name, tensor in final_weights(again).items():
        assert torch.equal(tensor, before[name]), name


def test_a_directory_in_use_or_not_empty_is_refused(tmp_path):
    run = trained_tiny(tmp_path / "run")
    with pytest.raises(ConfigError, match="--resume"):
        train_tiny(tmp_path / "run")
    with (
        run.locked(),
        ThreadPoolExecutor(1) as elsewhere,  # whoever holds the lock may go on
        pytest.raises(ConfigError, match="another process"),
    ):
        elsewhere.submit(train_tiny, tmp_path / "run", resume=True).result()


def test_resuming_under_another_configuration_names_the_difference(tmp_path):
    trained_tiny(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"train\.lr: 0\.002 -> 0\.5"):
        train_tiny(tmp_path / "run", resume=True, train={**LAYER["train"], "lr": 0.5})


def test_resumed_under_another_estimator_the_run_decides_as_its_directory_says(tmp_path):
    before = trained_tiny(tmp_path / "run").calibration.to_dict()
    resumed = train_tiny(tmp_path / "run", resume=True, likelihood={"levels": 4, "repeats": 3})
    stored = open_run(tmp_path / "run").calibration.to_dict()
    assert resumed.calibration.to_dict()["weights"] == stored["weights"] != before["weights"]


def test_a_loss_that_is_not_finite_rolls_back_at_half_the_rate(tmp_path, monkeypatch):
    real, calls = training._step, []

    def sometimes_nan(plan, goal, state):
        calls.append(state.step)
        return float("nan") if len(calls) == 7 else real(plan, goal, state)

    monkeypatch.setattr(training, "_step", sometimes_nan)
    run = train_tiny(tmp_path / "run", evidence=ALONE)
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
        *_, size = args
        sizes.append(size)
        if size > 4:
            torch.empty(2**59)  # no machine has so much: the allocator's own error
        return real(*args)

    monkeypatch.setattr(training, "_accumulate", small_memory)
    run = train_tiny(tmp_path / "run", net={**LAYER["net"], "dropout": 0.0}, evidence=ALONE)
    assert sizes == [8, 4, *[4] * 11]  # what fits is found once
    monkeypatch.undo()
    whole = train_tiny(tmp_path / "whole", net={**LAYER["net"], "dropout": 0.0}, evidence=ALONE)
    a, b = final_weights(run), final_weights(whole)
    assert all(torch.allclose(a[n].float(), b[n].float(), atol=1e-3) for n in a if n.startswith("model."))


def test_the_time_cap_ends_training_in_a_usable_run(tmp_path):
    run = train_tiny(
        tmp_path / "run", train={**LAYER["train"], "steps": 100_000, "minutes": 0.02}, evidence=ALONE
    )
    assert run.checkpoints.entries("state")[-1]["step"] < 100_000
    assert run.calibration.n > 0


def test_data_that_changed_since_training_are_noticed(tmp_path):
    run = trained_tiny(tmp_path / "run")
    split = run.split
    split.loc[0, "image_id"] = "not-there"
    split.to_parquet(run.path / "split.parquet")
    sealed.accept(run.path)
    with pytest.raises(DataError, match="not-there"):
        run.images(split.loc[0, "split"])


def test_a_class_without_images_is_refused_before_training(tmp_path):
    with pytest.raises(DataError, match="two images of every class"):
        stages.train(
            tmp_path / "run", DATA.replace("40,views=2", "6,views=1"), [LAYER], "tiny", torch.device("cpu")
        )
