"""Schedules over the training steps: the learning rate, and the decay of the averaged weights."""

from __future__ import annotations

import math


def rate_share(step: int, warmup: int, done: float) -> float:
    """Share of the peak learning rate: a linear warm-up over so many steps, then a cosine to zero.

    done: share of the budget that is spent, at most 1.
    """
    warm = min(1.0, (step + 1) / max(1, warmup))
    return warm * 0.5 * (1 + math.cos(math.pi * done))


def average_decay(longest: float, updates: int) -> float:
    """Share of the average that stays at an update: a short memory at first, so that it does not hang on to the start."""
    return min(longest, (1 + updates) / (10 + updates))
