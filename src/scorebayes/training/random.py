"""torch's global random numbers, lent for a moment: for new weights, and for networks of others that take no generator."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_ONE_AT_A_TIME = threading.RLock()  # the numbers are those of the whole process


@contextmanager
def lent_random_numbers(seed: int | None = None, device: torch.device | None = None) -> Iterator[None]:
    """While it lasts, torch draws by this seed (None: as it would), on the CPU and on this device; afterwards its state is
    what it was, and other threads that borrow wait for it."""
    cuda = [device] if device is not None and device.type == "cuda" else []
    with _ONE_AT_A_TIME, torch.random.fork_rng(devices=cuda):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
            if cuda:
                torch.cuda.manual_seed(seed)
        yield
