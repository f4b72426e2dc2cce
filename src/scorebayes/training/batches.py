"""What a step sees: its rows, its noise levels, and the seed that both come from."""

from __future__ import annotations

import hashlib

import torch
from numpy.typing import NDArray
from torch import Tensor

from scorebayes.training.settings import TrainConfig


def step_seed(seed: int, step: int) -> int:
    """Every step draws all its random numbers from (seed, step), so a resumed training equals an uninterrupted one."""
    return int.from_bytes(hashlib.blake2b(f"train/{seed}/{step}".encode(), digest_size=7).digest(), "little")


def draw_rows(
    config: TrainConfig, n: int, rows_of_class: list[NDArray], generator: torch.Generator
) -> Tensor:
    """Row numbers of a batch [B]: classes equally often, or as they come."""
    if not config.balance or config.label_free:
        return torch.randint(n, (config.batch,), generator=generator)
    turn = torch.randperm(len(rows_of_class), generator=generator)
    classes = turn[torch.arange(config.batch) % len(rows_of_class)]
    place = torch.rand(config.batch, generator=generator, dtype=torch.float64)
    return torch.tensor(
        [rows_of_class[y][int(p * len(rows_of_class[y]))] for y, p in zip(classes, place, strict=True)]
    )


def draw_log_snr(
    config: TrainConfig, log_snr_range: tuple[float, float], n: int, generator: torch.Generator
) -> Tensor:
    """Noise levels [n] float64, stratified over the batch in random order: a share of them uniform over the range, the
    others normal, cut at three standard deviations."""
    order = torch.randperm(n, generator=generator)
    u = (order + torch.rand(n, generator=generator, dtype=torch.float64)) / n
    (low, high), share = log_snr_range, config.uniform
    # Not a number for u < share, where it is not taken.
    normal = torch.special.ndtri((u - share) / (1 - share)).clamp(-3, 3)
    return torch.where(
        u < share, low + (high - low) * u / share, config.log_snr_mean + config.log_snr_std * normal
    )
