"""Discriminative baselines: they learn, cost what they should, are calibrated like our model, and are kept."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.tiny_run import finish, trained_tiny
from scipy.special import log_softmax, softmax
from sklearn.metrics import log_loss, roc_auc_score
from torch import nn
from typer.testing import CliRunner

from scorebayes.baselines import (
    BASELINES,
    Baseline,
    architectures,
    fit_baseline,
    network,
    open_baseline,
    predict_baseline,
    read_predictions,
)
from scorebayes.baselines.base import fit_temperature, raw_logits
from scorebayes.baselines.network import Network, equal_cost_steps, score_step_cost, score_steps
from scorebayes.cli.main import app
from scorebayes.data.base import Record
from scorebayes.data.load import ImageSet
from scorebayes.errors import ConfigError, DataError
from scorebayes.runs.config import PriorConfig
from scorebayes.runs.run import Run, open_run
from scorebayes.stages.evaluate import evaluate

NETWORKS = [name for name, kind in BASELINES.items() if isinstance(kind, Network) and not kind.pretrained]
SIDE, STEPS = 16, 24


def little(side: int, channels: int, n_classes: int) -> nn.Module:
    """A network of a second's training, with a batch norm like the large ones."""
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, n_classes),
    )  # fmt: skip


LITTLE = Network("little network", little, "2", rates=(1e-2,))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return finish(trained_tiny(tmp_path_factory.mktemp("baselines") / "run"))


@pytest.fixture
def registered(monkeypatch) -> None:
    monkeypatch.setitem(BASELINES, "little", LITTLE)


