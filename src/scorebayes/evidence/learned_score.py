"""What sources with a learned score share: its checkpoint, its weighted class score, and which parts of a map speak."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scorebayes.data.load import ImageSet
from scorebayes.decision.table import Block
from scorebayes.diffusion.draws import Draws
from scorebayes.diffusion.likelihood import Denoising
from scorebayes.diffusion.noise import NoiseProcess
from scorebayes.diffusion.score import Denoiser, Score, ScoreModel
from scorebayes.errors import ConfigError
from scorebayes.evidence.base import Map, PixelMaps
from scorebayes.storage.checkpoint import Checkpoints

_LEAST_ERROR = 1e-12


@dataclass(frozen=True)
class OfImages:
    """Examples to train on that are made of prepared images, and have their labels, keys and patients."""

    images: ImageSet

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        return self.images.labels

    @cached_property
    def keys(self) -> tuple[str, ...]:
        return self.images.keys

    @cached_property
    def patients(self) -> tuple[str, ...]:
        return self.images.patients


def best_score(
    checkpoints: Checkpoints, denoiser: Denoiser, noise: NoiseProcess, described_in: str
) -> ScoreModel:
    """The checkpoint with the best validation class log-loss, in an untrained network of the same shape.

    ConfigError where the weights are damaged, or not of the network that classes and configuration describe.
    """
    entry = checkpoints.best()
    try:
        denoiser.load_state_dict(checkpoints.load(entry))
    except RuntimeError as error:  # torch's word for names and shapes that differ
        raise ConfigError(
            f"{checkpoints.folder / entry['file']}: the weights do not fit the network in {described_in} "
            "(other classes, channels or widths).",
            "Restore these files as training wrote them, or train again.",
        ) from error
    return ScoreModel(denoiser.eval(), noise)


def split_draws(
    parts: Iterable[tuple[int, Map]], block: Block, weights: NDArray[np.float64], shape: Sequence[int]
) -> PixelMaps:
    """Maps of a source's part, by what each evaluation of each draw of the class score says.

    parts: number of the draw and its map [h, w] by ``split_by_pixel``, evaluation by evaluation. block: of the one image,
    with the same draws. weights: [L]. shape: (h, w).
    """
    each = np.zeros((len(block.level), *shape))
    sums: list[list[float]] = [[] for _ in block.level]  # of every draw, evaluation by evaluation
    for draw, part in parts:
        each[draw] += part
        sums[draw].append(float(part.sum()))
    each /= np.array([len(of) for of in sums])[:, None, None]
    per_level = [np.flatnonzero(block.level == level) for level in np.unique(block.level)]
    variance = block.variance_of_mean(weights, each.reshape(len(each), -1))
    return PixelMaps(
        levels=np.stack([w * each[of].mean(axis=0) for w, of in zip(weights, per_level, strict=True)]),
        std_error=np.sqrt(variance).reshape(shape),
        level_std_error=_level_std_errors(weights, per_level, sums),
        log_snr=block.level_log_snr,
    )


def split_by_pixel(squares: Map, against: NDArray[np.float64], dims: int) -> Map:
    """What each pixel, or cell of a map, adds to sum of against_c S_c, of which one class alone, the target, has a positive
    coefficient: 1.

    squares [Y, S, S], squared residuals under each class; against [Y], sums to zero; dims: D -> [S, S].

    The class score of a draw is -D/2 log(E_c / D), E_c the sum over the pixels of the squared residual e_c(p) (see
    ``scorebayes.diffusion.likelihood.denoising``). The difference of two classes is a sum over pixels, exactly, by the
    logarithmic mean L(u, v) = (u - v) / (log u - log v):

        S_a - S_c = -D/2 (log E_a - log E_c) = sum over p of -D/2 (e_a(p) - e_c(p)) / L(E_a, E_c).

    A pixel is therefore evidence for class a where the image is denoised better in the belief that it is an a.
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


def frozen_in_float32(score: ScoreModel) -> ScoreModel:
    """A score that gradients by the image pass through: in single precision, with frozen weights."""
    frozen = score.in_float32()
    for parameter in frozen.denoiser.parameters():
        parameter.requires_grad_(False)
    return frozen


def weighted_class_score(
    estimator: Denoising, score: Score, x: Tensor, draws: Draws, weights: NDArray[np.float64]
) -> Tensor:
    """Weights [L] times the level means of the class score of one image [1, C, H, W]: [Y]. The gradient passes through.

    The same sum of log errors as in the class score, from its squared residuals."""
    dims = x[0].numel()
    values: list[list[Tensor]] = [[] for _ in range(estimator.levels)]
    for place, squares in estimator.squared_residuals(score, x, draws):
        error = squares.flatten(1).sum(1).clamp(min=_LEAST_ERROR)
        values[place % estimator.levels].append(-0.5 * dims * (error / dims).log())
    means = torch.stack([torch.stack(of_level).mean(0) for of_level in values])
    return torch.from_numpy(weights) @ means


def _level_std_errors(
    weights: NDArray[np.float64], per_level: Sequence[NDArray[np.int64]], sums: Sequence[Sequence[float]]
) -> NDArray[np.float64]:
    """Standard errors of the weighted means of each level [L]. per_level: numbers of its draws. sums: of every draw, its
    evaluations."""
    return np.array(
        [w * _std_error([sums[draw] for draw in of]) for w, of in zip(weights, per_level, strict=True)]
    )


def _std_error(draws: Sequence[Sequence[float]]) -> float:
    """Of the mean of some draws, given by their evaluations. Of a single one, whose evaluations are antithetic, as if they
    were independent, which errs on the safe side."""
    values = [np.mean(of) for of in draws] if len(draws) > 1 else draws[0]
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else np.nan
