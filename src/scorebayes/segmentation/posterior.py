"""Drawing masks: samples of the signed distance of every image, by few evaluations of the score."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scorebayes.data.masks import Frame
from scorebayes.diffusion.noise import NoiseProcess
from scorebayes.diffusion.sample import SecondOrder
from scorebayes.diffusion.score import Denoiser, ScoreModel
from scorebayes.segmentation.config import SegmentConfig
from scorebayes.segmentation.distance import covered
from scorebayes.segmentation.drawn import Drawn
from scorebayes.segmentation.network import LOGIT


def draw(
    denoiser: Denoiser,
    noise: NoiseProcess,
    segment: SegmentConfig,
    x: Tensor,
    key: str,
    frame: Frame,
    seed: int,
) -> dict[str, NDArray]:
    """All that ``Drawn`` holds of one standardised image [1, C, S, S]. Random draws are of (seed, key): the same image gets
    the same samples, alone or among others."""
    generator = torch.Generator().manual_seed(_seed(seed, key))
    half, side = segment.samples // 2, x.shape[-1]
    with torch.no_grad():
        # On the CPU: the sampler works in float64, which not every device has.
        condition = denoiser.net.read(torch.cat([x, x.flip(-1)])).cpu()  # type: ignore[operator]
        logits = condition[:, LOGIT, :, :]
        score = ScoreModel(denoiser, noise)
        sampler = SecondOrder(segment.evaluations)
        each = sampler(score, condition.repeat_interleave(half, 0), (1, side, side), generator)
    distance = _unflipped(each)[:, 0] * segment.truncation
    share = covered(distance.numpy()) * frame.inside
    return {
        "guess": _unflipped(logits).mean(0)[0].numpy(),
        "share": share.mean(0),
        "std": share.std(0, ddof=1),
        "areas": share.sum((1, 2)),
    }


def guess_only(network: Callable[[Tensor], Tensor], x: Tensor) -> dict[str, NDArray]:
    """The same of a plain segmenter, which draws no samples."""
    with torch.no_grad():
        logits = network(torch.cat([x, x.flip(-1)])).cpu()
    none = np.zeros((0, 0), np.float32)
    return {
        "guess": _unflipped(logits).mean(0)[0].numpy(),
        "share": none,
        "std": none,
        "areas": np.zeros(0, np.float32),
    }


def together(keys: Sequence[str], found: Sequence[dict[str, Any]], seconds: Sequence[float]) -> Drawn:
    """What was found image by image."""
    stacked = {name: np.stack([of[name] for of in found]).astype(np.float32) for name in found[0]}
    return Drawn(tuple(keys), seconds=np.array(seconds), **stacked)


class Clock:
    """Seconds since it was asked last."""

    def __init__(self) -> None:
        self.before = time.perf_counter()

    def __call__(self) -> float:
        before, self.before = self.before, time.perf_counter()
        return self.before - before


def _unflipped(both: Tensor) -> Tensor:
    """Results [2 n, ...] of an image and its mirror image, all as the image lies."""
    one, other = both.chunk(2)
    return torch.cat([one, other.flip(-1)])


def _seed(seed: int, key: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"masks/{seed}/{key}".encode(), digest_size=7).digest(), "little")
