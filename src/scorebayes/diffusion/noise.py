"""Forward processes: how an image becomes noise.

Every process is linear, ``dx = f(t) x dt + g(t) dw``, hence ``p(x_t | x_0) = N(alpha_t x_0, sigma_t^2 I)`` for t in
[t_min, 1] (Song et al. 2021, arXiv 2011.13456, appendices B and C). Images are standardised to unit variance first.
A new process is one class here and one line in ``NOISES``.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class NoiseProcess(abc.ABC):
    """dx = f(t) x dt + g(t) dw;  p(x_t | x_0) = N(alpha_t x_0, sigma_t^2 I),  0 < t_min <= t <= 1.

    All arithmetic is done in float64: sigma_t is tiny near t_min and alpha_t tiny near 1. Only functions that round the
    same wherever a number stands in its tensor are used (softplus and pow do not), so that images do not depend on others.
    """

    @property
    @abc.abstractmethod
    def t_min(self) -> float:
        """Smallest time at which the score is evaluated; p_t_min is used in place of p_0."""

    @abc.abstractmethod
    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Times [B] -> alpha_t, sigma_t [B], float64."""

    @abc.abstractmethod
    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Times [B] -> drift rate f_t and squared diffusion g2_t [B], float64."""

    @abc.abstractmethod
    def time(self, log_snr: Tensor) -> Tensor:
        """The inverse of ``log_snr``: [B] -> t [B], float64, clamped to [t_min, 1]."""

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha_t^2 / sigma_t^2) [B], falling in t, float64."""
        alpha_t, sigma_t = self.scales(t)
        return 2 * (alpha_t.log() - sigma_t.log())

    @property
    def log_snr_range(self) -> tuple[float, float]:
        """Log-SNR at t = 1 (lowest) and at t_min (highest)."""
        low, high = self.log_snr(torch.tensor([1.0, self.t_min], dtype=torch.float64)).tolist()
        return low, high

    def terminal_log_prob(self, x_T: Tensor) -> Tensor:
        """log N(x_T; 0, sigma_T^2 I) in nats: x_T [B, ...] -> [B] float64.

        It stands for the true p_T and neglects alpha_T x_0: an error of first order, alpha_T |E x_0| / sigma_T, which
        reaches the difference between classes (measured in docs/likelihood-errors.md).
        """
        x_T = x_T.double().flatten(1)
        _, sigma_T = self.scales(torch.ones((), dtype=torch.float64))
        variance = float(sigma_T) ** 2
        return -0.5 * (x_T.square().sum(1) / variance + x_T.shape[1] * math.log(2 * math.pi * variance))


@dataclass(frozen=True)
class _LinearBeta(NoiseProcess):
    """What VP and sub-VP share: beta(t) = beta_min + t (beta_max - beta_min), alpha_t = exp(-integral of beta / 2)."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def _beta(self, t: Tensor) -> Tensor:
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def _beta_integral(self, t: Tensor) -> Tensor:
        return t * self.beta_min + 0.5 * t.square() * (self.beta_max - self.beta_min)

    def _time_of_integral(self, integral: Tensor) -> Tensor:
        """Solve ``_beta_integral(t) = integral`` without cancellation at small t."""
        root = (self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * integral).sqrt()
        return (2 * integral / (self.beta_min + root)).clamp(self.t_min, 1.0)


@dataclass(frozen=True)
class VP(_LinearBeta):
    """Variance-preserving: sigma_t^2 = 1 - alpha_t^2 (eq. 11 of the source)."""

    t_min: float = 1e-5

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        integral = self._beta_integral(t.double())
        return (-0.5 * integral).exp(), (-torch.expm1(-integral)).sqrt()

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        beta_t = self._beta(t.double())
        return -0.5 * beta_t, beta_t

    def time(self, log_snr: Tensor) -> Tensor:
        # alpha^2 = sigmoid(log_snr)
        return self._time_of_integral(torch.log1p((-log_snr.double()).exp()))


@dataclass(frozen=True)
class SubVP(_LinearBeta):
    """Sub-variance-preserving: VP's alpha with sigma_t = 1 - alpha_t^2 (eq. 13 of the source)."""

    t_min: float = 1e-3

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        integral = self._beta_integral(t.double())
        return (-0.5 * integral).exp(), -torch.expm1(-integral)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        beta_t = self._beta(t.double())
        return -0.5 * beta_t, beta_t * -torch.expm1(-2 * self._beta_integral(t.double()))

    def time(self, log_snr: Tensor) -> Tensor:
        # alpha / (1 - alpha^2) = s  <=>  s alpha^2 + alpha - s = 0, solved for -2 log(alpha) by asinh.
        return self._time_of_integral(2 * torch.asinh(0.5 * (-0.5 * log_snr.double()).exp()))


@dataclass(frozen=True)
class VE(NoiseProcess):
    """Variance-exploding: alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^t (eq. 9 of the source)."""

    sigma_min: float = 0.002
    sigma_max: float = 150.0
    t_min: float = 1e-5

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        sigma_t = self.sigma_min * (math.log(self.sigma_max / self.sigma_min) * t.double()).exp()
        return torch.ones_like(sigma_t), sigma_t

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        _, sigma_t = self.scales(t)
        return torch.zeros_like(sigma_t), 2 * math.log(self.sigma_max / self.sigma_min) * sigma_t.square()

    def time(self, log_snr: Tensor) -> Tensor:
        log_sigma = -0.5 * log_snr.double()
        t = (log_sigma - math.log(self.sigma_min)) / math.log(self.sigma_max / self.sigma_min)
        return t.clamp(self.t_min, 1.0)


_COSINE_END = 0.5 * math.pi * (1 - 4e-3)


@dataclass(frozen=True)
class Cosine(NoiseProcess):
    """Cosine schedule, variance-preserving: alpha = cos(angle), angle ~ pi t / 2 (Nichol & Dhariwal 2021, arXiv 2102.09672).

    The angle stops short of pi / 2, which keeps sigma_T / alpha_T finite, as the source's clipping of beta does.
    """

    t_min: float = 1e-3

    def _angle(self, t: Tensor) -> Tensor:
        return _COSINE_END * t.double()

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self._angle(t).cos(), self._angle(t).sin()

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        f_t = -_COSINE_END * self._angle(t).tan()
        return f_t, -2 * f_t

    def time(self, log_snr: Tensor) -> Tensor:
        angle = torch.atan((-0.5 * log_snr.double()).exp())
        return (angle / _COSINE_END).clamp(self.t_min, 1.0)


NOISES: dict[str, type[NoiseProcess]] = {"vp": VP, "sub-vp": SubVP, "ve": VE, "cosine": Cosine}
