"""Calibration: weights of the levels and sources, temperature and class bias, fitted on validation data by regularised
logistic loss.

The logit of class y is the sum over the sources of ``weights[source] @ (mean value of each of its levels under y)``, plus
``bias[y]``, with weights >= 0; ``bayes`` adds the explicit log-prior afterwards. One weight for all levels is a temperature;
free weights say which levels decide. The penalty pulls the weights of a source's levels, in units of the spread of their
level, towards a common value, so that few validation images give a temperature and many give a weighting. The sums of the
weights of two sources are pulled, weakly, towards each other: sources count alike unless the images say otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.model_selection import StratifiedKFold

from scorebayes.decision.table import OK, Block, EvidenceTable
from scorebayes.errors import ConfigError, DataError

PENALTIES = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
_BIAS_PENALTY = 1.0
_SCALE_PENALTY = 0.01
_PAIR_PENALTY = 1.0

BySource = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Calibration:
    """How table values become logits.

    weights: [L] >= 0 by source, one for each level. bias: [Y]. level_log_snr: [L] by source, mean log-SNR of each level, for
    plots. kinds: by source, what its values are. penalty: chosen by cross-validation, rather too heavy than too light.
    log_loss: cross-fitted, nats per image. n: images it was fitted on. draw_means: [K, Y] by source, every draw in the mean
    over these images.
    """

    weights: BySource
    bias: NDArray[np.float64]
    level_log_snr: BySource
    kinds: Mapping[str, str]
    penalty: float = float("nan")
    log_loss: float = float("nan")
    n: int = 0
    draw_means: BySource = field(default_factory=dict)

    @staticmethod
    def none(table: EvidenceTable) -> Calibration:
        """Log-likelihoods as they are. ConfigError where the table holds other values, which have no natural scale."""
        for name, block in table.blocks.items():
            if block.kind not in ("density", "lower-bound"):
                raise ConfigError(
                    f"the values of {name!r} are of the kind {block.kind!r}, which has no natural scale.",
                    "Fit a calibration on validation data first.",
                )
        blocks = table.blocks.items()
        return Calibration(
            {name: _shares(block) for name, block in blocks},
            np.zeros(table.n_classes),
            {name: block.level_log_snr for name, block in blocks},
            {name: block.kind for name, block in blocks},
        )

    def logits(self, table: EvidenceTable) -> NDArray[np.float64]:
        """[N, Y], before the prior. ConfigError where the table has other sources or levels than it was fitted on."""
        self._require_same(table)
        sampled = [self.of_source(name, block) for name, block in table.blocks.items() if not block.exact]
        known = self.offsets({name: block for name, block in table.blocks.items() if block.exact})
        return sum(sampled, start=np.zeros((len(table), table.n_classes))) + known

    def of_source(self, name: str, block: Block) -> NDArray[np.float64]:
        """What a source adds to the logits [N, Y]."""
        return np.einsum("nly,l->ny", block.level_means, self.weights[name])

    def offsets(self, exact: Mapping[str, Block]) -> NDArray[np.float64]:
        """What the logits hold without Monte-Carlo error: exact blocks and bias [N, Y], or the bias alone [Y]."""
        known = [self.of_source(name, block) for name, block in exact.items()]
        return sum(known[1:], start=known[0]) + self.bias if known else self.bias

    def own_draws(self, name: str, block: Block) -> NDArray[np.float64]:
        """The draws [K, N, Y] less their means over the images that the calibration was fitted on.

        Where all images meet the same noise, part of what it does is alike for all of them: the bias takes it off, so it is
        no error of an image. Draws that were not among the calibration's stay as they are.
        """
        k, means = len(block.draws), self.draw_means.get(name, np.empty((0, 0)))
        return block.draws - means[:k, None] if k <= len(means) else block.draws

    def flat(self) -> Calibration:
        """The same evidence without fitted shares of the levels and without bias: one temperature for each source."""
        even = {name: np.full_like(weights, weights.mean()) for name, weights in self.weights.items()}
        return _changed(self, weights=even, bias=np.zeros_like(self.bias))

    def rescaled(self, scale: float, bias: NDArray[np.float64], log_loss: float, n: int) -> Calibration:
        """This calibration, its logits times ``scale`` plus ``bias`` [Y]: how sure, and for whom. The shares of levels and
        sources stay. ``log_loss``, ``n``: of the images that these were fitted on."""
        weights = {name: scale * of for name, of in self.weights.items()}
        return _changed(self, weights=weights, bias=scale * self.bias + bias, log_loss=log_loss, n=n)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {key: _plain(value) for key, value in asdict(self).items()}

    @staticmethod
    def from_dict(stored: Mapping[str, Any]) -> Calibration:
        """The inverse of ``to_dict``; other keys are passed over."""

        def arrays(key: str) -> dict[str, NDArray[np.float64]]:
            return {name: np.asarray(of, dtype=np.float64) for name, of in stored[key].items()}

        return Calibration(
            arrays("weights"), np.asarray(stored["bias"], dtype=np.float64), arrays("level_log_snr"), dict(stored["kinds"]),
            stored["penalty"], stored["log_loss"], stored["n"], arrays("draw_means"),
        )  # fmt: skip

    def _require_same(self, table: EvidenceTable) -> None:
        fitted = {name: (self.kinds[name], len(weights)) for name, weights in self.weights.items()}
        there = {name: (block.kind, block.n_levels) for name, block in table.blocks.items()}
        if fitted != there or table.n_classes != len(self.bias):
            raise ConfigError(
                f"the calibration was fitted on {_in_words(fitted)}, the table has {_in_words(there)}.",
                "Score the validation split with the same sources and estimator, and fit again.",
            )


def fit_calibration(
    table: EvidenceTable, log_prior: NDArray, *, folds: int = 5, seed: int = 0
) -> Calibration:
    """Fit weights and bias on the labelled images of a table, choosing the penalty by cross-validation.

    Parameters
    ----------
    table: validation images; rows with unknown label or failed status are left out.
    log_prior: [Y], of the validation images (it is added to the logits while fitting, as ``bayes`` does later).

    Raises DataError if a class has fewer than two images.
    """
    table = table.rows((table.labels >= 0) & (table.status == OK))
    labels = table.labels
    counts = np.bincount(labels, minlength=table.n_classes)
    if counts.min() < 2:
        raise DataError(
            f"calibration needs at least two validation images of every class, got {counts.tolist()}.",
            "Give more validation data.",
        )
    means = np.concatenate([block.level_means for block in table.blocks.values()], axis=1)
    spread = _spread(means)
    z = (means - means.mean(axis=2, keepdims=True)) / spread[:, None]
    sizes = [block.n_levels for block in table.blocks.values()]
    splitter = StratifiedKFold(min(folds, int(counts.min())), shuffle=True, random_state=seed)
    parts = list(splitter.split(z, labels))
    penalties = PENALTIES if max(sizes) > 1 else (1.0,)
    pulls = [_pull(penalty, sizes) for penalty in penalties]
    losses = np.stack([_cross_fitted_losses(z, labels, log_prior, pull, parts) for pull in pulls])
    chosen = _heaviest_that_may_be_best(losses)
    weights, bias = _fit(z, labels, log_prior, pulls[chosen])
    by_source = np.split(weights / spread, np.cumsum(sizes)[:-1])
    blocks = table.blocks.items()
    return Calibration(
        dict(zip(table.blocks, by_source, strict=True)),
        bias,
        {name: block.level_log_snr for name, block in blocks},
        {name: block.kind for name, block in blocks},
        penalties[chosen],
        float(losses[chosen].mean()),
        len(labels),
        {name: block.draws.mean(axis=1) for name, block in blocks if not block.exact},
    )


def _changed(calibration: Calibration, **fields: Any) -> Calibration:
    return Calibration(**{**vars(calibration), **fields})


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(of) for key, of in value.items()}
    return value.tolist() if isinstance(value, np.ndarray) else value


def _in_words(sources: Mapping[str, tuple[str, int]]) -> str:
    return ", ".join(f"{n} levels of {name} (kind {kind})" for name, (kind, n) in sources.items())


def _shares(block: Block) -> NDArray[np.float64]:
    """Share of the draws in each level [L]."""
    return np.bincount(np.unique(block.level, return_inverse=True)[1]) / len(block.level)


def _heaviest_that_may_be_best(losses: NDArray) -> int:
    """The last of the penalties whose loss exceeds the lowest by no more than one standard error of the difference.

    losses: [P, N] of the same images, penalties rising. The one-standard-error rule (Breiman et al. 1984, Classification and
    Regression Trees, 3.4.3), on paired differences: few images often prefer a light penalty by chance.
    """
    excess = losses - losses[losses.mean(axis=1).argmin()]
    std_error = excess.std(axis=1, ddof=1) / np.sqrt(losses.shape[1])
    return int(np.flatnonzero(excess.mean(axis=1) <= std_error)[-1])


def _spread(means: NDArray) -> NDArray:
    """Standard deviation over the images of what a level says about the classes [L]."""
    centred = means - means.mean(axis=2, keepdims=True)
    return np.maximum(centred.std(axis=0).mean(axis=1), 1e-12)


def _cross_fitted_losses(
    z: NDArray, labels: NDArray, log_prior: NDArray, pull: NDArray, parts: list
) -> NDArray[np.float64]:
    """Log-loss of every image [N] by weights that were fitted without it."""
    log_prob = np.empty((len(z), z.shape[2]))
    for fit_rows, held_out in parts:
        weights, bias = _fit(z[fit_rows], labels[fit_rows], log_prior, pull)
        log_prob[held_out] = log_softmax(
            np.einsum("nly,l->ny", z[held_out], weights) + bias + log_prior, axis=1
        )
    return -log_prob[np.arange(len(labels)), labels]


def _pull(penalty: float, sizes: list[int]) -> NDArray[np.float64]:
    """The quadratic form of the penalties on the weights [W, W], source after source; ``sizes``: levels of each.

    ``penalty``: on what parts the weights of a source's levels from their mean.
    """
    of = np.repeat(np.arange(len(sizes)), sizes)
    form = _SCALE_PENALTY * np.eye(len(of))
    for source, n in enumerate(sizes):
        form[np.ix_(of == source, of == source)] += penalty * (np.eye(n) - 1 / n)
    for first, second in combinations(range(len(sizes)), 2):
        sides = (of == second) - 1.0 * (of == first)
        form += _PAIR_PENALTY * np.outer(sides, sides)
    return form


def _fit(z: NDArray, labels: NDArray, log_prior: NDArray, pull: NDArray) -> tuple[NDArray, NDArray]:
    """Minimise the summed log-loss plus penalties over weights >= 0 and bias, with the analytic gradient.

    z: [N, W, Y]. pull: of ``_pull``.
    """
    n_weights, n_classes = z.shape[1:]
    one_hot = np.eye(n_classes)[labels]

    def objective(parameters: NDArray) -> tuple[float, NDArray]:
        weights, bias = parameters[:n_weights], parameters[n_weights:]
        logits = np.einsum("nly,l->ny", z, weights) + bias + log_prior
        loss = -log_softmax(logits, axis=1)[np.arange(len(labels)), labels].sum()
        loss += 0.5 * (weights @ pull @ weights + _BIAS_PENALTY * bias @ bias)
        residual = softmax(logits, axis=1) - one_hot
        gradient_weights = np.einsum("ny,nly->l", residual, z) + pull @ weights
        return loss, np.concatenate([gradient_weights, residual.sum(axis=0) + _BIAS_PENALTY * bias])

    start = np.concatenate([np.full(n_weights, 1.0 / n_weights), np.zeros(n_classes)])
    bounds = [(0.0, None)] * n_weights + [(None, None)] * n_classes
    found = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds)
    return found.x[:n_weights], found.x[n_weights:]
