"""Calibration: weights of the levels and sources, temperature and class bias, fitted on validation data by regularised
logistic loss.

The logit of class y is the sum over the sources of ``weights[source] @ (mean value of each of its levels under y)``, plus
``bias[y]``, with weights >= 0; ``bayes`` adds the explicit log-prior afterwards. One weight for all levels is a temperature;
free weights say which levels decide. The penalty pulls the weights of a source's levels, in units of the spread of their
level, towards a common value, so that few validation images give a temperature and many give a weighting.

Several sources are weighed in three steps (docs/decisions/0021), so that all together are never much worse than the best of
them: each is calibrated alone; what each would lose on images left out of its fit gives the sources' shares, as in
pseudo-BMA+ (Yao, Vehtari, Simpson & Gelman 2018, doi 10.1214/17-BA1091); then one scale for each source is fitted, pulled
firmly towards its share.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from scorebayes.decision.folds import Rows, labelled_folds
from scorebayes.decision.table import OK, Block, EvidenceTable
from scorebayes.errors import ConfigError, DataError

PENALTIES = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
_BIAS_PENALTY = 1.0
_SCALE_PENALTY = 0.01  # of a single source
_RIDGE = 1.0  # on the sum of a source's weights, in units of spread, where there are several
_SHARE_PULL = 10.0  # of a source's scale towards its share
_BOOTSTRAPS = 500

BySource = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Calibration:
    """How table values become logits.

    weights: [L] >= 0 by source, one for each level. bias: [Y]. level_log_snr: [L] by source, mean log-SNR of each level, for
    plots. kinds: by source, what its values are. penalties: by source, chosen by cross-validation, rather too heavy than too
    light. shares: by source, of what they say together. log_loss: cross-fitted, nats per image. n: images it was fitted on.
    draw_means: [K, Y] by source, every draw in the mean over these images.
    """

    weights: BySource
    bias: NDArray[np.float64]
    level_log_snr: BySource
    kinds: Mapping[str, str]
    penalties: Mapping[str, float] = field(default_factory=dict)
    shares: Mapping[str, float] = field(default_factory=dict)
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
        """The inverse of ``to_dict``; other keys are passed over. LookupError, TypeError or ValueError where it makes no
        sense."""

        def arrays(key: str) -> dict[str, NDArray[np.float64]]:
            return {name: np.asarray(of, dtype=np.float64) for name, of in stored[key].items()}

        weights, bias = arrays("weights"), np.asarray(stored["bias"], dtype=np.float64)
        if any(of.ndim != 1 or not np.isfinite(of).all() for of in (bias, *weights.values())):
            raise ValueError("weights or bias are not finite numbers")
        return Calibration(
            weights, bias, arrays("level_log_snr"), dict(stored["kinds"]),
            dict(stored["penalties"]), dict(stored["shares"]), stored["log_loss"], stored["n"], arrays("draw_means"),
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
    """Fit weights and bias on the labelled images of a table, with every choice made by cross-validation over patients.

    Parameters
    ----------
    table: validation images; rows with unknown label or failed status are left out.
    log_prior: [Y], of the validation images (it is added to the logits while fitting, as ``bayes`` does later).

    Raises DataError if a class has fewer than two images.
    """
    table = table.rows((table.labels >= 0) & (table.status == OK))
    counts = np.bincount(table.labels, minlength=table.n_classes)
    if counts.min() < 2:
        raise DataError(
            f"calibration needs at least two validation images of every class, got {counts.tolist()}.",
            "Give more validation data.",
        )
    images = _Images(
        {name: block.level_means for name, block in table.blocks.items()},
        table.labels,
        np.asarray(log_prior, dtype=np.float64),
        np.unique(table.patients, return_inverse=True)[1],
    )
    parts = images.folds(folds, seed)
    found = _weigh(images, parts, seed)
    blocks = table.blocks.items()
    return Calibration(
        found.weights,
        found.bias,
        {name: block.level_log_snr for name, block in blocks},
        {name: block.kind for name, block in blocks},
        found.penalties,
        found.shares,
        found.log_loss if len(images.means) == 1 else _cross_fitted_log_loss(images, parts, folds, seed),
        len(table),
        {name: block.draws.mean(axis=1) for name, block in blocks if not block.exact},
    )


_Parts = list[tuple[Rows, Rows]]


class _Images(NamedTuple):
    """What is fitted to: means [N, L, Y] by source, labels [N], log_prior [Y], number of each image's patient [N]."""

    means: Mapping[str, NDArray[np.float64]]
    labels: NDArray[np.int64]
    log_prior: NDArray[np.float64]
    patients: NDArray[np.int64]

    def rows(self, index: NDArray[np.int64]) -> _Images:
        means = {name: of[index] for name, of in self.means.items()}
        return _Images(means, self.labels[index], self.log_prior, self.patients[index])

    def folds(self, most: int, seed: int) -> _Parts:
        """Rows to fit on and rows held out, all images of a patient on one side."""
        return labelled_folds(self.labels, self.patients, most, seed)


