"""What was drawn for the images of a split: the waist of a segmentation. All before it is torch and costly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scorebayes.storage import sealed
from scorebayes.storage.arrays import read_arrays, write_arrays


@dataclass(frozen=True, eq=False)
class Drawn:
    """What was drawn for N images; everything after it is NumPy and cheap.

    keys: image ids [N]. guess [N, S, S]: log-odds of being inside by the first guess. share [N, S, S]: mean over the samples
    of the share of each pixel inside; empty [N, 0, 0] where a model draws none. std [N, S, S]: standard deviation of it.
    areas [N, M]: of the samples, in pixels of the prepared image. seconds [N].
    """

    keys: tuple[str, ...]
    guess: NDArray[np.float32]
    share: NDArray[np.float32]
    std: NDArray[np.float32]
    areas: NDArray[np.float32]
    seconds: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def sampled(self) -> bool:
        return self.areas.shape[1] > 0

    @classmethod
    def concatenate(cls, parts: Sequence[Drawn]) -> Drawn:
        """What was drawn in parts, as one."""
        arrays = {f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)[1:]}
        return cls(keys=tuple(key for part in parts for key in part.keys), **arrays)

    def save(self, path: Path) -> None:
        """As one npz file, whole or not at all."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "keys"}
        write_arrays(path, {"keys": np.array(self.keys, dtype=str), **arrays})

    @classmethod
    def load(cls, path: Path) -> Drawn:
        """What ``save`` wrote. DataError if the file is damaged, ConfigError if it was changed."""
        arrays = read_arrays(path)
        try:
            return cls(keys=tuple(arrays.pop("keys").tolist()), **arrays)
        except (KeyError, TypeError) as error:
            raise sealed.damaged(path, error) from error
