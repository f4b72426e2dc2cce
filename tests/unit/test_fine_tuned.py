"""Fine-tuning the encoder of a run: what is trained and what stays, both mirror images, its record, and what cannot be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fixtures.tiny_encoders import onnx_graph, save_model
from fixtures.tiny_run import trained_tiny
from torch import nn
from typer.testing import CliRunner

from scorebayes.baselines import BASELINES, fit_baseline, open_baseline, read_predictions
from scorebayes.baselines.fine_tuned import last_block
from scorebayes.benchmark.names import title_of
from scorebayes.benchmark.training.seeds import BENCHMARKS
from scorebayes.cli.main import app
from scorebayes.errors import ConfigError
from scorebayes.evidence.encoders import open_encoder
from scorebayes.runs.config import Config
from scorebayes.runs.run import Run, open_run

CPU, STEPS = torch.device("cpu"), 3
NAMES = ("fine-tuned", "fine-tuned-last-block")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return trained_tiny(tmp_path_factory.mktemp("runs") / "run", evidence={"sources": ["wavelets"]})


def on(run: Run, text: str, size: int = 64) -> Run:
    """The same run, as if its features were those of another encoder."""
    evidence = {**run.config.sections["evidence"], "features": {"encoder": text, "size": size}}
    config = Config(run.config.seed, {**run.config.sections, "evidence": evidence})
    return Run(run.path, config, run.facts, run.device)


def changed(net: nn.Module, before: nn.Module) -> set[str]:
    old = before.state_dict()
    return {name for name, value in net.state_dict().items() if not torch.equal(value, old[name])}


@pytest.mark.parametrize("name", NAMES)
def test_all_layers_are_tuned_or_the_last_block_alone(run, name, tmp_path):
    little, kind = on(run, "lite0"), BASELINES[name]
    train, val = run.images("train").labelled(), run.images("val").labelled()
    found = kind.fit(little, train, val, tmp_path, STEPS)
    moved = changed(found.net, kind.build(little))
    early, late = "net.net._conv_stem.weight", "net.net._conv_head.weight"
    assert {late, "head.weight"} <= moved and (early in moved) == (name == "fine-tuned")
    blocks = {at.split(".")[3] for at in moved if "_blocks" in at}  # weights and statistics
    assert blocks == ({str(n) for n in range(16)} if name == "fine-tuned" else {"15"})
    record = found.record
    assert record["encoder"]["name"] == "lite0" and record["encoder"]["licence"] == "Apache-2.0"
    assert record["encoder"]["pretrained_on"] and len(record["encoder"]["sha256"]) == 64
    assert record["steps"] == STEPS and record["batch"] == 8 and len(record["settings_tried"]) == 3
    assert len({trial["setting"]["lr"] for trial in record["settings_tried"]}) == 3
    assert record["multiply_adds"] == STEPS * kind.step_cost(little) > 0
    assert kind.steps_of_budget(little) == 240


def test_both_mirror_images_are_asked_and_one_while_training(run):
    net = BASELINES["fine-tuned"].build(on(run, "lite0"))
    nn.init.normal_(net.head.weight)
    x = run.standardise(run.images("val").images[:3])
    with torch.no_grad():
        net.eval()
        torch.testing.assert_close(net(x), net(x.flip(-1)))
        torch.testing.assert_close(net(x), (net.of_one_view(x) + net.of_one_view(x.flip(-1))) / 2)
        one = net(x[:1])
        torch.testing.assert_close(one[0], net(x)[0], rtol=1e-4, atol=1e-4)
    asked = []
    net.net.register_forward_hook(lambda *_: None)
    net.head.register_forward_hook(lambda *_: asked.append(1))
    net.train()(x)
    assert len(asked) == 1


def test_it_begins_with_what_the_encoder_says(run):
    net = BASELINES["fine-tuned"].build(on(run, "lite0")).eval()
    encoder = open_encoder("lite0", 64, CPU)
    x = run.standardise(run.images("val").images[:2])
    pixels = torch.from_numpy(run.restore(x))
    seen = []
    net.head.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    with torch.no_grad():
        assert not net(x).any()  # of no class yet
    torch.testing.assert_close(seen[0], encoder.pooled(pixels), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["dinov2", "vit", "resnet", "convnext", "mobilenet", "clip"])
def test_the_last_block_of_a_transformers_model_is_found(name, tmp_path):
    encoder = open_encoder(f"hf:{save_model(name, tmp_path / 'model')}", 56, CPU)
    net = encoder.network()
    tuned, all_of_it = last_block(encoder.name, net), {at for at, _ in net.named_parameters()}
    first = next(iter(dict(net.named_parameters())))
    assert 0 < len(tuned) < len(all_of_it) and first not in tuned
    assert next(reversed(dict(net.named_parameters()))) in tuned


def test_the_command_fits_stores_and_predicts(run, tmp_path):
    folder = save_model("dinov2", tmp_path / "model")
    started = trained_tiny(
        tmp_path / "run",
        evidence={"sources": ["wavelets"], "features": {"encoder": f"hf:{folder}", "size": 56}},
    )
    result = CliRunner().invoke(app, ["baseline", str(started.path), "fine-tuned", "--steps", "2"])
    assert result.exit_code == 0, result.output
    again = open_run(started.path, "cpu")
    fitted, images = open_baseline(again, "fine-tuned"), again.images("test")
    frame = read_predictions(again, "fine-tuned", "test")
    columns = [f"prob_{c}" for c in again.facts.classes]
    np.testing.assert_allclose(fitted.prob(images), frame[columns].to_numpy(), atol=1e-5)
    assert fitted.record["encoder"]["name"] == f"hf:{folder}" and fitted.record["encoder"]["licence"] == "mit"
    kept = []
    assert fitted.feature_layer is not None  # for maps of where it looks
    fitted.feature_layer.register_forward_hook(lambda _, __, features: kept.append(features))
    x = again.standardise(images.images[:1]).requires_grad_(True)
    (slope,) = torch.autograd.grad(fitted.logits(x)[0, 0], x)
    assert kept[0].shape == (1, 16, 4, 4) and slope.abs().sum() > 0


def test_an_onnx_file_cannot_be_fine_tuned_and_says_so(run, tmp_path):
    file = onnx_graph(tmp_path / "e.onnx", "map")
    with pytest.raises(ConfigError, match="cannot be trained further"):
        fit_baseline(on(run, f"onnx:{file}", 56), "fine-tuned", 1)


def test_the_benchmark_on_features_has_them_and_no_benchmark_from_scratch():
    assert set(NAMES) <= set(BENCHMARKS["breastmnist-224"].baselines)
    assert not set(NAMES) & set(BENCHMARKS["breastmnist"].baselines)
    assert all("fine-tuned" in title_of(name) for name in NAMES)
