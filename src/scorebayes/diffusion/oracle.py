"""Toy models whose score, density and posterior are known in closed form. They are the ground truth in tests.

Under any process of ``scorebayes.diffusion.noise`` a Gaussian stays a Gaussian, N(alpha_t mean, alpha_t^2 covariance +
sigma_t^2 I), and a mixture a mixture with the same weights. Arithmetic is in float64; an answer has the dtype
of the image given.
"""

from __future__ import annotations

import abc
import math

import torch
from torch import Tensor

from scorebayes.diffusion.noise import NoiseProcess
from scorebayes.diffusion.score import Score


def _per_row(values: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, 1] float64."""
    return values.double()[:, None, None, None]


def _gaussian_log_prob(residual: Tensor, variance: Tensor) -> Tensor:
    """Sum over the last three axes of log N(residual; 0, variance), in nats."""
    terms = residual.square() / variance + variance.log() + math.log(2 * math.pi)
    return -0.5 * terms.sum((-3, -2, -1))


class Oracle(Score):
    """What closed-form worlds share: density and posterior at any noise level, the clean image included."""

    noise: NoiseProcess
    n_classes: int
    shape: tuple[int, int, int]

    @abc.abstractmethod
    def _log_prob(self, x: Tensor, alpha: Tensor, sigma: Tensor, y: Tensor) -> Tensor:
        """Log-density of alpha x_0 + sigma noise given y: x [B, C, H, W] float64, the others [B] -> [B]."""

    @abc.abstractmethod
    def sample(self, n: int, y: int, generator: torch.Generator) -> Tensor:
        """n clean images of class y, [n, C, H, W] float64."""

    def log_prob(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """log p_t(x_t | y) in nats: x_t [B, C, H, W], t [B], y [B] -> [B] float64."""
        return self._log_prob(x_t.double(), *self.noise.scales(t), y)

    def clean_log_prob(self, x: Tensor) -> Tensor:
        """log p(x | y) of clean images under every class, in nats: x [B, C, H, W] -> [B, Y] float64."""
        one = torch.ones(len(x), dtype=torch.float64)
        classes = [torch.full((len(x),), y) for y in range(self.n_classes)]
        return torch.stack([self._log_prob(x.double(), one, 0 * one, y) for y in classes], dim=1)

    def posterior(self, x: Tensor, log_prior: Tensor) -> Tensor:
        """p(y | x) by Bayes' rule: x [B, C, H, W] clean, log_prior [Y] -> [B, Y] float64."""
        return torch.softmax(self.clean_log_prob(x) + log_prior.double(), dim=1)


def dct_matrix(n: int) -> Tensor:
    """Orthonormal DCT-II basis [n, n] float64; row k is the k-th cosine."""
    k, i = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)[None]
    basis = math.sqrt(2 / n) * torch.cos(math.pi * k * (2 * i + 1) / (2 * n))
    basis[0] /= math.sqrt(2)
    return basis