class _Weighed(NamedTuple):
    """Weights [L] by source, bias [Y], penalties and shares by source, and the log-loss of a single source, cross-fitted."""

    weights: dict[str, NDArray[np.float64]]
    bias: NDArray[np.float64]
    penalties: dict[str, float]
    shares: dict[str, float]
    log_loss: float


def _weigh(images: _Images, parts: _Parts, seed: int) -> _Weighed:
    """Each source alone, their shares, and one scale for each."""
    several = len(images.means) > 1
    alone = {name: _fit_alone(means, images, parts, several) for name, means in images.means.items()}
    penalties = {name: of.penalty for name, of in alone.items()}
    if not several:
        ((name, only),) = alone.items()
        return _Weighed({name: only.weights}, only.bias, penalties, {name: 1.0}, float(only.losses.mean()))
    shares = _shares_of_sources(np.stack([of.losses for of in alone.values()]), images.patients, seed)
    parts_of_logits = np.stack(
        [np.einsum("nly,l->ny", _centred(images.means[name]), of.weights) for name, of in alone.items()],
        axis=1,
    )
    pull = _SHARE_PULL * np.eye(len(alone))
    scales, bias = _fit(parts_of_logits, images.labels, images.log_prior, pull, shares)
    weights = {name: scale * of.weights for scale, (name, of) in zip(scales, alone.items(), strict=True)}
    return _Weighed(weights, bias, penalties, dict(zip(alone, shares.tolist(), strict=True)), float("nan"))


class _Alone(NamedTuple):
    """A source by itself: weights [L], bias [Y], the penalty chosen, and the cross-fitted loss of every image [N]."""

    weights: NDArray[np.float64]
    bias: NDArray[np.float64]
    penalty: float
    losses: NDArray[np.float64]


def _fit_alone(means: NDArray, images: _Images, parts: _Parts, several: bool) -> _Alone:
    spread = _spread(means)
    z, n_levels = _centred(means) / spread[:, None], means.shape[1]
    penalties = PENALTIES if n_levels > 1 else (1.0,)
    pulls = [_pull(penalty, n_levels, several) for penalty in penalties]
    losses = np.stack(
        [_cross_fitted_losses(z, images.labels, images.log_prior, pull, parts) for pull in pulls]
    )
    chosen = _heaviest_that_may_be_best(losses, images.patients)
    weights, bias = _fit(z, images.labels, images.log_prior, pulls[chosen])
    return _Alone(weights / spread, bias, penalties[chosen], losses[chosen])


