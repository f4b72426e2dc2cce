"""The class score: -D/2 times the log of the denoising error, noise level by noise level. The default estimator.

No log-likelihood of the image; it reaches the posterior through weights fitted on validation data (Clark & Jaini 2023,
arXiv 2303.15233; Li et al. 2023, arXiv 2303.16203 use the error itself and fixed weights). Draws come in passes, each of one
draw per noise level, and are numbered pass by pass: few passes are the beginning of many.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scorebayes.diffusion.draws import Draws
from scorebayes.diffusion.likelihood.base import Kind, LogProb
from scorebayes.diffusion.likelihood.residuals import Evaluations, Residuals, log_prob_of, require_positive
from scorebayes.diffusion.score import Score
from scorebayes.errors import ConfigError


@dataclass(frozen=True)
class Denoising:
    """The class score at stratified noise levels; the default estimator.

    Parameters
    ----------
    levels: strata of the log-SNR, of equal probability under N(mean, std^2).
    repeats: draws in each stratum; with one, neighbouring strata make the standard error, which is then too large.
    mean, std: of the log-SNR density.
    flips: mirror the image in every second evaluation of a level (for networks trained with flips).
    antithetic: a draw is the mean over two evaluations, the second with the noise negated and the noise level reflected
        within its stratum: what is linear in either cancels.
    common_noise: all images of a run get the same noise and noise levels (common random numbers), so that what
        affects all images alike does not change the ranking, and the calibration removes it as a bias. False: every
        image gets its own noise, named by its key.
    candidates: passes from which a run chooses its common noise (``choose_noise``); no more than ``repeats``: no choice.
    first: numbers of the draws (pass x levels + level) that were chosen, whole passes; the others follow in their order.
    images_per_call: images that share a network call: 4 are a fifth faster than 1 on a CPU, a GPU takes more. Images do not
        mix, but how a library adds may depend on how many there are: 1 makes a result independent of the others to the
        bit by construction (with the networks here it is so with more, too), else it is up to rounding.
    rows_per_call: largest number of (image, evaluation, class) rows in one network call: bounds the memory.
    """

    levels: int = 5
    repeats: int = 2
    mean: float = -1.0
    std: float = 2.0
    flips: bool = True
    antithetic: bool = True
    common_noise: bool = True
    candidates: int = 8
    first: tuple[int, ...] = ()
    images_per_call: int = 4
    rows_per_call: int = 256

    kind: ClassVar[Kind] = "class-score"

    def __post_init__(self) -> None:
        require_positive(self, "levels", "repeats", "std", "images_per_call", "rows_per_call")
        whole_passes = sorted([*range(self.levels)] * (len(self.first) // self.levels))
        levels = sorted(number % self.levels for number in self.first)
        if levels != whole_passes or len(set(self.first)) < len(self.first):
            raise ConfigError(
                f"first = {list(self.first)}: expected distinct draws, the same number at each of {self.levels} levels.",
                "Leave it out. Training chooses the draws.",
            )

    def __call__(self, score: Score, x: Tensor, draws: Draws) -> LogProb:
        """x [N, C, H, W] standardised -> levels x repeats draws of the class score."""
        values, log_snr = self.passes(score, x, draws, range(self.repeats))
        level = np.tile(np.arange(self.levels), self.repeats)
        return log_prob_of(values, log_snr, level, self.kind, evaluations=2 if self.antithetic else 1)

    def passes(
        self, score: Score, x: Tensor, draws: Draws, numbers: range, classes: Tensor | None = None
    ) -> tuple[NDArray[np.float64], Tensor]:
        """Some passes over the noise levels, under all classes or those given.

        x [N, C, H, W], numbers of the passes, classes [Y] -> class scores [P * levels, N, Y], log-SNR
        [N, P * levels].
        """
        noise, asked = self._plan(score, draws, numbers, classes)
        values = _class_score(noise.squared_errors(score, x, asked), x[0].numel())
        n_draws = self.levels * len(numbers)
        times = len(asked.numbers) // n_draws
        of_draws = values.reshape(times, n_draws, *values.shape[1:]).mean(axis=0)
        return of_draws, asked.log_snr.unflatten(1, (times, n_draws)).mean(dim=1)

    def squared_residuals(self, score: Score, x: Tensor, draws: Draws) -> Iterator[tuple[int, Tensor]]:
        """The draws of ``__call__`` pixel by pixel, for one image x [1, C, H, W]: what their errors are sums of.

        Yields the place of the draw among those of ``__call__`` and its squared residual under every class [Y, C, H, W]
        float64, turned back where it was mirrored. With ``antithetic`` every place comes twice.
        """
        noise, asked = self._plan(score, draws, range(self.repeats))
        places = np.arange(len(asked.numbers)) % (self.levels * self.repeats)
        for _, block, squares in noise.squared_residuals(score, x, asked):
            for place, mirrored, square in zip(places[block], asked.mirrored[block], squares[0], strict=True):
                yield int(place), square.flip(-1) if mirrored else square

    def _plan(
        self, score: Score, draws: Draws, numbers: range, classes: Tensor | None = None
    ) -> tuple[Residuals, Evaluations]:
        """The evaluations of some passes: one of every draw and, where antithetic, then another of every draw."""
        names = self._in_order(numbers.stop)[numbers.start :].ravel()
        draws = draws.common() if self.common_noise else draws
        place = draws.uniform("level", (names.max() + 1,))[:, names]
        stratum = torch.arange(self.levels).repeat(len(numbers))
        mirrored = (names // self.levels % 2 == 1) & self.flips
        noise = Residuals(draws, self.images_per_call, self.rows_per_call, classes)
        low, high = score.noise.log_snr_range

        def log_snr_at(place: Tensor) -> Tensor:
            quantile = (stratum + place) / self.levels
            return (self.mean + self.std * torch.special.ndtri(quantile)).clamp(low, high)

        asked = Evaluations(names, log_snr_at(place), mirrored, np.ones(len(names)))
        if self.antithetic:
            asked = Evaluations(
                np.tile(asked.numbers, 2),
                torch.cat([asked.log_snr, log_snr_at(1 - place)], dim=1),
                np.concatenate([mirrored, ~mirrored & self.flips]),
                np.repeat([1.0, -1.0], len(mirrored)),
            )
        return noise, asked

    def _in_order(self, n_passes: int) -> NDArray[np.int64]:
        """Numbers of the draws [P, levels] of the first passes: those of ``first``, then the others of every level."""
        columns = []
        for level in range(self.levels):
            chosen = [number for number in self.first if number % self.levels == level]
            others = (n for n in range(level, (n_passes + len(chosen)) * self.levels, self.levels))
            columns.append([*chosen, *(n for n in others if n not in chosen)][:n_passes])
        return np.array(columns, dtype=np.int64).T


def _class_score(errors: NDArray[np.float64], dims: int) -> NDArray[np.float64]:
    """-D/2 log(||eps - eps_hat||^2 / D).

    It is the log-likelihood of the residual as Gaussian noise of unknown size, at its best size. Unlike the squared error
    it measures by what *share* of the image's error a class is better: an image with much texture has larger errors
    under all classes, and larger differences by chance.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return -0.5 * dims * np.log(errors / dims)
