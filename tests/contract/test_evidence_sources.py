"""What every source of evidence must keep, whoever adds one; and that the door is open to one more."""

from __future__ import annotations

import hashlib
import shutil

import numpy as np
import pytest
import torch
from fixtures.tiny_run import DATA, LAYER, finish, train_tiny, write_pictures
from typer.testing import CliRunner

import scorebayes
from scorebayes.cli.main import app
from scorebayes.decision.table import Block
from scorebayes.diffusion.likelihood import DenoisingBound
from scorebayes.evidence.base import Evidence, PixelMaps
from scorebayes.evidence.registry import EVIDENCE
from scorebayes.explain.maps import explain
from scorebayes.report import write_report
from scorebayes.runs.run import open_run
from scorebayes.stages.evaluate import evaluate
from scorebayes.stages.predict import predict_files
from scorebayes.stages.sequential import decide_sequentially
from scorebayes.storage import sealed


class Brightness(Evidence):
    """The third source, written here: the classes' training images differ in their mean, by a Gaussian each."""

    name = "brightness"
    title = "the mean grey value"

    def __init__(self, home, shrink: float = 1.0) -> None:
        self.home, self.shrink, self.path = home, shrink, home.path / "brightness.npy"

    def fit(self, images):
        if not self.learned:
            of = self.home.standardise(images.train.images).mean(dim=(1, 2, 3)).numpy()
            labels = images.train.labels
            means = [of[labels == y].mean() for y in range(len(self.home.classes))]
            np.save(self.path, np.array([*means, of.std()]))
        return {}

    @property
    def learned(self):
        return self.path.exists()

    @property
    def seconds(self):
        return 0.0

    def fingerprint(self, likelihood=None):
        content = self.path.read_bytes() + repr((self.shrink, self.home.scaling)).encode()
        return hashlib.sha256(content).hexdigest()

    def _values(self, x):
        *means, std = np.load(self.path)
        away = x.mean(dim=(1, 2, 3)).double()[:, None] - torch.tensor(means)
        found = -0.5 * self.shrink * (away / std).square()
        return found - found.mean(dim=1, keepdim=True)

    def log_lik(self, x, keys, likelihood=None):
        return Block.exactly(self._values(x).numpy())

    def weighted(self, x, keys, weights, draws=1):
        return float(weights[0]) * self._values(x)

    def maps(self, x, key, block, weights, against):
        value = float(weights[0] * (self._values(x)[0].numpy() @ against))
        even = np.full(x.shape[2:], value / x.shape[2] / x.shape[3])
        return PixelMaps(even[None], np.zeros_like(even), np.zeros(1), np.full(1, np.nan))


