"""Classification: an answer is a posterior over the classes of an image, a decision at a threshold, or a reason for none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scorebayes.decision.appearance import LEAST_IMAGES, MOST_IMAGES
from scorebayes.decision.calibration import Calibration, fit_calibration
from scorebayes.decision.decision import Decision
from scorebayes.decision.pooling import Units, fit_pooling
from scorebayes.decision.posterior import Posterior, bayes, prior_log_odds
from scorebayes.decision.table import OK, EvidenceTable
from scorebayes.decision.typicality import Typicality, fit_typicality
from scorebayes.metrics import choose_threshold, classification_metrics
from scorebayes.runs.run import Run

THRESHOLD_RULE = "youden"
PROBABILITY_METRICS = ("log_loss", "brier", "ece", "calibration_", "saturated")
ANSWER = ("predicted", "prob_", "raw_prob_", "log_odds", "above_threshold", "decided")
"""Columns (or how they begin) that are empty where there is no answer."""
YES_OR_NO = ("above_threshold", "decided", "typical")
"""Columns that say "yes" or "no"."""


class Classification:
    """Labels and posteriors."""

    name: ClassVar[str] = "classify"

    def decide(self, run: Run, table: EvidenceTable) -> Decision:
        """Weights, temperature, bias, threshold, pooling and typicality."""
        table = table.usable()
        calibration = fit_calibration(table, table.log_shares, seed=run.config.seed)
        posterior, positive = bayes(table, run.log_prior, calibration), run.facts.info.positive
        threshold = choose_threshold(table.labels, posterior.prob, THRESHOLD_RULE, positive=positive)
        pooling = fit_pooling(
            _units(run, table.keys),
            posterior.log_odds[:, positive],
            table.labels == positive,
            prior_log_odds(run.log_prior, positive),
        )
        reference, patients = reference_pixels(run)
        known = reference if len(reference) >= LEAST_IMAGES else None
        judged = known is not None or any(block.kind != "log-ratio" for block in table.blocks.values())
        typicality = (
            fit_typicality(table, images=known, patients=patients, seed=run.config.seed) if judged else None
        )
        return Decision(calibration, threshold, typicality, run.log_prior, pooling)

    def answers(
        self,
        run: Run,
        table: EvidenceTable,
        decision: Decision,
        log_prior: NDArray | None = None,
        *,
        pixels: NDArray | None = None,
    ) -> pd.DataFrame:
        """One row per image; empty where it failed.

        Columns: most probable class, calibrated and raw posterior, log-odds with standard error, whether they are above the
        frozen threshold and whether the error leaves a decision, and the distance from typical images with whether it is
        within the threshold (empty in runs that did not judge it). ``log_prior`` [Y]: another prior than the run's; the
        threshold moves with it, as ``Decision.under`` says. ``pixels`` [N, C, S, S]: the images (``Run.pixels``), needed
        where the decision judges their appearance."""
        classes, positive = run.facts.classes, run.facts.info.positive
        log_prior = run.log_prior if log_prior is None else log_prior
        decision = decision.under(log_prior, positive)
        good = table.usable()
        posterior = bayes(good, log_prior, decision.calibration)
        raw = _raw_posterior(good, decision, log_prior)
        above = posterior.prob[:, positive] >= decision.threshold
        undecided = posterior.undecided(positive, decision.threshold)
        columns = {"predicted": np.asarray(classes, dtype=object)[posterior.predict()]}
        columns |= {f"prob_{name}": posterior.prob[:, y] for y, name in enumerate(classes)}
        columns |= {f"raw_prob_{name}": raw.prob[:, y] for y, name in enumerate(classes)}
        columns |= {
            "log_odds": posterior.log_odds[:, positive],
            "log_odds_std_error": posterior.log_odds_std_error[:, positive],
            "above_threshold": np.where(above, "yes", "no"),
            "decided": np.where(undecided, "no", "yes"),
        }
        judge = decision.typicality
        seen = None if pixels is None else pixels[table.status == OK]
        distance = (
            np.full(len(good), np.nan) if judge is None or not len(good) else judge.distance(good, seen)
        )
        typical = (
            np.full(len(good), "") if judge is None else np.where(judge.is_typical(distance), "yes", "no")
        )
        columns |= {"typicality": distance, "typical": typical}
        frame = pd.DataFrame(columns, index=np.flatnonzero(table.status == OK)).reindex(range(len(table)))
        frame.insert(0, "image_id", list(table.keys))
        return frame.assign(nfe=table.nfe * len(classes), seconds=table.seconds, status=table.status)

    def abstain(self, answers: pd.DataFrame, decision: Decision, force: bool = False) -> pd.DataFrame:
        return _abstain(answers, decision.typicality, force)

    def judge(self, run: Run, table: EvidenceTable, decision: Decision, patients: NDArray) -> dict[str, Any]:
        info = run.facts.info
        posterior = bayes(table, run.log_prior, decision.calibration)
        known = known_of(run, patients)
        return {
            **classification_metrics(table.labels, posterior.prob, **known),
            "undecided": int(posterior.undecided(info.positive, decision.threshold).sum()),
            "threshold": decision.threshold,
            "threshold_rule": f"{THRESHOLD_RULE} on the validation split",
            "at_threshold": classification_metrics(
                table.labels, posterior.prob, threshold=decision.threshold, **known
            ),
            "raw": _probability_metrics(_raw_posterior(table, decision, run.log_prior), table, known),
            **_pooled_levels(run, table, posterior, decision),
        }


def known_of(run: Run, patients: NDArray) -> dict[str, Any]:
    """What ``classification_metrics`` is told beside labels and posteriors; patients [N], None where unknown."""
    return {
        "positive": run.facts.info.positive,
        "groups": None if pd.isna(patients).all() else list(patients),
    }


def reference_pixels(run: Run) -> tuple[NDArray[np.float32], list[str]]:
    """Training and validation images [M, C, S, S] in [0, 1] that appearance is learned from, drawn at random where there are
    many, and their patients [M]."""
    parts = [run.images(split).drawn(MOST_IMAGES // 2, run.config.seed) for split in ("train", "val")]
    patients = [patient for images in parts for patient in images.patients]
    return np.concatenate([run.pixels(images) for images in parts]), patients


def _raw_posterior(table: EvidenceTable, decision: Decision, log_prior: NDArray) -> Posterior:
    """Without fitted level weights and bias: what "raw" means for a table of these kinds."""
    in_nats = all(block.kind in ("density", "lower-bound") for block in table.blocks.values())
    raw = Calibration.none(table) if in_nats else decision.calibration.flat()
    return bayes(table, log_prior, raw)


def _probability_metrics(posterior: Posterior, table: EvidenceTable, known: dict[str, Any]) -> dict[str, Any]:
    """What calibration changes, each with its interval."""
    found = classification_metrics(table.labels, posterior.prob, **known)
    return {name: value for name, value in found.items() if name.startswith(PROBABILITY_METRICS)}


def _abstain(frame: pd.DataFrame, judge: Typicality | None, force: bool = False) -> pd.DataFrame:
    """No posterior where the estimator failed or, unless forced, the image is unlike the training data: changes
    ``predictions`` in place."""
    answer = [name for name in frame if name.startswith(ANSWER)]
    for row in frame.index:
        status, distance = frame.loc[row, "status"], frame.loc[row, "typicality"]
        if status != "ok":
            frame.loc[row, "status"] = f"abstained: the estimator failed ({status})"
        elif judge is not None and not judge.is_typical(distance) and not force:
            reason = f"distance {distance:.2f} from the training images, limit {judge.threshold:.2f}"
            frame.loc[row, "status"] = f"abstained: atypical ({reason})"
            frame.loc[row, answer] = np.nan
    return frame


def _units(run: Run, keys: Sequence[str]) -> Units:
    """Which of these images show the same breast or, where sides are not known, the same patient."""
    table = run.split.set_index("image_id").reindex(list(keys))
    sides = table.get("laterality", pd.Series("", index=table.index)).fillna("")
    return Units.of(table["patient_id"].to_list(), sides.to_list())


def _pooled_levels(
    run: Run, table: EvidenceTable, posterior: Posterior, decision: Decision
) -> dict[str, Any]:
    """Metrics by breast and by patient, where that differs from by image; ``positive`` against the rest."""
    positive = run.facts.info.positive
    units, log_odds = _units(run, table.keys), posterior.log_odds[:, positive]
    prior = prior_log_odds(run.log_prior, positive)
    levels: dict[str, Any] = {}
    for name, level in units.pool(decision.pooling, log_odds, table.labels == positive, prior).items():
        labels, prob, patients = level
        levels[f"{name}_level"] = {
            **classification_metrics(labels, prob, groups=patients),
            "correlation": decision.pooling.correlation,
            "threshold": decision.threshold,
            "at_threshold": classification_metrics(
                labels, prob, groups=patients, threshold=decision.threshold
            ),
        }
    return levels
