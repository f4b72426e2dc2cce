"""Likelihoods from denoising errors: noise the image, ask every class to remove the noise, compare the errors.

Two estimators share the evaluations and must never be confused:

* ``DenoisingBound``, in nats: the identity of Kong et al. 2023 (arXiv 2302.03792, eq. 8), for the optimal denoiser an
  equality, for a trained one the bound that diffusion models are trained on,
  -log p(x|y) = D/2 log(2 pi e) + 1/2 integral (E ||eps - eps_hat||^2 - D sigmoid(lambda)) d lambda.
* ``Denoising``, the class score: minus the squared errors, noise level by noise level. Not a log-likelihood; it reaches
  the posterior through weights fitted on validation data (Clark & Jaini 2023, arXiv 2303.15233; Li et al. 2023,
  arXiv 2303.16203 use fixed ones).

Noise and noise level of a draw are the same for all classes, so that what differs is the class alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from scorebayes.draws import Draws
from scorebayes.likelihood.base import Kind, LogProb
from scorebayes.score import Score


@dataclass(frozen=True)
class Denoising:
    """The class score at stratified noise levels; the default estimator.

    Parameters
    ----------
    levels: strata of the log-SNR, of equal probability under N(mean, std^2).
    repeats: draws in each stratum; two or more give a standard error.
    mean, std: of the log-SNR density.
    flips: mirror the image in every second draw of a level (for networks trained with flips).
    images_per_call: images that share a network call. 1 makes the result of an image bitwise independent of the others;
        more is faster on a GPU and equal up to rounding.
    rows_per_call: largest number of (image, draw, class) rows in one network call: bounds the memory.
    """

    levels: int = 8
    repeats: int = 2
    mean: float = 0.0
    std: float = 2.5
    flips: bool = True
    images_per_call: int = 1
    rows_per_call: int = 256

    kind: ClassVar[Kind] = "class-score"

    def __call__(self, score: Score, x: Tensor, draws: Draws) -> LogProb:
        level = np.repeat(np.arange(self.levels), self.repeats)
        u = draws.uniform("level", (len(level),))
        quantile = (torch.from_numpy(level) + u) / self.levels
        log_snr = self.mean + self.std * torch.special.ndtri(quantile)
        flip = np.tile(np.arange(self.repeats) % 2 == 1, self.levels) & self.flips
        errors, log_snr = _squared_errors(
            score, x, log_snr, draws, flip, self.images_per_call, self.rows_per_call
        )
        return _log_prob(-errors, log_snr, level, self.kind)


@dataclass(frozen=True)
class DenoisingBound:
    """The bound on log p(x|y) in nats, with uniformly stratified log-SNR over the range of the forward process.

    Parameters
    ----------
    levels: strata of the log-SNR.
    repeats: draws in each stratum.
    images_per_call, rows_per_call: as in ``Denoising``.
    """

    levels: int = 32
    repeats: int = 1
    images_per_call: int = 1
    rows_per_call: int = 256

    kind: ClassVar[Kind] = "lower-bound"

    def __call__(self, score: Score, x: Tensor, draws: Draws) -> LogProb:
        level = np.repeat(np.arange(self.levels), self.repeats)
        low, high = score.noise.log_snr_range
        log_snr = (
            low
            + (high - low) * (torch.from_numpy(level) + draws.uniform("level", (len(level),))) / self.levels
        )
        flip = np.zeros(len(level), dtype=bool)
        errors, log_snr = _squared_errors(
            score, x, log_snr, draws, flip, self.images_per_call, self.rows_per_call
        )
        dims = x[0].numel()
        white = dims / (1 + np.exp(-log_snr.T.numpy()))[..., None]
        nats = -0.5 * dims * math.log(2 * math.pi * math.e) - 0.5 * (high - low) * (errors - white)
        return _log_prob(nats, log_snr, level, self.kind)


def _squared_errors(
    score: Score,
    x: Tensor,
    log_snr: Tensor,
    draws: Draws,
    flip: np.ndarray,
    images_per_call: int,
    rows_per_call: int,
) -> tuple[np.ndarray, Tensor]:
    """||eps - eps_hat(x_t, t, y)||^2, summed over pixels: x [N, ...], log_snr [N, K], flip [K] -> [K, N, Y], log_snr.

    The log-SNR returned is the one used: clamped to the range of the forward process.
    """
    low, high = score.noise.log_snr_range
    log_snr = log_snr.clamp(low, high)
    n, k = log_snr.shape
    errors = np.empty((k, n, score.n_classes))
    draws_per_call = max(1, rows_per_call // (score.n_classes * images_per_call))
    for images in _chunks(n, images_per_call):
        x_0 = x[images].cpu().double()
        # Named by its number, a draw is the same however many follow it.
        eps = torch.stack([draws[images].normal(f"eps/{i}", x.shape[1:]) for i in range(k)], dim=1)
        for block in _chunks(k, draws_per_call):
            mirrored = torch.from_numpy(flip[block])[None, :, None, None, None]
            clean = torch.where(mirrored, x_0[:, None].flip(-1), x_0[:, None])
            rows = torch.Size([len(x_0), clean.shape[1]])
            noise = eps[:, block].double()
            t = score.noise.time(log_snr[images, block])
            alpha_t, sigma_t = (scale[..., None, None, None] for scale in score.noise.scales(t))
            x_t = alpha_t * clean + sigma_t * noise
            s = score.all_classes(x_t.flatten(0, 1), t.flatten()).unflatten(0, rows)
            residual = (
                noise[:, :, None] + sigma_t[:, :, None] * s
            )  # eps - eps_hat, as eps_hat = -sigma_t score
            errors[block, images] = residual.square().flatten(3).sum(3).transpose(0, 1).numpy()
    return errors, log_snr


def _chunks(total: int, size: int) -> Iterator[slice]:
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


def _log_prob(values: np.ndarray, log_snr: Tensor, level: np.ndarray, kind: Kind) -> LogProb:
    finite = np.isfinite(values).all(axis=(0, 2))
    return LogProb(
        draws=values,
        log_snr=log_snr.T.numpy(),
        level=level,
        nfe=np.full(values.shape[1], values.shape[0]),
        status=np.where(finite, "ok", "not finite"),
        kind=kind,
    )
