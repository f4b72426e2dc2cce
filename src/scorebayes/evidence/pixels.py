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
from scorebayes.evidence.base import Evidence, Home, Map, PixelMaps, TrainingImages
from scorebayes.evidence.noise_choice import choose_draws
from scorebayes.storage.checkpoint import Checkpoints
from scorebayes.training.augment import CODE_LENGTH
from scorebayes.training.loop import fit
from scorebayes.training.plan import Plan
from scorebayes.training.validate import score_block, validation_rows

_LEAST_ERROR = 1e-12


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
        net = self.home.build(
            "net",
            image_channels=self.home.image_shape[0],
            n_classes=len(self.home.classes),
            n_augment=CODE_LENGTH,
        )
        return Denoiser(net, self.home.precision).to(self.home.device)

    @cached_property
    def score(self) -> ScoreModel:
        """The trained score: the checkpoint with the best validation class log-loss.

        ConfigError where the weights are damaged, or not of the network that classes and configuration describe.
        """
        denoiser = self.new_denoiser()
        entry = self.checkpoints.best()
        try:
            denoiser.load_state_dict(self.checkpoints.load(entry))
        except RuntimeError as error:  # torch's word for names and shapes that differ
            raise ConfigError(
                f"{self.checkpoints.folder / entry['file']}: the weights are not of the network that config.toml and "
                "source.json describe (other classes, channels or widths).",
                "Restore these files as training wrote them, or train again.",
            ) from error
        return ScoreModel(denoiser.eval(), self.home.build("noise"))

    @property
    def likelihood(self) -> Likelihood:
        return self.home.build("likelihood")

    # -- learning -------------------------------------------------------------------------------------------------

    def fit(self, images: TrainingImages) -> Mapping[str, Mapping[str, Any]]:
        settings = self.home.train_settings
        train, val = images.train, images.val
        if not settings.label_free:
            train, val = train.labelled(), val.labelled()
        fit(self._plan(train, val))
        if settings.label_free:
            return {}
        self.__dict__.pop("score", None)  # there is a new one
        chosen = self.choose_noise(val)
        return {"likelihood": {"first": list(chosen)}} if chosen else {}

    def _plan(self, train: ImageSet, val: ImageSet) -> Plan:
        home = self.home
        return Plan(
            home.path, home.train_settings, home.seed, home.classes, self.new_denoiser, self._start, home.build("noise"),
            self.likelihood, home.device, _Standardised(home, train), _Standardised(home, val),
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
                f"[train] init = '{other.path}': the weights are of another network.",
                "Give both runs the same [net] section and image channels.",
            ) from error

    def choose_noise(self, val: ImageSet) -> tuple[int, ...]:
        """The draws of the common noise that say together what many more would say (see ``noise_choice``).

        None where the choice was made before, or there is none to make: an estimator without common noise, or one that takes
        all candidates.
        """
        if self.likelihood.kind != Denoising.kind:
            return ()
        own = cast(Denoising, self.likelihood)
        if not own.common_noise or own.first or own.candidates <= own.repeats:
            return ()
        rows = validation_rows(
            val.labels, len(self.home.classes), self.home.train_settings.val_images, self.home.seed
        )
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
        return torch.stack(
            [self._weighted_one(estimator, x[i : i + 1], key, weights) for i, key in enumerate(keys)]
        )

    def _weighted_one(
        self, estimator: Denoising, x: Tensor, key: str, weights: NDArray[np.float64]
    ) -> Tensor:
        """The same sum of log errors as in the class score, from its squared residuals: [Y]."""
        dims = x[0].numel()
        values: list[list[Tensor]] = [[] for _ in range(estimator.levels)]
        draws = Draws(self.home.seed, [key])
        for place, squares in estimator.squared_residuals(self._differentiable, x, draws):
            error = squares.flatten(1).sum(1).clamp(min=_LEAST_ERROR)
            values[place % estimator.levels].append(-0.5 * dims * (error / dims).log())
        means = torch.stack([torch.stack(of_level).mean(0) for of_level in values])
        return torch.from_numpy(weights) @ means

    @cached_property
    def _differentiable(self) -> ScoreModel:
        """In single precision, its weights held fast."""
        score = self.score.in_float32()
        for parameter in score.denoiser.parameters():
            parameter.requires_grad_(False)
        return score

    def maps(
        self,
        x: Tensor,
        key: str,
        block: Block,
        weights: NDArray[np.float64],
        against: NDArray[np.float64],
    ) -> PixelMaps:
        """The class score of a draw is -D/2 log(E_c / D), E_c the sum over the pixels of the squared residual e_c(p) (see
        ``scorebayes.diffusion.likelihood.denoising``). The difference of two classes is a sum over pixels, exactly, by the
        logarithmic mean L(u, v) = (u - v) / (log u - log v):

            S_a - S_c = -D/2 (log E_a - log E_c) = sum over p of -D/2 (e_a(p) - e_c(p)) / L(E_a, E_c).

        A pixel is therefore evidence for class a where the image is denoised better in the belief that it is an a.
        """
        estimator = self._class_score
        each = np.zeros((len(block.level), *x.shape[2:]))
        sums: list[list[float]] = [[] for _ in block.level]  # of every draw, evaluation by evaluation
        with torch.no_grad():
            for draw, squares in estimator.squared_residuals(self.score, x, Draws(self.home.seed, [key])):
                part = split_by_pixel(squares.sum(1).numpy(), against, x[0].numel())
                each[draw] += part
                sums[draw].append(float(part.sum()))
        each /= np.array([len(of) for of in sums])[:, None, None]
        per_level = [np.flatnonzero(block.level == level) for level in np.unique(block.level)]
        variance = block.variance_of_mean(weights, each.reshape(len(each), -1))
        return PixelMaps(
            levels=np.stack([w * each[of].mean(axis=0) for w, of in zip(weights, per_level, strict=True)]),
            std_error=np.sqrt(variance).reshape(x.shape[2:]),
            level_std_error=np.array(
                [w * _std_error([sums[d] for d in of]) for w, of in zip(weights, per_level, strict=True)]
            ),
            log_snr=block.level_log_snr,
        )

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
        """The run's own estimator. ConfigError where it is another one."""
        own = self.likelihood
        if not isinstance(own, Denoising):
            raise ConfigError(
                f"{self.home.path}: this goes through the class score, and the run decides by {own!r}.",
                'Use a run with kind = "denoising" in [likelihood].',
            )
        return own


