"""Several k-means clusterings of the same points: the same as scikit-learn's, with what they share computed once."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from threading import Lock

import numpy as np
from numpy.typing import NDArray
from sklearn import config_context
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import ThreadpoolController

ROUNDS = 20  # of moving the means


def clusterings(points: NDArray[np.float32], wanted: int, seeds: Sequence[int]) -> list[NDArray[np.int64]]:
    """One for each seed: a number below ``wanted`` for every point [N, F]; fewer clusters where points coincide."""
    if wanted == 1:
        return [np.zeros(len(points), dtype=np.int64) for _ in seeds]
    apart = _Distances(points - points.mean(axis=0))  # as KMeans moves them

    def begin(x: NDArray, n: int, random_state: np.random.RandomState) -> NDArray:
        return x[far_apart(apart, n, random_state)]

    one_thread = _thread_pools().limit(limits=1, user_api="openmp")  # the same sums everywhere
    unchecked = config_context(
        assume_finite=True, skip_parameter_validation=True
    )  # as costly as a small clustering
    with _ONE_AT_A_TIME, one_thread, unchecked, warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return [
            KMeans(wanted, init=begin, n_init=1, max_iter=ROUNDS, random_state=seed % 2**32).fit_predict(
                points
            )
            for seed in seeds
        ]


class _Distances:
    """Squared distances between points [N, F], computed in float64, each row when it is asked for first."""

    def __init__(self, points: NDArray[np.float32]) -> None:
        self.points = points.astype(np.float64)
        self.squares = np.einsum("nf,nf->n", self.points, self.points)
        self.known = np.zeros(len(points), dtype=bool)
        self.rows = np.empty((len(points), len(points)), dtype=np.float32)

    def __call__(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Of these points to all [R, N]."""
        new = np.unique(rows[~self.known[rows]])
        if len(new):
            found = -2 * (self.points[new] @ self.points.T) + self.squares[new, None] + self.squares
            self.rows[new] = np.maximum(found, 0)
            self.known[new] = True
        return self.rows[rows]


def far_apart(apart: _Distances, n: int, random: np.random.RandomState) -> NDArray[np.int64]:
    """Where clustering starts: greedy k-means++ (Arthur & Vassilvitskii 2007), drawing as scikit-learn does."""
    tries, n_points = 2 + int(np.log(n)), len(apart.points)
    even = np.ones(n_points, dtype=np.float32)
    chosen = [random.choice(n_points, p=even / even.sum())]
    nearest = apart(np.array(chosen))[0]
    for _ in range(1, n):
        places = random.uniform(size=tries) * (nearest @ even)
        candidates = np.minimum(np.searchsorted(np.cumsum(nearest), places), n_points - 1)
        with_each = np.minimum(nearest, apart(candidates))
        best = (with_each @ even[:, None]).argmin()
        nearest = with_each[best]
        chosen.append(candidates[best])
    return np.array(chosen)


_ONE_AT_A_TIME = Lock()  # threads and filters of warnings are those of the whole process


@cache
def _thread_pools() -> ThreadpoolController:
    """Those of the process; to look for them takes as long as a small clustering."""
    return ThreadpoolController()
