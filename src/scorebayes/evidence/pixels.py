"""The pixels: a class-conditional score of the prepared image itself, and the denoising errors under each class."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scorebayes.data.load import ImageSet
from scorebayes.decision.table import Block
from scorebayes.diffusion.draws import Draws
from scorebayes.diffusion.likelihood import Denoising, Likelihood
from scorebayes.diffusion.score import Denoiser, ScoreModel
from scorebayes.errors import ConfigError
from scorebayes.evidence.base import Evidence, Home, PixelMaps, TrainingImages
from scorebayes.evidence.learned_score import (
    OfImages,
    best_score,
    frozen_in_float32,
    split_by_pixel,
    split_draws,
    weighted_class_score,
)
from scorebayes.evidence.noise_choice import choose_draws
from scorebayes.storage.checkpoint import Checkpoints
from scorebayes.training.augment import CODE_LENGTH
from scorebayes.training.class_score import ClassScore
from scorebayes.training.cost import score_step_cost
from scorebayes.training.loop import fit
from scorebayes.training.plan import Plan
from scorebayes.training.random import lent_random_numbers
from scorebayes.training.validate import affordable_looks, chooses, score_block, validation_rows


class Pixels(Evidence):
    """The learned score of the images. The sections [noise], [net], [train] and [likelihood] are its options."""

    name = "pixels"
    title = "the pixels"
    in_nats = True
    sampled = True

    def __init__(self, home: Home) -> None:
        self.home = home
        self.checkpoints = Checkpoints(home.path / "checkpoints")

    # -- the model ------------------------------------------------------------------------------------------------

    def new_denoiser(self) -> Denoiser:
        """An untrained network as configured."""
        with lent_random_numbers():
            net = self.home.build(
                "net",
                image_channels=self.home.image_shape[0],
                n_classes=len(self.home.classes),
                n_augment=CODE_LENGTH,
            )
        return Denoiser(net, self.home.precision).to(self.home.device)

    @cached_property
    def score(self) -> ScoreModel:
        """The trained score. ConfigError where its weights are damaged or of another network."""
        noise, described_in = self.home.build("noise"), "config.toml and source.json"
        return best_score(self.checkpoints, self.new_denoiser(), noise, described_in)

    @property
    def likelihood(self) -> Likelihood:
        return self.home.build("likelihood")

    # -- learning -------------------------------------------------------------------------------------------------

    def fit(self, images: TrainingImages) -> Mapping[str, Mapping[str, Any]]:
        settings = self.home.train_settings
        train, val = images.train, images.val
        if not settings.label_free:
            train, val = train.labelled(), val.labelled()
        plan = self._plan(train, val)
        fit(plan, ClassScore(plan))
        if settings.label_free:
            return {}
        self.__dict__.pop("score", None)  # there is a new one
        chosen = self.choose_noise(val)
        return {"likelihood": {"first": list(chosen)}} if chosen else {}

    def _plan(self, train: ImageSet, val: ImageSet) -> Plan:
        home = self.home
        return Plan(
            home.path, home.train_settings, home.seed, home.classes, self.new_denoiser, self._start, home.build("noise"),
            self.likelihood, home.device, _Standardised(train, home), _Standardised(val, home),
        )  # fmt: skip

    def _start(self, denoiser: Denoiser) -> None:
        """Take the weights of the run that training starts from, and those of the labels where it learned the same classes.
        ConfigError where it has another network."""
        other = self.home.start
        if other is None:
            return
        checkpoints = Pixels(other).checkpoints
        taken = checkpoints.load(checkpoints.best())
        label = "net.embed_label.weight"
        try:
            if label in taken and (other.train_settings.label_free or other.classes != self.home.classes):
                # Apart from each other, not at the null label: classes that begin alike part too slowly for few images.
                taken[label] = torch.cat([denoiser.state_dict()[label][:-1], taken[label][-1:]])
            denoiser.load_state_dict(taken)
        except RuntimeError as error:  # torch's word for names and shapes that differ
            raise ConfigError(
                f"[train] init = '{other.path}': the weights belong to a different network.",
                "Use the same [net] section and image channels in both runs.",
            ) from error

    def choose_noise(self, val: ImageSet) -> tuple[int, ...]:
        """The draws of the common noise that best stand in for many more draws (see ``noise_choice``).

        None if the choice was made before or there is nothing to choose: an estimator without common noise, one with all
        candidates, or a training too short for choices.
        """
        if self.likelihood.kind != Denoising.kind or not chooses(self.home.train_settings):
            return ()
        own = cast(Denoising, self.likelihood)
        if not own.common_noise or own.first or own.candidates <= own.repeats:
            return ()
        settings = self.home.train_settings
        most = min(settings.val_images, affordable_looks(settings) // own.candidates)
        rows = validation_rows(val.labels, len(self.home.classes), most, self.home.seed)
        images = val.subset(rows)
        block = self.log_lik(
            self.home.standardise(images.images), images.keys, replace(own, repeats=own.candidates)
        )
        return choose_draws(block.rows(block.status == "ok").draws, own.levels, own.repeats)

    @property
    def learned(self) -> bool:
        return bool(self.checkpoints.entries("step"))

    @property
    def seconds(self) -> float:
        return float(self.checkpoints.entries("state")[-1]["seconds"])

    @property
    def multiply_adds(self) -> int:
        """Those of the run that training started from count, too."""
        settings, start = self.home.train_settings, self.home.start
        states = self.checkpoints.entries("state")
        steps = max(entry["step"] for entry in states) if states else settings.steps
        before = Pixels(start).multiply_adds if start else 0
        return before + steps * score_step_cost(self.new_denoiser(), self.home.image_shape, settings)

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.new_denoiser().parameters())

    # -- asking ---------------------------------------------------------------------------------------------------

    def fingerprint(self, likelihood: Likelihood | None = None) -> str:
        content = [
            self.checkpoints.best()["sha256"],
            repr(likelihood or self.likelihood),
            repr(self.home.build("noise")),
            *map(repr, self.home.scaling),
            self.home.seed,
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def log_lik(self, x: Tensor, keys: Sequence[str], likelihood: Likelihood | None = None) -> Block:
        return score_block(likelihood or self.likelihood, self.score, x, keys, self.home.seed)[0]

    def weighted(
        self, x: Tensor, keys: Sequence[str], weights: NDArray[np.float64], draws: int = 1
    ) -> Tensor:
        estimator = replace(self._class_score, repeats=draws, common_noise=False)
        each = [
            weighted_class_score(
                estimator, self._differentiable, x[i : i + 1], Draws(self.home.seed, [key]), weights
            )
            for i, key in enumerate(keys)
        ]
        return torch.stack(each)

    @cached_property
    def _differentiable(self) -> ScoreModel:
        return frozen_in_float32(self.score)

    def maps(
        self,
        x: Tensor,
        key: str,
        block: Block,
        weights: NDArray[np.float64],
        against: NDArray[np.float64],
    ) -> PixelMaps:
        draws = Draws(self.home.seed, [key])
        with torch.no_grad():
            residuals = self._class_score.squared_residuals(self.score, x, draws)
            parts = (
                (draw, split_by_pixel(squares.sum(1).numpy(), against, x[0].numel()))
                for draw, squares in residuals
            )
            return split_draws(parts, block, weights, x.shape[2:])

    @property
    def levels(self) -> int:
        return self._class_score.levels

    @property
    def evaluations(self) -> int:
        return 2 if self._class_score.antithetic else 1

    def passes(
        self, x: Tensor, keys: Sequence[str], numbers: range, classes: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        some = None if classes is None else torch.from_numpy(classes)
        with torch.no_grad():
            values, log_snr = self._class_score.passes(
                self.score, x, Draws(self.home.seed, keys), numbers, some
            )
        return values, log_snr.T.numpy()

    @property
    def _class_score(self) -> Denoising:
        """The run's estimator. ConfigError if it is not the class score."""
        own = self.likelihood
        if not isinstance(own, Denoising):
            raise ConfigError(
                f"{self.home.path}: this needs the class score, but the run decides by {own!r}.",
                'Use a run with kind = "denoising" in [likelihood].',
            )
        return own


@dataclass(frozen=True)
class _Standardised(OfImages):
    """Prepared images as the network takes them."""

    home: Home

    def batch(self, rows: NDArray[np.int64], generator: torch.Generator) -> Tensor:
        """Uniform dequantisation makes the whole grey values continuous."""
        levels = self.images.images[rows]
        return self.home.standardise(levels, torch.rand(levels.shape, generator=generator))

    def middle(self, rows: NDArray[np.int64]) -> Tensor:
        return self.home.standardise(self.images.images[rows])
