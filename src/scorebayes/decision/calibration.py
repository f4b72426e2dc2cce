"""Calibration: noise-level weights, temperature and class bias, fitted on validation data by regularised logistic loss.

The logit of class y is ``sum_l weights[l] * (mean value of level l under y) + wavelet_weight * (what the wavelets say of y)
+ bias[y]``, with weights >= 0; the explicit log-prior is added afterwards by ``bayes``. One weight for all levels is a
temperature; free weights say which noise levels decide. The penalty pulls the weights of the levels, in units of the spread
of their level, towards a common value, so that few validation images give a temperature and many give a weighting. That of
the wavelets is pulled, weakly, towards the sum of those of the levels: pixels and wavelets as a pair of equals, unless the
images say otherwise.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.model_selection import StratifiedKFold

from scorebayes.decision.table import LogLikTable
from scorebayes.errors import ConfigError, DataError

PENALTIES = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
_BIAS_PENALTY = 1.0
_SCALE_PENALTY = 0.01
_PAIR_PENALTY = 1.0


@dataclass(frozen=True)
class Calibration:
    """How table values become logits.

    weights: [L] >= 0, per noise level. bias: [Y]. level_log_snr: [L], mean log-SNR of each level, for plots.
    penalty: chosen by cross-validation, rather too heavy than too light. log_loss: cross-fitted, nats per image.
    n: images it was fitted on. draw_means: [K, Y], every draw in the mean over these images. wavelet_weight: >= 0.
    """

    weights: NDArray[np.float64]
    bias: NDArray[np.float64]
    level_log_snr: NDArray[np.float64]
    kind: str
    penalty: float = float("nan")
    log_loss: float = float("nan")
    n: int = 0
    draw_means: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 0)))
    wavelet_weight: float = 0.0

    @staticmethod
    def none(table: LogLikTable) -> Calibration:
        """Log-likelihoods as they are. A class score has no natural scale: ConfigError."""
        if table.kind == "class-score":
            raise ConfigError(
                "class scores have no natural scale.", "Fit a calibration on validation data first."
            )
        share = np.bincount(np.unique(table.level, return_inverse=True)[1]) / len(table.level)
        return Calibration(share, np.zeros(table.draws.shape[2]), _level_log_snr(table), table.kind)

    def logits(self, table: LogLikTable) -> NDArray[np.float64]:
        """[N, Y], before the prior."""
        means = table.level_means
        if table.kind != self.kind or means.shape[1] != len(self.weights) or means.shape[2] != len(self.bias):
            raise ConfigError(
                f"the calibration was fitted on {len(self.weights)} levels of kind {self.kind}, "
                f"the table has {means.shape[1]} of kind {table.kind}.",
                "Score the validation split with the same estimator and fit again.",
            )
        return np.einsum("nly,l->ny", means, self.weights) + self.offsets(table.wavelets)

    def offsets(self, wavelets: NDArray[np.float64]) -> NDArray[np.float64]:
        """What the logits hold beside the noise levels, without Monte-Carlo error: wavelets [N, Y] -> [N, Y]."""
        return self.wavelet_weight * wavelets + self.bias

    def rescaled(self, other: Calibration) -> Calibration:
        """This calibration and, on its logits, one of a single weight: how sure, and for whom. The shares of the levels and
        of the wavelets stay."""
        (scale,) = other.weights
        return replace(
            self, weights=scale * self.weights, bias=scale * self.bias + other.bias,
            wavelet_weight=float(scale * self.wavelet_weight), log_loss=other.log_loss, n=other.n,
        )  # fmt: skip

    def own_draws(self, table: LogLikTable) -> NDArray[np.float64]:
        """The draws [K, N, Y] less their means over the images that the calibration was fitted on.

        Where all images meet the same noise, part of what it does is alike for all of them: the bias takes it off, so it is
        no error of an image. Draws that were not among the calibration's stay as they are.
        """
        k = len(table.draws)
        return table.draws - self.draw_means[:k, None] if k <= len(self.draw_means) else table.draws

    def variance_of_mean(self, table: LogLikTable, values: NDArray) -> NDArray[np.float64]:
        """Monte-Carlo variance of the weighted sum of level means of per-draw values [K, N] -> [N].

        Levels with one draw are paired with a neighbour and their difference taken as spread (collapsed strata, Cochran,
        Sampling Techniques, 5A.12), which errs on the safe side. NaN where all is one draw.
        """
        levels, counts = np.unique(table.level, return_counts=True)
        if len(values) == 1:
            return np.full(values.shape[1], np.nan)
        variance = np.zeros(values.shape[1])
        if counts.min() > 1:
            for weight, level, count in zip(self.weights, levels, counts, strict=True):
                variance += weight**2 * values[table.level == level].var(axis=0, ddof=1) / count
            return variance
        terms = np.stack(
            [w * values[table.level == level].mean(0) for w, level in zip(self.weights, levels, strict=True)]
        )
        for group in np.array_split(terms, len(terms) // 2):
            variance += len(group) * group.var(axis=0, ddof=1)
        return variance

    def to_dict(self) -> dict:
        """JSON-ready."""
        return {
            key: value.tolist() if isinstance(value, np.ndarray) else value
            for key, value in asdict(self).items()
        }

    @staticmethod
    def from_dict(stored: dict) -> Calibration:
        """The inverse of ``to_dict``; other keys are passed over."""
        own = {each.name: stored[each.name] for each in fields(Calibration) if each.name in stored}
        arrays = ("weights", "bias", "level_log_snr", "draw_means")
        return Calibration(**own | {key: np.asarray(own[key], np.float64) for key in arrays if key in own})


def fit_calibration(table: LogLikTable, log_prior: NDArray, *, folds: int = 5, seed: int = 0) -> Calibration:
    """Fit weights and bias on the labelled images of a table, choosing the penalty by cross-validation.

    Parameters
    ----------
    table: validation images; rows with unknown label or failed status are left out.
    log_prior: [Y], of the validation images (it is added to the logits while fitting, as ``bayes`` does later).

    Raises DataError if a class has fewer than two images.
    """
    table = table.rows((table.labels >= 0) & (table.status == "ok"))
    labels, means = table.labels, table.level_means
    n_classes = means.shape[2]
    counts = np.bincount(labels, minlength=n_classes)
    if counts.min() < 2:
        raise DataError(
            f"calibration needs at least two validation images of every class, got {counts.tolist()}.",
            "Give more validation data.",
        )
    asked = bool(table.wavelets.any())
    if asked:
        means = np.concatenate([means, table.wavelets[:, None]], axis=1)
    spread = _spread(means)
    z = (means - means.mean(axis=2, keepdims=True)) / spread[:, None]
    n_levels = len(spread) - asked
    splitter = StratifiedKFold(min(folds, int(counts.min())), shuffle=True, random_state=seed)
    parts = list(splitter.split(z, labels))
    penalties = PENALTIES if n_levels > 1 else (1.0,)
    pulls = [_pull(penalty, n_levels, len(spread)) for penalty in penalties]
    losses = np.stack([_cross_fitted_losses(z, labels, log_prior, pull, parts) for pull in pulls])
    chosen = _heaviest_that_may_be_best(losses)
    weights, bias = _fit(z, labels, log_prior, pulls[chosen])
    weights = weights / spread
    return Calibration(
        weights[:n_levels], bias, _level_log_snr(table), table.kind, penalties[chosen], float(losses[chosen].mean()),
        len(labels), table.draws.mean(axis=1), float(weights[n_levels]) if asked else 0.0,
    )  # fmt: skip


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


def _level_log_snr(table: LogLikTable) -> NDArray:
    return np.array([table.log_snr[table.level == level].mean() for level in np.unique(table.level)])


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


def _pull(penalty: float, n_levels: int, n_weights: int) -> NDArray[np.float64]:
    """The quadratic form of the penalties on the weights [W, W]: the first are those of the levels, one more is that of the
    wavelets. ``penalty``: on what parts the levels' weights from their mean."""
    form = _SCALE_PENALTY * np.eye(n_weights)
    form[:n_levels, :n_levels] += penalty * (np.eye(n_levels) - 1 / n_levels)
    if n_weights > n_levels:
        sides = np.where(np.arange(n_weights) < n_levels, -1.0, 1.0)
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
