"""What training learned of its data: ``source.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scorebayes.data.base import SourceInfo
from scorebayes.errors import ConfigError
from scorebayes.storage import sealed

FORMAT = 5
"""Format of the run directory. Raise it when a file changes its meaning, and read older formats in ``older``."""


@dataclass(frozen=True)
class Facts:
    """Of the training images.

    ``mean`` and ``std`` are of the training pixels as shares of the full scale; ``train_counts`` per class.
    """

    info: SourceInfo
    mean: float
    std: float
    train_counts: tuple[int, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        return self.info.classes

    @property
    def log_shares(self) -> NDArray[np.float64]:
        """Log of the class shares of the training split [Y]."""
        return np.log(np.array(self.train_counts) / sum(self.train_counts))


def to_dict(facts: Facts, pipeline: str) -> dict[str, Any]:
    """The content of ``source.json``. pipeline: fingerprint of what prepares the images."""
    return {
        "format": FORMAT, "pipeline": pipeline, **asdict(facts.info), "mean": facts.mean, "std": facts.std,
        "train_counts": list(facts.train_counts),
    }  # fmt: skip


def read_facts(run: Path) -> tuple[Facts, int, str]:
    """The facts of a run directory, its format, and the pipeline; "" where it names none. ConfigError where ``source.json``
    is damaged, or of a newer version."""
    path = run / "source.json"
    content = sealed.read_json(path)
    try:
        stored: dict[str, Any] = {**content}
        written, pipeline = int(stored.pop("format", 1)), str(stored.pop("pipeline", ""))
    except (TypeError, ValueError) as error:
        raise sealed.damaged(path, error) from error
    if written > FORMAT:
        raise ConfigError(
            f"{run}: this run was written by a newer version of scorebayes.", "Install that version."
        )
    try:
        return _from_dict(stored), written, pipeline
    except (LookupError, TypeError, ValueError) as error:
        raise sealed.damaged(path, error) from error


def _from_dict(stored: Mapping[str, Any]) -> Facts:
    """LookupError, TypeError or ValueError where it makes no sense."""
    own = {key: of for key, of in stored.items() if key not in ("mean", "std", "train_counts")}
    mean, std = float(stored["mean"]), float(stored["std"])
    counts = tuple(int(count) for count in stored["train_counts"])
    lists = {key: tuple(map(str, stored[key])) for key in ("classes", "modalities") if key in stored}
    info = SourceInfo(**{**own, **lists})
    if not (np.isfinite(mean) and std > 0 and np.isfinite(std)):
        raise ValueError(f"mean {mean}, std {std}")
    if len(counts) != len(info.classes) or min(counts) < 0 or info.positive not in range(len(counts)):
        raise ValueError(
            f"{len(counts)} counts and positive class {info.positive} of {len(info.classes)} classes"
        )
    return Facts(info, mean, std, counts)
