"""Geometric augmentation that does not leak: the network gets its parameters and predicts the original image.

The code (Karras et al. 2022, arXiv 2206.00364, appendix F.2) is zero for an unchanged image. Mirroring is not in the code:
with ``flip`` the density learned is that of the image or its mirror image.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from scorebayes.training.settings import TrainConfig

CODE_LENGTH = 4


def augment(x: Tensor, config: TrainConfig, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """x [B, C, H, W] -> mirrored, rotated, zoomed and shifted images [B, C, H, W] and the code [B, 4]."""
    n = len(x)

    def symmetric() -> Tensor:
        return torch.rand(n, generator=generator) * 2 - 1

    on = (torch.rand(n, generator=generator) < config.augment).float()
    mirror = 1 - 2 * (torch.rand(n, generator=generator) < (0.5 if config.flip else 0.0)).float()
    code = torch.stack(
        [symmetric(), torch.randn(n, generator=generator).clamp(-3, 3), symmetric(), symmetric()], 1
    )
    code = code * on[:, None]
    angle = code[:, 0] * math.radians(config.rotate)
    zoom = (code[:, 1] * config.zoom).exp()
    shift = code[:, 2:] * 2 * config.shift  # affine_grid's coordinates run from -1 to 1
    across = torch.stack([mirror * zoom * angle.cos(), -zoom * angle.sin(), shift[:, 0]], 1)
    down = torch.stack([mirror * zoom * angle.sin(), zoom * angle.cos(), shift[:, 1]], 1)
    grid = F.affine_grid(torch.stack([across, down], 1).to(x.device), list(x.shape), align_corners=False)
    moved = F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    return moved, code.to(x.device)
