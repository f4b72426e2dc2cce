"""Uncertainty of metrics: a bootstrap that draws whole patients, and Wilson's interval of a proportion."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from scorebayes.metrics.weighted import Array

CHUNK = 2_000_000  # weights held at once, so that memory does not grow with the number of images
_MIN_DEFINED = 0.95  # share of bootstrap replicates in which a metric must exist to get an interval


def clustered_bootstrap(
    statistic: Callable[[Array], Array],
    groups: Sequence,
    *,
    n_bootstrap: int = 2000,
    seed: int = 0,
) -> Array:
    """Draws whole patients with replacement and returns the statistic of every replicate, [n_bootstrap, ...].

    ``statistic`` takes case weights [R, N], how often the patient of each case was drawn, and returns one
    row for each of the R replicates.
    """
    weights = draw_weights(patient_numbers(groups), n_bootstrap, seed)
    return np.concatenate([np.asarray(statistic(block), dtype=np.float64) for block in weights])


def patient_numbers(groups: Sequence) -> NDArray[np.int64]:
    """[N], number of the patient of each case; a case without a known patient gets a number of its own."""
    numbers: dict[object, int] = {}
    out = np.empty(len(groups), dtype=np.int64)
    for row, group in enumerate(groups):
        unknown = group is None or group == "" or group != group
        out[row] = numbers.setdefault(("case", row) if unknown else ("patient", group), len(numbers))
    return out


def draw_weights(clusters: NDArray[np.int64], n_bootstrap: int, seed: int) -> Iterator[Array]:
    """Blocks [R, N] of case weights, n_bootstrap rows in all."""
    rng = np.random.default_rng(seed)
    n_clusters = int(clusters.max(initial=-1)) + 1
    step = max(1, CHUNK // max(1, len(clusters)))
    for start in range(0, n_bootstrap, step):
        rows = min(step, n_bootstrap - start)
        drawn = rng.integers(0, max(1, n_clusters), (rows, n_clusters))
        cell = drawn + n_clusters * np.arange(rows)[:, None]
        counts = np.bincount(cell.ravel(), minlength=rows * n_clusters).reshape(rows, n_clusters)
        yield counts[:, clusters].astype(np.float64)


def percentiles(replicates: Array, level: float = 0.95) -> list[float] | None:
    """The central ``level`` of the replicates, or None where too many of them are not defined."""
    defined = replicates[np.isfinite(replicates)]
    if not len(defined) or len(defined) < _MIN_DEFINED * len(replicates):
        return None
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return [float(low), float(high)]


def wilson(successes: float, n: int, level: float = 0.95) -> list[float] | None:
    """Wilson's interval of a proportion of independent cases; None for n = 0.

    ``successes`` need not be whole: a share of n patients, of whom each counts as one case.
    """
    if n == 0:
        return None
    share, z = successes / n, float(stats.norm.ppf((1 + level) / 2))
    centre = share + z * z / (2 * n)
    half = z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = ((centre + side * half) / (1 + z * z / n) for side in (-1, 1))
    # At 0 and 1 the bound is the value itself, whatever the rounding.
    return [0.0 if successes == 0 else float(low), 1.0 if successes == n else float(high)]
