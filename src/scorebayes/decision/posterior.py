"""Bayes' rule: from the evidence table to the posterior, with its Monte-Carlo error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp

from scorebayes.decision.calibration import Calibration
from scorebayes.decision.table import OK, EvidenceTable
from scorebayes.errors import ConfigError, NumericalError


@dataclass(frozen=True)
class Posterior:
    """p(y | x) for N images.

    log_prob: [N, Y]. log_odds_std_error: [N, Y], Monte-Carlo standard error of ``log_odds``; NaN where the estimator made
    one draw only.
    """

    log_prob: NDArray[np.float64]
    log_odds_std_error: NDArray[np.float64]

    @property
    def prob(self) -> NDArray[np.float64]:
        """Posterior probabilities [N, Y]; rows sum to 1."""
        return np.exp(self.log_prob)

    @property
    def log_odds(self) -> NDArray[np.float64]:
        """log p(y|x) / (1 - p(y|x)) [N, Y]."""
        return _log_odds(self.log_prob)

    def predict(self) -> NDArray[np.int64]:
        """The most probable class [N]."""
        return self.log_prob.argmax(axis=1)

    def undecided(self, positive: int, threshold: float, std_errors: float = 2.0) -> NDArray[np.bool_]:
        """Where p(positive) is within some Monte-Carlo standard errors of the threshold [N]."""
        distance = np.abs(self.log_odds[:, positive] - np.log(threshold / (1 - threshold)))
        return distance < std_errors * self.log_odds_std_error[:, positive]


def uniform_log_prior(n_classes: int) -> NDArray[np.float64]:
    """log p(y) [Y] of classes that are equally frequent."""
    return np.full(n_classes, -np.log(n_classes))


def bayes(table: EvidenceTable, log_prior: NDArray, calibration: Calibration | None = None) -> Posterior:
    """Posterior from log-likelihoods and prior.

    Parameters
    ----------
    table: evidence of one or several sources. A failed image is refused (NumericalError): drop it before.
    log_prior: [Y], log p(y); must sum to one.
    calibration: weights, temperature and bias, as fitted on validation images. Without it log-likelihoods are used as
        they are; other kinds of evidence need it.
    """
    log_prior = np.asarray(log_prior, dtype=np.float64)
    n_classes = table.n_classes
    if log_prior.shape != (n_classes,) or abs(logsumexp(log_prior)) > 1e-6:
        raise ConfigError(
            f"the prior must be {n_classes} log-probabilities whose probabilities sum to 1, got {log_prior.tolist()}."
        )
    failed = table.status != OK
    if failed.any():
        which = [table.keys[i] for i in np.flatnonzero(failed)[:3]]
        raise NumericalError(
            f"{failed.sum()} images have no likelihood ({', '.join(which)}: {table.status[failed][0]})."
        )
    if calibration is None:
        calibration = Calibration.none(table)
    log_prob = log_softmax(calibration.logits(table) + log_prior, axis=1)
    return Posterior(log_prob, _log_odds_std_error(table, calibration, log_prob))


def mean_posterior(prob: Sequence[NDArray] | NDArray) -> NDArray[np.float64]:
    """Posteriors of several models under one prior [M, N, Y] -> their mean log-posterior, renormalised [N, Y].

    For two classes this is the mean of the log-odds. The models saw the same image, so adding would count evidence twice.
    """
    return np.exp(log_softmax(np.log(np.maximum(prob, 1e-12)).mean(axis=0), axis=1))


def prior_log_odds(log_prior: NDArray, positive: int) -> float:
    """log p / (1 - p) of one class before any image; log_prior [Y]."""
    return float(_log_odds(np.asarray(log_prior, dtype=np.float64)[None])[0, positive])


def _log_odds(log_prob: NDArray) -> NDArray:
    """log p - log(1 - p), where 1 - p is summed over the other classes, without cancellation."""
    n_classes = log_prob.shape[1]
    others = [logsumexp(np.delete(log_prob, y, axis=1), axis=1) for y in range(n_classes)]
    return log_prob - np.stack(others, axis=1)


def _log_odds_std_error(table: EvidenceTable, calibration: Calibration, log_prob: NDArray) -> NDArray:
    """Delta method: project every draw on the gradient of each log-odds, add the variances of the sources' levels."""
    n_classes = log_prob.shape[1]
    sampled = [(name, block) for name, block in table.blocks.items() if not block.exact]
    draws = {name: calibration.own_draws(name, block) for name, block in sampled}
    std_error = np.empty_like(log_prob)
    for y in range(n_classes):
        # d log_odds_y / d logit_c is 1 for c = y, else minus the share of c among the other classes.
        others = np.where(np.arange(n_classes) == y, -np.inf, log_prob)
        gradient = (np.arange(n_classes) == y) - np.exp(others - logsumexp(others, axis=1, keepdims=True))
        variance = np.zeros(len(log_prob))
        for name, block in sampled:
            variance += block.variance_of_mean(
                calibration.weights[name], (draws[name] * gradient).sum(axis=2)
            )
        std_error[:, y] = np.sqrt(variance)
    return std_error
