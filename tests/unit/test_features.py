"""The features source: encoder, whitening, cache, defaults by the size of the images, and what a run on features lacks."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from fixtures.tiny_run import train_tiny
from typer.testing import CliRunner

from scorebayes.baselines import fit_baseline, open_baseline
from scorebayes.cli.main import app
from scorebayes.data import open_source
from scorebayes.errors import ConfigError
from scorebayes.evidence.encoders import lite0, open_encoder
from scorebayes.evidence.features import spread_over_pixels
from scorebayes.runs import inputs
from scorebayes.runs.config import resolve
from scorebayes.runs.run import open_run

CPU = torch.device("cpu")
LITTLE = {
    "size": 64, "components": 6, "steps": 8, "batch": 8, "warmup": 1, "validate_every": 8, "lr": 1e-2, "channels": [8, 16],
    "levels": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    return train_tiny(folder, evidence={"sources": ["features"], "features": LITTLE}).path


@pytest.fixture
def run(path):
    return open_run(path, "cpu")


def test_the_encoder_knows_its_weights_and_refuses_others(monkeypatch, tmp_path):
    encoder = open_encoder("lite0", 64, CPU)
    maps = encoder(torch.rand(2, 1, 40, 40))
    assert maps.shape == (2, encoder.channels, encoder.cells, encoder.cells) == (2, 232, 4, 4)
    assert encoder.pooled(torch.rand(2, 3, 64, 64)).shape == (2, encoder.pooled_features)
    monkeypatch.setattr(lite0.Lite0, "WEIGHTS", "0" * 64)
    lite0._weights.cache_clear()
    with pytest.raises(ConfigError, match="SHA-256"):
        open_encoder("lite0", 64, CPU)(torch.rand(1, 1, 64, 64))
    lite0._weights.cache_clear()
    for text, word in (("lite1", "unknown"), ("lite0:more", "takes nothing")):
        with pytest.raises(ConfigError, match=word):
            open_encoder(text, 64, CPU)


def test_grey_is_the_same_picture_in_all_channels():
    encoder, grey = open_encoder("lite0", 64, CPU), torch.rand(1, 1, 64, 64)
    torch.testing.assert_close(encoder(grey), encoder(grey.expand(-1, 3, -1, -1)))


def test_components_of_the_training_cells_are_uncorrelated_and_of_unit_variance(run):
    maps = run.sources["features"].feature_maps
    raw = torch.cat([*maps.encoded.of_images(run.images("train"), "features")]).float()
    cells = maps.whitened(raw).permute(0, 1, 3, 4, 2).reshape(-1, maps.shape[0]).double()
    assert maps.shape == (6, 4, 4)
    torch.testing.assert_close(cells.mean(0), torch.zeros(6).double(), atol=2e-2, rtol=0)
    torch.testing.assert_close(cells.T @ cells / len(cells), torch.eye(6).double(), atol=2e-2, rtol=0)
    assert 0.3 < json.loads((run.path / "features" / "about.json").read_text())["kept_variance"] <= 1


def test_maps_are_encoded_once_and_a_damaged_cache_again(run, monkeypatch):
    encoded, images = run.sources["features"].encoded, run.images("train")

    def maps() -> torch.Tensor:
        return torch.cat([*encoded.of_images(images, "features")])

    before = maps()
    with monkeypatch.context() as patch:
        patch.setattr(type(encoded), "__call__", lambda *_: pytest.fail("encoded again"))
        torch.testing.assert_close(maps(), before)
    for file in (run.path / "cache" / "features").iterdir():
        file.write_bytes(b"cut")
    torch.testing.assert_close(maps(), before)


def test_a_map_of_cells_is_spread_over_the_pixels_and_keeps_its_sum():
    cells = np.random.default_rng(0).normal(size=(3, 4))
    for side in (12, 13, 64):
        pixels = spread_over_pixels(cells, side)
        assert pixels.shape == (side, side) and pixels.sum() == pytest.approx(cells.sum())
        assert len(np.unique(pixels.round(12))) == 12


def test_weights_learned_with_other_options_are_refused(path, tmp_path):
    shutil.copytree(path, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"learned with other options .steps: 8 -> 9"):
        train_tiny(
            tmp_path / "run",
            resume=True,
            evidence={"sources": ["features"], "features": LITTLE | {"steps": 9}},
        )


def test_values_in_nats_are_those_of_the_whitened_map(run):
    from scorebayes.diffusion.likelihood import DenoisingBound

    images = run.images("val").subset([0, 1])
    table = run.evidence(run.standardise(images.images), images.keys, DenoisingBound(levels=4))
    nats = table.only.nats
    assert nats.shape == (2, 2) and np.isfinite(nats).all()


def test_a_run_on_features_says_that_it_has_no_score_of_the_pixels(run):
    assert not (run.path / "checkpoints").exists()
    for command in ("sample", "tune"):
        result = CliRunner().invoke(app, [command, str(run.path)])
        assert isinstance(result.exception, ConfigError) and "no score of the pixels" in str(result.exception)


def suggested(size: int, *layers, preset="small"):
    source = open_source(f"phantom:n_patients=4,views=1,size={size}")
    return inputs.suggest(source, source.records(), inputs._named_sources(layers, preset))


def test_large_images_get_features_by_default_and_small_ones_do_not(monkeypatch):
    large, small = suggested(112), suggested(64)
    assert (
        large["evidence"] == {"sources": ["features", "wavelets", "pooled"]}
        and large["prepare"]["size"] == 112
    )
    assert "evidence" not in small and small["prepare"]["size"] == 64
    scratch = suggested(112, {"evidence": {"sources": ["pixels", "wavelets"]}})
    assert scratch["evidence"]["sources"] == ["pixels", "wavelets"] and scratch["prepare"]["size"] == 64
    named = suggested(64, {"evidence": {"features": {"encoder": "lite0"}}})
    assert named["evidence"]["sources"] == ["features", "wavelets", "pooled"]
    monkeypatch.setattr(inputs.importlib.util, "find_spec", lambda name: None)
    with pytest.warns(UserWarning, match=r"scorebayes\[encoder\]"):
        assert suggested(112)["prepare"]["size"] == 64


def test_an_encoder_that_is_named_for_one_source_holds_for_the_others():
    layer = {
        "data": {"source": "phantom"},
        "prepare": {"size": 64},
        "evidence": {"sources": ["features", "wavelets", "pooled"]},
    }
    layer["evidence"] |= {"features": {"encoder": "timm:some", "size": 96}}
    sections = resolve(layer).sections["evidence"]
    assert sections["pooled"] == {"encoder": "timm:some", "size": 96} and "wavelets" not in sections
    layer["evidence"]["pooled"] = {"size": 64}
    sections = resolve(layer).sections["evidence"]
    assert sections["pooled"] == {"encoder": "timm:some", "size": 64}
    assert sections["features"]["size"] == 96


@pytest.mark.parametrize(
    "layer",
    [
        {"train": {"null_label": 1.0}},
        {"train": {"init": "runs/other"}},
        {"net": {"channels": [8, 16]}},
        {"likelihood": {"kind": "flow"}},
        {"prepare": {"size": 64}},
    ],
)
def test_who_asks_for_a_score_of_the_pixels_gets_one(layer):
    found = suggested(112, layer)
    assert found["evidence"]["sources"] == ["pixels", "wavelets"] and found["prepare"]["size"] == 64
    assert "features" in suggested(112, {"train": {"steps": 9}})["evidence"]["sources"]
    assert "pixels" in suggested(112, preset="paper")["evidence"]["sources"]


@pytest.mark.parametrize(
    ("name", "length"), [("logistic-on-features", 1280), ("logistic-on-statistics", 464)]
)
def test_regressions_stand_on_the_same_encoder_as_the_run(run, name, length):
    fitted = fit_baseline(run, name)
    assert fitted.record["encoder"]["sha256"] == run.sources["features"].encoder.sha256
    kept, images = open_baseline(open_run(run.path, "cpu"), name), run.images("val")
    assert kept.net.layer.weight.shape == (2, length)
    x = run.standardise(images.images[:4])
    with torch.no_grad():
        torch.testing.assert_close(kept.logits(x), fitted.logits(x), rtol=0, atol=1e-9)
        torch.testing.assert_close(kept.logits(x.flip(-1)), kept.logits(x), rtol=1e-4, atol=1e-4)
