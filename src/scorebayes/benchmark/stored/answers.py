"""Answers of models for the same test images with one seed, and AUC differences between models over the seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scorebayes.decision.posterior import mean_posterior
from scorebayes.metrics import classification_metrics, clustered_bootstrap

N_BOOTSTRAP = 2000
BOTH, ONE_TRAINING = "bootstrap over seeds and patients", "bootstrap over patients, one training"


@dataclass(frozen=True)
class Answers:
    """Of one seed: [N] labels, image ids and patients; posterior [N, Y] of every model by its name.

    positive: the class whose posterior orders the images.
    """

    labels: NDArray[np.int64]
    images: tuple[str, ...]
    groups: tuple[str, ...]
    prob: Mapping[str, NDArray[np.float64]]
    positive: int = 1

    def metrics(self, model: str) -> dict[str, Any]:
        """Of a model, by patient."""
        return classification_metrics(
            self.labels, self.prob[model], positive=self.positive, groups=self.groups
        )

    def wins(self, model: str) -> NDArray[np.float64]:
        """For each pair of a positive and a negative image, whether the model puts them in order: 1, 0, or 1/2 for a tie."""
        truth, score = self.labels == self.positive, self.prob[model][:, self.positive]
        return 0.5 * (1 + np.sign(score[truth][:, None] - score[~truth]))

    def with_models(self, prob: Mapping[str, NDArray[np.float64]]) -> Answers:
        """With further models."""
        return replace(self, prob={**self.prob, **prob})


def mean_answers(each: Sequence[Answers], model: str) -> Answers:
    """The mean log-posterior of the seeds of a model, which must have seen the same images."""
    return replace(each[0], prob={model: mean_posterior([answers.prob[model] for answers in each])})


def seed_mean_difference(each: Sequence[Answers], first: str, second: str) -> dict[str, Any]:
    """AUC of one model minus that of another, mean over the seeds, with interval and p by a bootstrap that draws both: the
    trainings (seeds) and the patients.

    A patient is drawn for all seeds together: seeds with the same test split are no further patients (the pigeonhole
    bootstrap, Owen 2007, Ann Appl Stat 1:386). One seed fewer than there are is drawn, with replacement, which leaves the
    variance of a mean of so few unbiased (Rao & Wu 1988, J Am Stat Assoc 83:231). Of a single seed, only patients are drawn;
    ``auc_difference_method`` says so.
    """
    differences = [_weighted_difference(answers, first, second) for answers in each]
    ends = np.cumsum([len(answers.labels) for answers in each])[:-1]

    def by_seed(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        parts = np.split(weights, ends, axis=1)
        return np.stack([f(part) for f, part in zip(differences, parts, strict=True)], axis=1)

    groups = [group for answers in each for group in answers.groups]
    values = by_seed(np.ones((1, len(groups))))[0]
    with np.errstate(invalid="ignore", divide="ignore"):
        of_seeds = clustered_bootstrap(by_seed, groups, n_bootstrap=N_BOOTSTRAP)
    draws = (of_seeds * _seed_shares(len(each))).sum(axis=1)
    draws = draws[np.isfinite(draws)]  # a replicate without any case of a class has no AUC
    tail = min((draws <= 0).sum(), (draws >= 0).sum()) + 1  # the observed one counts too: no p of zero
    return {
        "auc_difference": float(values.mean()),
        "auc_difference_values": values.tolist(),
        "auc_difference_ci95": np.quantile(draws, [0.025, 0.975]).tolist(),
        "auc_difference_p": float(min(1.0, 2 * tail / (len(draws) + 1))),
        "auc_difference_method": BOTH if len(each) > 1 else ONE_TRAINING,
    }


def _seed_shares(n_seeds: int) -> NDArray[np.float64]:
    """The share of every seed in each replicate, [R, S]: one seed fewer than there are, drawn with replacement."""
    drawn = max(1, n_seeds - 1)
    rng = np.random.default_rng(1)  # not the numbers that draw the patients
    return rng.multinomial(drawn, np.full(n_seeds, 1 / n_seeds), N_BOOTSTRAP) / drawn


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation (None of a single seed) and values over the seeds."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "std": deviation, "values": [float(v) for v in values]}


def _weighted_difference(
    answers: Answers, first: str, second: str
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """Case weights [R, N] -> difference of two AUCs [R], as the mean over pairs of a positive and a negative case."""
    pairs = answers.wins(first) - answers.wins(second)
    truth = answers.labels == answers.positive

    def difference(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        positives, negatives = weights[:, truth], weights[:, ~truth]
        return ((positives @ pairs) * negatives).sum(1) / (positives.sum(1) * negatives.sum(1))

    return difference
