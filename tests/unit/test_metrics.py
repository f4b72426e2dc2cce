"""Metrics against published values, scikit-learn, brute force and simulation."""

from __future__ import annotations

import functools
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as reference
from sklearn.linear_model import LogisticRegression

from scorebayes import metrics
from scorebayes.errors import ConfigError, NumericalError
from scorebayes.metrics import areas, intervals, weighted


def two_classes(n=300, shift=1.5, seed=0):
    """Labels [n] and calibrated probabilities [n, 2] of two unit normals, ``shift`` apart, half of each."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    x = shift * labels + rng.normal(size=n)
    positive = 1 / (1 + np.exp(-shift * (x - shift / 2)))
    return labels, np.stack([1 - positive, positive], axis=1)


@pytest.fixture(scope="module")
def asah():
    """Outcome and three markers of 113 patients (Turck et al. 2010, Intensive Care Med 36:107)."""
    return pd.read_csv(Path(__file__).parents[1] / "fixtures" / "asah.csv")


# DeLong: the values that the R package pROC publishes for these patients in its own tests.


def test_delong_equals_the_published_auc_and_interval(asah):
    auc, _ = metrics.delong(asah.poor_outcome, asah.ndka)
    low, high = metrics.auc_interval(asah.poor_outcome, asah.ndka)
    assert auc == pytest.approx(0.611957994579946, abs=1e-10)
    assert (low, high) == pytest.approx((0.501244999271703, 0.722670989888189), abs=1e-10)


def test_delong_with_ties_equals_the_published_auc(asah):
    assert metrics.delong(asah.poor_outcome, asah.wfns)[0] == pytest.approx(0.823678861788618, abs=1e-10)


def test_paired_delong_test_equals_the_published_p_value(asah):
    assert metrics.delong_test(asah.poor_outcome, asah.s100b, asah.wfns).p == pytest.approx(0.02718, abs=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_delong_equals_counting_all_pairs(seed):
    rng = np.random.default_rng(seed)
    truth = rng.random(60) < 0.4
    a = np.round(truth + rng.normal(size=60), 1)  # rounded: many ties
    b = np.round(rng.normal(size=60), 1)
    wins = [(s[truth][:, None] > s[~truth]) + 0.5 * (s[truth][:, None] == s[~truth]) for s in (a, b)]
    variance = (
        np.cov([w.mean(1) for w in wins]) / truth.sum() + np.cov([w.mean(0) for w in wins]) / (~truth).sum()
    )
    auc, own = metrics.delong(truth, a)
    assert (auc, own) == pytest.approx((wins[0].mean(), variance[0, 0]), rel=1e-12)
    test = metrics.delong_test(truth, a, b)
    half = 1.959963984540054 * np.sqrt(variance[0, 0] + variance[1, 1] - 2 * variance[0, 1])
    difference = wins[0].mean() - wins[1].mean()
    assert test.interval == pytest.approx((difference - half, difference + half), rel=1e-9)


def test_delong_equals_mlstatkit():
    mlstatkit = pytest.importorskip("MLstatkit", reason="MLstatkit is not installed (pip install MLstatkit)")
    labels, prob = two_classes(120)
    other = np.clip(prob[:, 1] + np.random.default_rng(1).normal(0, 0.3, 120), 0, 1)
    _, p = mlstatkit.Delong_test(labels, prob[:, 1], other)[:2]
    assert metrics.delong_test(labels, prob[:, 1], other).p == pytest.approx(p, rel=1e-6)


def test_a_score_does_not_differ_from_its_own_monotone_map():
    labels, prob = two_classes()
    assert metrics.delong_test(labels, prob[:, 1], prob[:, 1] ** 3) == (0.0, (0.0, 0.0), 1.0)


def test_delong_refuses_a_single_class_and_a_wrong_length():
    with pytest.raises(ValueError, match="both classes"):
        metrics.delong([1, 1], [0.2, 0.3])
    with pytest.raises(ValueError, match="one score for each"):
        metrics.delong([1, 0], [0.2, 0.3, 0.4])


def test_perfect_separation_still_has_an_interval_below_one():
    labels = np.repeat([0, 1], 10)
    low, high = metrics.auc_interval(labels, labels)
    assert high == 1 and low == pytest.approx(0.80021, abs=1e-5)
    assert metrics.auc_interval(labels, -labels) == pytest.approx([0.0, 1 - low])


def test_newcombes_interval_solves_his_equation():
    """Method 5: at both limits, the distance to the area is 1.96 standard errors of an AUC of that size."""
    for area, n_pos, n_neg in ((0.7, 30, 50), (0.95, 11, 40), (1.0, 22, 8)):
        for limit in areas.newcombe(area, n_pos, n_neg):
            if limit in (0, 1):
                continue
            evened = (n_pos + n_neg) / 2 - 1
            variance = limit * (1 - limit) / (n_pos * n_neg)
            variance *= 1 + evened * (1 - limit) / (2 - limit) + evened * limit / (1 + limit)
            assert abs(area - limit) == pytest.approx(1.959964 * variance**0.5, rel=1e-4)


@pytest.mark.parametrize(("cases", "truth"), [(11, 0.97), (30, 0.97), (30, 0.99), (60, 0.99)])
def test_intervals_cover_an_auc_near_one(cases, truth):
    """DeLong's own, cut at 1, cover it in 72 to 85 of 100 samples."""
    from scipy.stats import norm

    rng, labels = np.random.default_rng(0), np.repeat([0, 1], cases)
    distance = norm.ppf(truth) * np.sqrt(2)
    each = [metrics.auc_interval(labels, distance * labels + rng.normal(size=2 * cases)) for _ in range(500)]
    low, high = np.array(each).T
    assert np.mean((low <= truth) & (truth <= high)) >= 0.94


