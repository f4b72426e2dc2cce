"""Training: the score of signed distances and the first guess, together, in the loop that all trainings share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scorebayes.diffusion.noise import NoiseProcess
from scorebayes.diffusion.score import Denoiser
from scorebayes.errors import DataError
from scorebayes.segmentation.config import SegmentConfig
from scorebayes.segmentation.examples import MaskedSet
from scorebayes.segmentation.network import LOGIT
from scorebayes.storage.checkpoint import Checkpoints
from scorebayes.training.augment import augment
from scorebayes.training.batches import draw_log_snr, step_seed
from scorebayes.training.plan import LossOfRows
from scorebayes.training.settings import TrainConfig
from scorebayes.training.state import State

LEAST_IMAGES = 2
AT_A_TIME = 32  # validation images


def guess_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy plus one minus soft Dice, [B, 1, H, W] each -> [B]; the usual loss of a segmenter."""
    prob, mask = logits.sigmoid().flatten(1), mask.flatten(1).to(logits)
    entropy = F.binary_cross_entropy_with_logits(logits.flatten(1), mask, reduction="none").mean(1)
    both = (prob * mask).sum(1)
    return entropy + 1 - (2 * both + 1) / (prob.sum(1) + mask.sum(1) + 1)


def score_loss(
    denoiser: Denoiser, x_0: Tensor, condition: Tensor, log_snr: Tensor, eps: Tensor, edge: float
) -> Tensor:
    """Denoising score matching of distances [B, 1, H, W] under a condition, weighted as ``diffusion.score.training_loss``;
    with ``edge`` the pixels near the boundary count more. [B]."""
    snr = log_snr.exp().to(x_0)
    z = x_0 + (-0.5 * log_snr).exp().to(x_0)[:, None, None, None] * eps
    square = (denoiser(z, log_snr, condition) - x_0).square()
    if edge:
        weight = 1 + edge * (x_0.abs() < 1).to(x_0)
        square = square * weight / weight.mean()
    return (1 + snr) * square.flatten(1).mean(1)


@dataclass(frozen=True)
class MaskTraining:
    """What the loop needs to know: folder for checkpoints and log, settings, seed, device, and an untrained network."""

    folder: Path
    settings: TrainConfig
    seed: int
    device: torch.device
    new_denoiser: Callable[[], nn.Module]

    @property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.folder / "checkpoints")

    @property
    def log(self) -> Path:
        return self.folder / "train.jsonl"

    def start(self, network: Any) -> None:
        """From random weights."""


