"""Reverse-time samplers: from noise to images of a class.

All work in z = x_t / alpha_t = x_0 + s eps, s = sigma_t / alpha_t, where every forward process is the same
one, and walk down the noise levels s of their grid. D(z, s, y) is the denoiser, z + s^2 times the score of z.
A new sampler is one
class here and one line in ``SAMPLERS``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from scorebayes.diffusion.likelihood.flow import Flow
from scorebayes.diffusion.noise import NoiseProcess
from scorebayes.diffusion.score import Score
from scorebayes.errors import ConfigError


class Sampler(Protocol):
    """Turns noise into images."""

    def __call__(self, score: Score, y: Tensor, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """y [B], shape (C, H, W), ``generator`` on the CPU -> standardised images [B, C, H, W] float32."""
        ...


class Guided(Score):
    """(1 + w) score(y) - w score(no label): classifier-free guidance.

    Source: Ho & Salimans 2022, arXiv 2207.12598, eq. 6.

    Parameters
    ----------
    score: trained with label dropout; its ``null_class`` stands for "no label".
    weight: w; 0 is the score itself, more gives images more typical of their class and less diverse.
    """

    def __init__(self, score: Score, weight: float) -> None:
        if score.null_class is None:
            raise ConfigError(
                "guidance needs a score with a null label.", "Train with [train] null_label above 0."
            )
        self.score, self.weight, self._null = score, weight, score.null_class
        self.noise, self.n_classes = score.noise, score.n_classes

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        unconditional = self.score(x_t, t, torch.full_like(y, self._null))
        return (1 + self.weight) * self.score(x_t, t, y) - self.weight * unconditional


def guide(score: Score, weight: float) -> Score:
    """``score`` with classifier-free guidance, or itself where the weight is 0."""
    return Guided(score, weight) if weight else score


def noise_levels(noise: NoiseProcess, steps: int, curvature: float = 7.0) -> Tensor:
    """Falling noise levels s [steps] of the process, spaced by Karras et al. 2022, eq. 5."""
    low, high = noise.log_snr_range
    ends = torch.tensor([-low, -high], dtype=torch.float64).mul(0.5 / curvature).exp()
    return torch.lerp(ends[0], ends[1], torch.linspace(0, 1, steps, dtype=torch.float64)) ** curvature


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like.device)


def _start(level: Tensor, y: Tensor, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """z at the highest noise level, [B, C, H, W] float64."""
    return level * _normal(torch.empty(len(y), *shape, device=y.device), generator)


def _denoise(score: Score, z: Tensor, level: Tensor, y: Tensor) -> Tensor:
    """D(z, s, y), [B, C, H, W] float64."""
    t = score.noise.time(-2 * level.log()).expand(len(z)).to(z.device)
    alpha_t, _ = score.noise.scales(t)
    alpha_t = alpha_t[:, None, None, None]
    return z + level.square() * alpha_t * score(alpha_t * z, t, y)


@dataclass(frozen=True)
class SecondOrder:
    """DPM-Solver++(2M): deterministic, second order, one evaluation a step (arXiv 2211.01095, alg. 2)."""

    steps: int = 40

    @torch.no_grad()
    def __call__(self, score: Score, y: Tensor, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        levels = noise_levels(score.noise, self.steps)
        z = _start(levels[0], y, shape, generator)
        x_0 = before = _denoise(score, z, levels[0], y)
        for index in range(1, self.steps):
            shrink = levels[index] / levels[index - 1]
            # Extrapolate the denoised image to the middle of the step from the step before.
            if index > 1:
                ratio = shrink.log() / (levels[index - 1] / levels[index - 2]).log()
                x_mid = x_0 + 0.5 * ratio * (x_0 - before)
            else:
                x_mid = x_0
            z = shrink * z + (1 - shrink) * x_mid
            before, x_0 = x_0, _denoise(score, z, levels[index], y)
        return x_0.float()


@dataclass(frozen=True)
class ProbabilityFlow:
    """The probability-flow ODE by the solver of the likelihood, in ``steps`` of six evaluations."""

    steps: int = 32

    def __call__(self, score: Score, y: Tensor, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        _, sigma_T = score.noise.scales(torch.ones((), dtype=torch.float64))
        x_T = _start(sigma_T, y, shape, generator)
        return Flow(steps=self.steps).decode(score, x_T, y).float()


@dataclass(frozen=True)
class PredictorCorrector:
    """The reverse SDE by Euler-Maruyama steps, each corrected by Langevin steps.

    In z the SDE (Song et al. 2021, arXiv 2011.13456, eq. 6) reads dz = -2 s^2 score(z) d(log s) + sqrt(2) s
    dw, run down in s; the steps are taken in s^2. The corrections are their algorithm 4.

    Parameters
    ----------
    steps: noise levels.
    corrections: Langevin steps at each level.
    signal_to_noise: size of a Langevin step.
    """

    steps: int = 250
    corrections: int = 1
    signal_to_noise: float = 0.16

    @torch.no_grad()
    def __call__(self, score: Score, y: Tensor, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        levels = noise_levels(score.noise, self.steps)
        z = _start(levels[0], y, shape, generator)
        for level, following in pairwise(levels):
            variance = level.square() - following.square()
            pull = (_denoise(score, z, level, y) - z) / level.square()
            z = z + variance * pull + variance.sqrt() * _normal(z, generator)
            for _ in range(self.corrections):
                z = self._correct(score, z, following, y, generator)
        return _denoise(score, z, levels[-1], y).float()

    def _correct(
        self, score: Score, z: Tensor, level: Tensor, y: Tensor, generator: torch.Generator
    ) -> Tensor:
        pull = (_denoise(score, z, level, y) - z) / level.square()
        noise = _normal(z, generator)
        ratio = noise.flatten(1).norm(dim=1) / pull.flatten(1).norm(dim=1)
        step = 2 * (self.signal_to_noise * ratio).square()[:, None, None, None]
        return z + step * pull + (2 * step).sqrt() * noise


@dataclass(frozen=True)
class EulerMaruyama:
    """The reverse SDE by Euler-Maruyama steps alone."""

    steps: int = 250

    def __call__(self, score: Score, y: Tensor, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        return PredictorCorrector(self.steps, corrections=0)(score, y, shape, generator)


SAMPLERS: dict[str, type[Sampler]] = {
    "second-order": SecondOrder,
    "ode": ProbabilityFlow,
    "sde": EulerMaruyama,
    "predictor-corrector": PredictorCorrector,
}


def nearest(samples: Tensor, training: Tensor, chunk: int = 1024) -> tuple[Tensor, Tensor]:
    """The training image nearest to each sample, to check whether the model has memorised its training images.

    samples [S, C, H, W], training [N, C, H, W] -> index [S] and root-mean-square distance per pixel [S].
    """
    flat = samples.flatten(1).double()
    best = torch.full((len(flat),), torch.inf, dtype=torch.float64)
    index = torch.zeros(len(flat), dtype=torch.int64)
    for start in range(0, len(training), chunk):
        block = torch.cdist(flat, training[start : start + chunk].flatten(1).double())
        distance, place = block.min(1)
        closer = distance < best
        best, index = torch.where(closer, distance, best), torch.where(closer, start + place, index)
    return index, best / flat.shape[1] ** 0.5
