"""What is fitted on the validation split: calibration, threshold, typicality, prior and pooling of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from scorebayes.decision.calibration import Calibration
from scorebayes.decision.pooling import Pooling
from scorebayes.decision.posterior import prior_log_odds
from scorebayes.decision.typicality import Typicality


@dataclass(frozen=True)
class Decision:
    """How evidence becomes an answer.

    The calibration, the threshold on the probability of the positive class, and what is typical (None in runs of
    versions that did not judge it). ``log_prior`` [Y] is the prior under which the threshold was chosen (None in runs
    that do not say it); ``pooling``, how the evidence of images of one breast or patient is added.
    """

    calibration: Calibration
    threshold: float
    typicality: Typicality | None = None
    log_prior: NDArray[np.float64] | None = None
    pooling: Pooling = field(default_factory=Pooling)

    def under(self, log_prior: NDArray, positive: int) -> Decision:
        """The same decision under another prior [Y]: the threshold moves so that the cut on the evidence stays.

        An image is called positive where its likelihood ratio exceeds what it had to exceed on validation, whatever the
        prior. Among more than two classes this is exact where the other classes keep their shares of the rest.
        """
        if self.log_prior is None:
            return self
        moved = prior_log_odds(log_prior, positive) - prior_log_odds(self.log_prior, positive)
        below_one = min(self.threshold, 1 - 1e-12)  # a rule may lie above all of [0, 1]
        threshold = float(expit(logit(below_one) + moved))
        return replace(self, threshold=threshold, log_prior=np.asarray(log_prior, dtype=np.float64))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the calibration's fields, and the others by their names."""
        return {
            **self.calibration.to_dict(),
            "threshold": self.threshold,
            "typicality": None if self.typicality is None else self.typicality.to_dict(),
            "log_prior": None if self.log_prior is None else np.asarray(self.log_prior).tolist(),
            "pooling": self.pooling.to_dict(),
        }

    @staticmethod
    def from_dict(stored: Mapping[str, Any]) -> Decision:
        """The inverse of ``to_dict``; other keys are passed over. LookupError, TypeError or ValueError where it makes no
        sense."""
        typicality, log_prior = stored.get("typicality"), stored.get("log_prior")
        calibration, threshold = Calibration.from_dict(stored), float(stored["threshold"])
        prior = np.zeros_like(calibration.bias) if log_prior is None else np.asarray(log_prior, np.float64)
        if not np.isfinite([threshold, *prior]).all() or prior.shape != calibration.bias.shape:
            raise ValueError("threshold or prior are not finite numbers, one for each class")
        return Decision(
            calibration,
            threshold,
            None if typicality is None else Typicality.from_dict(typicality),
            None if log_prior is None else prior,
            Pooling(**stored.get("pooling", {})),
        )


def verdict(classes: Sequence[str], positive: int, above: bool) -> str:
    """What a decision at the threshold says, in a word: the positive class, or what else it is."""
    if above:
        return classes[positive]
    return classes[1 - positive] if len(classes) == 2 else f"not {classes[positive]}"
