"""The features: a class-conditional score of an encoder's map of features, where a frozen network has done the seeing.

A map [C, h, w] of a frozen encoder is whitened by principal components learned on the training images, [K, h, w]; the score
of these maps is learned as that of pixels is, with the same loss, estimators, checkpoints and resuming. An image and its
mirror image are encoded apart and count alike: in training either is drawn, and every second pass asks the mirror image.
Values in nats are those of the whitened map.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from scorebayes.decision.table import Block
from scorebayes.diffusion.draws import Draws
from scorebayes.diffusion.likelihood import Denoising, Likelihood
from scorebayes.diffusion.nets.unet import UNet
from scorebayes.diffusion.score import Denoiser, ScoreModel
from scorebayes.evidence.base import Evidence, Home, Map, PixelMaps, TrainingImages
from scorebayes.evidence.encoders import DEFAULT_ENCODER, DEFAULT_SIDE, EncoderName, open_encoder
from scorebayes.evidence.encoders.note import Note
from scorebayes.evidence.feature_maps import EncodedMaps, FeatureMaps, MapExamples
from scorebayes.evidence.learned_score import (
    best_score,
    frozen_in_float32,
    split_by_pixel,
    split_draws,
    weighted_class_score,
)
from scorebayes.storage import sealed
from scorebayes.storage.checkpoint import Checkpoints
from scorebayes.storage.timings import note_seconds, seconds_of
from scorebayes.training.augment import CODE_LENGTH
from scorebayes.training.class_score import ClassScore
from scorebayes.training.cost import score_step_cost
from scorebayes.training.loop import fit
from scorebayes.training.plan import Plan
from scorebayes.training.random import lent_random_numbers
from scorebayes.training.settings import Count, Fraction, Size, TrainConfig
from scorebayes.training.validate import score_block


class Features(Evidence):
    """The learned score of whitened feature maps.

    Parameters
    ----------
    encoder: see ``evidence.encoders``. size: side in pixels to which images are resized for it.
    components: principal components kept, at most the channels of the map.
    steps: of the training; 0: those of [train]. batch, lr, warmup, ema, dropout, channels: of the training and of the
        network, a U-Net without patches.
    log_snr_mean, log_snr_std: of the noise levels in training. shift: cells by which a training map is moved at most.
    validate_every: steps between validations (0 = 10 times in all, at most every 20 steps).
    levels, passes: noise levels of the class score, and how often they are gone through; every second time with the mirror
        image. mean, std: of the density whose quantiles these levels are.
    """

    name = "features"
    title = "the encoder's features"
    in_nats = True
    sampled = True

    def __init__(
        self,
        home: Home,
        encoder: EncoderName = DEFAULT_ENCODER,
        size: Count = DEFAULT_SIDE,
        components: Count = 48,
        steps: Annotated[int, Field(ge=0)] = 0,
        batch: Count = 64,
        lr: Size = 2e-3,
        warmup: Count = 50,
        ema: Fraction = 0.999,
        dropout: Fraction = 0.2,
        channels: tuple[Count, ...] = (96, 128),
        log_snr_mean: float = -1.5,
        log_snr_std: Size = 2.2,
        shift: Annotated[int, Field(ge=0)] = 1,
        validate_every: Annotated[int, Field(ge=0)] = 0,
        levels: Count = 10,
        passes: Count = 2,
        mean: float = -1.5,
        std: Size = 2.0,
    ) -> None:
        self.home = home
        self.folder = home.path / "features"
        self.checkpoints = Checkpoints(self.folder / "checkpoints")
        self.encoder = open_encoder(encoder, size, home.device)
        self.encoded = EncodedMaps(home, self.encoder, size)
        self.feature_maps = FeatureMaps(self.encoded, self.folder / "components.safetensors", components)
        self.channels, self.dropout, self.shift = channels, dropout, shift
        of_run = home.train_settings
        self.settings = TrainConfig(
            steps=steps or of_run.steps, minutes=of_run.minutes, batch=batch, lr=lr, warmup=warmup, ema=ema,
            log_snr_mean=log_snr_mean, log_snr_std=log_snr_std, uniform=0.0, flip=False, augment=0.0,
            validate_every=validate_every, val_images=of_run.val_images,
        )  # fmt: skip
        options = {
            "size": size, "components": components,
            "steps": self.settings.steps, "batch": batch, "lr": lr, "warmup": warmup, "ema": ema, "dropout": dropout,
            "channels": list(channels), "log_snr_mean": log_snr_mean, "log_snr_std": log_snr_std, "shift": shift,
        }  # fmt: skip
        self.note = Note(self.folder, self.name, self.encoder, options)
        self.estimator = Denoising(levels=levels, repeats=passes, mean=mean, std=std, flips=False)

    # -- learning -------------------------------------------------------------------------------------------------

    def fit(self, images: TrainingImages) -> Mapping[str, Mapping[str, Any]]:
        if self.learned:
            return {}
        start = time.perf_counter()
        train, val = images.train.labelled(), images.val.labelled()
        sealed.make_folder(self.folder)
        maps = self.feature_maps
        train_maps, val_maps = (
            torch.cat([*self.encoded.of_images(of, f"features of {name}")])
            for of, name in ((train, "train"), (val, "val"))
        )
        maps.learn(train_maps)
        home = self.home
        plan = Plan(
            self.folder, self.settings, home.seed, home.classes, self._new_denoiser, lambda _: None, home.build("noise"),
            self.estimator, home.device, MapExamples(train, maps, train_maps, self.shift),
            MapExamples(val, maps, val_maps, self.shift),
        )  # fmt: skip
        fit(plan, ClassScore(plan))
        note_seconds(home.path, self.name, time.perf_counter() - start)
        self.note.write(kept_variance=float(maps.basis["kept_variance"]))
        return {}

    def _new_denoiser(self) -> Denoiser:
        with lent_random_numbers():
            net = UNet(
                self.feature_maps.shape[0], len(self.home.classes), CODE_LENGTH, channels=self.channels, blocks=1,
                attention=1, patch=1, dropout=self.dropout, label_in="decoder",
            )  # fmt: skip
        return Denoiser(net, self.home.precision).to(self.home.device)

    @property
    def learned(self) -> bool:
        return self.note.vouches()

    @property
    def seconds(self) -> float:
        return seconds_of(self.home.path, self.name)

    @property
    def multiply_adds(self) -> int:
        """Without those of the encoder, which is not trained."""
        denoiser = self._new_denoiser()
        return self.settings.steps * score_step_cost(denoiser, self.feature_maps.shape, self.settings)

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self._new_denoiser().parameters())

    @cached_property
    def score(self) -> ScoreModel:
        """The trained score of the whitened maps. ConfigError where its weights are damaged or of another network."""
        noise, described_in = self.home.build("noise"), "[evidence.features]"
        return best_score(self.checkpoints, self._new_denoiser(), noise, described_in)

    # -- asking ---------------------------------------------------------------------------------------------------

    def fingerprint(self, likelihood: Likelihood | None = None) -> str:
        asked = self.estimator if likelihood is None or likelihood.kind == "class-score" else likelihood
        content = [
            self.checkpoints.best()["sha256"], self.encoder.kind, self.encoder.fingerprint, self.encoded.size,
            self.feature_maps.sha256,
            repr(asked), repr(self.home.build("noise")), *map(repr, self.home.scaling), self.home.seed,
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def log_lik(self, x: Tensor, keys: Sequence[str], likelihood: Likelihood | None = None) -> Block:
        with torch.no_grad():
            maps = self.feature_maps(x)
        if likelihood is not None and likelihood.kind != "class-score":
            return score_block(likelihood, self.score, maps[:, 0], keys, self.home.seed)[0]
        values, log_snr = self._pass_by_pass(maps, keys, range(self.estimator.repeats))
        n, finite = len(x), np.isfinite(values).all(axis=(0, 2))
        return Block(
            values, log_snr, np.tile(np.arange(self.levels), self.estimator.repeats),
            np.full(n, len(values) * self.evaluations), np.where(finite, "ok", "not finite"), self.estimator.kind,
        )  # fmt: skip

    def _pass_by_pass(
        self, maps: Tensor, keys: Sequence[str], numbers: range, classes: Tensor | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Values [P * levels, N, Y] and log-SNR [P * levels, N]; every second pass asks the mirror image."""
        found = []
        with torch.no_grad():
            for number in numbers:
                values, log_snr = self.estimator.passes(
                    self.score,
                    maps[:, number % 2],
                    Draws(self.home.seed, keys),
                    range(number, number + 1),
                    classes,
                )
                found.append((values, log_snr.T.numpy()))
        return np.concatenate([values for values, _ in found]), np.concatenate([at for _, at in found])

    @property
    def levels(self) -> int:
        return self.estimator.levels

    @property
    def evaluations(self) -> int:
        return 2

    def passes(
        self, x: Tensor, keys: Sequence[str], numbers: range, classes: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        with torch.no_grad():
            maps = self.feature_maps(x)
        return self._pass_by_pass(maps, keys, numbers, None if classes is None else torch.from_numpy(classes))

    def weighted(
        self, x: Tensor, keys: Sequence[str], weights: NDArray[np.float64], draws: int = 1
    ) -> Tensor:
        maps = self.feature_maps(x)
        estimator = replace(self.estimator, repeats=draws, common_noise=False)
        each = [
            torch.stack(
                [
                    weighted_class_score(
                        estimator,
                        self._differentiable,
                        maps[i : i + 1, m],
                        Draws(self.home.seed, [key]),
                        weights,
                    )
                    for m in range(2)
                ]
            ).mean(dim=0)
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
        """Cell by cell of the map; what a cell says is shared evenly by the pixels it stands for."""
        with torch.no_grad():
            maps = self.feature_maps(x)
            of_cells = split_draws(self._parts(maps, key, against), block, weights, maps.shape[-2:])
        side = x.shape[-1]
        return replace(
            of_cells,
            levels=np.stack([spread_over_pixels(level, side) for level in of_cells.levels]),
            std_error=spread_over_pixels(of_cells.std_error, side),
        )

    def _parts(self, maps: Tensor, key: str, against: NDArray[np.float64]) -> Iterator[tuple[int, Map]]:
        """What each cell says in every draw, as a map of the image itself where the draw asked its mirror image."""
        draws = Draws(self.home.seed, [key])
        for mirrored in range(2):
            for draw, squares in self.estimator.squared_residuals(self.score, maps[:, mirrored], draws):
                if draw // self.levels % 2 == mirrored:
                    part = split_by_pixel(squares.sum(1).numpy(), against, maps[0, 0].numel())
                    yield draw, part[:, ::-1] if mirrored else part


def spread_over_pixels(cells: Map, side: int) -> Map:
    """[h, w] -> [S, S]: each pixel belongs to one cell, whose value its pixels share evenly; the sum stays."""
    rows, columns = (np.arange(side) * n // side for n in cells.shape)
    counts = np.outer(
        np.bincount(rows, minlength=cells.shape[0]), np.bincount(columns, minlength=cells.shape[1])
    )
    return (cells / counts)[np.ix_(rows, columns)]
