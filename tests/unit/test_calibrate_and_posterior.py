"""Calibration and Bayes' rule against worlds whose posterior is known."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from fixtures.tables import NAME, changed, one_calibration, one_source
from scipy.special import log_softmax

from scorebayes.decision.calibration import Calibration, _heaviest_that_may_be_best, fit_calibration
from scorebayes.decision.posterior import bayes
from scorebayes.decision.table import EvidenceTable
from scorebayes.errors import ConfigError, DataError, NumericalError


def make_table(n=400, levels=4, repeats=3, n_classes=2, seed=0, noise=1.0, kind="class-score", scale=None):
    """Gaussian evidence: level l says ``scale[l]`` nats-like units about the class, with Monte-Carlo noise on every draw."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, n_classes, n)
    scale = np.ones(levels) if scale is None else np.asarray(scale)
    one_hot = np.eye(n_classes)[labels]
    truth = scale[:, None, None] * (one_hot + rng.normal(size=(levels, n, n_classes)))
    draws = np.repeat(truth, repeats, axis=0) + noise * rng.normal(size=(levels * repeats, n, n_classes))
    level = np.repeat(np.arange(levels), repeats)
    return one_source(draws, level, np.repeat(level[:, None] - 2.0, n, axis=1), labels, kind)


UNIFORM = np.log([0.5, 0.5])


def test_the_fitted_posterior_is_the_true_one_where_the_true_one_is_logistic():
    # One level, no Monte-Carlo noise: gap d ~ N(+-1, 2), so the true log-odds are exactly d * 2 * 1 / 2 = d.
    table = make_table(n=20_000, levels=1, repeats=1, noise=0.0)
    calibration = fit_calibration(table, UNIFORM)
    assert calibration.weights[NAME][0] == pytest.approx(1.0, abs=0.05)
    assert calibration.bias[1] - calibration.bias[0] == pytest.approx(0.0, abs=0.05)


def test_a_level_without_information_gets_little_weight_and_no_weight_is_negative():
    rng = np.random.default_rng(1)
    table = make_table(n=2000, levels=3, noise=0.1)
    draws, level = table.only.draws.copy(), table.only.level
    draws[level == 1] = rng.normal(size=draws[level == 1].shape)
    weights = fit_calibration(changed(table, draws=draws), UNIFORM).weights[NAME]
    assert (weights >= 0).all()
    assert weights[1] < 0.15 * weights[[0, 2]].min()


def test_rescaling_a_level_changes_no_probability():
    table = make_table(n=300)
    factor = np.array([1.0, 100.0, 0.01, 7.0])[table.only.level][:, None, None]
    rescaled = changed(table, draws=table.only.draws * factor)
    a = bayes(table, UNIFORM, fit_calibration(table, UNIFORM)).prob
    b = bayes(rescaled, UNIFORM, fit_calibration(rescaled, UNIFORM)).prob
    np.testing.assert_allclose(a, b, atol=2e-3)


def test_the_standard_error_of_the_log_odds_is_honest():
    first = make_table(n=200, repeats=4, seed=2)
    calibration = one_calibration(np.array([0.5, 1.0, 0.2, 0.8]), np.zeros(2), np.zeros(4))
    truth = first.only.level_means  # resample the Monte-Carlo noise only
    rng = np.random.default_rng(3)
    estimates, stated = [], []
    for _ in range(300):
        draws = truth.transpose(1, 0, 2)[first.only.level] + rng.normal(size=first.only.draws.shape)
        post = bayes(changed(first, draws=draws), UNIFORM, calibration)
        estimates.append(post.log_odds[:, 1])
        stated.append(post.log_odds_std_error[:, 1])
    np.testing.assert_allclose(
        np.sqrt(np.mean(np.square(stated))), np.std(estimates, axis=0, ddof=1).mean(), rtol=0.05
    )


def test_a_lighter_penalty_must_be_surely_better():
    rng = np.random.default_rng(0)
    common = rng.exponential(size=200)

    def chosen(*excess: float) -> int:
        noise = rng.normal(size=(len(excess), 200))
        noise -= noise.mean(axis=1, keepdims=True)
        return _heaviest_that_may_be_best(common + np.array(excess)[:, None] + noise, np.arange(200))

    assert chosen(0.0, 0.01, 0.02) == 2  # the standard error of a difference is 0.1
    assert chosen(0.0, 0.01, 0.5) == 1
    assert chosen(0.5, 0.4, 0.0) == 2
    assert chosen(0.0) == 0


def test_what_common_noise_does_to_all_images_is_no_error_of_an_image():
    """The calibration meets the same noise; its bias takes the common part off, so that it does not move the log-odds."""
    rng = np.random.default_rng(5)
    signal_val, signal = (make_table(n=n, repeats=2, noise=0.0, seed=s) for n, s in ((800, 6), (150, 7)))

    def with_noise(table: EvidenceTable, common: np.ndarray) -> EvidenceTable:
        noise = common[:, None] + 0.5 * rng.normal(size=table.only.draws.shape)
        return changed(table, draws=table.only.draws + noise)

    estimates, stated, raw = [], [], []
    for _ in range(25):
        common = 2 * rng.normal(size=(8, 2))
        calibration = fit_calibration(with_noise(signal_val, common), UNIFORM)
        table = with_noise(signal, common)
        post = bayes(table, UNIFORM, calibration)
        estimates.append(post.log_odds[:, 1])
        stated.append(post.log_odds_std_error[:, 1])
        raw.append(bayes(table, UNIFORM, replace(calibration, draw_means={})).log_odds_std_error[:, 1])
    moved = np.std(estimates, axis=0, ddof=1).mean()
    assert np.sqrt(np.mean(np.square(stated))) == pytest.approx(moved, rel=0.1)
    assert np.sqrt(np.mean(np.square(raw))) > 2 * moved  # the common part left in


