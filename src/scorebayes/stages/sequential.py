"""Sequential decisions: network evaluations where the answer is still open, none where it is clear.

The class score is looked at pass by pass (one draw per noise level, the draws that ``Denoising`` makes). After each pass
every class that is left is compared with the leading one; where their calibrated log-odds differ by more than chance
allows, the class is dropped. The image is decided when one class is left, or the budget is spent.

The rule. The difference of two classes, with a standard error of nu degrees of freedom, is decided if it is beyond
Student's t at the two-sided level ``target_error / ((budget - 1) (Y - 1))``: Bonferroni over looks (the last pass is
none, as nothing is saved there) and rivals. The probability that an image is decided for another class than endless
draws would say is then at most ``target_error``, as far as the sum over the noise levels is normal. The variance
pools the spread within the noise levels, nu is Welch and Satterthwaite's.

A dropped class keeps its paired difference to the leading class, over the passes that both have seen. The result is
therefore one value per noise level with a posterior that has its own standard error, and not another ``Likelihood``: it
takes calibration and prior to know when to stop (docs/decisions/0003-sequential.md).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp
from scipy.stats import t as student
from torch import Tensor

from scorebayes.decision.calibration import Calibration
from scorebayes.decision.posterior import Posterior, bayes
from scorebayes.decision.table import LogLikTable
from scorebayes.diffusion.draws import Draws
from scorebayes.diffusion.likelihood.denoising import Denoising
from scorebayes.diffusion.score import Score
from scorebayes.errors import ConfigError
from scorebayes.runs.run import Run


@dataclass(frozen=True)
class SequentialResult:
    """Decisions for N images.

    table: class scores with one value per noise level; ``bayes`` makes the posterior of it, but not its standard error.
    posterior: with its standard error; NaN where the status is not "ok".
    evaluations: [N], of the network, over all classes. passes: [N], of the leading class.
    decided: [N], by the rule; elsewhere the budget was spent.
    """

    table: LogLikTable
    posterior: Posterior
    evaluations: NDArray[np.int64]
    passes: NDArray[np.int64]
    decided: NDArray[np.bool_]


@dataclass(frozen=True)
class Sequential:
    """When to stop.

    Parameters
    ----------
    calibration: of the class score, as fitted on validation. log_prior: [Y].
    budget: largest number of passes over the noise levels.
    target_error: probability that an early decision is another than that of endless draws.
    estimator: the class score whose passes are spent; its ``repeats`` are not used.
    """

    calibration: Calibration
    log_prior: NDArray[np.float64]
    budget: int = 4
    target_error: float = 0.05
    estimator: Denoising = field(default_factory=Denoising)

    def __post_init__(self) -> None:
        if self.budget < 2:
            raise ConfigError(f"budget = {self.budget}.", "Give at least 2 passes, or use a fixed number.")
        if not 0 < self.target_error < 1:
            raise ConfigError(f"target_error = {self.target_error}.", "Give a probability between 0 and 1.")
        levels, kind = len(self.calibration.weights), self.calibration.kind
        if (kind, levels) != (self.estimator.kind, self.estimator.levels):
            raise ConfigError(
                f"the calibration was fitted on {levels} levels of kind {kind}, "
                f"the estimator has {self.estimator.levels} of kind {self.estimator.kind}.",
                "Calibrate with the same estimator.",
            )

    def __call__(
        self, score: Score, x: Tensor, draws: Draws, wavelets: NDArray[np.float64] | None = None
    ) -> SequentialResult:
        """x [N, C, H, W] standardised, ``draws`` with one key per image; wavelets [N, Y]: as in ``LogLikTable``."""
        if wavelets is None:
            wavelets = np.zeros((len(x), score.n_classes))
        found = [
            self._decide(score, x[i : i + 1], draws[i : i + 1], wavelets[i : i + 1]) for i in range(len(x))
        ]
        table = LogLikTable.concatenate([one.table for one in found])
        posterior = Posterior(
            np.concatenate([one.posterior.log_prob for one in found]),
            np.concatenate([one.posterior.log_odds_std_error for one in found]),
        )
        evaluations, passes, decided = (
            np.concatenate([getattr(one, name) for one in found])
            for name in ("evaluations", "passes", "decided")
        )
        return SequentialResult(table, posterior, evaluations, passes, decided)

    def _decide(
        self, score: Score, x: Tensor, draws: Draws, wavelets: NDArray[np.float64]
    ) -> SequentialResult:
        """One image."""
        start = time.perf_counter()
        levels, n_classes = self.estimator.levels, score.n_classes
        values = np.full((self.budget, levels, n_classes), np.nan)
        seen = np.zeros(n_classes, dtype=np.int64)
        left = np.arange(n_classes)
        known = self.calibration.offsets(wavelets)[0] + self.log_prior
        log_snr = np.zeros((levels, 1))
        for number in range(self.budget):
            classes = None if len(left) == n_classes else torch.from_numpy(left)
            one, at = self.estimator.passes(score, x, draws, range(number, number + 1), classes)
            values[number][:, left] = one[:, 0]
            log_snr += at.T.numpy()
            seen[left] += 1
            leader, left = self._look(values[: number + 1], left, known)
            if len(left) == 1 or not np.isfinite(values[number][:, left]).all():
                break
        passes = int(seen.max())
        level_values = values[:passes, :, leader].mean(0)[:, None] - np.stack(
            [(values[:n, :, leader] - values[:n, :, y]).mean(0) for y, n in enumerate(seen)], axis=1
        )
        status = "ok" if np.isfinite(level_values).all() else "not finite"
        evaluations = int(seen.sum()) * levels * (2 if self.estimator.antithetic else 1)
        table = LogLikTable(
            draws.keys, np.full(1, -1), level_values[:, None], log_snr / passes, np.arange(levels),
            np.array([-(-evaluations // n_classes)]), np.array([status]), np.array([time.perf_counter() - start]),
            self.estimator.kind, wavelets,
        )  # fmt: skip
        posterior = Posterior(*np.full((2, 1, n_classes), np.nan))
        if status == "ok":
            log_prob = bayes(table, self.log_prior, self.calibration).log_prob
            posterior = Posterior(log_prob, self._log_odds_std_error(values, seen, leader, log_prob[0]))
        return SequentialResult(
            table, posterior, np.array([evaluations]), np.array([passes]), np.array([len(left) == 1])
        )

    def _look(
        self, values: NDArray, left: NDArray[np.int64], known: NDArray[np.float64]
    ) -> tuple[int, NDArray[np.int64]]:
        """The leading class after some passes [P, L, Y], and the classes that are left; known [Y]: logits without them."""
        logits = np.einsum("ply,l->y", values[:, :, left], self.calibration.weights) / len(values)
        logits = logits + known[left]
        leader = left[logits.argmax()]
        if len(values) == self.budget:
            return leader, left
        keep = []
        for y, behind in zip(left, logits.max() - logits, strict=True):
            parts, freedom = self._variance_parts(*[values[:, :, leader] - values[:, :, y]] * 2)
            variance = parts.sum()
            # Where the classes are one there is no variance, and no difference either.
            nu = variance**2 / (parts**2 / freedom).sum() if variance > 0 else 1.0
            if y == leader or behind <= self._critical(nu) * np.sqrt(variance / len(values)):
                keep.append(y)
        return leader, np.array(keep)

    def _critical(self, nu: float) -> float:
        """How many standard errors decide."""
        comparisons = (self.budget - 1) * (len(self.log_prior) - 1)
        return float(student.isf(0.5 * self.target_error / comparisons, nu))

    def _variance_parts(self, a: NDArray, b: NDArray) -> tuple[NDArray, NDArray]:
        """Covariance of the weighted sums of paired differences a, b [P, L] in one pass: its terms, and their freedom.

        One term per noise level; with a single pass one per pair of neighbours, whose difference is taken as spread
        (collapsed strata, as in ``Calibration.variance_of_mean``).
        """
        a, b = a * self.calibration.weights, b * self.calibration.weights
        if len(a) > 1:
            terms = ((a - a.mean(0)) * (b - b.mean(0))).sum(0) / (len(a) - 1)
            return terms, np.full(len(terms), len(a) - 1.0)
        groups = np.array_split(np.arange(a.shape[1]), max(1, a.shape[1] // 2))
        terms = np.array([len(g) * np.cov(a[0, g], b[0, g])[0, 1] for g in groups])
        return terms, np.array([len(g) - 1.0 for g in groups])

    def _log_odds_std_error(
        self, values: NDArray, seen: NDArray[np.int64], leader: int, log_prob: NDArray
    ) -> NDArray[np.float64]:
        """Delta method, [1, Y]: covariances of the paired differences to the leading class over their common passes."""
        n_classes = len(seen)
        covariance = np.zeros((n_classes, n_classes))
        for a in range(n_classes):
            for b in range(n_classes):
                common = values[: min(seen[a], seen[b])]
                gaps = common[:, :, [leader]] - common[:, :, [a, b]]
                terms, _ = self._variance_parts(gaps[..., 0], gaps[..., 1])
                covariance[a, b] = terms.sum() / max(seen[a], seen[b])
        std_error = np.empty((1, n_classes))
        for y in range(n_classes):
            others = np.where(np.arange(n_classes) == y, -np.inf, log_prob)
            gradient = (np.arange(n_classes) == y) - np.exp(others - logsumexp(others))
            std_error[0, y] = np.sqrt(max(0.0, gradient @ covariance @ gradient))
        return std_error


def decide_sequentially(
    run: Run, x: Tensor, keys: Sequence[str], *, budget: int = 4, target_error: float = 0.05
) -> SequentialResult:
    """``Sequential`` with the network, calibration and prior of a run: x [N, C, S, S] standardised, one key per image.

    Raises ConfigError for a run whose own estimator is not "denoising".
    """
    if run.likelihood.kind != Denoising.kind:
        raise ConfigError(
            f"{run.path}: a run calibrated for {run.config.sections['likelihood']['kind']!r} cannot decide "
            "sequentially.",
            "Train or calibrate with [likelihood] kind = 'denoising'.",
        )
    estimator = cast(Denoising, run.likelihood)
    rule = Sequential(run.calibration, run.log_prior, budget, target_error, estimator)
    with torch.no_grad():
        wavelets = None if run.wavelets is None else run.wavelets.of_images(x).numpy()
        return rule(run.score, x, Draws(run.config.seed, keys), wavelets)