# Point estimates against scikit-learn.


@pytest.mark.parametrize("n_classes", [2, 4])
def test_point_estimates_equal_scikit_learn(n_classes):
    rng = np.random.default_rng(3)
    labels = rng.integers(0, n_classes, 250)
    logits = rng.normal(size=(250, n_classes)) + 1.5 * np.eye(n_classes)[labels]
    prob = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    got = metrics.classification_metrics(labels, prob, n_bootstrap=20)
    predicted, one_hot = prob.argmax(1), np.eye(n_classes)[labels]
    auc_input = prob[:, 1] if n_classes == 2 else prob
    average_precision = [
        reference.average_precision_score(one_hot[:, c], prob[:, c])
        for c in ([1] if n_classes == 2 else range(n_classes))
    ]
    expected = {
        "auc": reference.roc_auc_score(labels, auc_input, multi_class="ovr"),
        "auprc": np.mean(average_precision),
        "accuracy": reference.accuracy_score(labels, predicted),
        "balanced_accuracy": reference.balanced_accuracy_score(labels, predicted),
        "mcc": reference.matthews_corrcoef(labels, predicted),
        "log_loss": reference.log_loss(labels, prob),
        "brier": np.square(prob - one_hot).sum(1).mean() / (2 if n_classes == 2 else 1),
        "sensitivity": reference.recall_score(labels == 1, predicted == 1),
        "ppv": reference.precision_score(labels == 1, predicted == 1),
        "specificity": reference.recall_score(labels != 1, predicted != 1),
        "npv": reference.precision_score(labels != 1, predicted != 1),
        "majority_accuracy": np.bincount(labels).max() / 250,
        "prevalence": np.mean(labels == 1),
    }
    assert {name: got[name] for name in expected} == pytest.approx(expected, rel=1e-9)


def test_calibration_slope_and_intercept_equal_logistic_regression():
    labels, prob = two_classes(500)
    logit = np.log(prob[:, 1] / prob[:, 0])
    distorted = 1 / (1 + np.exp(-(2 * logit + 0.7)))
    got = metrics.classification_metrics(labels, np.stack([1 - distorted, distorted], 1), n_bootstrap=20)
    fit = LogisticRegression(C=np.inf, tol=1e-10).fit((2 * logit + 0.7)[:, None], labels)
    assert got["calibration_slope"] == pytest.approx(fit.coef_[0, 0], rel=1e-5)
    # At the intercept the mean probability equals the prevalence.
    shifted = 1 / (1 + np.exp(-(2 * logit + 0.7 + got["calibration_intercept"])))
    assert shifted.mean() == pytest.approx(labels.mean(), abs=1e-9)


