"""Evidence: which pixels decided, and at which noise level.

The class score of a draw is -D/2 log(E_c / D), E_c the sum over the pixels of the squared residual e_c(p) (see
``scorebayes.diffusion.likelihood.denoising``). The difference of two classes is a sum over pixels, exactly, by the logarithmic mean
L(u, v) = (u - v) / (log u - log v):

    S_a - S_c = -D/2 (log E_a - log E_c) = sum over p of -D/2 (e_a(p) - e_c(p)) / L(E_a, E_c).

A pixel is therefore evidence for class a where the image is denoised better in the belief that it is an a. The calibrated
log-odds of a against the others are a weighted sum of these over noise levels and draws, and an offset: bias, prior and,
of more than two classes, what follows from log-sum-exp being the mean of its arguments under their softmax w plus the
entropy of w:

    log-odds of a = sum over c of w_c (logit_a - logit_c) - H(w),    w_c the posterior share of c among the others.

What the wavelet coefficients say (``scorebayes.evidence.mixtures``) is no sum over pixels; it is shared out among them by integrated
gradients, and what an even grey image would get is in the offset.

These w are also the derivatives of the log-odds by the logits: to first order a map shows what a change would do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.special import entr, softmax
from torch import Tensor

from scorebayes.decision.posterior import Posterior, bayes
from scorebayes.decision.table import LogLikTable
from scorebayes.diffusion.draws import Draws
from scorebayes.diffusion.likelihood import Denoising
from scorebayes.errors import ConfigError
from scorebayes.runs.run import Run

GRADIENT_STEPS = 16
SMOOTHING = 0.04  # of the side of the image: standard deviation of the Gaussian with which maps are shown
Map = NDArray[np.float64]


@dataclass(frozen=True)
class Evidence:
    """Why one image got its posterior; all in nats of the log-odds of class ``target`` against the others.

    levels: [L, S, S], evidence of each pixel at each noise level, from coarse (much noise) to fine.
    wavelets: [S, S], of each pixel by way of the wavelet coefficients; zero where the run does not ask them.
    std_error: [S, S], Monte-Carlo standard error of ``total``, pixel by pixel; NaN with one draw in all.
    level_std_error: [L], of the sums of ``levels``; NaN with one evaluation a level.
    log_snr: [L], mean log-SNR of the draws of each level.
    offset: what no pixel says: bias, prior, what the wavelets say of an even grey image (and the entropy of the other
    classes, where there are several).
    table, posterior: of this image, from the same draws.
    """

    target: int
    levels: Map
    wavelets: Map
    std_error: Map
    level_std_error: NDArray[np.float64]
    log_snr: NDArray[np.float64]
    offset: float
    table: LogLikTable
    posterior: Posterior

    @property
    def total(self) -> Map:
        """Evidence of each pixel [S, S]; its sum is ``log_odds`` less ``offset``."""
        return self.levels.sum(axis=0) + self.wavelets

    @property
    def log_odds_map(self) -> Map:
        """The same with the offset spread evenly over the pixels [S, S]: its sum is ``log_odds``."""
        total = self.total
        return total + self.offset / total.size

    @property
    def log_odds(self) -> float:
        return float(self.posterior.log_odds[0, self.target])

    @property
    def log_odds_std_error(self) -> float:
        return float(self.posterior.log_odds_std_error[0, self.target])


def explain(
    run: Run, x: Tensor, key: str, target: int | None = None, log_prior: NDArray | None = None
) -> Evidence:
    """Evidence maps of one prepared image x [1, C, S, S], from the draws that ``key`` names.

    ``key``: as given to ``Run.log_lik`` for the posterior that is to be explained. ``target``: class whose log-odds are
    explained; by default the positive one of two classes (as in predictions), the most probable of more. ``log_prior``: [Y],
    by default the run's.

    Raises ConfigError where the run's estimator is not the class score, NumericalError where it failed on the image.
    """
    likelihood = run.likelihood
    if likelihood.kind != "class-score":
        raise ConfigError(
            f"evidence maps come from the estimator 'denoising', the run has {likelihood.kind!r}.",
            'Set kind = "denoising" in [likelihood] and calibrate again.',
        )
    estimator, calibration = cast(Denoising, likelihood), run.calibration
    table = run.log_lik(x, [key])
    log_prior = run.log_prior if log_prior is None else log_prior
    posterior = bayes(table, log_prior, calibration)
    if target is None:
        binary = posterior.log_prob.shape[1] == 2
        target = run.facts.info.positive if binary else int(posterior.predict()[0])
    others = np.where(np.arange(len(log_prior)) == target, -np.inf, posterior.log_prob[0])
    share = softmax(others)  # of each other class among the others

    maps = np.zeros((len(table.level), *x.shape[2:]))
    sums: list[list[float]] = [[] for _ in table.level]  # of every draw, evaluation by evaluation
    with torch.no_grad():
        for draw, squares in estimator.squared_residuals(run.score, x, Draws(run.config.seed, [key])):
            part = split_by_pixel(squares.sum(1).numpy(), target, share, x[0].numel())
            maps[draw] += part
            sums[draw].append(float(part.sum()))
    maps /= np.array([len(of) for of in sums])[:, None, None]

    per_level = [np.flatnonzero(table.level == level) for level in np.unique(table.level)]
    levels = np.stack(
        [w * maps[of].mean(axis=0) for w, of in zip(calibration.weights, per_level, strict=True)]
    )
    variance = calibration.variance_of_mean(table, maps.reshape(len(maps), -1)).reshape(maps.shape[1:])
    by_wavelets, wavelets = np.zeros(x.shape[2:]), run.wavelets
    if wavelets is not None and calibration.wavelet_weight:
        against = (np.arange(len(share)) == target) - share
        slopes = torch.from_numpy(calibration.wavelet_weight * against)
        by_wavelets = integrated_gradients(lambda image: wavelets.of_images(image)[0] @ slopes, x)
    given = calibration.offsets(table.wavelets)[0] + log_prior
    return Evidence(
        target=target,
        levels=levels,
        wavelets=by_wavelets,
        std_error=np.sqrt(variance),
        level_std_error=np.array(
            [
                w * _std_error([sums[draw] for draw in of])
                for w, of in zip(calibration.weights, per_level, strict=True)
            ]
        ),
        log_snr=np.array([table.log_snr[of].mean() for of in per_level]),
        offset=float(given[target] - share @ given - entr(share).sum() - by_wavelets.sum()),
        table=table,
        posterior=posterior,
    )


def integrated_gradients(value: Callable[[Tensor], Tensor], x: Tensor, steps: int = GRADIENT_STEPS) -> Map:
    """What each pixel of x [1, C, S, S] adds to a value on the way from an even grey image, the mean of the training pixels.

    Gradients along the way, times the way (Sundararajan et al. 2017, arXiv 1703.01365): the sum over the pixels is the
    difference of the two values, up to the error of the midpoint rule. The steps are short at the start, where logarithms of
    moduli change most: the way is gone as u^2, u from 0 to 1. Returns [S, S].
    """
    total = torch.zeros_like(x)
    with torch.enable_grad():
        for u in ((np.arange(steps) + 0.5) / steps).tolist():
            image = (u**2 * x).requires_grad_(True)
            total += 2 * u * torch.autograd.grad(value(image), image)[0]
    return (x * total / steps)[0].sum(0).cpu().double().numpy()


def _std_error(draws: list[list[float]]) -> float:
    """Of the mean of some draws, given by their evaluations. Of a single one, whose evaluations are antithetic, as if they
    were independent, which errs on the safe side."""
    values = [np.mean(of) for of in draws] if len(draws) > 1 else draws[0]
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else np.nan


def split_by_pixel(squares: Map, target: int, share: NDArray[np.float64], dims: int) -> Map:
    """What each pixel adds to S_target - sum of share_c S_c.

    squares [Y, S, S], squared residuals under each class; share [Y], 0 for the target, sums to one; dims: D -> [S, S].
    """
    errors = squares.sum(axis=(1, 2))
    parts = [
        weight * (squares[target] - squares[c]) / logarithmic_mean(errors[target], errors[c])
        for c, weight in enumerate(share)
        if weight > 0
    ]
    return -0.5 * dims * np.sum(parts, axis=0)


def logarithmic_mean(u: float, v: float) -> float:
    """(u - v) / (log u - log v) of two positive numbers, which is u where they are equal."""
    return (
        u if u == v else float((u - v) / np.log1p((u - v) / v))
    )  # log u - log v would cancel where they are close


def smooth(maps: Map) -> Map:
    """As maps are shown: [..., S, S], blurred over ``SMOOTHING`` of the side, sums kept. No figure is taken from it."""
    return gaussian_filter(maps, SMOOTHING * maps.shape[-1], mode="reflect", axes=(-2, -1))
