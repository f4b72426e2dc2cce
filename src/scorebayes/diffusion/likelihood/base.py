"""The protocol that every likelihood estimator fits, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from scorebayes.diffusion.draws import Draws
from scorebayes.diffusion.score import Score

Kind = Literal["density", "lower-bound", "class-score"]


@dataclass(frozen=True)
class LogProb:
    """The values of one estimator for N images under each of Y classes, from K draws shared by the classes.

    draws: [K, N, Y] float64. For the kinds "density" and "lower-bound" their mean over K is log p(x|y) in nats (or a
        bound of it) in the standardised coordinates given; for "class-score" a draw is -D/2 log of a denoising error,
        which is no log-likelihood and reaches the posterior through its calibration only.
    log_snr: [K, N], noise level of each draw; NaN where a draw spans all levels (flow).
    level: [K], index of the stratum that the draw belongs to, 0 where there is only one.
    nfe: [N], network evaluations per image and class.
    status: [N], "ok" or why there is no number.
    """

    draws: NDArray[np.float64]
    log_snr: NDArray[np.float64]
    level: NDArray[np.int64]
    nfe: NDArray[np.int64]
    status: NDArray[np.str_]
    kind: Kind


class Likelihood(Protocol):
    """Turns a score into one number per image and class.

    All classes are evaluated together on the same draws: their difference, which decides, is then paired by construction.
    """

    @property
    def kind(self) -> Kind:
        """Which of the three kinds of number it gives."""
        ...

    def __call__(self, score: Score, x: Tensor, draws: Draws) -> LogProb:
        """x [N, C, H, W] standardised, ``draws`` with one key per image -> LogProb."""
        ...
