"""The wavelets of a run: learned after training, in its table, its posterior and its calibration."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from fixtures.tiny_run import DATA, LAYER, finish, train_tiny

from scorebayes.decision.posterior import bayes
from scorebayes.decision.table import EvidenceTable
from scorebayes.errors import ConfigError
from scorebayes.evidence.scattering import scattering
from scorebayes.evidence.wavelets import WaveletMixtures
from scorebayes.explain.maps import explain
from scorebayes.runs.inputs import unlabelled_of_start
from scorebayes.runs.run import open_run
from scorebayes.stages import train as stages
from scorebayes.stages.score import make_likelihood, read_table, score_split
from scorebayes.stages.sequential import decide_sequentially
from scorebayes.storage import sealed

MORE = "phantom:n_patients=80,views=2,size=16"  # enough for the wavelets to count
WAVELETS = "wavelets.safetensors"


def train(path, resume=False):
    return stages.train(path, MORE, [LAYER], "tiny", torch.device("cpu"), resume=resume)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return finish(train(tmp_path_factory.mktemp("wavelets") / "run")).path


@pytest.fixture
def run(path):
    return open_run(path, "cpu")


def test_the_table_holds_what_the_wavelets_say(run):
    table, images = read_table(run, "test"), run.images("test")
    with torch.no_grad():
        values = run.sources["wavelets"].mixtures(scattering(run.standardise(images.images))).numpy()
    order = [images.keys.index(key) for key in table.keys]
    block, calibration = table.blocks["wavelets"], run.calibration
    assert block.exact and block.draws.shape[0] == 1 and not block.nfe.any()
    np.testing.assert_allclose(block.draws[0], values[order], rtol=1e-6, atol=1e-6)
    (weight,) = calibration.weights["wavelets"]
    assert weight > 0
    np.testing.assert_allclose(
        calibration.logits(table)
        - calibration.of_source("pixels", table.blocks["pixels"])
        - calibration.bias,
        weight * block.draws[0],
    )


def test_a_stored_table_comes_back_and_older_ones_hold_the_wavelets_in_a_column(run, tmp_path):
    table = read_table(run, "test")
    again = EvidenceTable.concatenate([table.rows(slice(0, 3)), table.rows(slice(3, None))])
    wavelets, pixels = table.blocks["wavelets"].draws, table.blocks["pixels"].draws
    np.testing.assert_array_equal(again.blocks["wavelets"].draws, wavelets)
    older = table.alone("pixels").to_frame().drop(columns=["source", "exact", "patient_id"])
    older["wavelets"] = np.repeat(wavelets[0].ravel(), len(pixels))
    older.to_parquet(tmp_path / "part-000000.parquet")
    found = EvidenceTable.read(tmp_path)
    np.testing.assert_array_equal(found.blocks["wavelets"].draws, wavelets)
    np.testing.assert_array_equal(found.blocks["pixels"].draws, pixels)
    np.testing.assert_array_equal(run.calibration.logits(found), run.calibration.logits(table))
    older.drop(columns="wavelets").to_parquet(tmp_path / "part-000000.parquet")
    assert list(EvidenceTable.read(tmp_path).blocks) == ["pixels"]


def test_nats_have_no_wavelets(run):
    images = run.images("test").subset([0])
    x = run.standardise(images.images)
    assert list(run.evidence(x, images.keys, make_likelihood(run, "bound")).blocks) == ["pixels"]
    assert list(run.evidence(x, images.keys).blocks) == ["pixels", "wavelets"]


def test_without_wavelets_there_are_none(tmp_path):
    run = train_tiny(tmp_path / "plain", evidence={"sources": ["pixels"]})
    assert list(run.sources) == ["pixels"] and not (run.path / WAVELETS).exists()
    assert list(run.calibration.weights) == ["pixels"] == list(read_table(run, "val").blocks)


def test_wavelets_alone_need_no_network(tmp_path):
    run = train_tiny(tmp_path / "alone", evidence={"sources": ["wavelets"]})
    assert not run.checkpoints.entries("step")
    images = run.images("val").subset([0, 1])
    found = bayes(run.evidence(run.standardise(images.images), images.keys), run.log_prior, run.calibration)
    assert (found.log_odds_std_error == 0).all() and np.isfinite(found.log_prob).all()


def test_a_lost_file_is_an_error_and_resuming_mends_it(path, tmp_path):
    shutil.copytree(path, tmp_path / "run")
    stored = (tmp_path / "run" / WAVELETS).read_bytes()
    (tmp_path / "run" / WAVELETS).unlink()
    run = open_run(tmp_path / "run", "cpu")
    with pytest.raises(ConfigError, match=r"calibration of the run needs it[\s\S]*--resume"):
        run.evidence(torch.zeros(1, 1, 16, 16), ["a"])
    before = json.loads((path / "calibration.json").read_text())["weights"]
    (run.path / "calibration.json").unlink()
    run = train(tmp_path / "run", resume=True)
    for name, weights in run.calibration.weights.items():
        assert weights.tolist() == pytest.approx(before[name])
    (tmp_path / "before").write_bytes(stored)
    fresh = run.sources["wavelets"].mixtures
    assert fresh.fingerprint == WaveletMixtures.load(tmp_path / "before").fingerprint


def test_other_wavelets_make_the_table_anew(path, tmp_path):
    shutil.copytree(path, tmp_path / "run")
    run = open_run(tmp_path / "run", "cpu")
    learned = run.sources["wavelets"].mixtures
    surer = {key: of._replace(temperature=2 * of.temperature) for key, of in learned.mixtures.items()}
    WaveletMixtures(surer, learned.mirrored).save(run.path / WAVELETS)
    run = open_run(run.path, "cpu")
    score_split(run, "test")
    here, there = (read_table(each, "test").blocks["wavelets"] for each in (run, open_run(path, "cpu")))
    assert not np.allclose(here.draws, there.draws)


def test_maps_of_the_wavelets_are_what_the_image_adds_to_an_even_grey_one(run):
    images = run.images("test").subset([1])
    x = run.standardise(images.images)
    found = explain(run, x, images.keys[0])
    part = found.parts["wavelets"]
    assert part.levels.any() and not part.std_error.any()
    mixtures, (weight,) = run.sources["wavelets"].mixtures, run.calibration.weights["wavelets"]
    with torch.no_grad():
        gain = (mixtures(scattering(x)) - mixtures(scattering(torch.zeros_like(x))))[0]
    expected = weight * float(gain[found.target] - gain[1 - found.target])
    assert part.total.sum() == pytest.approx(expected, rel=0.05, abs=0.05)


def test_sequential_decisions_know_the_wavelets(run):
    images = run.images("test").subset(np.arange(6))
    found = decide_sequentially(run, run.standardise(images.images), images.keys)
    assert found.table.blocks["wavelets"].draws.any()
    expected = bayes(found.table, run.log_prior, run.calibration)
    np.testing.assert_allclose(found.posterior.prob, expected.prob)


def test_images_of_a_label_free_start_take_part_without_their_labels(tmp_path):
    layers = [LAYER, {"train": {"steps": 4, "null_label": 1.0}}]
    stages.train(tmp_path / "start", DATA, layers, "tiny", torch.device("cpu"))
    few = {"data": {"per_class": 4}, "train": {"steps": 4, "init": str(tmp_path / "start")}}
    run = stages.train(tmp_path / "few", DATA, [LAYER, few], "tiny", torch.device("cpu"))
    own, more = run.images("train"), unlabelled_of_start(run)
    assert len(own) + len(more) == len(open_run(tmp_path / "start", "cpu").images("train"))
    assert not set(own.keys) & set(more.keys) and len(more) and (more.labels == -1).all()
    (tmp_path / "start" / "split.parquet").unlink()
    pd.DataFrame({"image_id": [], "label": [], "split": []}).to_parquet(tmp_path / "start" / "split.parquet")
    sealed.accept(tmp_path / "start")
    assert unlabelled_of_start(run) is None  # weights that came without their images