def test_a_calibration_of_other_draws_takes_nothing_off():
    table = make_table(n=200, repeats=2)
    calibration = fit_calibration(table, UNIFORM)
    np.testing.assert_allclose(calibration.own_draws(NAME, table.only).mean(axis=1), 0, atol=1e-12)
    more = make_table(n=200, repeats=3)
    np.testing.assert_array_equal(calibration.own_draws(NAME, more.only), more.only.draws)


def test_collapsed_strata_do_not_understate_the_error():
    table = make_table(n=2000, levels=8, repeats=1, noise=1.0)
    calibration = one_calibration(np.full(8, 0.3), np.zeros(2), np.zeros(8))
    stated = bayes(table, UNIFORM, calibration).log_odds_std_error[:, 1]
    assert np.mean(stated**2) >= 8 * 0.3**2 * 2.0  # two classes of unit Monte-Carlo variance, eight levels


def test_three_classes_log_odds_and_errors_follow_from_the_probabilities():
    table = make_table(n=150, n_classes=3)
    prior = np.log([0.2, 0.3, 0.5])
    post = bayes(table, prior, fit_calibration(table, prior))
    np.testing.assert_allclose(post.prob.sum(axis=1), 1.0)
    np.testing.assert_allclose(post.log_odds, np.log(post.prob / (1 - post.prob)), atol=1e-8)
    assert (post.log_odds_std_error > 0).all()
    assert (post.prob.argmax(axis=1) == post.predict()).all()


def test_the_prior_shifts_the_log_odds_by_itself():
    table = make_table(n=50)
    calibration = fit_calibration(table, UNIFORM)
    even, rare = bayes(table, UNIFORM, calibration), bayes(table, np.log([0.99, 0.01]), calibration)
    np.testing.assert_allclose(even.log_odds[:, 1] - rare.log_odds[:, 1], np.log(99))


def test_undecided_is_what_lies_within_two_standard_errors_of_the_threshold():
    table = make_table(n=200)
    post = bayes(table, UNIFORM, fit_calibration(table, UNIFORM))
    expected = np.abs(post.log_odds[:, 1] - np.log(0.3 / 0.7)) < 2 * post.log_odds_std_error[:, 1]
    assert (post.undecided(1, 0.3) == expected).all()
    assert 0 < expected.sum() < 200


def test_log_likelihoods_need_no_calibration_and_class_scores_do():
    table = make_table(n=20, kind="density")
    expected = log_softmax(table.only.nats + UNIFORM, axis=1)
    np.testing.assert_allclose(bayes(table, UNIFORM).log_prob, expected)
    with pytest.raises(ConfigError, match="no natural scale"):
        bayes(make_table(n=20), UNIFORM)
    with pytest.raises(NumericalError, match="no log-likelihoods"):
        _ = make_table(n=20).only.nats


def test_a_failed_image_and_a_wrong_prior_are_refused():
    table = make_table(n=5, kind="density")
    status = np.array(["ok", "ok", "not finite", "ok", "ok"])
    with pytest.raises(NumericalError, match="i2"):
        bayes(changed(table, status=status), UNIFORM)
    with pytest.raises(ConfigError, match="sum to 1"):
        bayes(table, np.log([0.5, 0.6]))


def test_a_calibration_of_another_estimator_is_refused():
    calibration = fit_calibration(make_table(levels=3), UNIFORM)
    with pytest.raises(ConfigError, match="3 levels"):
        bayes(make_table(levels=4), UNIFORM, calibration)


def test_calibration_needs_two_images_of_every_class():
    table = make_table(n=30)
    labels = np.zeros(30, dtype=np.int64)
    labels[0] = 1
    with pytest.raises(DataError, match="at least two"):
        fit_calibration(table.with_labels(labels), UNIFORM)


def test_a_calibration_survives_json():
    calibration = fit_calibration(make_table(), UNIFORM)
    again = Calibration.from_dict(json.loads(json.dumps(calibration.to_dict())))
    np.testing.assert_array_equal(again.weights[NAME], calibration.weights[NAME])
    assert again.penalties == calibration.penalties and again.shares == calibration.shares


def test_a_table_survives_parquet_in_parts(tmp_path):
    table = make_table(n=10)
    table.rows(slice(0, 6)).write_part(tmp_path / "part-000000.parquet")
    table.rows(slice(6, 10)).write_part(tmp_path / "part-000001.parquet")
    again = EvidenceTable.read(tmp_path)
    assert again.keys == table.keys
    for name in ("labels", "seconds", "patients"):
        np.testing.assert_array_equal(getattr(again, name), getattr(table, name), err_msg=name)
    for name in ("draws", "log_snr", "level", "nfe", "status", "kind", "exact"):
        np.testing.assert_array_equal(getattr(again.only, name), getattr(table.only, name), err_msg=name)


def test_a_missing_or_damaged_table_is_one_clear_line(tmp_path):
    with pytest.raises(DataError, match="scorebayes score"):
        EvidenceTable.read(tmp_path)
    (tmp_path / "part-000000.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(DataError, match="damaged"):
        EvidenceTable.read(tmp_path)
