"""A run for another place: a few numbers and what is typical fitted anew on labelled images from there, all else as it
was."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from fixtures.tiny_run import finish, trained_tiny, write_pictures
from scipy.special import softmax
from typer.testing import CliRunner

import scorebayes
from scorebayes.cli.main import app
from scorebayes.data.sources.arrays import save_arrays
from scorebayes.decision.calibration import Calibration
from scorebayes.decision.posterior import bayes
from scorebayes.decision.table import Block, EvidenceTable
from scorebayes.errors import ConfigError, DataError
from scorebayes.stages.predict import predict_files
from scorebayes.stages.recalibrate import recalibrate
from scorebayes.stages.score import read_table, score_images
from scorebayes.storage import sealed

PLACE = "phantom:n_patients=30,views=2,size=16,seed=5"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose calibration is far too sure of one class, as if it had been fitted elsewhere."""
    run = finish(trained_tiny(tmp_path_factory.mktemp("runs") / "tiny"))
    path = run.path / "calibration.json"
    stored = json.loads(path.read_text())
    path.write_text(
        json.dumps(
            {
                **stored,
                "bias": [2.0, -2.0],
                "weights": {name: [8 * w for w in of] for name, of in stored["weights"].items()},
            }
        )
    )
    sealed.accept(run.path)
    return scorebayes.open_run(run.path, "cpu")


@pytest.fixture(scope="module")
def found(run, tmp_path_factory):
    before = hashes(run.path)
    done = recalibrate(run, PLACE, tmp_path_factory.mktemp("runs") / "here")
    assert hashes(run.path) == before
    return done


def hashes(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def table_of(run, data):
    images = run.reader.labelled(data)
    return score_images(run, images, run.likelihood, lambda *_: None)


def test_probabilities_fit_the_place(found):
    assert found.after["log_loss"] < 0.7 < found.before["log_loss"] - 0.3
    assert found.after["ece"] < found.before["ece"]
    assert found.after["n"] == found.before["n"] == 60
    assert found.after["n_patients"] == 30


def test_the_order_of_images_and_all_but_few_numbers_stay(run, found):
    new = found.run
    assert new.checkpoints.best()["sha256"] == run.checkpoints.best()["sha256"]
    assert new.maker(run.likelihood) == run.maker(run.likelihood)
    table = table_of(run, PLACE)
    evidence = run.calibration.logits(table)
    there = new.calibration.logits(table)
    scale = new.calibration.weights["pixels"][-1] / run.calibration.weights["pixels"][-1]
    rest = there - scale * evidence
    assert scale > 0 and rest == pytest.approx(np.broadcast_to(rest[0], rest.shape), abs=1e-8)
    assert new.decision.typicality.appearance.n == 60 != run.decision.typicality.appearance.n
    assert new.decision.pooling == run.decision.pooling
    # The classes of the place are its prior, under which the probabilities are right on the whole.
    shares = np.bincount(table.labels) / len(table)
    assert np.exp(new.log_prior) == pytest.approx(shares)
    prob = bayes(table, new.log_prior, new.calibration).prob
    assert prob.mean(axis=0) == pytest.approx(shares, abs=0.03)
    assert new.decision.threshold != run.decision.threshold


def test_it_is_a_run_like_any_other(run, found, tmp_path):
    files = write_pictures(tmp_path, 3)
    here, there = (predict_files(one, files, force=True) for one in (found.run, run))
    assert list(here.columns) == list(there.columns)
    assert (here["prob_malignant"] - there["prob_malignant"]).abs().max() > 0.05
    finish(found.run)  # the official test images can be scored by it, too
    assert len(read_table(found.run, "test")) == (run.split["split"] == "test").sum()


def test_the_prior_can_be_given_and_the_command_shows_what_it_brings(run, tmp_path):
    command = [
        "recalibrate",
        str(run.path),
        "--data",
        PLACE,
        "--out",
        str(tmp_path / "here"),
        "--prior",
        "0.1",
    ]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0 and "before" in result.output and "scorebayes predict" in result.output
    new = scorebayes.open_run(tmp_path / "here", "cpu")
    assert np.exp(new.log_prior) == pytest.approx([0.9, 0.1])


def test_what_cannot_be_used_is_refused_and_leaves_nothing(run, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(ConfigError, match="already exists"):
        recalibrate(run, PLACE, tmp_path / "there")
    with pytest.raises(DataError, match="of class 'benign'"):
        recalibrate(run, "phantom:n_patients=6,views=2,size=16", tmp_path / "few")
    images = np.random.default_rng(0).integers(0, 255, (20, 16, 16), dtype=np.uint8)
    save_arrays(tmp_path / "other.npz", images, np.arange(20) % 2, classes=["cat", "dog"])
    with pytest.raises(
        ConfigError, match="the classes are cat, dog, but the run was trained on benign, malignant"
    ):
        recalibrate(run, f"arrays:{tmp_path / 'other.npz'}", tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["there"]


def test_folders_with_names_like_ours_are_left_alone(run, tmp_path):
    """H3: what was called like an unfinished run was removed, whatever it was."""
    for name in ("here.partial", ".here-abc.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("mine")
    assert recalibrate(run, PLACE, tmp_path / "here").run.path == tmp_path / "here"
    assert {path.name for path in tmp_path.iterdir()} == {"here", "here.partial", ".here-abc.partial"}
    assert all((tmp_path / name / "thesis.txt").exists() for name in ("here.partial", ".here-abc.partial"))


def test_a_calibration_of_a_calibration_is_one():
    rng = np.random.default_rng(0)
    n = 5
    draws, level = rng.normal(size=(4, n, 2)), np.array([0, 0, 1, 1])
    sampled = Block(draws, np.zeros((4, n)), level, np.ones(n, int), np.full(n, "ok"), "class-score")
    blocks = {"a": sampled, "b": Block.exactly(rng.normal(size=(n, 2)))}
    table = EvidenceTable(tuple("abcde"), np.zeros(n, int), blocks, np.zeros(n))
    inner = Calibration(
        {"a": np.array([0.5, 2.0]), "b": np.array([0.7])}, np.array([0.1, -0.3]),
        {"a": np.zeros(2), "b": np.zeros(1)}, {"a": "class-score", "b": "log-ratio"},
    )  # fmt: skip
    found = inner.rescaled(3.0, np.array([1.0, 0.0]), 0.5, n).logits(table)
    assert softmax(found, axis=1) == pytest.approx(softmax(3 * inner.logits(table) + [1.0, 0.0], axis=1))
