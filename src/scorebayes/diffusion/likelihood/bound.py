"""The denoising bound on log p(x|y), in nats.

The identity of Kong et al. 2023 (arXiv 2302.03792, eq. 8): for the optimal denoiser an equality, for a trained one the bound
that diffusion models are trained on. The errors are compared with those of the optimal denoiser of white images, on the same
noise, which takes most of the variance away:
log p(x|y) = log N(x; 0, I) + 1/2 integral E (||eps - eps_hat_white||^2 - ||eps - eps_hat||^2) d lambda.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from scorebayes.diffusion.draws import Draws
from scorebayes.diffusion.likelihood.base import Kind, LogProb
from scorebayes.diffusion.likelihood.residuals import Evaluations, Residuals, log_prob_of, require_positive
from scorebayes.diffusion.score import Score


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
        require_positive(self, "levels", "repeats", "scale", "images_per_call", "rows_per_call")

    def __call__(self, score: Score, x: Tensor, draws: Draws) -> LogProb:
        """x [N, C, H, W] standardised -> levels x repeats draws, in nats of the same coordinates."""
        level = np.tile(np.arange(self.levels), self.repeats)
        quantile = (torch.from_numpy(level) + draws.uniform("level", (len(level),))) / self.levels
        log_snr, density = self._log_snr(quantile, *score.noise.log_snr_range)
        noise = Residuals(draws, self.images_per_call, self.rows_per_call)
        once = Evaluations(
            np.arange(len(level)), log_snr, np.zeros(len(level), dtype=bool), np.ones(len(level))
        )
        gain = noise.white_errors(x, log_snr)[..., None] - noise.squared_errors(score, x, once)
        pixels = x.cpu().double().flatten(1)
        white = -0.5 * (pixels.square().sum(1) + pixels.shape[1] * math.log(2 * math.pi))
        nats = white.numpy()[:, None] + 0.5 * gain / density.T.numpy()[..., None]
        return log_prob_of(nats, log_snr, level, self.kind)

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