@pytest.fixture(scope="module", autouse=True)
def the_door():
    """One line opens it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(EVIDENCE, Brightness.name, Brightness)
        yield


def all_sources():
    """Every entry of the registry, those that train with little."""
    little = {
        "size": 64,
        "components": 6,
        "steps": 8,
        "batch": 8,
        "warmup": 1,
        "validate_every": 8,
        "lr": 1e-2,
        "channels": [8, 16],
        "levels": 4,
    }
    return {"sources": [*EVIDENCE], "features": little, "pooled": {"size": 64}}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    return finish(train_tiny(folder, evidence=all_sources())).path


@pytest.fixture
def run(path):
    return open_run(path, "cpu")


@pytest.fixture
def images(run):
    return run.images("test").subset(range(4))


@pytest.fixture
def x(run, images):
    return run.standardise(images.images)


@pytest.fixture(params=[*EVIDENCE, "brightness"])
def source(run, request):
    return run.sources[request.param]


def copied(path, tmp_path, **changes):
    """A copy of the run under another configuration or other facts of its data."""
    shutil.copytree(path, tmp_path / "copy")
    for name, (old, new) in changes.items():
        file = tmp_path / "copy" / name.replace("_", ".")
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new))
    sealed.accept(tmp_path / "copy")
    return open_run(tmp_path / "copy", "cpu")


def test_a_source_has_a_name_and_says_what_it_looks_at(source):
    assert source.name in EVIDENCE and EVIDENCE[source.name] is type(source)
    assert source.title and source.seconds >= 0


def test_draws_are_shared_by_the_classes_and_have_the_shapes_of_a_block(source, x, images):
    block = source.log_lik(x, images.keys)
    k, n, y = block.draws.shape
    assert (n, y) == (4, 2) and block.level.shape == (k,) and block.log_snr.shape == (k, n)
    assert block.nfe.shape == block.status.shape == (n,) and (block.status == "ok").all()
    assert block.exact == (not source.sampled) == (not block.nfe.any())


def test_a_sampled_source_asks_all_classes_with_the_same_noise(source, x, images):
    if not source.sampled:
        pytest.skip("exact: there is no noise")
    one = source.passes(x, images.keys, range(1))[0]
    some = source.passes(x, images.keys, range(1), np.array([1]))[0]
    np.testing.assert_allclose(some[..., 0], one[..., 1], rtol=1e-4, atol=1e-3)
    own = source.log_lik(x, images.keys)
    assert len(one) == source.levels == own.n_levels
    assert int(own.nfe[0]) == len(own.draws) * source.evaluations


def test_the_label_matters(source, x, images):
    draws = source.log_lik(x, images.keys).draws
    assert (np.abs(draws[..., 0] - draws[..., 1]).max(axis=0) > 1e-6).all()


def test_an_image_says_the_same_alone_and_among_others(source, x, images):
    together, alone = source.log_lik(x, images.keys), source.log_lik(x[2:3], images.keys[2:3])
    np.testing.assert_allclose(alone.draws[:, 0], together.draws[:, 2], rtol=1e-5, atol=1e-4)


def test_maps_and_offset_sum_to_the_part_of_the_log_odds(source, run, x, images):
    weights, against = run.calibration.weights[source.name] + 0.1, np.array([-1.0, 1.0])
    block = source.log_lik(x[:1], images.keys[:1])
    maps, means = source.maps(x[:1], images.keys[0], block, weights, against), block.level_means[0]
    assert maps.levels.shape == (len(weights), *x.shape[2:]) == (len(means), *maps.std_error.shape)
    assert maps.total.sum() + maps.offset == pytest.approx(weights @ means @ against, rel=1e-4, abs=1e-5)
    assert (maps.std_error > 0).any() == source.sampled


def test_the_gradient_passes_through_the_weighted_sum(source, run, x, images):
    weights = np.ones_like(run.calibration.weights[source.name])
    one = x[:1].clone().requires_grad_(True)
    value = source.weighted(one, images.keys[:1], weights, 2)
    assert value.shape == (1, 2) and value.dtype == torch.float64
    (slope,) = torch.autograd.grad(value[0, 0] - value[0, 1], one)
    assert torch.isfinite(slope).all() and slope.abs().sum() > 0
    if not source.sampled:
        means = source.log_lik(x[:1], images.keys[:1]).level_means[0]
        np.testing.assert_allclose(value.detach()[0], weights @ means, rtol=1e-6, atol=1e-6)


def test_the_fingerprint_stays_and_follows_what_the_numbers_depend_on(source, path, tmp_path):
    again = open_run(path, "cpu").sources[source.name]
    assert again.fingerprint() == source.fingerprint()
    # Other grey values of the training images: the same file is another standardised image.
    mean = f'"mean": {again.home.facts.mean}'
    moved = copied(path, tmp_path, source_json=(mean, f'"mean": {again.home.facts.mean + 0.1}'))
    assert moved.sources[source.name].fingerprint() != source.fingerprint()


@pytest.mark.parametrize(("old", "new"), [("beta_max = 20.0", "beta_max = 15.0"), ("seed = 6", "seed = 7")])
def test_a_sampled_source_depends_on_its_noise_too(path, tmp_path, old, new):
    before, after = open_run(path, "cpu"), copied(path, tmp_path, config_toml=(old, new))
    for name, source in before.sources.items():
        assert (after.sources[name].fingerprint() != source.fingerprint()) == source.sampled, name


def test_another_estimator_is_another_fingerprint_where_it_is_asked(source):
    other = source.fingerprint(DenoisingBound(levels=3))
    assert (other != source.fingerprint()) == source.in_nats


def test_what_was_learned_stays_when_learning_again(source, run, path):
    learned = {
        p: p.stat().st_mtime_ns
        for p in path.rglob("*")
        if p.is_file() and p.suffix in (".npy", ".safetensors")
    }
    again = train_tiny(path, resume=True, evidence=all_sources())
    assert again.maker(again.likelihood) == run.maker(run.likelihood)
    assert {p: p.stat().st_mtime_ns for p in learned} == learned


def test_a_source_that_is_lost_is_an_error_by_its_name(path, tmp_path):
    shutil.copytree(path, tmp_path / "copy")
    (tmp_path / "copy" / "brightness.npy").unlink()
    with pytest.raises(scorebayes.errors.ConfigError, match="the mean grey value is missing"):
        _ = open_run(tmp_path / "copy", "cpu").sources


def test_options_of_a_source_are_checked_by_name(tmp_path):
    with pytest.raises(
        scorebayes.errors.ConfigError, match=r"'shrnk' in .evidence.brightness. .did you mean 'shrink'"
    ):
        train_tiny(tmp_path / "run", evidence={"sources": ["brightness"], "brightness": {"shrnk": 2.0}})
    with pytest.raises(
        scorebayes.errors.ConfigError, match=r"'bright' is unknown .did you mean 'brightness'"
    ):
        train_tiny(tmp_path / "run", evidence={"sources": ["bright"]})


def test_a_third_source_goes_the_whole_way(run, tmp_path):
    """Table, calibration, prediction, evaluation, maps, sequential decisions, commands and report."""
    assert list(run.sources) == list(run.calibration.weights) == [*EVIDENCE]
    pictures = write_pictures(tmp_path, 2)
    assert (predict_files(run, pictures, force=True)["status"] == "ok").all()
    x, key, _ = run.read(pictures[0])
    found = explain(run, x, key)
    assert list(found.parts) == list(run.sources)
    assert found.total.sum() + found.offset == pytest.approx(found.log_odds, abs=1e-5)
    early = decide_sequentially(run, x, [key])
    expected = scorebayes.bayes(early.table, run.log_prior, run.calibration)
    np.testing.assert_allclose(early.posterior.prob, expected.prob)
    assert 0 <= evaluate(run, "test")["auc"] <= 1
    for command in (
        ["explain", str(run.path), "--split", "test"],
        ["explain", str(run.path), str(pictures[0])],
    ):
        result = CliRunner().invoke(app, command, catch_exceptions=False)
        assert result.exit_code == 0, result.output
    assert "brightness" in write_report(run.path).read_text(encoding="utf-8")


def test_one_source_alone_is_enough(tmp_path):
    run = train_tiny(tmp_path / "run", evidence={"sources": ["brightness"], "brightness": {"shrink": 0.5}})
    assert run.sources["brightness"].shrink == 0.5 and not (run.path / "checkpoints").exists()
    images = run.images("val").subset([0])
    table = run.evidence(run.standardise(images.images), images.keys)
    assert list(table.blocks) == ["brightness"] and np.isfinite(run.calibration.logits(table)).all()


def test_data_and_layer_are_those_of_the_tiny_run():
    assert DATA.startswith("phantom") and LAYER["seed"] == 6  # what the replacements above count on
