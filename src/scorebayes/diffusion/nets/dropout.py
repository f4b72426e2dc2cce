"""Dropout that takes its random numbers from a generator, not from torch's global ones, which belong to whoever calls."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Dropout(nn.Module):
    """As torch's own. The same numbers as torch's on the CPU, where the generator has the same seed."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.generator: torch.Generator | None = None  # set by ``draw_from``; None: torch's global one

    def forward(self, h: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return h
        keep = torch.empty_like(h).bernoulli_(1 - self.p, generator=self.generator)
        return h * keep.div_(1 - self.p)


def draw_from(net: nn.Module, seed: int) -> None:
    """From here on, all dropout of a network draws from one new generator with this seed."""
    device = next(net.parameters()).device
    generator = torch.Generator(device if device.type in ("cuda", "mps") else "cpu").manual_seed(seed)
    for module in net.modules():
        if isinstance(module, Dropout):
            module.generator = generator
