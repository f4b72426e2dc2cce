"""Evidence maps: which pixels drove the decision, and at which level of which source.

Every source computes what each pixel adds to its part of the log-odds (``Evidence.maps``). The calibrated log-odds of class
a against the others are the sum of these parts and an offset: bias, prior, the part of a source that belongs to no pixel
and, with more than two classes, a term because log-sum-exp is the mean of its arguments under their softmax w plus the
entropy of w:

    log-odds of a = sum over c of w_c (logit_a - logit_c) - H(w),    w_c the posterior share of c among the others.

These w are also the derivatives of the log-odds by the logits: to first order a map shows what a change would do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.special import entr, softmax
from torch import Tensor

from scorebayes.decision.posterior import Posterior, bayes
from scorebayes.decision.table import EvidenceTable
from scorebayes.errors import ConfigError
from scorebayes.evidence.base import Map, PixelMaps
from scorebayes.runs.run import Run

SMOOTHING = 0.04  # of the side of the image: standard deviation of the Gaussian with which maps are shown


@dataclass(frozen=True)
class Explanation:
    """Why one image got its posterior; all in nats of the log-odds of class ``target`` against the others.

    parts: evidence of each pixel, by source. offset: what belongs to no pixel: bias, prior, offsets of the sources (and the
    entropy of the other classes, where there are several). table, posterior: of this image, from the same draws.
    """

    target: int
    parts: Mapping[str, PixelMaps]
    offset: float
    table: EvidenceTable
    posterior: Posterior

    @property
    def total(self) -> Map:
        """Evidence of each pixel [S, S]; its sum is ``log_odds`` less ``offset``."""
        return np.sum([part.total for part in self.parts.values()], axis=0)

    @property
    def std_error(self) -> Map:
        """Monte-Carlo standard error of ``total``, pixel by pixel [S, S]; NaN where a source made one draw in all."""
        return np.sqrt(np.sum([np.square(part.std_error) for part in self.parts.values()], axis=0))

    @property
    def log_odds_map(self) -> Map:
        """The same with the offset spread evenly over the pixels [S, S]: its sum is ``log_odds``."""
        total = self.total
        return total + self.offset / total.size

    @property
    def log_odds(self) -> float:
        return float(self.posterior.log_odds[0, self.target])

    @property
    def log_odds_std_error(self) -> float:
        return float(self.posterior.log_odds_std_error[0, self.target])


def explain(
    run: Run, x: Tensor, key: str, target: int | None = None, log_prior: NDArray | None = None
) -> Explanation:
    """Evidence maps of one prepared image x [1, C, S, S], from the draws that ``key`` names.

    ``key``: as given to ``Run.evidence`` for the posterior that is to be explained. ``target``: class whose log-odds are
    explained; by default the positive one of two classes (as in predictions), the most probable of more. ``log_prior``: [Y],
    by default the run's.

    Raises ConfigError where the run's estimator is not the class score, NumericalError where it failed on the image.
    """
    if run.likelihood.kind != "class-score":
        raise ConfigError(
            f"evidence maps need the estimator 'denoising', but the run has {run.likelihood.kind!r}.",
            'Set kind = "denoising" in [likelihood] and calibrate again.',
        )
    calibration = run.calibration
    table = run.evidence(x, [key])
    log_prior = run.log_prior if log_prior is None else log_prior
    posterior = bayes(table, log_prior, calibration)
    if target is None:
        binary = posterior.log_prob.shape[1] == 2
        target = run.facts.info.positive if binary else int(posterior.predict()[0])
    others = np.where(np.arange(len(log_prior)) == target, -np.inf, posterior.log_prob[0])
    share = softmax(others)  # of each other class among the others
    against = (np.arange(len(share)) == target) - share
    parts = {
        name: source.maps(x, key, table.blocks[name], calibration.weights[name], against)
        for name, source in run.sources.items()
    }
    known = float((calibration.bias + log_prior) @ against - entr(share).sum())
    return Explanation(target, parts, known + sum(part.offset for part in parts.values()), table, posterior)


def smooth(maps: Map) -> Map:
    """As maps are shown: [..., S, S], blurred over ``SMOOTHING`` of the side, sums kept. No figure is taken from it."""
    return gaussian_filter(maps, SMOOTHING * maps.shape[-1], mode="reflect", axes=(-2, -1))
