"""Denoising residuals: add noise to the image, denoise it under every class, compare what is left.

Noise and noise level of a draw are the same for all classes, so that what differs is the class alone. Two estimators share
these evaluations and must never be confused: ``denoising`` (the class score) and ``bound`` (nats).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scorebayes.diffusion.draws import Draws
from scorebayes.diffusion.likelihood.base import Kind, LogProb
from scorebayes.diffusion.score import Score
from scorebayes.errors import ConfigError


class Evaluations(NamedTuple):
    """The inputs of the network: the noise of the draws with these numbers [K], at log_snr [N, K], mirrored [K] and times
    ``sign`` [K]. A draw depends only on its number, not on how many there are."""

    numbers: NDArray[np.int64]
    log_snr: Tensor
    mirrored: NDArray[np.bool_]
    sign: NDArray[np.float64]


@dataclass(frozen=True)
class Residuals:
    """How noise is carried through the network. classes: [Y], None for all."""

    draws: Draws
    images_per_call: int
    rows_per_call: int
    classes: Tensor | None = None

    def squared_errors(self, score: Score, x: Tensor, asked: Evaluations) -> NDArray[np.float64]:
        """||eps - eps_hat(x_t, t, y)||^2 summed over pixels, x [N, C, H, W] -> [K, N, Y]."""
        n, k = asked.log_snr.shape
        errors = np.empty((k, n, self._n_classes(score)))
        for images, block, squares in self.squared_residuals(score, x, asked):
            errors[block, images] = squares.flatten(3).sum(3).transpose(0, 1).numpy()
        return errors

    def squared_residuals(
        self, score: Score, x: Tensor, asked: Evaluations
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


def log_prob_of(
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


def require_positive(estimator: object, *names: str) -> None:
    for name in names:
        if getattr(estimator, name) <= 0:
            raise ConfigError(
                f"{name} = {getattr(estimator, name)} is not positive.", "Give a number above 0."
            )
