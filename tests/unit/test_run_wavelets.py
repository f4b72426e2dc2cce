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
from scorebayes.decision.table import LogLikTable
from scorebayes.errors import ConfigError
from scorebayes.evidence.scattering import scattering
from scorebayes.evidence.wavelets import _training_images
from scorebayes.explain.maps import explain
from scorebayes.runs.inputs import load_split
from scorebayes.runs.run import WAVELETS, open_run
from scorebayes.stages import train as stages
from scorebayes.stages.score import make_likelihood, read_table, score_split
from scorebayes.stages.sequential import decide_sequentially

MORE = "phantom:n_patients=80,views=2,size=16"  # enough for the wavelets to count


def train(path, resume=False):
    return stages.train(path, MORE, [LAYER], "tiny", torch.device("cpu"), resume=resume)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return finish(train(tmp_path_factory.mktemp("wavelets") / "run")).path


@pytest.fixture
def run(path):
    return open_run(path, "cpu")


def test_the_table_holds_what_the_wavelets_say(run):
    table, images = read_table(run, "test"), load_split(run, "test")
    with torch.no_grad():
        said = run.wavelets(scattering(run.standardise(images.images))).numpy()
    order = [images.keys.index(key) for key in table.keys]
    np.testing.assert_allclose(table.wavelets, said[order], rtol=1e-6, atol=1e-6)
    assert run.calibration.wavelet_weight > 0
    logits = run.calibration.logits(table)
    without = LogLikTable(**{**vars(table), "wavelets": np.zeros_like(table.wavelets)})
    np.testing.assert_allclose(
        logits - run.calibration.logits(without), run.calibration.wavelet_weight * table.wavelets
    )


def test_a_stored_table_comes_back_and_older_ones_have_no_wavelets(run, tmp_path):
    table = read_table(run, "test")
    again = LogLikTable.concatenate([table.rows(slice(0, 3)), table.rows(slice(3, None))])
    np.testing.assert_array_equal(again.wavelets, table.wavelets)
    table.to_frame().drop(columns="wavelets").to_parquet(tmp_path / "part-000000.parquet")
    older = LogLikTable.read(tmp_path)
    np.testing.assert_array_equal(older.wavelets, np.zeros_like(table.wavelets))
    np.testing.assert_array_equal(older.draws, table.draws)


def test_nats_have_no_wavelets(run):
    images = load_split(run, "test").subset([0])
    x = run.standardise(images.images)
    assert not run.log_lik(x, images.keys, make_likelihood(run, "bound")).wavelets.any()
    assert run.log_lik(x, images.keys).wavelets.any()


def test_without_wavelets_there_are_none(tmp_path):
    run = train_tiny(tmp_path / "plain", wavelets={"use": False})
    assert run.wavelets is None and not (run.path / WAVELETS).exists()
    assert run.calibration.wavelet_weight == 0 and not read_table(run, "val").wavelets.any()


def test_a_lost_file_is_an_error_and_resuming_mends_it(path, tmp_path):
    shutil.copytree(path, tmp_path / "run")
    stored = (tmp_path / "run" / WAVELETS).read_bytes()
    (tmp_path / "run" / WAVELETS).unlink()
    run = open_run(tmp_path / "run", "cpu")
    with pytest.raises(ConfigError, match=r"calibrated with it[\s\S]*--resume"):
        run.log_lik(torch.zeros(1, 1, 16, 16), ["a"])
    before = json.loads((path / "calibration.json").read_text())["weights"]
    # As a run of a version without wavelets: neither file nor weight.
    calibration = json.loads((run.path / "calibration.json").read_text())
    (run.path / "calibration.json").write_text(json.dumps(calibration | {"wavelet_weight": 0.0}))
    assert open_run(run.path, "cpu").wavelets is None
    run = train(tmp_path / "run", resume=True)
    assert run.calibration.weights.tolist() == pytest.approx(before)
    fresh = open_run(run.path, "cpu").wavelets
    (tmp_path / "before").write_bytes(stored)
    assert fresh is not None and fresh.fingerprint == type(fresh).load(tmp_path / "before").fingerprint


def test_other_wavelets_make_the_table_anew(path, tmp_path):
    shutil.copytree(path, tmp_path / "run")
    run = open_run(tmp_path / "run", "cpu")
    learned = run.wavelets
    surer = {key: of._replace(temperature=2 * of.temperature) for key, of in learned.mixtures.items()}
    type(learned)(surer, learned.mirrored).save(run.path / WAVELETS)
    run = open_run(run.path, "cpu")
    score_split(run, "test")
    assert not np.allclose(
        read_table(run, "test").wavelets, read_table(open_run(path, "cpu"), "test").wavelets
    )


def test_evidence_of_the_pixels_sums_to_the_log_odds_with_wavelets(run):
    images = load_split(run, "test").subset([1])
    found = explain(run, run.standardise(images.images), images.keys[0])
    assert found.wavelets.any()
    assert found.total.sum() + found.offset == pytest.approx(found.log_odds, abs=1e-6)
    # Gradients on the way from the mean grey account for what the image says more than that.
    x = run.standardise(images.images)
    with torch.no_grad():
        gain = (run.wavelets(scattering(x)) - run.wavelets(scattering(torch.zeros_like(x))))[0]
    expected = run.calibration.wavelet_weight * float(gain[found.target] - gain[1 - found.target])
    assert found.wavelets.sum() == pytest.approx(expected, rel=0.05, abs=0.05)


def test_sequential_decisions_know_the_wavelets(run):
    images = load_split(run, "test").subset(np.arange(6))
    found = decide_sequentially(run, run.standardise(images.images), images.keys)
    assert found.table.wavelets.any()
    expected = bayes(found.table, run.log_prior, run.calibration)
    np.testing.assert_allclose(found.posterior.prob, expected.prob)


def test_images_of_a_label_free_start_take_part_without_their_labels(tmp_path):
    layers = [LAYER, {"train": {"steps": 4, "null_label": 1.0}}]
    stages.train(tmp_path / "start", DATA, layers, "tiny", torch.device("cpu"))
    few = {"data": {"per_class": 4}, "train": {"steps": 4, "init": str(tmp_path / "start")}}
    run = stages.train(tmp_path / "few", DATA, [LAYER, few], "tiny", torch.device("cpu"))
    own, images = load_split(run, "train"), _training_images(run)
    assert len(images) == len(load_split(open_run(tmp_path / "start", "cpu"), "train")) > len(own)
    assert images.images.shape[0] == len(images) and images.keys[: len(own)] == own.keys
    np.testing.assert_array_equal(images.labels[: len(own)], own.labels)
    assert (images.labels[len(own) :] == -1).all()
    (tmp_path / "start" / "split.parquet").unlink()
    pd.DataFrame({"image_id": [], "label": [], "split": []}).to_parquet(tmp_path / "start" / "split.parquet")
    assert len(_training_images(run)) == len(own)  # weights that came without their images
