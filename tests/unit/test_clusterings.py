"""Several clusterings of the same points are those of scikit-learn."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.cluster import KMeans

from scorebayes.evidence.clusterings import clusterings

RANDOM = np.random.default_rng(0)
POINTS = {
    "apart": (RANDOM.normal(size=(60, 1, 5)) * 0.3 + RANDOM.normal(size=(1, 3, 5)) + 4).reshape(-1, 5),
    "coinciding": np.repeat(RANDOM.normal(size=(5, 3)), 8, axis=0),
}


@pytest.mark.parametrize("name", POINTS)
@pytest.mark.parametrize("wanted", [1, 4, 7])
def test_they_are_those_of_scikit_learn(name, wanted):
    points = POINTS[name].astype(np.float32)
    seeds = [0, 3, 2**32 + 5]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = [
            KMeans(wanted, n_init=1, max_iter=20, random_state=seed % 2**32).fit_predict(points)
            for seed in seeds
        ]
    found = clusterings(points, wanted, seeds)
    np.testing.assert_array_equal(found, expected)
    assert wanted == 1 or not (found[0] == found[1]).all()