def test_calibrated_probabilities_have_slope_one_intercept_zero_and_a_small_ece():
    labels, prob = two_classes(20_000)
    got = metrics.classification_metrics(labels, prob, n_bootstrap=50)
    assert got["calibration_slope"] == pytest.approx(1, abs=0.05)
    assert got["calibration_intercept"] == pytest.approx(0, abs=0.05)
    assert got["ece"] < 0.015


def test_ece_by_chance_is_the_mean_ece_of_right_probabilities_and_wrong_ones_exceed_it():
    rng = np.random.default_rng(0)
    score = 1 / (1 + np.exp(-2 * rng.standard_normal(156)))
    both = np.stack([1 - score, score], 1)
    drawn = [(rng.random(156) < score).astype(int) for _ in range(300)]
    got = metrics.classification_metrics(drawn[0], both, n_bootstrap=20)
    assert got["ece_by_chance"] == pytest.approx(
        np.mean([metrics.ece(labels, both) for labels in drawn]), rel=0.05
    )
    assert got["ece_by_chance"] > 0.04
    sharper = np.stack([1 - score, score], 1) ** 4
    sharper /= sharper.sum(1, keepdims=True)
    got = metrics.classification_metrics(drawn[0], sharper, n_bootstrap=20)
    assert got["ece"] > 2 * got["ece_by_chance"]


def test_ece_of_known_bins():
    prob = np.repeat([0.1, 0.9], 10)
    labels = np.r_[np.ones(3), np.zeros(7), np.ones(9), [0]].astype(int)
    both = np.stack([1 - prob, prob], 1)
    assert metrics.ece(labels, both, binning="width") == pytest.approx(0.1)
    assert metrics.ece(labels, both, binning="mass", n_bins=2) == pytest.approx(0.1)


def test_sensitivity_at_90_specificity_is_read_off_the_roc_curve():
    labels, prob = two_classes()
    got = metrics.classification_metrics(labels, prob, n_bootstrap=20)["sensitivity_at_90_specificity"]
    fpr, tpr, _ = reference.roc_curve(labels, prob[:, 1], drop_intermediate=False)
    assert got == pytest.approx(tpr[fpr <= 0.1].max())


# Intervals.


def test_the_interval_of_a_proportion_is_wilsons():
    labels = np.r_[np.ones(10), np.zeros(10)].astype(int)
    positive = np.r_[np.full(8, 0.9), np.full(2, 0.2), np.full(10, 0.1)]
    got = metrics.classification_metrics(labels, np.stack([1 - positive, positive], 1), n_bootstrap=50)
    assert got["sensitivity"] == pytest.approx(0.8)
    assert got["sensitivity_ci95"] == pytest.approx([0.4901625, 0.9433178], abs=1e-6)  # Newcombe 1998


def test_every_metric_has_an_interval_around_it_and_the_result_is_json():
    labels, prob = two_classes()
    got = json.loads(json.dumps(metrics.classification_metrics(labels, prob), allow_nan=False))
    names = [name.removesuffix("_ci95") for name in got if name.endswith("_ci95")]
    assert {"auc", "auprc", "accuracy", "mcc", "log_loss", "ece", "calibration_slope", "npv"} <= set(names)
    for name in names:
        low, high = got[f"{name}_ci95"]
        assert low <= got[name] <= high, name


def test_images_of_one_patient_count_as_one():
    labels, prob = two_classes(150)
    single = metrics.classification_metrics(labels, prob, groups=range(150))
    fourfold = metrics.classification_metrics(
        np.repeat(labels, 4), np.repeat(prob, 4, axis=0), groups=np.repeat(np.arange(150), 4).tolist()
    )
    assert (single["n_patients"], fourfold["n_patients"], fourfold["n"]) == (150, 150, 600)
    width = [np.diff(m["auc_ci95"])[0] for m in (single, fourfold)]
    assert width[1] == pytest.approx(width[0], rel=0.1)  # independent cases would halve it
    assert fourfold["interval_method"] == "bootstrap over patients"


