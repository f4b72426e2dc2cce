"""Accuracy at the threshold that would have been best, against all thresholds tried one by one."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scorebayes.benchmark.stored.hindsight import best_accuracy, hindsight_accuracy


@pytest.mark.parametrize("seed", range(5))
def test_no_threshold_is_better_and_one_is_as_good(seed):
    rng = np.random.default_rng(seed)
    truth = rng.random(40) < 0.7
    score = np.round(rng.normal(truth), 1)  # with ties
    tried = [np.mean((score >= cut) == truth) for cut in [*score, np.inf]]
    assert best_accuracy(truth, score) == pytest.approx(max(tried))


@pytest.mark.parametrize(("labels", "expected"), [("aab", 2 / 3), ("abb", 2 / 3), ("aaa", 1.0), ("bbb", 1.0)])
def test_where_all_scores_are_equal_all_are_called_alike(labels, expected):
    truth = np.array([label == "b" for label in labels])
    assert best_accuracy(truth, np.full(3, 0.5)) == pytest.approx(expected)


def test_every_model_has_a_value_for_each_seed():
    def rows(*scores):
        return pd.DataFrame({"label": ["a", "b", "b"], "prob_b": scores})

    said = {
        ("ours", 0): rows(0.1, 0.2, 0.3),
        ("ours", 1): rows(0.3, 0.1, 0.2),
        ("theirs", 0): rows(0.2, 0.1, 0.3),
    }
    found = hindsight_accuracy(said, "b")
    assert found["ours"]["values"] == pytest.approx([1, 2 / 3])
    assert found["ours"]["mean"] == pytest.approx(5 / 6)
    assert found["theirs"]["values"] == pytest.approx([2 / 3])