class _MaskGoal:
    """What both goals share: batches of images with masks, moved, mirrored and stronger or fainter."""

    def __init__(
        self,
        settings: TrainConfig,
        segment: SegmentConfig,
        standardise: Callable[..., Tensor],
        train: MaskedSet,
        val: MaskedSet,
        seed: int,
    ) -> None:
        self.settings, self.segment, self.standardise = settings, segment, standardise
        self.train, self.val, self.seed = train, val, seed
        self.distances = {"train": train.distances(), "val": val.distances()}

    @property
    def side(self) -> int:
        return self.train.masks.shape[-1]

    def require(self) -> None:
        """DataError where there is nothing to learn from."""
        for name, of in (("training", self.train), ("validation", self.val)):
            with_object = int(of.masks.any(axis=(1, 2)).sum())
            if with_object < LEAST_IMAGES:
                raise DataError(
                    f"the {name} split has {with_object} images whose mask is not empty, and at least {LEAST_IMAGES} "
                    "are needed.",
                    "Give more images with masks.",
                )

    def choose(self, state: State) -> None:
        """The weights with the lowest validation loss are kept already."""

    def drawn(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Images [B, C, H, W], standardised, and distances [B, 1, H, W] in pixels."""
        settings = self.settings
        rows = torch.randint(len(self.train), (settings.batch,), generator=generator).numpy()
        levels = self.train.images.images[rows]
        x = self.standardise(levels, torch.rand(levels.shape, generator=generator))
        distance = torch.from_numpy(self.distances["train"][rows])[:, None]
        moved, code = augment(torch.cat([x, distance], dim=1), settings, generator)
        zoom = (code[:, 1] * settings.zoom).exp()[:, None, None, None]
        strength = 1 + self.segment.contrast * (2 * torch.rand(len(x), 1, 1, 1, generator=generator) - 1)
        return moved[:, :-1] * strength, moved[:, -1:] / zoom

    def parts_of_val(self) -> list[tuple[Tensor, Tensor]]:
        """Validation images and distances, unchanged, some at a time."""
        x = self.standardise(self.val.images.images)
        distance = torch.from_numpy(self.distances["val"])[:, None]
        return list(zip(x.split(AT_A_TIME), distance.split(AT_A_TIME), strict=True))

    def scaled(self, distance: Tensor) -> Tensor:
        """What the score sees: cut, in [-1, 1]."""
        return (distance / self.segment.truncation).clamp(-1, 1)


class MaskScore(_MaskGoal):
    """The goal of our model: the guess's loss plus the score's."""

    def __init__(self, noise: NoiseProcess, *given: Any) -> None:
        super().__init__(*given)
        self.noise = noise

    def batch(self, generator: torch.Generator) -> LossOfRows:
        x, distance = self.drawn(generator)
        log_snr, eps = self._noise(len(x), generator, distance)

        def loss_of(denoiser: Any, part: Tensor) -> Tensor:
            return self._losses(denoiser, x[part], distance[part], log_snr[part], eps[part])[0]

        return loss_of

    def look(self, denoiser: Any) -> dict[str, float]:
        """The loss that was trained, on validation images and the same noise every time, and the guess's mean Dice."""
        generator = torch.Generator().manual_seed(step_seed(self.seed, -1))
        losses, dices = [], []
        denoiser.eval()
        with torch.no_grad():
            for x, distance in self.parts_of_val():
                log_snr, eps = self._noise(len(x), generator, distance)
                loss, logits = self._losses(denoiser, x, distance, log_snr, eps)
                losses.append(loss.cpu())
                dices.append(_dice(logits.cpu() > 0, distance < 0))
        return {"val_log_loss": float(torch.cat(losses).mean()), "val_dice": _mean(dices)}

    def _noise(self, n: int, generator: torch.Generator, like: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self.noise.log_snr_range
        log_snr = draw_log_snr(self.settings, (low, high), n, generator).clamp(low, high)
        return log_snr, torch.randn(like.shape, generator=generator)

    def _losses(self, denoiser: Any, x: Tensor, distance: Tensor, log_snr: Tensor, eps: Tensor) -> Any:
        device = next(denoiser.parameters()).device
        condition, distance = denoiser.net.read(x.to(device)), distance.to(device)
        logits = condition[:, LOGIT]
        score = score_loss(
            denoiser, self.scaled(distance), condition, log_snr, eps.to(device), self.segment.edge
        )
        return guess_loss(logits, distance < 0) + self.segment.score * score, logits


class Guess(_MaskGoal):
    """The goal of a plain segmenter, image to logits, for comparison."""

    def batch(self, generator: torch.Generator) -> LossOfRows:
        x, distance = self.drawn(generator)

        def loss_of(network: Any, part: Tensor) -> Tensor:
            device = next(network.parameters()).device
            return guess_loss(network(x[part].to(device)), distance[part].to(device) < 0)

        return loss_of

    def look(self, network: Any) -> dict[str, float]:
        losses, dices = [], []
        device = next(network.parameters()).device
        network.eval()
        with torch.no_grad():
            for x, distance in self.parts_of_val():
                logits = network(x.to(device)).cpu()
                losses.append(guess_loss(logits, distance < 0))
                dices.append(_dice(logits > 0, distance < 0))
        return {"val_log_loss": float(torch.cat(losses).mean()), "val_dice": _mean(dices)}


def _dice(found: Tensor, mask: Tensor) -> Tensor:
    """Of images with an object [n]."""
    there = mask.flatten(1).any(1)
    found, mask = found.flatten(1)[there].float(), mask.flatten(1)[there].float()
    return 2 * (found * mask).sum(1) / (found.sum(1) + mask.sum(1))


def _mean(parts: list[Tensor]) -> float:
    return float(np.mean(torch.cat(parts).numpy()))
