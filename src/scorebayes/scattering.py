"""Wavelet scattering: what of an image stays as it is under small shifts and bends, at every size and direction.

An image is filtered with wavelets of several sizes and directions; the moduli are averaged over the cells of a grid, and
so are the moduli of their own filtering by larger wavelets (Bruna & Mallat 2013, arXiv 1203.1513). Means over cells take
the place of the source's Gaussian window: a grid then fits any image, and coarse grids are means of fine ones.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

ANGLES = 8
FINEST = 4  # cells along a side
LARGEST = 64  # pixels along a side; larger images are averaged down
MOST_SCALES = 4
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
    return torch.cat([pixels, (moduli.clamp(min=0) + FLOOR).log()], dim=2).reshape(n, channels, paths, -1)


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
    """Wavelets and cells for images of one side; make it with ``of``."""

    @staticmethod
    @lru_cache(maxsize=4)
    def of(side: int) -> _Bank:
        return _Bank(side)

    def __init__(self, side: int) -> None:
        self.scales = n_scales(side)
        self.margin = min(2 ** (self.scales - 1), side - 1)  # reflected at the edges
        width = side + 2 * self.margin
        self.wavelets = torch.stack([_morlets(width, scale) for scale in range(self.scales)])
        self.cells = _cells(side, self.margin)

    def __call__(self, image: Tensor) -> Tensor:
        """[S, S] -> [P, 4, 4]."""
        padded = F.pad(image[None, None], 4 * [self.margin], mode="reflect")[0]
        once = _moduli(padded, self.wavelets.flatten(0, 1))
        means = [self._means(padded), self._means(once)]
        for scale in range(self.scales - 1):
            these = once[scale * ANGLES : (scale + 1) * ANGLES]
            for larger in self.wavelets[scale + 1 :]:
                means.append(self._means(_moduli(these, larger)))
        return torch.cat(means)

    def _means(self, maps: Tensor) -> Tensor:
        """[B, W, W] -> [B, 4, 4]."""
        return self.cells @ maps @ self.cells.T


def _moduli(maps: Tensor, wavelets: Tensor) -> Tensor:
    """[B, W, W] after every wavelet [K, W, W] -> [B * K, W, W]."""
    return torch.fft.ifft2(torch.fft.fft2(maps)[:, None] * wavelets).abs().flatten(0, 1)


def _morlets(width: int, scale: int) -> Tensor:
    """Spectra of the wavelets of one scale [angles, W, W]: Gaussians about 3/4 pi / 2^scale, twice as wide across the
    direction as along it, less what they would say of a constant."""
    size, centre = 0.8 * 2.0**scale, 0.75 * math.pi / 2.0**scale
    frequency = 2 * math.pi * torch.fft.fftfreq(width, dtype=torch.float64)
    theta = (math.pi / ANGLES * torch.arange(ANGLES, dtype=torch.float64))[:, None, None]
    waves, windows = torch.zeros(2, ANGLES, width, width, dtype=torch.float64)
    for down, across in product((-2 * math.pi, 0.0, 2 * math.pi), repeat=2):  # aliases
        y, x = torch.meshgrid(frequency + down, frequency + across, indexing="ij")
        along, beside = x * theta.cos() + y * theta.sin(), y * theta.cos() - x * theta.sin()
        wide = (2 * size * beside).square()
        waves += (-0.5 * ((size * (along - centre)).square() + wide)).exp()
        windows += (-0.5 * ((size * along).square() + wide)).exp()
    return (waves - waves[:, :1, :1] / windows[:, :1, :1] * windows).float()


def _cells(side: int, margin: int) -> Tensor:
    """Share of every pixel of a padded line in the mean of every cell of the image [4, side + 2 * margin]."""
    begins = torch.arange(side + 2 * margin, dtype=torch.float64)[None] - margin
    edges = side * torch.arange(FINEST + 1, dtype=torch.float64)[:, None] / FINEST
    inside = torch.minimum(begins + 1, edges[1:]) - torch.maximum(begins, edges[:-1])
    return (inside.clamp(min=0) * FINEST / side).float()