@dataclass(frozen=True)
class _Standardised:
    """Prepared images as the network takes them."""

    home: Home
    images: ImageSet

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        return self.images.labels

    @cached_property
    def keys(self) -> tuple[str, ...]:
        return self.images.keys

    def batch(self, rows: NDArray[np.int64], generator: torch.Generator) -> Tensor:
        """Uniform dequantisation makes the whole grey values continuous."""
        levels = self.images.images[rows]
        return self.home.standardise(levels, torch.rand(levels.shape, generator=generator))

    def middle(self, rows: NDArray[np.int64]) -> Tensor:
        return self.home.standardise(self.images.images[rows])


def split_by_pixel(squares: Map, against: NDArray[np.float64], dims: int) -> Map:
    """What each pixel adds to sum of against_c S_c, of which one class alone, the target, has a positive coefficient: 1.

    squares [Y, S, S], squared residuals under each class; against [Y], sums to zero; dims: D -> [S, S].
    """
    errors, target = squares.sum(axis=(1, 2)), int(against.argmax())
    parts = [
        -weight * (squares[target] - squares[c]) / logarithmic_mean(errors[target], errors[c])
        for c, weight in enumerate(against)
        if weight < 0
    ]
    return -0.5 * dims * np.sum(parts, axis=0)


def logarithmic_mean(u: float, v: float) -> float:
    """(u - v) / (log u - log v) of two positive numbers, which is u where they are equal."""
    if u == v:
        return u
    return float((u - v) / np.log1p((u - v) / v))  # log u - log v would cancel where they are close


def _std_error(draws: list[list[float]]) -> float:
    """Of the mean of some draws, given by their evaluations. Of a single one, whose evaluations are antithetic, as if they
    were independent, which errs on the safe side."""
    values = [np.mean(of) for of in draws] if len(draws) > 1 else draws[0]
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else np.nan
