"""Chooses the noise: the few draws that best stand in for many more.

With common noise a draw is one function of the image, the same for the whole run. Out of several passes over the noise
levels, the draws are kept whose sum is closest to the sum of all draws, over images whose labels are not used. Half as many
more draws, without a choice, are no more precise (docs/decisions/0016).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ROUNDS = 5  # of exchanging one draw at a time; two to three change anything


def choose_draws(values: NDArray[np.float64], levels: int, repeats: int) -> tuple[int, ...]:
    """Numbers of ``repeats`` draws per level whose sum over the levels is closest to that of all draws.

    Parameters
    ----------
    values: [P * levels, N, Y] class scores of P passes, pass by pass.

    Every level counts by the spread over the images of what it says about the classes. Starting from the first passes, one
    draw at a time is exchanged for the one that leaves the sum over the levels nearest to that of all draws, in the mean
    square over images and classes; what a draw adds to all images alike does not count.
    """
    about = values - values.mean(axis=2, keepdims=True)
    about = about - about.mean(axis=1, keepdims=True)
    passes = about.reshape(-1, levels, *values.shape[1:])
    whole = passes.mean(axis=0)
    spread = np.maximum(whole.std(axis=1).mean(axis=1), 1e-12)
    away = ((passes - whole) / spread[:, None, None]).reshape(*passes.shape[:2], -1)  # [P, levels, N * Y]
    chosen = np.tile(np.arange(repeats)[:, None], levels)
    for _ in range(ROUNDS):
        before = chosen.copy()
        for level in range(levels):
            for slot in range(repeats):
                taken = np.delete(chosen[:, level], slot)
                now = away[chosen, np.arange(levels)].sum(axis=(0, 1))
                rest = now - away[chosen[slot, level], level]
                size = np.square(rest + away[:, level]).sum(axis=1)
                size[taken] = np.inf
                chosen[slot, level] = size.argmin()
        if (chosen == before).all():
            break
    return tuple(int(number) for number in (chosen * levels + np.arange(levels)).ravel())
