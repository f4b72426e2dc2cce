"""What must hold of the metrics for any labels and probabilities."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scorebayes import metrics

RELABELLED = ("auc", "accuracy", "balanced_accuracy", "mcc", "log_loss", "brier", "majority_accuracy")


@st.composite
def cases(draw, n_classes=2, min_size=4, max_size=40):
    """Labels [N] of at least two classes and probabilities [N, Y] with many ties."""
    n = draw(st.integers(min_size, max_size))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = rng.integers(0, n_classes, n)
    labels[:2] = [0, 1]
    counts = rng.integers(0, 6, (n, n_classes)) + 1.0 * np.eye(n_classes)[rng.integers(0, n_classes, n)]
    return labels, counts / counts.sum(1, keepdims=True)


@settings(max_examples=60, deadline=None)
@given(cases(), st.sampled_from([np.exp, np.arctan, lambda p: p**3 + p, lambda p: 7 * p - 2]))
def test_auc_and_its_variance_do_not_change_under_increasing_maps(case, increasing):
    labels, prob = case
    mapped = metrics.delong(labels, increasing(prob[:, 1]))
    assert mapped == pytest.approx(metrics.delong(labels, prob[:, 1]), nan_ok=True)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_turning_the_score_round_gives_one_minus_the_auc(case):
    labels, prob = case
    assert metrics.delong(labels, -prob[:, 1])[0] == pytest.approx(1 - metrics.delong(labels, prob[:, 1])[0])


@settings(max_examples=40, deadline=None)
@given(cases(max_size=25))
def test_exchanging_the_two_classes_changes_nothing_but_the_names(case):
    labels, prob = case
    prob = np.where(np.isclose(prob, 0.5), [0.45, 0.55], prob)  # ties of argmax have no symmetric answer
    one = metrics.classification_metrics(labels, prob, positive=1, n_bootstrap=0)
    other = metrics.classification_metrics(1 - labels, prob[:, ::-1], positive=0, n_bootstrap=0)
    swapped = metrics.classification_metrics(labels, prob, positive=0, n_bootstrap=0)
    for name, value in one.items():
        if not name.endswith("_reason") and isinstance(value, (int, float)):
            assert other[name] == pytest.approx(value, abs=1e-6), name
    assert {n: swapped[n] for n in RELABELLED} == pytest.approx({n: one[n] for n in RELABELLED})
    assert (swapped["sensitivity"], swapped["ppv"]) == (one["specificity"], one["npv"])


@settings(max_examples=40, deadline=None)
@given(cases(n_classes=3, max_size=30), st.permutations(range(3)))
def test_renumbering_three_classes_changes_nothing(case, order):
    labels, prob = case
    prob = (prob + np.random.default_rng(0).random(prob.shape) * 1e-3) / 1  # no ties between classes
    prob /= prob.sum(1, keepdims=True)
    order = np.array(order)
    one = metrics.classification_metrics(labels, prob, n_bootstrap=0)
    other = metrics.classification_metrics(
        np.argsort(order)[labels], prob[:, order], positive=int(np.argsort(order)[1]), n_bootstrap=0
    )
    for name in (*RELABELLED, "sensitivity", "specificity", "ece"):
        assert other[name] == pytest.approx(one[name], abs=1e-9), name


@settings(max_examples=40, deadline=None)
@given(cases(max_size=25), st.randoms(use_true_random=False))
def test_the_order_of_the_images_does_not_matter(case, random):
    labels, prob = case
    order = random.sample(range(len(labels)), len(labels))
    one = metrics.classification_metrics(labels, prob, n_bootstrap=0)
    other = metrics.classification_metrics(labels[order], prob[order], n_bootstrap=0)
    for name, value in one.items():
        if isinstance(value, float):
            assert other[name] == pytest.approx(value, abs=1e-7), name


@settings(max_examples=40, deadline=None)
@given(cases(max_size=20), st.integers(2, 4))
def test_repeating_every_image_changes_no_estimate(case, times):
    labels, prob = case
    one = metrics.classification_metrics(labels, prob, n_bootstrap=0)
    many = metrics.classification_metrics(np.tile(labels, times), np.tile(prob, (times, 1)), n_bootstrap=0)
    for name in ("auc", "auprc", "accuracy", "mcc", "log_loss", "brier", "sensitivity", "prevalence"):
        assert many[name] == pytest.approx(one[name], abs=1e-9), name


@settings(max_examples=60, deadline=None)
@given(cases(n_classes=3, min_size=2, max_size=12))
def test_every_result_is_in_its_range_and_valid_json(case):
    got = metrics.classification_metrics(*case, groups=[i // 2 for i in range(len(case[0]))], n_bootstrap=20)
    json.dumps(got, allow_nan=False)
    for name, value in got.items():
        low = -1 if name == "mcc" else 0
        if isinstance(value, float) and not name.startswith(("calibration", "log_loss", "brier")):
            assert low - 1e-12 <= value <= 1 + 1e-12, name


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_never_lowers_a_p_value_and_keeps_the_order(pvalues):
    adjusted = metrics.holm(pvalues)
    assert (adjusted >= np.array(pvalues) - 1e-12).all() and (adjusted <= 1).all()
    assert (np.diff(adjusted[np.argsort(pvalues)]) >= -1e-12).all()


@settings(max_examples=60, deadline=None)
@given(cases(), st.sampled_from(["youden", "accuracy", "sensitivity>=0.9", "specificity>=0.8"]))
def test_a_threshold_keeps_what_its_rule_promises(case, rule):
    labels, prob = case
    called = prob[:, 1] >= metrics.choose_threshold(labels, prob, rule)
    sensitivity, specificity = called[labels == 1].mean(), (~called)[labels == 0].mean()
    if rule.startswith("sens"):
        assert sensitivity >= 0.9
    elif rule.startswith("spec"):
        assert specificity >= 0.8
    elif rule == "youden":
        assert sensitivity + specificity >= 1 - 1e-12
    else:
        assert (called == labels).mean() >= max(labels.mean(), 1 - labels.mean()) - 1e-12


@settings(max_examples=60, deadline=None)
@given(cases())
def test_coverage_ends_at_all_cases_with_the_overall_error(case):
    labels, prob = case
    curve = metrics.risk_coverage(labels, prob)
    assert (np.diff(curve["coverage"]) > 0).all() and curve["coverage"][-1] == pytest.approx(1)
    assert curve["risk"][-1] == pytest.approx((prob.argmax(1) != labels).mean())