def toy(n: int, seed: int, n_classes: int = 2) -> ImageSet:
    """A bright upper half (class 0) or left half (class 1) under noise; a third class has none."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % n_classes
    images = rng.integers(0, 60, (n, 1, SIDE, SIDE))
    for image, label in zip(images, labels, strict=True):
        if label < 2:
            image[0][(slice(8), slice(None))[:: 1 - 2 * label]] += 60
    records = tuple(Record(f"{seed}-{row}", Path("none"), int(label)) for row, label in enumerate(labels))
    return ImageSet(images.astype(np.uint8), 8, records)


TRAIN, VAL, TEST = toy(40, 1), toy(24, 2), toy(60, 3)


def facts_of(run: Run, images: ImageSet, n_classes: int) -> Run:
    """The run as if it had been started with these images."""
    counts = tuple(int(n) for n in np.bincount(images.labels, minlength=n_classes))
    info = replace(run.facts.info, classes=tuple("abc"[:n_classes]))
    return Run(run.path, run.config, replace(run.facts, info=info, train_counts=counts), run.device)


@pytest.mark.parametrize("kind", [BASELINES["logistic"], BASELINES["hog-svm"], LITTLE], ids=lambda k: k.title)
@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_baseline_learns_and_its_stored_numbers_give_the_same_answers(run, tmp_path, kind, n_classes):
    train, val, test = (toy(n, seed, n_classes) for seed, n in enumerate((42, 24, 60)))
    world = facts_of(run, train, n_classes)
    found = kind.fit(world, train, val, tmp_path, STEPS)
    calibration = fit_temperature(
        raw_logits(world, found.net, val), found.log_prior, val.labels, val.patients, 0
    )
    prob = Baseline(world, kind, found.net, calibration, {}).prob(test)
    assert prob.shape == (60, n_classes)
    np.testing.assert_allclose(prob.sum(1), 1)
    area = (
        roc_auc_score(test.labels, prob[:, 1])
        if n_classes == 2
        else roc_auc_score(test.labels, prob, multi_class="ovr")
    )
    assert area > 0.9

    copy = kind.build(world)
    copy.load_state_dict(found.net.state_dict())
    np.testing.assert_array_equal(Baseline(world, kind, copy, calibration, {}).prob(test), prob)


@pytest.mark.parametrize(
    ("name", "side", "channels"),
    [(name, 28, 1) for name in NETWORKS]
    + [(name, 50, 3) for name in NETWORKS if name != "resnet50"]
    + [("resnet18", 100, 1), ("efficientnet-b0", 97, 1)],
)
def test_networks_take_images_of_any_size_and_show_a_map_of_features(name, side, channels):
    kind = BASELINES[name]
    net = kind.make(side, channels, 3).eval()
    maps: list[torch.Tensor] = []
    net.get_submodule(kind.feature_layer).register_forward_hook(lambda _, __, output: maps.append(output))
    x = torch.randn(1, channels, side, side, requires_grad=True)
    logits = net(x)
    assert logits.shape == (1, 3)
    assert maps[0].ndim == 4 and min(maps[0].shape[2:]) >= 2
    assert torch.autograd.grad(logits[0, 0], x)[0].abs().sum() > 0


@pytest.mark.parametrize("side", [28, 50, 97])
def test_padding_in_the_convolutions_leaves_efficientnet_what_it_is(side, monkeypatch):
    make = BASELINES["efficientnet-b0"].make
    ours = make(side, 1, 2).eval()
    monkeypatch.setattr(architectures, "_pad_in_convolution", lambda net: None)
    monai = make(side, 1, 2).eval()
    monai.load_state_dict(ours.state_dict())
    x = torch.randn(2, 1, side, side)
    torch.testing.assert_close(ours(x), monai(x), rtol=1e-4, atol=1e-4)
    before, after = (
        sum(isinstance(part, nn.ConstantPad2d) for part in net.modules()) for net in (monai, ours)
    )
    assert after <= 4 < before  # where the padding is uneven, it stays


def test_a_depthwise_convolution_that_is_slow_in_half_precision_is_computed_in_float32_amid_it():
    net = BASELINES["efficientnet-b0"].make(28, 1, 2)
    kinds = {True: set(), False: set()}
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d) and layer.groups > 1:
            shape = layer.kernel_size, layer.stride
            kinds[shape == ((3, 3), (1, 1))].add(type(layer))
            x = torch.randn(2, layer.in_channels, 9, 9, dtype=torch.bfloat16)
            with torch.autocast("cpu", torch.bfloat16):
                found = layer(x)
            weight = layer.weight.detach()
            exact = nn.functional.conv2d(
                x.float(), weight, None, layer.stride, layer.padding, 1, layer.groups
            )
            assert found.dtype == torch.bfloat16
            assert torch.equal(found, exact.bfloat16()) == (shape != ((3, 3), (1, 1)))
    assert kinds == {True: {nn.Conv2d}, False: {architectures._SlowInHalf}}


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_weights_lie_with_channels_last_where_their_derivatives_survive_it(device):
    last = network.memory_order(torch.device(device)) == torch.channels_last
    assert last == (device != "mps")


def test_the_cost_of_a_step_is_three_forward_passes_of_the_batch(run):
    forward = SIDE * SIDE * 9 * 8 + 32 * 2  # multiply-adds of the convolution and of the last layer
    assert LITTLE.step_cost(run) == 3 * run.config.train.batch * forward


def test_a_depthwise_convolution_counts_once_for_each_channel(run):
    def make(side: int, channels: int, n_classes: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 8, 1, bias=False), nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        )

    assert Network("", make, "0").step_cost(run) == 3 * run.config.train.batch * SIDE * SIDE * (8 + 8 * 9)


def test_training_costs_what_the_training_of_the_score_cost(run, tmp_path, monkeypatch):
    assert equal_cost_steps(3000 * 20, 60, 3000) == 1000
    assert equal_cost_steps(3000 * 20, 1000, 3000) == 100  # no training to speak of in fewer
    assert equal_cost_steps(3000 * 20, 1, 3000) == 3000  # no more batches than the score saw
    assert score_steps(run) == run.config.train.steps
    monkeypatch.setattr(network, "LEAST_STEPS", 6)
    monkeypatch.setattr(network, "LEAST_TRIAL_STEPS", 5)
    found = LITTLE.fit(run, TRAIN, VAL, tmp_path, None).record
    assert found["steps"] == max(6, min(12, round(12 * score_step_cost(run) / LITTLE.step_cost(run))))
    assert found["multiply_adds"] == found["steps"] * LITTLE.step_cost(run)
    assert found["score"]["multiply_adds"] == 12 * score_step_cost(run)
    # A sixth would be too few to tell settings apart.
    assert {trial["steps"] for trial in found["settings_tried"]} == {5}
    assert found["multiply_adds_tuning"] == LITTLE.step_cost(run) * 5 * len(LITTLE.settings)


def test_the_cross_entropy_of_all_classes_costs_more(run):
    hybrid = Run(run.path, run.config, run.facts, run.device)
    train = {**run.config.sections["train"], "cross_entropy": 1.0}
    hybrid.config = replace(run.config, sections={**run.config.sections, "train": train})
    assert score_step_cost(hybrid) > 1.2 * score_step_cost(run)


def test_an_untrained_run_costs_what_its_training_will_unless_minutes_may_cut_it(run, tmp_path):
    begun = Run(tmp_path, run.config, run.facts, run.device)
    assert score_steps(begun) == score_steps(run)
    train = {**run.config.sections["train"], "minutes": 1.0}
    begun.config = replace(run.config, sections={**run.config.sections, "train": train})
    with pytest.raises(ConfigError, match="not trained"):
        score_steps(begun)


def test_the_setting_and_the_checkpoint_are_the_best_on_validation(run, tmp_path):
    found = LITTLE.fit(run, TRAIN, VAL, tmp_path, STEPS)
    tried = found.record["settings_tried"]
    assert [t["setting"]["smoothing"] for t in tried] == [0.0, 0.1]
    assert found.record["setting"] == min(tried, key=lambda t: t["val_log_loss"])["setting"]
    entry = json.loads((tmp_path / "checkpoints" / "manifest.json").read_text())
    best = min(e["val_log_loss"] for e in entry if e["file"].startswith("step"))
    logits = raw_logits(run, found.net, VAL)
    again = fit_temperature(logits, found.log_prior, VAL.labels, VAL.patients, run.config.seed)
    assert again.log_loss == pytest.approx(best, abs=1e-9)


def test_a_setting_whose_loss_overflows_is_not_chosen(run, tmp_path):
    wild = Network("wild network", little, "2", rates=(1e30, 1e-2))
    found = wild.fit(run, TRAIN, VAL, tmp_path, 12).record
    assert [np.isfinite(t["val_log_loss"]) for t in found["settings_tried"]] == [False, False, True, True]
    assert found["setting"]["lr"] == 1e-2


def test_a_training_that_was_stopped_ends_like_an_undisturbed_one(run, tmp_path, monkeypatch):
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    whole = LITTLE.fit(run, TRAIN, VAL, tmp_path / "whole", STEPS)
    with monkeypatch.context() as patch:
        from scorebayes.baselines.network import _Training

        real = _Training.save

        def save(self, *arguments):
            real(self, *arguments)
            if self.step >= STEPS // 2:
                raise KeyboardInterrupt

        patch.setattr(_Training, "save", save)
        with pytest.raises(KeyboardInterrupt):
            LITTLE.fit(run, TRAIN, VAL, tmp_path / "stopped", STEPS)
    resumed = LITTLE.fit(run, TRAIN, VAL, tmp_path / "stopped", STEPS)
    for name, value in whole.net.state_dict().items():
        torch.testing.assert_close(resumed.net.state_dict()[name], value, rtol=0, atol=0)


def test_a_finished_baseline_is_opened_not_trained_again(run, registered, monkeypatch):
    first = fit_baseline(run, "little", steps=4)
    folder = run.path / "baselines" / "little"
    assert sorted(p.name for p in folder.iterdir()) == ["baseline.json", "weights.safetensors"]
    monkeypatch.setattr(LITTLE, "fit", None)
    again = fit_baseline(run, "little")
    images = TEST
    np.testing.assert_array_equal(again.prob(images), first.prob(images))
    assert again.record["environment"]["versions"]["torch"] and again.record["parameters"] == 154
    assert again.feature_layer is again.net[2]
    x = run.standardise(images.images)[:4].requires_grad_()
    logits = again.logits(x)
    np.testing.assert_allclose(softmax(logits.detach().numpy(), 1), again.prob(images)[:4], atol=1e-6)
    logits.sum().backward()
    assert x.grad.abs().sum() > 0


def test_the_trials_of_a_run_with_the_same_test_split_count(run, registered, tmp_path):
    first = fit_baseline(run, "little", steps=4)
    shutil.copytree(run.path, tmp_path / "other", ignore=shutil.ignore_patterns("baselines"))
    other = fit_baseline(open_run(tmp_path / "other", "cpu"), "little", steps=4, tuned=run)
    assert other.record["settings_tried"] == first.record["settings_tried"]  # to the seconds


@pytest.mark.parametrize("name", ["logistic", "hog-svm"])
def test_the_classical_ones_are_stored_too(run, name):
    first = fit_baseline(run, name)
    np.testing.assert_array_equal(open_baseline(run, name).prob(TEST), first.prob(TEST))
    assert first.record["seconds"] > 0 and first.feature_layer is None


def test_weights_that_were_changed_are_refused(run, registered):
    fit_baseline(run, "little", steps=4)
    path = run.path / "baselines" / "little" / "weights.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"x")
    with pytest.raises(ConfigError, match="SHA-256"):
        open_baseline(run, "little")
    path.write_bytes(whole)
    open_baseline(run, "little")


def test_a_class_without_images_is_named(run, registered, monkeypatch):
    lonely = TRAIN.subset(np.flatnonzero(TRAIN.labels == 0))
    monkeypatch.setattr(Run, "images", lambda run, split: lonely)
    monkeypatch.setitem(BASELINES, "other", LITTLE)
    with pytest.raises(DataError, match="two images of every class"):
        fit_baseline(run, "other")


def test_what_is_unknown_or_untrained_says_what_to_do(run):
    with pytest.raises(ConfigError, match="Known: logistic"):
        fit_baseline(run, "resnet17")
    with pytest.raises(ConfigError, match="scorebayes baseline"):
        open_baseline(run, "vit")


def test_temperature_and_bias_mend_what_is_too_sure_and_give_the_class_shares_back():
    rng = np.random.default_rng(0)
    labels = (rng.random(400) < 0.15).astype(int)
    evidence = rng.normal(np.where(labels == 1, 1.0, -1.0), np.sqrt(2.0))  # its log-odds at equal shares
    logits = 5 * np.stack([np.zeros(400), evidence], axis=1)  # five times too sure
    records = tuple(Record(str(i), Path("none"), int(y)) for i, y in enumerate(labels))
    val = ImageSet(np.zeros((400, 1, 2, 2), np.uint8), 8, records)
    equal, shares = np.log([0.5, 0.5]), np.log(np.bincount(labels) / 400)
    found = fit_temperature(logits, equal, val.labels, val.patients, 0)

    def loss(weight, bias):
        return log_loss(labels, np.exp(log_softmax(weight * logits + bias + shares, axis=1)))

    assert loss(found.weight, found.bias) < loss(1.0, 0.0)
    assert found.weight == pytest.approx(0.2, rel=0.3)
    prob = softmax(found.weight * logits + found.bias + shares, axis=1)[:, 1]
    assert prob.mean() == pytest.approx(labels.mean(), abs=0.01)
    within = 3 * shares  # a prior within the logits is taken out first
    skewed = fit_temperature(logits + within, within, val.labels, val.patients, 0)
    offset = (skewed.weight * (logits + within) + skewed.bias) - (found.weight * logits + found.bias)
    np.testing.assert_allclose(offset[:, 0], offset[:, 1], atol=1e-4)


def test_scores_that_say_nothing_on_validation_keep_their_order():
    logits = np.stack([np.zeros(24), -VAL.labels - np.linspace(0, 0.1, 24)], axis=1)  # the wrong way round
    assert fit_temperature(logits, np.log([0.5, 0.5]), VAL.labels, VAL.patients, 0).weight > 0


def test_evaluation_sets_every_trained_baseline_beside_the_model(run, registered):
    fit_baseline(run, "little", steps=4)
    predict_baseline(run, "little", "test")
    metrics = evaluate(run, "test")["baselines"]
    assert {"logistic", "little"} == {entry["name"] for entry in metrics.values()}
    p = [entry["auc_difference_p"] for entry in metrics.values()]
    adjusted = [entry["auc_difference_p_holm"] for entry in metrics.values()]
    assert min(adjusted) == pytest.approx(min(1, 2 * min(p))) and max(adjusted) >= max(p)
    stored = run.path / "baselines" / "logistic" / "baseline.json"
    stamp = stored.stat().st_mtime_ns
    assert evaluate(run, "test")["baselines"] == metrics
    assert stored.stat().st_mtime_ns == stamp


def test_stored_predictions_follow_a_change_of_the_prior(run):
    fit_baseline(run, "logistic")
    predict_baseline(run, "logistic", "test")
    before = read_predictions(run, "logistic", "test")
    other = open_run(run.path)
    other.__dict__["log_prior"] = other.log_prior_of(PriorConfig("given", (0.9, 0.1)))
    after = read_predictions(other, "logistic", "test")
    column = f"prob_{run.facts.classes[1]}"
    assert (after[column] < before[column]).all()
    assert read_predictions(run, "vit", "test") is None


def test_the_command_trains_and_writes_predictions(run, registered):
    result = CliRunner().invoke(app, ["baseline", str(run.path), "little", "--steps", "4"])
    assert result.exit_code == 0, result.output
    assert "scorebayes evaluate" in result.output
    frame = read_predictions(open_run(run.path), "little", "val")
    assert len(frame) == (run.split["split"] == "val").sum()
