"""Adding up the evidence of images of one breast or patient, against worlds where the pooled posterior is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.metrics import log_loss

from scorebayes.decision.pooling import Pooling, Units, fit_pooling


def correlated(correlation, n_units=4000, per_unit=3, prevalence=0.3, seed=0):
    """Exact log-likelihood ratios of normal images whose evidence has this correlation given the class.

    -> log-odds [N] under the prevalence, truth [N], units [N]. Mean +-1 and variance 2 make the evidence calibrated.
    """
    rng = np.random.default_rng(seed)
    truth = rng.random(n_units) < prevalence
    shared, own = rng.normal(size=(n_units, 1)), rng.normal(size=(n_units, per_unit))
    noise = np.sqrt(2) * (np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * own)
    evidence = np.where(truth, 1.0, -1.0)[:, None] + noise
    names = [f"u{i}" for i in range(n_units) for _ in range(per_unit)]
    return (logit(prevalence) + evidence).ravel(), np.repeat(truth, per_unit), names


@pytest.mark.parametrize("correlation", [0.0, 0.4, 1.0])
def test_the_fitted_correlation_is_the_true_one(correlation):
    log_odds, truth, names = correlated(correlation)
    units = Units.of(names, [""] * len(names))
    pooling = fit_pooling(units, log_odds, truth, logit(0.3))
    assert pooling.correlation == pytest.approx(correlation, abs=0.06)
    assert pooling.n == 4000


def test_the_pooled_posterior_is_calibrated_and_better_than_sum_and_mean():
    log_odds, truth, names = correlated(0.4)
    units = Units.of(names, [""] * len(names))
    losses = {}
    for name, pooling in {
        "fitted": fit_pooling(units, log_odds, truth, logit(0.3)),
        "sum": Pooling(0.0),
        "mean": Pooling(1.0),
    }.items():
        found = units.pool(pooling, log_odds, truth, logit(0.3))["patient"]
        losses[name] = log_loss(found.labels, found.prob[:, 1])
        if name == "fitted":
            assert found.prob[:, 1].mean() == pytest.approx(found.labels.mean(), abs=0.01)
    assert losses["fitted"] < losses["sum"] - 0.01 and losses["fitted"] < losses["mean"] - 0.002


def test_the_correlation_does_not_depend_on_the_prior_that_the_log_odds_include():
    log_odds, truth, names = correlated(0.4, n_units=500)
    units = Units.of(names, [""] * len(names))
    moved = log_odds - logit(0.3) + logit(0.01)
    ours, theirs = (
        fit_pooling(units, values, truth, prior).correlation
        for values, prior in ((log_odds, logit(0.3)), (moved, logit(0.01)))
    )
    assert ours == pytest.approx(theirs, abs=1e-4)


def test_correlation_one_is_the_mean_and_zero_the_sum_of_the_evidence():
    units = Units.of(["a", "a", "b"], ["", "", ""])
    log_odds = np.array([1.0, 3.0, -1.0])
    np.testing.assert_allclose(Pooling().log_odds(log_odds, units.unit, 0.5), [2.0, -1.0])
    np.testing.assert_allclose(Pooling(0.0).log_odds(log_odds, units.unit, 0.5), [3.5, -1.0])


def test_few_units_leave_the_mean():
    log_odds, truth, names = correlated(0.0, n_units=15)
    assert fit_pooling(Units.of(names, [""] * 45), log_odds, truth, 0.0) == Pooling()
    alone = Units.of([f"p{i}" for i in range(45)], [""] * 45)
    assert fit_pooling(alone, log_odds, truth, 0.0).n == 0


def test_a_patient_is_positive_if_one_breast_is():
    patients, sides = ["p", "p", "p", "q"], ["L", "L", "R", "L"]
    log_odds, positive = np.array([2.0, 0.0, -1.0, -3.0]), [1, 1, 0, 0]
    found = Units.of(patients, sides).pool(Pooling(), log_odds, positive, 0.0)
    assert found["breast"].labels.tolist() == [1, 0, 0] and found["breast"].patients == ["p", "p", "q"]
    np.testing.assert_allclose(found["breast"].prob[:, 1], expit([1.0, -1.0, -3.0]))
    assert found["patient"].labels.tolist() == [1, 0] and found["patient"].patients == ["p", "q"]
    either = 1 - (1 - expit(1.0)) * (1 - expit(-1.0))
    np.testing.assert_allclose(found["patient"].prob[:, 1], [either, expit(-3.0)])


def test_extreme_log_odds_stay_finite():
    found = Units.of(["p"] * 2 + ["q"] * 2, ["L", "R"] * 2).pool(
        Pooling(), np.array([800.0, 750.0, -800.0, -900.0]), [1, 1, 0, 0], 0.0
    )
    assert np.isfinite(found["patient"].prob).all()
    np.testing.assert_allclose(found["patient"].prob.sum(1), 1)


def test_levels_exist_only_where_they_differ_from_images():
    assert Units.of(["a", "b"], ["L", "L"]).pool(Pooling(), np.zeros(2), [0, 1], 0.0) == {}
    # One image of each breast: by breast is by image.
    assert list(Units.of(["a", "a"], ["L", "R"]).pool(Pooling(), np.zeros(2), [0, 1], 0.0)) == ["patient"]
    # A side that is missing somewhere: patients are the units.
    units = Units.of(["a", "a", "b"], ["L", "", "R"])
    assert not units.sides and list(units.pool(Pooling(), np.zeros(3), [0, 1, 0], 0.0)) == ["patient"]


def test_images_without_a_patient_stand_for_themselves():
    units = Units.of([None, "", float("nan"), "a", "a"], [""] * 5)
    assert len(set(units.unit)) == 4
    found = units.pool(Pooling(), np.zeros(5), [1, 0, 0, 0, 1], 0.0)["patient"]
    assert len(found.labels) == 4 and found.labels.sum() == 2 and found.patients.count(None) == 3
