"""Attacks: the smallest change of the grey values that makes a model wrong.

Two of them, both bounded in every pixel (L-infinity) and ending in whole grey values, as a file would hold them:

* projected gradient descent (Madry et al. 2018, arXiv 1706.06083) on the log-odds of the true class. Our class score is
  random: every step averages over fresh draws (expectation over transformation, Athalye et al. 2018, arXiv 1802.00420), so
  that what looks like robustness is not a masked gradient.
* the Square attack (Andriushchenko et al. 2020, arXiv 1912.00049): random search that sees probabilities only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scorebayes.baselines import Baseline
from scorebayes.benchmark.trained.images import score_images
from scorebayes.data.load import ImageSet
from scorebayes.decision.posterior import bayes
from scorebayes.errors import ConfigError
from scorebayes.runs.run import Run


class Target(Protocol):
    """A model as an attacker sees it."""

    def logits(self, x: Tensor, key: str) -> Tensor:
        """One standardised image [1, C, S, S] -> logits [Y] with the prior, differentiable; ``key`` names the draws."""
        ...

    def prob(self, images: ImageSet) -> NDArray[np.float64]:
        """The posterior that a user would be told [N, Y]."""
        ...


class PeerTarget:
    """A baseline. It has no draws."""

    def __init__(self, baseline: Baseline) -> None:
        self.baseline = baseline

    def logits(self, x: Tensor, key: str) -> Tensor:
        return self.baseline.logits(x.float())[0].cpu().double()

    def prob(self, images: ImageSet) -> NDArray[np.float64]:
        return self.baseline.prob(images)


class OurTarget:
    """The run's own decision: the weighted sum of its sources. The attacker averages over the noise of a source that has
    some, and does not know that of the decision.

    repeats: draws of every level that a step of the attack averages over; the decision has as many as configured.
    ConfigError where the run decides by another estimator than the class score.
    """

    def __init__(self, run: Run, repeats: int = 1) -> None:
        if run.likelihood.kind != "class-score":
            raise ConfigError(
                f"attacks need the class score, but the run decides by {run.likelihood!r}.",
                "Use a run with kind = 'denoising' in [likelihood].",
            )
        self.run = run
        self.repeats = repeats

    def logits(self, x: Tensor, key: str) -> Tensor:
        calibration = self.run.calibration
        parts = [
            source.weighted(x, [key], calibration.weights[name], self.repeats)[0]
            for name, source in self.run.sources.items()
        ]
        return torch.stack(parts).sum(dim=0) + torch.from_numpy(calibration.bias + self.run.log_prior)

    def prob(self, images: ImageSet) -> NDArray[np.float64]:
        table = score_images(self.run, images, self.run.likelihood)
        return bayes(table, self.run.log_prior, self.run.calibration).prob


@dataclass(frozen=True)
class Pgd:
    """Projected gradient descent on signs, from a random start.

    steps: of gradient descent; the size of a step is ``2.5 / steps`` of the budget.
    """

    steps: int = 10

    def __call__(self, run: Run, target: Target, images: ImageSet, budget: float, seed: int) -> ImageSet:
        """Images within ``budget`` grey levels of these, in every pixel."""
        found: list[NDArray] = []
        for image, label, key in zip(images.images, images.labels, images.keys, strict=True):
            rng = np.random.default_rng([seed, len(found)])
            v_0 = torch.from_numpy(image[None].astype(np.float64))
            v = _project(v_0 + torch.from_numpy(rng.uniform(-budget, budget, v_0.shape)), v_0, budget, images)
            for step in range(self.steps):
                v.requires_grad_(True)
                margin = _margin(
                    target.logits(_standardise(run, v, images.bits), f"{key}/pgd/{step}"), int(label)
                )
                (gradient,) = torch.autograd.grad(margin, v)
                with torch.no_grad():
                    v = _project(v - 2.5 / self.steps * budget * gradient.sign(), v_0, budget, images)
            found.append(_whole(v, image))
        return ImageSet(np.stack(found), images.bits, images.records)


@dataclass(frozen=True)
class Square:
    """Random search with squares of one change; the share of the image that they cover shrinks as queries are used up.

    queries: of the model's logits for each image. share: of the image that the first squares cover.
    """

    queries: int = 100
    share: float = 0.3

    def __call__(self, run: Run, target: Target, images: ImageSet, budget: float, seed: int) -> ImageSet:
        """Images within ``budget`` grey levels of these, in every pixel."""
        found: list[NDArray] = []
        for image, label, key in zip(images.images, images.labels, images.keys, strict=True):
            rng = np.random.default_rng([seed, len(found)])
            v_0 = torch.from_numpy(image[None].astype(np.float64))
            best, least = v_0, np.inf
            for query in range(self.queries):
                tried = _project(self._change(best, v_0, budget, query, rng), v_0, budget, images)
                with torch.no_grad():
                    logits = target.logits(_standardise(run, tried, images.bits), f"{key}/square/{query}")
                margin = float(_margin(logits, int(label)))
                if margin < least:
                    best, least = tried, margin
            found.append(_whole(best, image))
        return ImageSet(np.stack(found), images.bits, images.records)

    def _change(
        self, best: Tensor, v_0: Tensor, budget: float, query: int, rng: np.random.Generator
    ) -> Tensor:
        """First vertical stripes, then one square at a random place."""
        _, channels, height, width = v_0.shape
        if query == 0:
            signs = rng.choice([-1.0, 1.0], (1, channels, 1, width))
            return v_0 + budget * torch.from_numpy(signs)
        share = self.share * 0.5 ** (5 * query / self.queries)
        side = int(np.clip(round((share * height * width) ** 0.5), 1, min(height, width)))
        top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
        place = (..., slice(top, top + side), slice(left, left + side))
        changed = best.clone()
        changed[place] = v_0[place] + budget * torch.from_numpy(rng.choice([-1.0, 1.0], (1, channels, 1, 1)))
        return changed


def _margin(logits: Tensor, label: int) -> Tensor:
    """Log-odds of the true class: below zero, the others are more probable together."""
    others = torch.tensor([y for y in range(len(logits)) if y != label])
    return logits[label] - logits[others].logsumexp(0)


def _standardise(run: Run, v: Tensor, bits: int) -> Tensor:
    """``Run.standardise``, differentiable: grey values [N, C, S, S] -> standardised float64."""
    return ((v + 0.5) / 2.0**bits - run.facts.mean) / run.facts.std


def _project(v: Tensor, v_0: Tensor, budget: float, images: ImageSet) -> Tensor:
    return torch.minimum(torch.maximum(v, v_0 - budget), v_0 + budget).clamp(0, 2**images.bits - 1)


def _whole(v: Tensor, image: NDArray) -> NDArray:
    return np.rint(v.detach()[0].numpy()).astype(image.dtype)


def grey_levels(budgets: Sequence[float], bits: int) -> list[float]:
    """Budgets in 255ths of full scale -> whole grey levels, at least one."""
    return [max(1.0, float(np.floor(b * (2**bits - 1) / 255))) for b in budgets]
