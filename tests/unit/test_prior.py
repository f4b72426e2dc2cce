"""Another class prior at prediction: the posterior follows it, what is called positive does not."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
import torch
from fixtures.tables import one_calibration, one_source
from fixtures.tiny_run import finish, trained_tiny, write_pictures
from scipy.special import expit, logit, softmax
from typer.testing import CliRunner

import scorebayes
from scorebayes.baselines import fit_baseline
from scorebayes.cli.main import app
from scorebayes.decision.decision import Decision
from scorebayes.errors import ConfigError
from scorebayes.metrics import choose_threshold
from scorebayes.runs.config import PriorConfig
from scorebayes.stages.evaluate import evaluate
from scorebayes.stages.predict import predict_files, read_prior
from scorebayes.stages.score import read_table
from scorebayes.storage import sealed
from scorebayes.tasks import task_of


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return finish(trained_tiny(tmp_path_factory.mktemp("runs") / "tiny"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"), 6)


def test_the_log_odds_move_by_the_change_of_the_prior_and_the_calls_stay(run, pictures):
    own, rare = run.log_prior, np.log([0.99, 0.01])
    before = predict_files(run, pictures, force=True)
    after = predict_files(run, pictures, force=True, log_prior=rare)
    moved = (rare[1] - rare[0]) - (own[1] - own[0])
    np.testing.assert_allclose(after["log_odds"] - before["log_odds"], moved)
    np.testing.assert_array_equal(after["above_threshold"], before["above_threshold"])
    np.testing.assert_array_equal(after["decided"], before["decided"])
    np.testing.assert_allclose(after["log_odds_std_error"], before["log_odds_std_error"])
    assert (after["prob_malignant"] < before["prob_malignant"]).all()


@pytest.mark.parametrize("names", [["logistic"], ["logistic", "hog-svm"]])
def test_together_with_baselines_the_log_odds_are_the_mean_under_any_prior(run, pictures, names):
    x = torch.cat([run.read(path)[0] for path in pictures])
    logits = [fit_baseline(run, name).logits(x).numpy(force=True) for name in names]
    theirs = [logit(softmax(z, axis=1)[:, 1]) for z in logits]
    for log_prior in (None, np.log([0.99, 0.01])):
        found = predict_files(run, pictures, force=True, log_prior=log_prior, partners=names)
        moved = 0.0 if log_prior is None else np.subtract(*(log_prior - run.log_prior)[::-1])
        expected = np.mean([found["log_odds"], *(log_odds + moved for log_odds in theirs)], axis=0)
        together = found[f"prob_with_{'+'.join(names)}_malignant"]
        np.testing.assert_allclose(together, expit(expected), atol=2e-6)


def test_a_baseline_to_decide_together_with_must_be_trained(run, pictures):
    with pytest.raises(ConfigError, match="has not been trained"):
        predict_files(run, pictures, partners=["vit"])


def test_the_moved_threshold_is_the_one_that_would_have_been_chosen_under_that_prior(run):
    table = read_table(run, "val")
    rare = np.log([0.98, 0.02])
    prob = scorebayes.bayes(table, rare, run.calibration).prob
    chosen = choose_threshold(table.labels, prob, "youden")
    moved = run.decision.under(rare, 1).threshold
    # Midway between two probabilities is not midway between their images under a shift: the same images are called.
    np.testing.assert_array_equal(prob[:, 1] >= moved, prob[:, 1] >= chosen)


def test_moving_there_and_back_gives_the_same_decision(run):
    there = run.decision.under(np.log([0.995, 0.005]), 1)
    assert there.threshold < run.decision.threshold
    assert there.under(run.log_prior, 1).threshold == pytest.approx(run.decision.threshold, rel=1e-9)


def test_among_three_classes_the_cut_on_the_evidence_stays_where_the_others_keep_their_shares():
    logits = np.random.default_rng(0).normal(size=(300, 3)) * 2
    calibration = one_calibration(np.ones(1), np.zeros(3), np.zeros(1), "density")
    table = one_source(logits[None], np.zeros(1, int), np.zeros((1, 300)), kind="density")
    before, after = np.log([0.2, 0.5, 0.3]), np.log([0.2 * 1.9, 0.05, 0.3 * 1.9])
    decision = Decision(calibration, 0.4, log_prior=before)
    calls = [
        scorebayes.bayes(table, prior, calibration).prob[:, 1] >= decision.under(prior, 1).threshold
        for prior in (before, after)
    ]
    np.testing.assert_array_equal(*calls)
    assert 0 < calls[0].sum() < 300


def test_a_run_whose_prior_was_edited_afterwards_keeps_its_calls(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy)
    config = (copy / "config.toml").read_text()
    changed = re.sub(r'kind = "train"\nprob = \[\]', 'kind = "given"\nprob = [0.9, 0.1]', config)
    (copy / "config.toml").write_text(changed)
    sealed.accept(copy)
    before, after = evaluate(run, "test"), evaluate(scorebayes.open_run(copy), "test")
    assert after["threshold"] < before["threshold"]
    for name in ("sensitivity", "specificity", "accuracy"):
        assert after["at_threshold"][name] == before["at_threshold"][name]
    assert after["log_loss"] != before["log_loss"]


def test_a_decision_of_an_older_run_has_neither_prior_nor_pooling(run):
    stored = json.loads((run.path / "calibration.json").read_text())
    del stored["log_prior"], stored["pooling"]
    old = Decision.from_dict(stored)
    assert old.under(np.log([0.5, 0.5]), 1) is old and old.pooling.correlation == 1
    again = Decision.from_dict(json.loads((run.path / "calibration.json").read_text()))
    np.testing.assert_array_equal(again.log_prior, run.log_prior)
    table, seen = read_table(run, "test"), run.pixels(run.images("test"))
    assert task_of(run).answers(run, table, old, pixels=seen)["above_threshold"].isin(["yes", "no"]).all()


@pytest.mark.parametrize(
    ("text", "prob"),
    [("0.01", [0.99, 0.01]), ("0.25,0.75", [0.25, 0.75]), ("uniform", [0.5, 0.5]), ("train", None)],
)
def test_a_prior_is_read_from_words_and_numbers(run, text, prob):
    expected = np.exp(run.facts.log_shares) if prob is None else prob
    np.testing.assert_allclose(np.exp(read_prior(text, run)), expected)


@pytest.mark.parametrize("text", ["rare", "0.2,0.3", "0.2,0.3,0.5", "0", "1", "1.5", "nan", "", "nan,nan"])
def test_what_is_no_prior_is_refused(run, text):
    with pytest.raises(ConfigError, match=r"prior"):
        read_prior(text, run)


def test_the_run_can_make_a_prior_of_any_configuration(run):
    np.testing.assert_allclose(run.log_prior_of(PriorConfig("uniform")), np.log([0.5, 0.5]))


def test_the_command_takes_a_prior(run, pictures, tmp_path):
    out = tmp_path / "out.csv"
    found = []
    for option in ([], ["--prior", "0.01"]):
        done = CliRunner().invoke(
            app, ["predict", str(run.path), str(pictures[0]), "--out", str(out), "--force", *option]
        )
        assert done.exit_code == 0, done.output
        header, row = (line.split(",") for line in out.read_text().splitlines())
        found.append(float(row[header.index("log_odds")]))
    shift = run.log_prior[1] - run.log_prior[0]
    assert found[1] - found[0] == pytest.approx(np.log(0.01 / 0.99) - shift)
