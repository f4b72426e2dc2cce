"""Calibration: what the validation split fixes, written into the run. No network is called here."""

from __future__ import annotations

from scorebayes.decision.decision import Decision
from scorebayes.runs.run import Run
from scorebayes.stages.score import read_table, suffix
from scorebayes.tasks import task_of
from scorebayes.tasks.classify import THRESHOLD_RULE


def calibrate(run: Run, estimator: str = "") -> Decision:
    """Fit the decision on the validation table and write it."""
    decision = task_of(run).decide(run, read_table(run, "val", estimator))
    write_decision(run, decision, "val", estimator)
    return decision


def write_decision(run: Run, decision: Decision, fitted_on: str, estimator: str = "") -> None:
    """Write ``calibration.json`` (``calibration.<estimator>.json``), with the images it was fitted on in words."""
    run.write_calibration(
        f"calibration{suffix(estimator)}.json",
        {
            **decision.to_dict(),
            "fitted_on": fitted_on,
            "estimator": estimator or run.config.sections["likelihood"]["kind"],
            "threshold_rule": THRESHOLD_RULE,
        },
    )
