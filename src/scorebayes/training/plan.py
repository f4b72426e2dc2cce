"""What a training needs: a network, examples, settings, and a folder for its files. It knows no run and no task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scorebayes.diffusion.likelihood import Likelihood
from scorebayes.diffusion.noise import NoiseProcess
from scorebayes.diffusion.score import Denoiser
from scorebayes.errors import DataError
from scorebayes.storage.checkpoint import Checkpoints
from scorebayes.training.settings import TrainConfig

if TYPE_CHECKING:
    from scorebayes.training.state import State

LossOfRows = Callable[[Any, Tensor], Tensor]


class Examples(Protocol):
    """Labelled arrays [C, H, W] that a score is fitted to, standardised: mean 0, variance 1."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Ids [N]."""
        ...

    @property
    def patients(self) -> tuple[str, ...]:
        """Whose they are [N]; folds never divide a patient."""
        ...

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class indices [N]; -1 where unknown."""
        ...

    def batch(self, rows: NDArray[np.int64], generator: torch.Generator) -> Tensor:
        """Examples to train on [B, C, H, W] float32, with the noise that makes them continuous, from the generator."""
        ...

    def middle(self, rows: NDArray[np.int64]) -> Tensor:
        """The same examples for evaluation, without noise [B, C, H, W] float32."""
        ...


class Training(Protocol):
    """What the loop knows of a training: where its files are, its settings, and its new network."""

    @property
    def folder(self) -> Path: ...

    @property
    def settings(self) -> TrainConfig: ...

    @property
    def seed(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def checkpoints(self) -> Checkpoints: ...

    @property
    def log(self) -> Path: ...

    @property
    def new_denoiser(self) -> Callable[[], Any]: ...

    @property
    def start(self) -> Callable[[Any], None]: ...


class Goal(Protocol):
    """What a network is trained for: the loss of a batch, and what validation images say. side: of an image, in pixels."""

    @property
    def side(self) -> int: ...

    def require(self) -> None:
        """DataError where the examples do not suffice."""
        ...

    def batch(self, generator: torch.Generator) -> LossOfRows:
        """Draw a batch, all its random numbers from the generator: (network, rows of the batch) -> losses of these rows."""
        ...

    def look(self, network: Any) -> dict[str, float]:
        """Figures of the validation images, for the log. ``val_log_loss`` chooses among the checkpoints."""
        ...

    def choose(self, state: State) -> None:
        """Keep the final weights, at the end of the training."""
        ...


@dataclass(frozen=True)
class Plan:
    """One score to be fitted.

    folder: for checkpoints and ``train.jsonl``. settings: batches, rates, augmentation. seed: of everything. classes: names
    [Y]. new_denoiser: an untrained network, on its device. start: gives a new network the weights it begins with. noise,
    likelihood: by which checkpoints are judged on ``val``.
    """

    folder: Path
    settings: TrainConfig
    seed: int
    classes: tuple[str, ...]
    new_denoiser: Callable[[], Denoiser]
    start: Callable[[Denoiser], None]
    noise: NoiseProcess
    likelihood: Likelihood
    device: torch.device
    train: Examples
    val: Examples

    @property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.folder / "checkpoints")

    @property
    def log(self) -> Path:
        return self.folder / "train.jsonl"

    @cached_property
    def rows_of_class(self) -> list[NDArray[np.int64]]:
        """Rows of the training examples by class."""
        return [np.flatnonzero(self.train.labels == y) for y in range(len(self.classes))]


def require_classes(labels: NDArray[np.int64], classes: tuple[str, ...], what: str) -> None:
    """DataError where a class has fewer than two examples."""
    counts = np.bincount(labels[labels >= 0], minlength=len(classes))
    if counts.min() < 2:
        have = ", ".join(f"{name}: {count}" for name, count in zip(classes, counts, strict=True))
        raise DataError(
            f"the {what} split needs at least two images of every class, but it has {have}.",
            "Give more images.",
        )
