"""Scores: grad log p_t(x_t | y) of the noised image, given its class.

``ScoreModel`` preconditions a raw network as Karras et al. 2022 (EDM, arXiv 2206.00364, table 1) in the coordinate
z = x_t / alpha_t = x_0 + s eps with s = sigma_t / alpha_t, in which all forward processes are the same: a trained
network serves every process of ``scorebayes.diffusion.noise``. Closed-form scores are in ``scorebayes.diffusion.oracle``.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from scorebayes.diffusion.memory import with_less_memory
from scorebayes.diffusion.noise import NoiseProcess


class Score(abc.ABC):
    """The gradient of the log-density of the noised image, given its class."""

    noise: NoiseProcess
    n_classes: int
    null_class: int | None = None  # the label that says nothing, where one was trained

    @abc.abstractmethod
    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """x_t [B, C, H, W], t [B], y [B] -> grad log p_t(x_t | y) [B, C, H, W], in the dtype of x_t."""

    def all_classes(self, x_t: Tensor, t: Tensor) -> Tensor:
        """x_t [B, C, H, W], t [B] -> the score under every class, [B, Y, C, H, W]."""
        y = torch.arange(self.n_classes, device=x_t.device).repeat(len(x_t))
        rows = torch.arange(len(x_t), device=x_t.device).repeat_interleave(self.n_classes)
        return self(x_t[rows], t[rows], y).unflatten(0, (len(x_t), self.n_classes))

    def in_float32(self) -> Score:
        """The same score without half precision, whose derivatives cannot be taken everywhere."""
        return self


class Denoiser(nn.Module):
    """A backbone, preconditioned: (z, log_snr, y) -> the expected clean image E[x_0 | z, y].

    Images are standardised (mean 0, variance 1 over the training set), so EDM's sigma_data is 1.

    Parameters
    ----------
    net: a backbone of ``scorebayes.diffusion.nets``, which knows nothing of noise.
    precision: dtype of the network's arithmetic (autocast); parameters and results stay float32.
    """

    def __init__(self, net: nn.Module, precision: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.net = net
        self.precision = precision
        self.fits_in_memory: int | None = None  # rows at a time without gradient, where more were too many

    def forward(self, z: Tensor, log_snr: Tensor, y: Tensor, augment: Tensor | None = None) -> Tensor:
        """z [B, C, H, W], log_snr [B], y [B], augment [B, A] -> x_0 hat [B, C, H, W]."""
        return self._precondition(z, log_snr, self.net, (y, augment))

    def all_classes(self, z: Tensor, log_snr: Tensor, augment: Tensor | None = None) -> Tensor:
        """z [B, C, H, W], log_snr [B], augment [B, A] -> x_0 hat under every class, [B, Y, C, H, W]."""
        return self._precondition(z, log_snr, cast(Callable, self.net.all_classes), (augment,), extra_dims=1)

    def _precondition(
        self,
        z: Tensor,
        log_snr: Tensor,
        net: Callable[..., Tensor],
        others: Sequence[Tensor | None],
        extra_dims: int = 0,
    ) -> Tensor:
        """The one cast: states come in float64 on the CPU, the network works in its own dtype on its own device. MPS has no
        float64, so the dtype is converted on the CPU, both ways."""
        ratio = (-0.5 * log_snr).exp().to(z)[:, None, None, None]
        norm = (1 + ratio.square()).rsqrt()
        inputs = [(norm * z).float(), (0.25 * log_snr).float(), *(of for of in others if of is not None)]
        out = self._in_parts(net, inputs).to(z.device).to(z.dtype)
        for _ in range(extra_dims):
            z, ratio, norm = z[:, None], ratio[:, None], norm[:, None]
        return norm.square() * z + ratio * norm * out

    def _in_parts(self, net: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Tensor:
        """The output of a network for inputs [B, ...]: of all rows at once or, where memory is too small for that and no
        gradient is asked for, of as many as fit."""
        device, n = next(self.net.parameters()).device, len(inputs[0])

        def work(rows: int) -> Tensor:
            parts = [
                net(*(of[i : i + rows].to(device) if len(of) == n else of.to(device) for of in inputs))
                for i in range(0, n, rows)
            ]
            return parts[0] if len(parts) == 1 else torch.cat(parts)

        with torch.autocast(device.type, self.precision, enabled=self.precision != torch.float32):
            if torch.is_grad_enabled():
                return work(n)
            most = min(n, self.fits_in_memory or n)
            out, rows = with_less_memory(work, most)
        if rows < most:
            self.fits_in_memory = rows
        return out


class ScoreModel(Score):
    """The learned score: a denoiser under a forward process, by Tweedie's formula (Efron 2011).

    grad log p_t(x_t | y) = (alpha_t E[x_0 | x_t, y] - x_t) / sigma_t^2.
    """

    def __init__(self, denoiser: Denoiser, noise: NoiseProcess) -> None:
        self.denoiser = denoiser
        self.noise = noise
        self.n_classes = cast(int, denoiser.net.n_classes)
        self.null_class = self.n_classes

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        alpha_t, sigma_t, log_snr = self._scales(x_t, t)
        x_0 = self.denoiser(x_t / alpha_t, log_snr, y)
        return (alpha_t * x_0 - x_t) / sigma_t.square()

    def all_classes(self, x_t: Tensor, t: Tensor) -> Tensor:
        alpha_t, sigma_t, log_snr = self._scales(x_t, t)
        x_0 = self.denoiser.all_classes(x_t / alpha_t, log_snr)
        return (alpha_t[:, None] * x_0 - x_t[:, None]) / sigma_t.square()[:, None]

    def in_float32(self) -> ScoreModel:
        """One for all calls, so that what was measured of it holds for all of them."""
        return self._in_float32.train(self.denoiser.training)

    @cached_property
    def _in_float32(self) -> ScoreModel:
        return ScoreModel(Denoiser(self.denoiser.net, torch.float32), self.noise)

    def train(self, training: bool) -> ScoreModel:
        """Set whether the network trains (dropout) or is asked."""
        self.denoiser.train(training)
        return self

    def _scales(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """alpha_t, sigma_t [B, 1, 1, 1] in the dtype of x_t and log-SNR [B] in float64."""
        alpha_t, sigma_t = (scale.to(x_t)[:, None, None, None] for scale in self.noise.scales(t))
        return alpha_t, sigma_t, self.noise.log_snr(t)


def training_loss(
    denoiser: Denoiser, x_0: Tensor, y: Tensor, log_snr: Tensor, eps: Tensor, augment: Tensor | None
) -> Tensor:
    """Denoising score matching, weighted so that the network's target has unit variance at every level: [B].

    The weight on the squared error of x_0 is (1 + s^2) / s^2 (EDM, table 1), that is 1 + s^-2 = 1 + SNR.
    """
    snr = log_snr.exp().to(x_0)
    error = denoiser(_noised(x_0, log_snr, eps), log_snr, y, augment) - x_0
    return (1 + snr) * error.square().flatten(1).mean(1)


def hybrid_loss(
    denoiser: Denoiser,
    x_0: Tensor,
    y: Tensor,
    log_snr: Tensor,
    eps: Tensor,
    augment: Tensor | None,
    weight: float,
) -> Tensor:
    """The same, plus ``weight`` times the cross-entropy of the classes' errors on the same noise: [B].

    The extra term trains the network to be worse under the wrong class. A score does not do that, so the model is partly
    discriminative. Classes are compared by the log of the error, as in ``likelihood.Denoising``. ``y`` may not be the null
    label, and classes are expected equally often.
    """
    snr = log_snr.exp().to(x_0)
    error = denoiser.all_classes(_noised(x_0, log_snr, eps), log_snr, augment) - x_0[:, None]
    by_class = error.square().flatten(2).mean(2)
    y = y.to(x_0.device)
    logits = -(SHARPNESS * snr**SHARPENING)[:, None] * by_class.clamp(min=1e-12).log()
    own = by_class.gather(1, y[:, None])[:, 0]
    return (1 + snr) * own + weight * functional.cross_entropy(logits, y, reduction="none")


SHARPNESS, SHARPENING = 35.0, 0.37
"""Slope of the class decision from one draw, over SNR: fitted to single draws of trained networks on validation
images of two data sets, where it is the slope of a logistic regression on the log error."""


def _noised(x_0: Tensor, log_snr: Tensor, eps: Tensor) -> Tensor:
    return x_0 + (-0.5 * log_snr).exp().to(x_0)[:, None, None, None] * eps
