"""Likelihoods from denoising errors: noise the image, ask every class to remove the noise, compare the errors.

Two estimators share the evaluations and must never be confused:

* ``DenoisingBound``, in nats: the identity of Kong et al. 2023 (arXiv 2302.03792, eq. 8), for the optimal denoiser an
  equality, for a trained one the bound that diffusion models are trained on. The errors are compared with those of the
  optimal denoiser of white images, on the same noise, which takes most of the variance away:
  log p(x|y) = log N(x; 0, I) + 1/2 integral E (||eps - eps_hat_white||^2 - ||eps - eps_hat||^2) d lambda.
* ``Denoising``, the class score: -D/2 times the log of the error, noise level by noise level. No log-likelihood of the
  image; it reaches the posterior through weights fitted on validation data (Clark & Jaini 2023, arXiv 2303.15233; Li et
  al. 2023, arXiv 2303.16203 use the error itself and fixed weights).

Noise and noise level of a draw are the same for all classes, so that what differs is the class alone. Draws come in
passes, each of one draw per noise level, and are numbered pass by pass: few passes are the beginning of many.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scorebayes.diffusion.draws import Draws
from scorebayes.diffusion.likelihood.base import Kind, LogProb
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
    common_noise: all images of a run are asked with the same noise and noise levels (common random numbers), so that what
        these do to all of them alike changes no order, and is in the bias that the calibration takes off. False: every
        image has its own, named by its key.
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
        _require_positive(self, "levels", "repeats", "std", "images_per_call", "rows_per_call")
        whole_passes = sorted([*range(self.levels)] * (len(self.first) // self.levels))
        levels = sorted(number % self.levels for number in self.first)
        if levels != whole_passes or len(set(self.first)) < len(self.first):
            raise ConfigError(
                f"first = {list(self.first)} are not distinct draws, equally many at each of {self.levels} levels.",
                "Leave it out: training chooses them.",
            )

    def __call__(self, score: Score, x: Tensor, draws: Draws) -> LogProb:
        """x [N, C, H, W] standardised -> levels x repeats draws of the class score."""
        values, log_snr = self.passes(score, x, draws, range(self.repeats))
        level = np.tile(np.arange(self.levels), self.repeats)
        return _log_prob(values, log_snr, level, self.kind, evaluations=2 if self.antithetic else 1)

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
    ) -> tuple[_Noise, _Evaluations]:
        """The evaluations of some passes: one of every draw and, where antithetic, then another of every draw."""
        names = self._in_order(numbers.stop)[numbers.start :].ravel()
        draws = draws.common() if self.common_noise else draws
        place = draws.uniform("level", (names.max() + 1,))[:, names]
        stratum = torch.arange(self.levels).repeat(len(numbers))
        mirrored = (names // self.levels % 2 == 1) & self.flips
        noise = _Noise(draws, self.images_per_call, self.rows_per_call, classes)
        low, high = score.noise.log_snr_range

        def log_snr_at(place: Tensor) -> Tensor:
            quantile = (stratum + place) / self.levels
            return (self.mean + self.std * torch.special.ndtri(quantile)).clamp(low, high)

        asked = _Evaluations(names, log_snr_at(place), mirrored, np.ones(len(names)))
        if self.antithetic:
            asked = _Evaluations(
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

    It is the log-likelihood of the residual as Gaussian noise of unknown size, at its best size. Against the squared error
    itself it asks by what *share* of the image's error a class is better: an image of much texture has larger errors
    under all classes, and larger differences by chance.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return -0.5 * dims * np.log(errors / dims)


@dataclass(frozen=True)
class DenoisingBound:
    """The bound on log p(x|y) in nats, stratified over the log-SNR range of the forward process.

    Parameters
    ----------
    levels: strata of the log-SNR, of equal probability.
    repeats: draws in each stratum.
    centre, scale: of the logistic density from which the log-SNR is drawn, cut to the range of the process; the
        integrand is divided by it (importance sampling, as the source does). Without a centre: uniform.
    images_per_call, rows_per_call: as in ``Denoising``.
    """

    levels: int = 32
    repeats: int = 1
    centre: float | None = None
    scale: float = 2.0
    images_per_call: int = 1
    rows_per_call: int = 256

    kind: ClassVar[Kind] = "lower-bound"

    def __post_init__(self) -> None:
        _require_positive(self, "levels", "repeats", "scale", "images_per_call", "rows_per_call")

    def __call__(self, score: Score, x: Tensor, draws: Draws) -> LogProb:
        """x [N, C, H, W] standardised -> levels x repeats draws, in nats of the same coordinates."""
        level = np.tile(np.arange(self.levels), self.repeats)
        quantile = (torch.from_numpy(level) + draws.uniform("level", (len(level),))) / self.levels
        log_snr, density = self._log_snr(quantile, *score.noise.log_snr_range)
        noise = _Noise(draws, self.images_per_call, self.rows_per_call)
        once = _Evaluations(
            np.arange(len(level)), log_snr, np.zeros(len(level), dtype=bool), np.ones(len(level))
        )
        gain = noise.white_errors(x, log_snr)[..., None] - noise.squared_errors(score, x, once)
        pixels = x.cpu().double().flatten(1)
        white = -0.5 * (pixels.square().sum(1) + pixels.shape[1] * math.log(2 * math.pi))
        nats = white.numpy()[:, None] + 0.5 * gain / density.T.numpy()[..., None]
        return _log_prob(nats, log_snr, level, self.kind)

    def _log_snr(self, quantile: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
        """Log-SNR at a quantile of its density, and the density there."""
        if self.centre is None:
            return low + (high - low) * quantile, torch.full_like(quantile, 1 / (high - low))
        ends = torch.tensor([low, high], dtype=torch.float64)
        below, upto = torch.sigmoid((ends - self.centre) / self.scale)
        share = below + (upto - below) * quantile
        return self.centre + self.scale * torch.logit(share), share * (1 - share) / (
            self.scale * (upto - below)
        )


class _Evaluations(NamedTuple):
    """What the network is asked: the noise of the draws with these numbers [K], at log_snr [N, K], mirrored [K] and times
    ``sign`` [K]. Named by its number, a draw is the same however many there are."""

    numbers: NDArray[np.int64]
    log_snr: Tensor
    mirrored: NDArray[np.bool_]
    sign: NDArray[np.float64]


@dataclass(frozen=True)
class _Noise:
    """How noise is carried through the network. classes: [Y], None for all."""

    draws: Draws
    images_per_call: int
    rows_per_call: int
    classes: Tensor | None = None

    def squared_errors(self, score: Score, x: Tensor, asked: _Evaluations) -> NDArray[np.float64]:
        """||eps - eps_hat(x_t, t, y)||^2 summed over pixels, x [N, C, H, W] -> [K, N, Y]."""
        n, k = asked.log_snr.shape
        errors = np.empty((k, n, self._n_classes(score)))
        for images, block, squares in self.squared_residuals(score, x, asked):
            errors[block, images] = squares.flatten(3).sum(3).transpose(0, 1).numpy()
        return errors

    def squared_residuals(
        self, score: Score, x: Tensor, asked: _Evaluations
    ) -> Iterator[tuple[slice, slice, Tensor]]:
        """(eps - eps_hat(x_t, t, y))^2 in parts: images, evaluations, [images, evaluations, Y, C, H, W] as the network saw
        them."""
        numbers, log_snr, mirrored, sign = asked
        n, k = log_snr.shape
        draws_per_call = max(1, self.rows_per_call // (self._n_classes(score) * self.images_per_call))
        for images in _chunks(n, self.images_per_call):
            x_0 = x[images].cpu().double()[:, None]
            own = self.draws[images]
            for block in _chunks(k, draws_per_call):
                signs = torch.from_numpy(sign[block])[None, :, None, None, None]
                eps = signs * self._eps(own, numbers[block], x.shape[1:])
                t = score.noise.time(log_snr[images, block])
                alpha_t, sigma_t = (scale[..., None, None, None] for scale in score.noise.scales(t))
                x_t = alpha_t * x_0 + sigma_t * eps
                turned = torch.from_numpy(mirrored[block])[None, :, None, None, None]
                x_t, eps = (torch.where(turned, pixels.flip(-1), pixels) for pixels in (x_t, eps))
                s = self._scores(score, x_t.flatten(0, 1), t.flatten()).unflatten(0, t.shape)
                residual = (
                    eps[:, :, None] + sigma_t[:, :, None] * s
                )  # eps - eps_hat, as eps_hat = -sigma_t score
                yield images, block, residual.square()

    def white_errors(self, x: Tensor, log_snr: Tensor) -> NDArray[np.float64]:
        """The same for the optimal denoiser of N(0, I): x [N, ...], log_snr [N, K] -> [K, N]."""
        errors = np.empty(tuple(log_snr.T.shape))
        for row in range(len(x)):
            eps = self._eps(self.draws[row : row + 1], np.arange(log_snr.shape[1]), x.shape[1:])[0]
            level = log_snr[row, :, None, None, None]
            residual = torch.sigmoid(level) * (eps - (-0.5 * level).exp() * x[row].cpu().double())
            errors[:, row] = residual.square().flatten(1).sum(1).numpy()
        return errors

    @staticmethod
    def _eps(draws: Draws, numbers: NDArray[np.int64], shape: torch.Size) -> Tensor:
        """[B, K, *shape] float64."""
        distinct = {i: draws.normal(f"eps/{i}", shape) for i in dict.fromkeys(numbers.tolist())}
        return torch.stack([distinct[i] for i in numbers.tolist()], dim=1).double()

    def _n_classes(self, score: Score) -> int:
        return score.n_classes if self.classes is None else len(self.classes)

    def _scores(self, score: Score, x_t: Tensor, t: Tensor) -> Tensor:
        """Under the classes asked for, [B, Y, C, H, W]."""
        if self.classes is None:
            return score.all_classes(x_t, t)
        y = self.classes.repeat(len(x_t))
        rows = torch.arange(len(x_t)).repeat_interleave(len(self.classes))
        return score(x_t[rows], t[rows], y).unflatten(0, (len(x_t), len(self.classes)))


def _chunks(total: int, size: int) -> Iterator[slice]:
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


def _log_prob(
    values: NDArray, log_snr: Tensor, level: NDArray[np.int64], kind: Kind, evaluations: int = 1
) -> LogProb:
    """``evaluations``: of the network, for each draw and class."""
    finite = np.isfinite(values).all(axis=(0, 2))
    return LogProb(
        draws=values,
        log_snr=log_snr.T.numpy(),
        level=level,
        nfe=np.full(values.shape[1], values.shape[0] * evaluations),
        status=np.where(finite, "ok", "not finite"),
        kind=kind,
    )


def _require_positive(estimator: object, *names: str) -> None:
    for name in names:
        if getattr(estimator, name) <= 0:
            raise ConfigError(f"{name} = {getattr(estimator, name)}.", "Give a number above 0.")
