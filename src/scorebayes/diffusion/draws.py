"""Every random number of a likelihood, keyed by (seed, image key, name).

The numbers belong to the image, or to all images of a seed alike: they are the same for all classes (so that differences
between classes are paired), in whatever batch the image comes, and on every device, since they are drawn on the CPU by a
counter-based generator.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Draws:
    """Random numbers for a batch of images.

    Parameters
    ----------
    seed: of the run.
    keys: one text per image, for example its id or a hash of its pixels; equal keys give equal numbers.
    """

    seed: int
    keys: tuple[str, ...]

    def __init__(self, seed: int, keys: Sequence[str]) -> None:
        object.__setattr__(self, "seed", int(seed))
        object.__setattr__(self, "keys", tuple(keys))

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, rows: slice) -> Draws:
        return Draws(self.seed, self.keys[rows])

    def common(self) -> Draws:
        """The same numbers for every image, whatever its key."""
        return Draws(self.seed, ("",) * len(self))

    def normal(self, name: str, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers [B, *shape], float32, on the CPU; ``name`` tells one use from another."""
        return self._each(name, lambda rng: rng.standard_normal(tuple(shape), dtype=np.float32))

    def uniform(self, name: str, shape: Sequence[int]) -> Tensor:
        """Uniform numbers in [0, 1) [B, *shape], float64, on the CPU."""
        return self._each(name, lambda rng: rng.random(tuple(shape)))

    def rademacher(self, name: str, shape: Sequence[int]) -> Tensor:
        """Independent signs -1 or 1 [B, *shape], float32, on the CPU."""
        return self._each(name, lambda rng: rng.integers(0, 2, tuple(shape)).astype(np.float32) * 2 - 1)

    def _each(self, name: str, draw: Callable[[np.random.Generator], NDArray]) -> Tensor:
        rows = {}
        for key in dict.fromkeys(self.keys):
            digest = hashlib.blake2b(f"{self.seed}\0{key}\0{name}".encode(), digest_size=16).digest()
            generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
            rows[key] = torch.from_numpy(draw(generator))
        return torch.stack([rows[key] for key in self.keys])