def test_images_without_a_patient_stand_for_themselves():
    labels, prob = two_classes(40)
    groups = [None, "", float("nan"), *(["a"] * 37)]
    assert metrics.classification_metrics(labels, prob, groups=groups, n_bootstrap=10)["n_patients"] == 4


def test_the_bootstrap_is_deterministic_and_fast():
    labels, prob = two_classes(624)
    start = time.process_time()
    first = metrics.classification_metrics(labels, prob, groups=[i // 2 for i in range(624)], seed=5)
    assert time.process_time() - start < 2.0
    assert first == metrics.classification_metrics(labels, prob, groups=[i // 2 for i in range(624)], seed=5)


def test_the_clustered_bootstrap_has_the_standard_error_of_a_mean_of_patients():
    rng = np.random.default_rng(0)
    patient_means = rng.normal(size=80)
    values = np.repeat(patient_means, 3)
    draws = metrics.clustered_bootstrap(lambda w: w @ values / w.sum(1), np.repeat(np.arange(80), 3).tolist())
    assert draws.std() == pytest.approx(patient_means.std() / np.sqrt(80), rel=0.1)


def test_the_bootstrap_in_blocks_equals_the_bootstrap_at_once(monkeypatch):
    labels, prob = two_classes(50)
    whole = metrics.classification_metrics(labels, prob, n_bootstrap=200)
    monkeypatch.setattr(intervals, "CHUNK", 50 * 7)
    blocks = metrics.classification_metrics(labels, prob, n_bootstrap=200)
    assert [blocks[n] for n in ("mcc_ci95", "log_loss_ci95", "calibration_slope_ci95")] == [
        pytest.approx(whole[n], abs=1e-6) for n in ("mcc_ci95", "log_loss_ci95", "calibration_slope_ci95")
    ]


def test_delong_intervals_cover_the_true_auc():
    from scipy.stats import norm

    truth = norm.cdf(1.2 / np.sqrt(2))
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [120, 80])
    covered = 0
    for _ in range(2000):
        low, high = metrics.auc_interval(labels, 1.2 * labels + rng.normal(size=200))
        covered += low <= truth <= high
    assert 0.93 <= covered / 2000 <= 0.97


def test_clustered_intervals_cover_the_true_auc_and_intervals_for_independent_cases_do_not():
    """100 patients with 2 images each that share four fifths of their variance."""
    from scipy.stats import norm

    truth = norm.cdf(1.2 / np.sqrt(2))
    rng = np.random.default_rng(1)
    labels, patients = np.repeat(np.arange(100) % 2, 2), np.repeat(np.arange(100), 2)
    covered, naive, n = 0, 0, 1000
    for repetition in range(n):
        person, image = rng.normal(size=100)[patients], rng.normal(size=200)
        score = 1.2 * labels + np.sqrt(0.8) * person + np.sqrt(0.2) * image
        draws = metrics.clustered_bootstrap(
            lambda w, score=score: weighted.auc(*weighted.cases_by_score(labels == 1, score, w)),
            patients.tolist(),
            n_bootstrap=200,
            seed=repetition,
        )
        low, high = intervals.percentiles(draws)
        covered += low <= truth <= high
        low, high = metrics.auc_interval(labels, score)
        naive += low <= truth <= high
    assert 0.93 <= covered / n <= 0.97
    assert naive / n < 0.9


@pytest.mark.parametrize(("n", "p"), [(40, 0.5), (60, 0.8), (156, 0.9), (200, 0.05)])
def test_wilson_intervals_cover_the_true_proportion(n, p):
    """Exactly, summed over all outcomes."""
    from scipy.stats import binom

    outcomes = np.arange(n + 1)
    low, high = np.array([metrics.wilson(int(k), n) for k in outcomes]).T
    assert 0.93 <= binom.pmf(outcomes, n, p)[(low <= p) & (p <= high)].sum() <= 0.97


def test_predictive_values_at_the_prevalence_at_hand_are_those_of_the_table():
    labels, prob = two_classes(300)
    got = metrics.classification_metrics(labels, prob, threshold=0.4, n_bootstrap=10)
    (row,) = metrics.predictive_values(got, [got["prevalence"]])
    assert (row["ppv"], row["npv"]) == pytest.approx((got["ppv"], got["npv"]))
    for name in ("ppv", "npv"):
        low, high = row[f"{name}_ci95"]
        assert low < row[name] < high


def test_predictive_values_at_a_screening_prevalence_follow_bayes_rule():
    known = {
        "sensitivity": 0.9,
        "sensitivity_ci95": [0.8, 0.95],
        "specificity": 0.8,
        "specificity_ci95": [0.7, 0.9],
    }
    rare, common = metrics.predictive_values(known, [0.01, 0.5])
    assert rare["ppv"] == pytest.approx(0.009 / (0.009 + 0.198))
    assert rare["npv"] == pytest.approx(0.792 / (0.792 + 0.001))
    assert common["ppv"] == pytest.approx(0.45 / 0.55)


def test_predictive_values_of_perfect_and_useless_decisions_stay_in_their_range():
    perfect = {
        "sensitivity": 1.0,
        "sensitivity_ci95": [0.9, 1.0],
        "specificity": 1.0,
        "specificity_ci95": [0.95, 1.0],
    }
    (row,) = metrics.predictive_values(perfect, [0.01])
    assert row["ppv"] == row["npv"] == 1 and row["ppv_ci95"][0] < 0.3 and row["ppv_ci95"][1] == 1
    never = {
        "sensitivity": 0.0,
        "sensitivity_ci95": [0.0, 0.1],
        "specificity": 1.0,
        "specificity_ci95": [0.95, 1.0],
    }
    (row,) = metrics.predictive_values(never, [0.1])
    assert row["npv"] == pytest.approx(0.9) and 0 <= row["ppv_ci95"][0] <= row["ppv_ci95"][1] <= 1
    assert metrics.predictive_values({**perfect, "specificity": None}, [0.1]) == []
    assert metrics.predictive_values({"sensitivity": 0.5, "specificity": 0.5}, [0.1]) == []


def test_intervals_of_predictive_values_cover_the_true_ones():
    rng = np.random.default_rng(2)
    se, sp, n = 0.85, 0.9, 3000
    hits = np.stack([rng.binomial(60, se, n), rng.binomial(100, sp, n)], 1)
    truth = {"ppv": se * 0.02 / (se * 0.02 + 0.1 * 0.98), "npv": sp * 0.98 / (sp * 0.98 + 0.15 * 0.02)}
    covered = dict.fromkeys(truth, 0)
    wilson = functools.lru_cache(metrics.wilson)
    for true_positives, true_negatives in hits:
        rates = {
            "sensitivity": true_positives / 60, "sensitivity_ci95": wilson(int(true_positives), 60),
            "specificity": true_negatives / 100, "specificity_ci95": wilson(int(true_negatives), 100),
        }  # fmt: skip
        (row,) = metrics.predictive_values(rates, [0.02])
        for name, value in truth.items():
            low, high = row[f"{name}_ci95"]
            covered[name] += low <= value <= high
    assert all(0.93 <= count / n <= 0.97 for count in covered.values()), covered


def test_saturation_counts_what_leaves_no_doubt_and_how_often_it_is_right():
    positive = np.array([0.9995, 0.9996, 0.0001, 0.5, 0.9985])
    got = metrics.classification_metrics(
        [1, 0, 0, 1, 1], np.stack([1 - positive, positive], 1), n_bootstrap=20
    )
    assert got["saturated"] == pytest.approx(3 / 5) and got["saturated_accuracy"] == pytest.approx(2 / 3)
    assert got["saturated_accuracy_ci95"] == metrics.wilson(2, 3)
    none = metrics.classification_metrics([0, 1], [[0.6, 0.4], [0.4, 0.6]], n_bootstrap=20)
    assert none["saturated"] == 0 and none["saturated_accuracy_reason"] == "no probability is beyond 0.999"


# Cases without a value.


def test_a_single_class_gives_none_with_a_reason_and_no_crash():
    prob = np.array([[0.3, 0.7], [0.6, 0.4], [0.2, 0.8]])
    for label in (0, 1):
        got = metrics.classification_metrics([label] * 3, prob, n_bootstrap=20)
        for name in ("auc", "auprc", "mcc", "balanced_accuracy", "calibration_slope"):
            assert got[name] is None and got[f"{name}_reason"] == "only one class is present"
        assert got["accuracy"] is not None
        json.dumps(got, allow_nan=False)


def test_no_cases_give_none_everywhere():
    got = metrics.classification_metrics(np.zeros(0, int), np.zeros((0, 2)), n_bootstrap=10)
    assert got["auc"] is None and got["accuracy_reason"] == "no cases" and got["n"] == 0


def test_one_positive_case_has_an_auc_but_no_interval():
    got = metrics.classification_metrics([0, 0, 0, 1], np.c_[[0.9, 0.8, 0.3, 0.4], [0.1, 0.2, 0.7, 0.6]])
    assert got["auc"] == pytest.approx(2 / 3)
    assert got["auc_ci95"] is None and got["auc_ci95_reason"]
    json.dumps(got, allow_nan=False)


def test_perfectly_separated_classes_have_no_calibration_slope():
    labels = np.repeat([0, 1], 20)
    positive = np.where(labels == 1, 0.9, 0.1) + np.linspace(0, 0.05, 40)
    got = metrics.classification_metrics(labels, np.stack([1 - positive, positive], 1), n_bootstrap=20)
    assert got["calibration_slope"] is None and "separate" in got["calibration_slope_reason"]


def test_no_positive_call_has_no_ppv():
    labels = np.array([0, 1, 0, 1])
    got = metrics.classification_metrics(labels, np.tile([0.6, 0.4], (4, 1)), n_bootstrap=20)
    assert got["ppv"] is None and got["ppv_reason"] == "no case was predicted this way"
    assert got["mcc"] == 0 and got["auc"] == 0.5


def test_a_class_absent_from_three_has_no_macro_auc():
    got = metrics.classification_metrics([0, 1, 0, 1], np.full((4, 3), 1 / 3), n_bootstrap=20)
    assert got["auc"] is None and got["auc_reason"] == "one of the classes has no case"


def test_unusable_probabilities_are_refused():
    with pytest.raises(NumericalError, match="do not sum to 1"):
        metrics.classification_metrics([0, 1], [[0.5, 0.6], [0.5, 0.5]])
    with pytest.raises(NumericalError, match="not finite"):
        metrics.classification_metrics([0, 1], [[np.nan, 0.6], [0.5, 0.5]])
    with pytest.raises(ValueError, match="expected labels"):
        metrics.classification_metrics([0, 1], [0.5, 0.5])
    with pytest.raises(ValueError, match="class indices"):
        metrics.classification_metrics([0, 2], [[0.4, 0.6], [0.5, 0.5]])


# Threshold, comparison, curves.


def test_a_frozen_threshold_decides_the_predictions():
    labels = np.array([0, 0, 1, 1])
    positive = np.array([0.1, 0.35, 0.4, 0.9])
    got = metrics.classification_metrics(
        labels, np.stack([1 - positive, positive], 1), threshold=0.38, n_bootstrap=10
    )
    assert (got["accuracy"], got["sensitivity"], got["specificity"]) == (1, 1, 1)


def test_a_threshold_among_three_classes_moves_sensitivity_but_not_accuracy():
    prob = np.array([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.2, 0.1, 0.7]])
    got = metrics.classification_metrics([0, 1, 2], prob, threshold=0.25, n_bootstrap=10)
    assert got["sensitivity"] == 1 and got["accuracy"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("rule", ["youden", "accuracy", "sensitivity>=0.9", "specificity>=0.95"])
def test_the_chosen_threshold_is_the_best_of_all(rule):
    labels, prob = two_classes(120, seed=4)
    labels = np.where(np.arange(120) < 30, 0, labels)
    chosen = metrics.choose_threshold(labels, prob, rule)

    def at(threshold):
        called = prob[:, 1] >= threshold
        return called[labels == 1].mean(), (~called)[labels == 0].mean(), (called == labels).mean()

    everywhere = np.array([at(t) for t in np.r_[np.unique(prob[:, 1]), 1.1]])
    sensitivity, specificity, accuracy = at(chosen)
    if rule == "youden":
        assert sensitivity + specificity == pytest.approx((everywhere[:, 0] + everywhere[:, 1]).max())
    elif rule == "accuracy":
        assert accuracy == pytest.approx(everywhere[:, 2].max())
    elif rule == "sensitivity>=0.9":
        assert specificity == pytest.approx(everywhere[everywhere[:, 0] >= 0.9, 1].max())
    else:
        assert sensitivity == pytest.approx(everywhere[everywhere[:, 1] >= 0.95, 0].max())


def test_a_threshold_lies_between_neighbouring_probabilities_even_when_they_touch():
    low = 0.5
    high = np.nextafter(low, 1)
    assert metrics.choose_threshold([0, 1], [low, high]) == high
    assert metrics.choose_threshold([0, 1], [0.2, 0.6]) == pytest.approx(0.4)


def test_threshold_rules_are_checked():
    with pytest.raises(ConfigError, match="Unknown threshold rule 'best'"):
        metrics.choose_threshold([0, 1], [0.1, 0.9], "best")
    with pytest.raises(ValueError, match="both classes"):
        metrics.choose_threshold([1, 1], [0.1, 0.9])


def test_compare_is_delong_for_patients_with_one_image_and_bootstrap_otherwise():
    labels, prob = two_classes(200)
    other = two_classes(200, seed=9)[1]
    paired = metrics.compare(labels, prob, other)
    assert paired["auc_difference_p"] == metrics.delong_test(labels, prob[:, 1], other[:, 1]).p
    assert metrics.compare(labels, prob, other, groups=range(200)) == paired
    clustered = metrics.compare(labels, prob, other, groups=[i // 2 for i in range(200)])
    assert clustered["auc_difference"] == pytest.approx(paired["auc_difference"])
    assert clustered["auc_difference_method"] == "bootstrap over patients"
    assert 0 < clustered["auc_difference_p"] < 0.05
    assert metrics.compare([1, 1], prob[:2], prob[:2])["auc_difference"] is None


def test_holm_equals_a_worked_example():
    assert metrics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_reliability_curve_counts_each_case_once():
    labels, prob = two_classes(200)
    for binning in ("mass", "width"):
        curve = metrics.reliability_curve(labels, prob, binning=binning)
        assert curve["n"].sum() == 200
        assert (curve["observed"] * curve["n"]).sum() == pytest.approx(labels.sum())
        assert ((curve["low"] <= curve["observed"]) & (curve["observed"] <= curve["high"])).all()


def test_roc_curve_and_band_agree_with_the_metrics():
    labels, prob = two_classes(200)
    curve = metrics.roc_curve(labels, prob)
    area = reference.auc(curve["false_positive_rate"], curve["sensitivity"])
    assert area == pytest.approx(metrics.delong(labels, prob[:, 1])[0])
    assert (curve["threshold"][0], curve["precision"][0]) == (np.inf, 1.0)
    band = metrics.roc_band(labels, prob, n_bootstrap=200, groups=[i // 2 for i in range(200)])
    middle = np.interp(band["grid"], curve["false_positive_rate"], curve["sensitivity"])
    inside = (band["sensitivity_low"] - 0.02 <= middle) & (middle <= band["sensitivity_high"] + 0.02)
    assert inside.mean() > 0.95
    assert (band["precision_low"] <= band["precision_high"]).all()


def test_net_benefit_of_a_worked_example():
    curve = metrics.decision_curve([1, 1, 0, 0], [0.9, 0.3, 0.6, 0.1], thresholds=[0.5])
    assert curve["model"] == pytest.approx([0.25 - 0.25])
    assert curve["all"] == pytest.approx([0.0])
    assert len(metrics.decision_curve([1, 0], [0.9, 0.1])["threshold"]) == 99


def test_risk_coverage_answers_equal_confidences_together():
    prob = np.array([[0.1, 0.9], [0.2, 0.8], [0.8, 0.2], [0.4, 0.6]])
    curve = metrics.risk_coverage([1, 0, 0, 1], prob)
    assert curve["coverage"] == pytest.approx([0.25, 0.75, 1.0])
    assert curve["risk"] == pytest.approx([0, 1 / 3, 0.25])
