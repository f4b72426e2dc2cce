"""Wavelet scattering: features that are stable under small shifts and deformations, at every size and direction.

An image is filtered with wavelets of several sizes and directions; the moduli are averaged over the cells of a grid, and
so are the moduli of their own filtering by larger wavelets (Bruna & Mallat 2013, arXiv 1203.1513). Means over cells take
the place of the source's Gaussian window: a grid then fits any image, and coarse grids are means of fine ones.
"""

from __future__ import annotations

import math
from functools import lru_cache, reduce
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

ANGLES = 8
FINEST = 4  # cells along a side
LARGEST = 64  # pixels along a side; larger images are averaged down
MOST_SCALES = 4
LEAST_SQUARE = 1e-20  # below any modulus; the derivative of a root at zero is infinite
FLOOR = 5e-3  # in standard deviations of the pixels; smaller moduli are noise


def scattering(x: Tensor) -> Tensor:
    """Scattering coefficients over the cells of the finest grid: [N, C, S, S] standardised -> [N, C, P, 4, 4], on the CPU.

    P paths: the mean of the pixels, ``8 J`` of one wavelet, ``32 J (J - 1)`` of two, J = ``n_scales(S)``. The gradient
    passes through. An image's coefficients do not depend on the others.
    """
    x = x.cpu().float()
    if x.shape[-1] > LARGEST:
        x = F.interpolate(x, size=(LARGEST, LARGEST), mode="area")
    bank = _Bank.of(x.shape[-1])
    return torch.stack([torch.stack([bank(channel) for channel in image]) for image in x])


def n_scales(side: int) -> int:
    """Sizes of wavelets, by powers of two, for images of this side."""
    return max(1, min(MOST_SCALES, round(math.log2(side)) - 1))


def on_grid(coefficients: Tensor, cells: int, mirrored: bool) -> Tensor:
    """Features over a grid of ``cells`` x ``cells``: [N, C, P, 4, 4] -> [N, C * P * cells^2] float64.

    Moduli are averaged over the cells, then their logarithm is taken. mirrored: the mean with the features of the mirror
    image, so that an image and its mirror image are one.
    """
    views = [coefficients, _mirror(coefficients)] if mirrored else [coefficients]
    return torch.stack([_logarithms(view, cells).flatten(1) for view in views]).mean(dim=0)


def _logarithms(coefficients: Tensor, cells: int) -> Tensor:
    n, channels, paths = coefficients.shape[:3]
    within = FINEST // cells
    means = coefficients.double().unflatten(4, (cells, within)).unflatten(3, (cells, within)).mean(dim=(4, 6))
    pixels, moduli = means.split([1, paths - 1], dim=2)
    return torch.cat([pixels, (moduli + FLOOR).log()], dim=2).reshape(n, channels, paths, -1)


def _mirror(coefficients: Tensor) -> Tensor:
    """The coefficients of the mirror image: directions and cells change places."""
    turned = (-torch.arange(ANGLES)) % ANGLES
    pixels, first, second = _by_order(coefficients)
    first = first.unflatten(2, (-1, ANGLES))[:, :, :, turned].flatten(2, 3)
    second = second.unflatten(2, (-1, ANGLES, ANGLES))[:, :, :, turned][:, :, :, :, turned].flatten(2, 4)
    return torch.cat([pixels, first, second], dim=2).flip(-1)