def _shares_of_sources(losses: NDArray, patients: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
    """Shares [S] from the sources' cross-fitted losses [S, N]: the mean over the Bayesian bootstrap of the patients of the
    softmax of minus the summed losses."""
    by_patient = _sums_by_patient(losses, patients)
    n = by_patient.shape[1]
    drawn = np.random.default_rng(seed).dirichlet(np.ones(n), _BOOTSTRAPS)
    return softmax(-n * drawn @ by_patient.T, axis=1).mean(axis=0)


def _cross_fitted_log_loss(images: _Images, parts: _Parts, folds: int, seed: int) -> float:
    """Of weights and shares that were fitted, each choice included, without the patients of the image."""
    log_prob = np.empty((len(images.labels), len(images.log_prior)))
    for fit_rows, held_out in parts:
        some, rest = images.rows(fit_rows), images.rows(held_out)
        if np.bincount(some.labels, minlength=len(images.log_prior)).min() < 2:
            return float("nan")
        found = _weigh(some, some.folds(folds, seed), seed)
        logits = sum(np.einsum("nly,l->ny", rest.means[name], of) for name, of in found.weights.items())
        log_prob[held_out] = log_softmax(logits + found.bias + images.log_prior, axis=1)
    return float(-log_prob[np.arange(len(images.labels)), images.labels].mean())


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


def _heaviest_that_may_be_best(losses: NDArray, patients: NDArray[np.int64]) -> int:
    """The last of the penalties whose loss exceeds the lowest by no more than one standard error of the difference.

    losses: [P, N] of the same images, penalties rising. patients: [N]; the standard error is that of their sums. The
    one-standard-error rule (Breiman et al. 1984, Classification and Regression Trees, 3.4.3), on paired differences: few
    images often prefer a light penalty by chance.
    """
    excess = losses - losses[losses.mean(axis=1).argmin()]
    mean = excess.mean(axis=1, keepdims=True)
    of_patients = _sums_by_patient(excess - mean, patients)
    n_patients = of_patients.shape[1]
    std_error = np.sqrt(np.square(of_patients).sum(axis=1) * n_patients / max(1, n_patients - 1))
    return int(np.flatnonzero(mean[:, 0] <= std_error / losses.shape[1])[-1])


def _sums_by_patient(values: NDArray, patients: NDArray[np.int64]) -> NDArray[np.float64]:
    """values [S, N] -> [S, P], patients in the order of their numbers."""
    numbers = np.unique(patients, return_inverse=True)[1]
    return np.stack([np.bincount(numbers, of) for of in values])


def _spread(means: NDArray) -> NDArray:
    """Standard deviation over the images of what a level says about the classes [L]."""
    return np.maximum(_centred(means).std(axis=0).mean(axis=1), 1e-12)


def _centred(means: NDArray) -> NDArray:
    """Less what is alike for all classes."""
    return means - means.mean(axis=2, keepdims=True)


def _cross_fitted_losses(
    z: NDArray, labels: NDArray, log_prior: NDArray, pull: NDArray, parts: _Parts
) -> NDArray[np.float64]:
    """Log-loss of every image [N] by weights that were fitted without it."""
    log_prob = np.empty((len(z), z.shape[2]))
    for fit_rows, held_out in parts:
        weights, bias = _fit(z[fit_rows], labels[fit_rows], log_prior, pull)
        log_prob[held_out] = log_softmax(
            np.einsum("nly,l->ny", z[held_out], weights) + bias + log_prior, axis=1
        )
    return -log_prob[np.arange(len(labels)), labels]


def _pull(penalty: float, n_levels: int, several: bool) -> NDArray[np.float64]:
    """The quadratic form of the penalties on the weights of a source [L, L].

    ``penalty``: on what parts the weights of the levels from their mean. Of several sources, the sum is held back, too: a
    source that says nothing must not be believed by chance.
    """
    apart = penalty * (np.eye(n_levels) - 1 / n_levels)
    return apart + (_RIDGE * np.ones((n_levels, n_levels)) if several else _SCALE_PENALTY * np.eye(n_levels))


def _fit(
    z: NDArray, labels: NDArray, log_prior: NDArray, pull: NDArray, towards: NDArray | None = None
) -> tuple[NDArray, NDArray]:
    """Minimise the summed log-loss plus penalties over weights >= 0 and bias, with the analytic gradient.

    z: [N, W, Y]. pull: a quadratic form on the weights less ``towards`` [W], by default zero.
    """
    n_weights, n_classes = z.shape[1:]
    one_hot, own = np.eye(n_classes)[labels], (np.arange(len(labels)), labels)

    def objective(parameters: NDArray) -> tuple[float, NDArray]:
        weights, bias = parameters[:n_weights], parameters[n_weights:]
        logits = np.einsum("nly,l->ny", z, weights) + bias + log_prior
        # SciPy's softmax and log_softmax, at a fifth of their price for so few numbers.
        below = logits - logits.max(axis=1, keepdims=True)
        odds = np.exp(below)
        total = odds.sum(axis=1, keepdims=True)
        loss = -(below[own] - np.log(total[:, 0])).sum()
        away = weights if towards is None else weights - towards
        loss += 0.5 * (away @ pull @ away + _BIAS_PENALTY * bias @ bias)
        residual = odds / total - one_hot
        gradient_weights = np.einsum("ny,nly->l", residual, z) + pull @ away
        return loss, np.concatenate([gradient_weights, residual.sum(axis=0) + _BIAS_PENALTY * bias])

    begin = np.full(n_weights, 1.0 / n_weights) if towards is None else towards
    start = np.concatenate([begin, np.zeros(n_classes)])
    bounds = [(0.0, None)] * n_weights + [(None, None)] * n_classes
    found = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds)
    return found.x[:n_weights], found.x[n_weights:]
