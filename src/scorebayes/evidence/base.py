"""The interface for evidence: what a source is, and what it may know about the run that uses it.

A source is one file here with a class that fits ``Evidence``, and one line in ``EVIDENCE`` (see ``registry``). Table,
calibration, maps, report and benchmarks get everything they need through this interface and never name a source."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scorebayes.data.load import ImageSet
from scorebayes.decision.table import Block
from scorebayes.diffusion.likelihood import Likelihood
from scorebayes.training.settings import TrainConfig

Map = NDArray[np.float64]


class Home(Protocol):
    """What a source may know about its run."""

    path: Path
    device: torch.device

    @property
    def seed(self) -> int: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Of a prepared image: channels, height, width."""
        ...

    @property
    def train_settings(self) -> TrainConfig: ...

    @property
    def scaling(self) -> tuple[float, float, int]:
        """Mean and standard deviation of the training pixels as shares of the full scale, and their bit depth."""
        ...

    @property
    def start(self) -> Home | None:
        """The run whose weights training starts from; None: from random weights."""
        ...

    @property
    def precision(self) -> torch.dtype: ...

    def build(self, section: str, **given: Any) -> Any:
        """The component that a section of the configuration describes; ``given`` are fields that come from the data."""
        ...

    def standardise(self, levels: NDArray, u: Tensor | float = 0.5) -> Tensor:
        """Whole grey values [N, C, S, S] -> mean 0, variance 1 over the training split."""
        ...


@dataclass(frozen=True)
class TrainingImages:
    """What a source may learn from. train, val: labels are -1 where unknown. more: further images without labels, of the
    label-free run that training starts from; read when called."""

    train: ImageSet
    val: ImageSet
    more: Callable[[], ImageSet | None] = lambda: None


@dataclass(frozen=True)
class PixelMaps:
    """What each pixel adds to a source's part of the log-odds, in nats.

    levels: [L, S, S], level by level. std_error: [S, S], Monte-Carlo standard error of their sum; zero where exact, NaN with
    one draw in all. level_std_error: [L], of the sums of ``levels``; NaN with one evaluation a level. log_snr: [L], mean
    log-SNR of the draws of each level; NaN where there is none. offset: what belongs to no pixel. The maps and the offset
    sum to the source's part.
    """

    levels: Map
    std_error: Map
    level_std_error: NDArray[np.float64]
    log_snr: NDArray[np.float64]
    offset: float = 0.0

    @property
    def total(self) -> Map:
        """All levels together [S, S]."""
        return self.levels.sum(axis=0)


class Evidence(abc.ABC):
    """A source of evidence of one run. Its constructor takes the run, and then options, which are the fields of the section
    [evidence.NAME].

    name: of its block in table, calibration and report. title: what it looks at, for people, as in "the wavelet
    coefficients". in_nats: whether any estimator can be put in the place of its own; values in nats stand alone, without the
    sources that have none. sampled: whether its draws come in passes (``Sampled``); else it is exact.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    in_nats: ClassVar[bool] = False
    sampled: ClassVar[bool] = False

    @abc.abstractmethod
    def fit(self, images: TrainingImages) -> Mapping[str, Mapping[str, Any]]:
        """Learn from the training images, and keep it in the run's directory; what was learned before is kept, and what was
        begun is resumed. Returns fields of the configuration, by section, that it found on the way."""

    @property
    @abc.abstractmethod
    def learned(self) -> bool:
        """Whether ``fit`` has run and learned something."""

    @property
    @abc.abstractmethod
    def seconds(self) -> float:
        """Time that learning took."""

    @property
    def multiply_adds(self) -> int:
        """Of learning, forward and backward, as configured; 0 where no network is trained."""
        return 0

    @property
    def parameters(self) -> int:
        """Numbers in the network that is trained; 0 where there is none."""
        return 0

    @abc.abstractmethod
    def fingerprint(self, likelihood: Likelihood | None = None) -> str:
        """A digest of everything besides the image that its numbers depend on. It changes whenever they can change."""

    @abc.abstractmethod
    def log_lik(self, x: Tensor, keys: Sequence[str], likelihood: Likelihood | None = None) -> Block:
        """What it says of standardised images [N, C, S, S], whose random draws are named by ``keys``: the same key and image
        give the same numbers, alone or among others, up to rounding. ``likelihood``: an estimator in the place of its
        own."""

    @abc.abstractmethod
    def weighted(
        self, x: Tensor, keys: Sequence[str], weights: NDArray[np.float64], draws: int = 1
    ) -> Tensor:
        """Weights [L] times the level means: [N, Y] float64, through which the gradient by x passes. Where there is noise,
        so many draws of each level are made anew, named by the keys, even if ``log_lik`` takes one noise for all images."""

    @abc.abstractmethod
    def maps(
        self,
        x: Tensor,
        key: str,
        block: Block,
        weights: NDArray[np.float64],
        against: NDArray[np.float64],
    ) -> PixelMaps:
        """Which pixels of one image [1, C, S, S] speak: maps of ``against`` [Y] (coefficients of the classes, which sum to
        zero) times its part of the logits, by weights [L]. ``block``: what ``log_lik`` said of the image with this key,
        whose draws are split."""


class Sampled(Protocol):
    """A source whose draws come in passes over its levels, so that a decision may end before all of them are made."""

    name: ClassVar[str]

    @property
    def levels(self) -> int: ...

    @property
    def evaluations(self) -> int:
        """Of the network, for each draw and class."""
        ...

    def passes(
        self, x: Tensor, keys: Sequence[str], numbers: range, classes: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Passes with these numbers, under all classes or those given: values [P * levels, N, Y], log-SNR [P * levels,
        N]."""
        ...
