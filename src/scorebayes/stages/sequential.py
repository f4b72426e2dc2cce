"""Sequential decisions: spend network evaluations only while the answer is still open.

The class score is looked at pass by pass (one draw per noise level, the draws that ``Denoising`` makes). After each pass
every class that is left is compared with the leading one; where their calibrated log-odds differ by more than chance
allows, the class is dropped. The image is decided when one class is left, or the budget is spent.

The rule. The difference of two classes, with a standard error of nu degrees of freedom, is decided if it is beyond
Student's t at the two-sided level ``target_error / ((budget - 1) (Y - 1))``: Bonferroni over looks (the last pass does
not count, because nothing can be saved there) and rivals. The probability that an image gets another class than with
infinitely many draws is then at most ``target_error``, if the sum over the noise levels is normal. The variance
pools the spread within the noise levels, nu is Welch and Satterthwaite's.

A dropped class keeps its paired difference to the leading class, over the passes that both have seen. The result is
therefore one value per noise level with a posterior that has its own standard error, and not another ``Likelihood``: it
takes calibration and prior to know when to stop (docs/decisions/0003-sequential.md).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp
from scipy.stats import t as student
from torch import Tensor

from scorebayes.decision.calibration import Calibration
from scorebayes.decision.posterior import Posterior, bayes
from scorebayes.decision.table import OK, Block, EvidenceTable
from scorebayes.diffusion.likelihood import Denoising
from scorebayes.errors import ConfigError
from scorebayes.evidence.base import Sampled
from scorebayes.runs.run import Run


@dataclass(frozen=True)
class SequentialResult:
    """Decisions for N images.

    table: class scores with one value per noise level; ``bayes`` makes the posterior of it, but not its standard error.
    posterior: with its standard error; NaN where the status is not "ok".
    evaluations: [N], of the network, over all classes. passes: [N], of the leading class.
    decided: [N], by the rule; elsewhere the budget was spent.
    """

    table: EvidenceTable
    posterior: Posterior
    evaluations: NDArray[np.int64]
    passes: NDArray[np.int64]
    decided: NDArray[np.bool_]


@dataclass(frozen=True)
class Sequential:
    """When to stop.

    Parameters
    ----------
    calibration: of all sources, as fitted on validation. log_prior: [Y].
    sources: those whose passes are spent, in the calibration's order. budget: largest number of passes over their levels.
    target_error: probability that an early decision differs from that of infinitely many draws.
    """

    calibration: Calibration
    log_prior: NDArray[np.float64]
    sources: Sequence[Sampled]
    budget: int = 4
    target_error: float = 0.05

    def __post_init__(self) -> None:
        if self.budget < 2:
            raise ConfigError(
                f"budget = {self.budget}: expected 2 or more.",
                "Give at least 2 passes, or use a fixed number.",
            )
        if not 0 < self.target_error < 1:
            raise ConfigError(
                f"target_error = {self.target_error} is not a probability.", "Give a number between 0 and 1."
            )
        for source in self.sources:
            fitted = self.calibration.weights.get(source.name, np.empty(0))
            kind = self.calibration.kinds.get(source.name)
            if (kind, len(fitted)) != (Denoising.kind, source.levels):
                raise ConfigError(
                    f"the calibration was fitted on {len(fitted)} levels of {source.name} (kind {kind}), "
                    f"but the source has {source.levels} of kind {Denoising.kind}.",
                    "Calibrate with the same estimator.",
                )

    @property
    def _weights(self) -> NDArray[np.float64]:
        """Of all levels, source after source."""
        return np.concatenate([self.calibration.weights[source.name] for source in self.sources])

    def __call__(
        self, x: Tensor, keys: Sequence[str], exact: Mapping[str, Block] | None = None
    ) -> SequentialResult:
        """x [N, C, H, W] standardised, with one key per image; exact: what the other sources say of them."""
        exact = exact or {}
        found = [
            self._decide(
                x[i : i + 1], keys[i], {name: of.rows(slice(i, i + 1)) for name, of in exact.items()}
            )
            for i in range(len(x))
        ]
        table = EvidenceTable.concatenate([one.table for one in found])
        posterior = Posterior(
            np.concatenate([one.posterior.log_prob for one in found]),
            np.concatenate([one.posterior.log_odds_std_error for one in found]),
        )
        evaluations, passes, decided = (
            np.concatenate([getattr(one, name) for one in found])
            for name in ("evaluations", "passes", "decided")
        )
        return SequentialResult(table, posterior, evaluations, passes, decided)

    def _decide(self, x: Tensor, key: str, exact: Mapping[str, Block]) -> SequentialResult:
        """One image."""
        start = time.perf_counter()
        sizes, n_classes = [source.levels for source in self.sources], len(self.log_prior)
        values = np.full((self.budget, sum(sizes), n_classes), np.nan)
        seen = np.zeros(n_classes, dtype=np.int64)
        left = np.arange(n_classes)
        offsets = self.calibration.offsets(exact)
        known = (offsets[0] if exact else offsets) + self.log_prior
        log_snr = np.zeros((sum(sizes), 1))
        for number in range(self.budget):
            classes = None if len(left) == n_classes else left
            one, at = self._pass(x, key, number, classes)
            values[number][:, left] = one[:, 0]
            log_snr += at
            seen[left] += 1
            leader, left = self._look(values[: number + 1], left, known)
            if len(left) == 1 or not np.isfinite(values[number][:, left]).all():
                break
        passes = int(seen.max())
        level_values = values[:passes, :, leader].mean(0)[:, None] - np.stack(
            [(values[:n, :, leader] - values[:n, :, y]).mean(0) for y, n in enumerate(seen)], axis=1
        )
        status = OK if np.isfinite(level_values).all() else "not finite"
        evaluations = int(seen.sum()) * sum(source.levels * source.evaluations for source in self.sources)
        table = EvidenceTable(
            (key,),
            np.full(1, -1),
            self._blocks(level_values, log_snr / passes, int(seen.sum()), status) | dict(exact),
            np.array([time.perf_counter() - start]),
        )
        posterior = Posterior(*np.full((2, 1, n_classes), np.nan))
        if status == OK:
            log_prob = bayes(table, self.log_prior, self.calibration).log_prob
            posterior = Posterior(log_prob, self._log_odds_std_error(values, seen, leader, log_prob[0]))
        return SequentialResult(
            table, posterior, np.array([evaluations]), np.array([passes]), np.array([len(left) == 1])
        )

    def _pass(
        self, x: Tensor, key: str, number: int, classes: NDArray[np.int64] | None
    ) -> tuple[NDArray, NDArray]:
        """One pass over the levels of all sources: values [L, 1, Y], log-SNR [L, 1]."""
        each = [source.passes(x, [key], range(number, number + 1), classes) for source in self.sources]
        return np.concatenate([values for values, _ in each]), np.concatenate([at for _, at in each])

    def _blocks(self, values: NDArray, log_snr: NDArray, asked: int, status: str) -> dict[str, Block]:
        """One value per level [L, Y] as the sources' blocks. ``asked``: passes, summed over the classes."""
        found, first = {}, 0
        for source in self.sources:
            own = slice(first, first + source.levels)
            evaluations = asked * source.levels * source.evaluations
            found[source.name] = Block(
                values[own, None], log_snr[own], np.arange(source.levels),
                np.array([-(-evaluations // len(self.log_prior))]), np.array([status]), Denoising.kind,
            )  # fmt: skip
            first += source.levels
        return found

    def _look(
        self, values: NDArray, left: NDArray[np.int64], known: NDArray[np.float64]
    ) -> tuple[int, NDArray[np.int64]]:
        """The leading class after some passes [P, L, Y], and the classes that are left; known [Y]: logits without them."""
        logits = np.einsum("ply,l->y", values[:, :, left], self._weights) / len(values)
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
        (collapsed strata, as in ``Block.variance_of_mean``).
        """
        a, b = a * self._weights, b * self._weights
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
    """``Sequential`` with the sources, calibration and prior of a run: x [N, C, S, S] standardised, one key per image.

    Exact sources come first: they may already decide. Raises ConfigError for a run whose estimator is not
    "denoising".
    """
    if run.likelihood.kind != Denoising.kind:
        raise ConfigError(
            f"{run.path}: a run calibrated for {run.config.sections['likelihood']['kind']!r} cannot decide "
            "sequentially.",
            "Train or calibrate with [likelihood] kind = 'denoising'.",
        )
    sampled = [cast(Sampled, source) for source in run.sources.values() if source.sampled]
    exact = {name: source.log_lik(x, keys) for name, source in run.sources.items() if not source.sampled}
    return Sequential(run.calibration, run.log_prior, sampled, budget, target_error)(x, keys, exact)