def _by_order(coefficients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The mean pixel, the paths of one wavelet [scale, angle], those of two [pair of scales, angle, angle]."""
    scales = 1
    while (n_paths := 1 + ANGLES * scales + ANGLES**2 * scales * (scales - 1) // 2) < coefficients.shape[2]:
        scales += 1
    pixels, one, two = coefficients.split([1, ANGLES * scales, n_paths - 1 - ANGLES * scales], dim=2)
    return pixels, one, two


class _Bank:
    """Wavelets and cells for images of one side; make it with ``of``.

    What a wavelet of scale j leaves has no detail below 2^(j - 1) pixels, and is looked at with that spacing, at places that
    lie alike for an image and its mirror image.
    """

    @staticmethod
    @lru_cache(maxsize=4)
    def of(side: int) -> _Bank:
        return _Bank(side)

    def __init__(self, side: int) -> None:
        self.scales = n_scales(side)
        coarsest = 2 ** max(self.scales - 2, 0)
        # Reflected at the edges; where it can be, to a width that every spacing divides.
        margins = range(min(2 ** (self.scales - 1), side - 1), side)
        self.margin = next((m for m in margins if (side + 2 * m) % coarsest == 0), margins[0])
        width = side + 2 * self.margin
        self.spacing = [math.gcd(2 ** max(scale - 1, 0), width) for scale in range(self.scales)]
        before = {(1, scale) for scale in range(self.scales)}
        before |= {
            (self.spacing[j], scale) for j in range(self.scales) for scale in range(j + 1, self.scales)
        }
        self.wavelets = {
            (at, scale): _morlets(width // at, scale, at, self.spacing[scale] // at) for at, scale in before
        }
        self.cells = {at: _cells(side, self.margin, at) for at in {1, *self.spacing}}

    def __call__(self, image: Tensor) -> Tensor:
        """[S, S] -> [P, 4, 4]."""
        padded = F.pad(image[None, None], 4 * [self.margin], mode="reflect")[0]
        once = [self._moduli(padded, 1, scale) for scale in range(self.scales)]
        means = [self._means(padded, 1)]
        means += [self._means(moduli, at) for moduli, at in zip(once, self.spacing, strict=True)]
        for scale, moduli in enumerate(once):
            for larger in range(scale + 1, self.scales):
                twice = self._moduli(moduli, self.spacing[scale], larger)
                means.append(self._means(twice, self.spacing[larger]))
        return torch.cat(means)

    def _moduli(self, maps: Tensor, spacing: int, scale: int) -> Tensor:
        """[B, W, W] with a spacing, after the wavelets of a scale -> [B * angles, W', W'] with that of the scale."""
        filtered = torch.fft.fft2(maps)[:, None] * self.wavelets[spacing, scale]
        fewer = self.spacing[scale] // spacing
        for dim in (2, 3):  # what is looked at less often adds its aliases up
            filtered = reduce(torch.add, filtered.chunk(fewer, dim))
        real, imaginary = torch.view_as_real(torch.fft.ifft2(filtered).flatten(0, 1)).unbind(-1)
        return (real.square() + imaginary.square() + LEAST_SQUARE).sqrt()

    def _means(self, maps: Tensor, spacing: int) -> Tensor:
        """[B, W, W] -> [B, 4, 4]."""
        return self.cells[spacing] @ maps @ self.cells[spacing].T


def _morlets(width: int, scale: int, spacing: int, fewer: int) -> Tensor:
    """Spectra of the wavelets of one scale for maps of a spacing [angles, W, W]: Gaussians about 3/4 pi / 2^scale, twice as
    wide across the direction as along it, less what they would say of a constant.

    fewer: the result is looked at with a spacing so many times as large, in the middle of what it stands for.
    """
    size, centre = 0.8 * 2.0**scale / spacing, 0.75 * math.pi / 2.0**scale * spacing
    frequency = 2 * math.pi * torch.fft.fftfreq(width, dtype=torch.float64)
    theta = (math.pi / ANGLES * torch.arange(ANGLES, dtype=torch.float64))[:, None, None]
    waves, windows = torch.zeros(2, ANGLES, width, width, dtype=torch.float64)
    for down, across in product((-2 * math.pi, 0.0, 2 * math.pi), repeat=2):  # aliases
        y, x = torch.meshgrid(frequency + down, frequency + across, indexing="ij")
        along, beside = x * theta.cos() + y * theta.sin(), y * theta.cos() - x * theta.sin()
        wide = (2 * size * beside).square()
        waves += (-0.5 * ((size * (along - centre)).square() + wide)).exp()
        windows += (-0.5 * ((size * along).square() + wide)).exp()
    spectra = waves - waves[:, :1, :1] / windows[:, :1, :1] * windows
    to_middle = torch.polar(torch.ones_like(frequency), (fewer - 1) / 2 * frequency)
    return (spectra * to_middle[:, None] * to_middle / fewer**2).to(torch.complex64)


def _cells(side: int, margin: int, spacing: int) -> Tensor:
    """Share of every place of a padded line in the mean of every cell of the image [4, (side + 2 * margin) / spacing]."""
    begins = torch.arange(0, side + 2 * margin, spacing, dtype=torch.float64)[None] - margin
    edges = side * torch.arange(FINEST + 1, dtype=torch.float64)[:, None] / FINEST
    inside = torch.minimum(begins + spacing, edges[1:]) - torch.maximum(begins, edges[:-1])
    return (inside.clamp(min=0) * FINEST / side).float()