class GaussianScore(Oracle):
    """One Gaussian per class, with a covariance that is diagonal in the two-dimensional cosine basis.

    Parameters
    ----------
    noise: the forward process.
    mean: [Y, C, H, W], in pixels.
    variance: [Y, C, H, W] positive, of each cosine coefficient.
    """

    def __init__(self, noise: NoiseProcess, mean: Tensor, variance: Tensor) -> None:
        self.noise, self.n_classes = noise, len(mean)
        self.shape = (mean.shape[1], mean.shape[2], mean.shape[3])
        self.mean, self.variance = mean.double(), variance.double()
        self._rows, self._columns = dct_matrix(mean.shape[2]), dct_matrix(mean.shape[3])

    @classmethod
    def image_like(
        cls,
        noise: NoiseProcess,
        shape: tuple[int, int, int],
        n_classes: int = 2,
        separation: float = 2.0,
        slope: float = 2.0,
        seed: int = 0,
    ) -> GaussianScore:
        """Classes with the power-law spectrum of images, power ~ frequency^-slope, of unit variance.

        Class means lie ``separation`` standard deviations from zero in random directions, and each class has
        a slightly steeper spectrum than the one before.
        """
        generator = torch.Generator().manual_seed(seed)
        channels, height, width = shape
        vertical = torch.arange(height, dtype=torch.float64)[:, None] / height
        horizontal = torch.arange(width, dtype=torch.float64)[None] / width
        frequency = (vertical.square() + horizontal.square()).sqrt() + 1 / max(height, width)
        spectra = torch.stack([frequency ** -(slope + 0.1 * y) for y in range(n_classes)])
        variance = (spectra / spectra.mean((1, 2), keepdim=True))[:, None].expand(-1, channels, -1, -1)
        direction = torch.randn((n_classes, *shape), generator=generator, dtype=torch.float64)
        direction = direction / direction.flatten(1).norm(dim=1)[:, None, None, None]
        world = cls(noise, torch.zeros_like(direction), variance)
        world.mean = separation * world._from_cosines(direction * variance.sqrt())
        return world

    def _to_cosines(self, x: Tensor) -> Tensor:
        return self._rows @ x @ self._columns.T

    def _from_cosines(self, coefficients: Tensor) -> Tensor:
        return self._rows.T @ coefficients @ self._columns

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        alpha_t, sigma_t = map(_per_row, self.noise.scales(t))
        coefficients = self._to_cosines(x_t.double() - alpha_t * self.mean[y])
        variance = alpha_t.square() * self.variance[y] + sigma_t.square()
        return -self._from_cosines(coefficients / variance).to(x_t.dtype)

    def _log_prob(self, x: Tensor, alpha: Tensor, sigma: Tensor, y: Tensor) -> Tensor:
        alpha, sigma = _per_row(alpha), _per_row(sigma)
        coefficients = self._to_cosines(x - alpha * self.mean[y])
        return _gaussian_log_prob(coefficients, alpha.square() * self.variance[y] + sigma.square())

    def sample(self, n: int, y: int, generator: torch.Generator) -> Tensor:
        coefficients = torch.randn((n, *self.shape), generator=generator, dtype=torch.float64)
        return self.mean[y] + self._from_cosines(coefficients * self.variance[y].sqrt())


class MixtureScore(Oracle):
    """A mixture of Gaussians with diagonal covariance per class.

    Parameters
    ----------
    noise: the forward process.
    mean: [Y, M, C, H, W] of the M components.
    variance: positive, broadcast to the shape of ``mean``; a number per component makes it isotropic.
    weight: [Y, M] positive, normalised here.
    """

    def __init__(self, noise: NoiseProcess, mean: Tensor, variance: Tensor, weight: Tensor) -> None:
        self.noise, self.n_classes = noise, len(mean)
        self.shape = (mean.shape[2], mean.shape[3], mean.shape[4])
        self.mean = mean.double()
        self.variance = variance.double().expand_as(mean)
        self.log_weight = torch.log_softmax(weight.double().log(), dim=1)

    def _components(
        self, x: Tensor, alpha: Tensor, sigma: Tensor, y: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Residuals and variances [B, M, C, H, W], log weight times density [B, M]."""
        alpha, sigma = _per_row(alpha)[:, None], _per_row(sigma)[:, None]
        residual = x[:, None] - alpha * self.mean[y]
        variance = alpha.square() * self.variance[y] + sigma.square()
        return residual, variance, self.log_weight[y] + _gaussian_log_prob(residual, variance)

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        residual, variance, log_joint = self._components(x_t.double(), *self.noise.scales(t), y)
        responsibility = torch.softmax(log_joint, dim=1)[:, :, None, None, None]
        return -(responsibility * residual / variance).sum(1).to(x_t.dtype)

    def _log_prob(self, x: Tensor, alpha: Tensor, sigma: Tensor, y: Tensor) -> Tensor:
        return torch.logsumexp(self._components(x, alpha, sigma, y)[2], dim=1)

    def sample(self, n: int, y: int, generator: torch.Generator) -> Tensor:
        component = torch.multinomial(self.log_weight[y].exp(), n, replacement=True, generator=generator)
        noise = torch.randn((n, *self.shape), generator=generator, dtype=torch.float64)
        return self.mean[y, component] + self.variance[y, component].sqrt() * noise
