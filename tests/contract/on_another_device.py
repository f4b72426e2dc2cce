"""All that uses the network runs on another device than the CPU, and says the same there: run by ``test_devices``.

The device is one of Python (``strict_device``), which computes on the CPU, so that results are the same up to rounding,
and refuses what MPS and CUDA refuse. It shows nothing of their speed, nor of their kernels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.strict_device import strict_device
from fixtures.tiny_run import DATA, LAYER, finish, write_pictures
from typer.testing import CliRunner

from scorebayes.baselines import fit_baseline
from scorebayes.benchmark.trained.adversarial import measure_adversarial
from scorebayes.benchmark.trained.maps import measure_evidence
from scorebayes.cli.main import app
from scorebayes.diffusion.likelihood import LIKELIHOODS
from scorebayes.diffusion.sample import SAMPLERS
from scorebayes.runs import device as device_module
from scorebayes.runs import run as run_module
from scorebayes.runs.run import Run, open_run
from scorebayes.stages import train as stages
from scorebayes.stages.sequential import decide_sequentially
from scorebayes.training import loop as training

ALONE = {"evidence": {"sources": ["pixels"]}}  # where it is about the training of the network
CHEAPER = {"bound": {"levels": 4}, "flow": {"steps": 4}, "paper": {"rtol": 1e-2, "atol": 1e-2}}


@pytest.fixture(scope="module")
def device():
    """The other device, which is the one that "auto" picks."""
    device = strict_device()
    with pytest.MonkeyPatch.context() as patch:
        for module in (device_module, run_module):
            patch.setattr(
                module, "pick_device", lambda name="auto": torch.device("cpu" if name == "cpu" else device)
            )
        yield device


def trained(path: Path, device: torch.device, **changes) -> Run:
    return stages.train(path, DATA, [LAYER, changes], "tiny", device)


@pytest.fixture(scope="module")
def run(device, tmp_path_factory):
    return finish(trained(tmp_path_factory.mktemp("there") / "run", device))


@pytest.fixture(scope="module")
def on_cpu(run):
    return open_run(run.path, "cpu")


@pytest.fixture(scope="module")
def images(run):
    return run.images("test").subset(np.arange(2))


@pytest.fixture(scope="module")
def x(run, images):
    return run.standardise(images.images)


def test_the_device_refuses_what_others_refuse(device):
    there = torch.ones(2, 3).to(device)
    assert (there + 1).cpu().tolist() == [[2.0] * 3] * 2
    for wide in (
        lambda: there.double(),
        lambda: there.to("cpu", torch.float64),
        lambda: torch.ones(2).double().to(device),
    ):
        with pytest.raises(TypeError, match="no such numbers"):
            wide()
    with pytest.raises(RuntimeError, match="two devices"):
        there + torch.ones(3)
    with pytest.raises((TypeError, RuntimeError), match="numpy"):
        np.asarray(there)


def test_training_comes_to_the_same_weights(run, device, tmp_path):
    assert next(run.score.denoiser.parameters()).device.type == device.type
    stores = run.checkpoints, trained(tmp_path / "here", torch.device("cpu"), **ALONE).checkpoints
    there, here = (store.best() for store in stores)
    assert (there["step"], there["val_log_loss"]) == (
        here["step"],
        pytest.approx(here["val_log_loss"], rel=1e-4),
    )
    torch.testing.assert_close(*(store.load(store.best()) for store in stores), rtol=1e-3, atol=1e-3)


def test_a_stopped_training_goes_on_to_the_same_weights(run, device, tmp_path, monkeypatch):
    step = training._step

    def stopped(plan, goal, state):
        if state.step == 8:
            raise KeyboardInterrupt
        return step(plan, goal, state)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "_step", stopped)
        trained(tmp_path / "run", device, **ALONE)
    again = stages.train(tmp_path / "run", DATA, [LAYER, ALONE], "tiny", device, resume=True)
    assert again.checkpoints.best()["sha256"] == run.checkpoints.best()["sha256"]


@pytest.mark.parametrize("train", [{"null_label": 1.0}, {"cross_entropy": 0.1, "micro_batch": 4}], ids=str)
def test_every_way_of_training_runs(device, tmp_path, train):
    assert trained(tmp_path / "run", device, train={"steps": 2} | train, **ALONE).checkpoints.entries("step")


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_an_estimator_says_the_same(run, on_cpu, x, name):
    likelihood = LIKELIHOODS[name](**CHEAPER.get(name, {}))
    there, here = (each.evidence(x[:1], ["a"], likelihood) for each in (run, on_cpu))
    np.testing.assert_allclose(there.blocks["pixels"].draws, here.blocks["pixels"].draws, rtol=1e-5)


def test_a_sequential_decision_is_the_same(run, on_cpu, x):
    there, here = (decide_sequentially(each, x, ["a", "b"]) for each in (run, on_cpu))
    assert there.posterior.log_prob.tolist() == here.posterior.log_prob.tolist()


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_draws_the_same(run, on_cpu, x, name):
    def draw(each: Run) -> torch.Tensor:
        with torch.no_grad():
            return SAMPLERS[name](steps=3)(
                each.score, torch.tensor([0, 1]), x.shape[1:], torch.Generator().manual_seed(0)
            )

    assert torch.equal(draw(run), draw(on_cpu))


@pytest.mark.parametrize("name", ["logistic", "hog-svm", "resnet18", "vit"])
def test_a_baseline_is_fitted_and_opened_again(run, on_cpu, images, name):
    there = fit_baseline(run, name, 2).evidence(images)
    assert there.tolist() == fit_baseline(on_cpu, name).evidence(images).tolist()


def test_the_commands_run(run, tmp_path):
    pictures = [str(path) for path in write_pictures(tmp_path, 2)]
    for name in ("logistic", "resnet18"):
        fit_baseline(run, name, 2)
    for command in (
        ["evaluate", str(run.path)],
        [
            "predict",
            str(run.path),
            *pictures,
            "--out",
            str(tmp_path / "out.csv"),
            "--with",
            "resnet18,logistic",
            "--force",
        ],
        ["explain", str(run.path), pictures[0], "--out", str(tmp_path / "explained")],
        ["sample", str(run.path), "--per-class", "1", "--steps", "2", "--guidance", "1"],
        ["report", str(run.path)],
        ["tune", str(run.path)],
        ["doctor"],
    ):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, f"{command}: {result.output}"


def test_attacks_and_saliencies_take_their_derivatives(run):
    assert measure_adversarial(run, 1, "resnet18", steps=1, queries=1, repeats=1)["results"]
    assert measure_evidence([run], 1, steps=2)["runs"]
