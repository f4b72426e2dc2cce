"""What is told of one image: ``print(answer)`` for people, its fields for programs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from numpy.typing import NDArray

from scorebayes.decision.posterior import bayes
from scorebayes.decision.table import OK, EvidenceTable
from scorebayes.errors import DataError, printable
from scorebayes.runs.run import Run
from scorebayes.tasks import task_of


@dataclass(frozen=True)
class Answer:
    """The answer for one image, or the reason why there is none.

    image: its file. positive: the positive class. predicted: the most probable class. posterior: probability by class.
    std_error: Monte-Carlo standard error of each probability, to first order. log_odds, log_odds_std_error: of the positive
    class. above_threshold: whether that class is called at the run's threshold. decided: whether the Monte-Carlo error
    leaves no doubt about that. Where there is no answer these are None or empty, and ``reason`` says why. typicality:
    distance from the training images, with whether it is within the limit; None where a run does not judge it. warning: what
    is unusual about the file.
    """

    image: str
    positive: str
    predicted: str | None = None
    posterior: dict[str, float] = field(default_factory=dict)
    std_error: dict[str, float] = field(default_factory=dict)
    log_odds: float | None = None
    log_odds_std_error: float | None = None
    above_threshold: bool | None = None
    decided: bool | None = None
    typicality: float | None = None
    typical: bool | None = None
    warning: str = ""
    reason: str = ""

    @property
    def verdict(self) -> str:
        """In words."""
        if self.reason:
            return "no answer"
        if not self.decided:
            return f"undecided: the Monte-Carlo error reaches across the threshold for {self.positive}"
        return f"{'above' if self.above_threshold else 'below'} the threshold for {self.positive}"

    def __str__(self) -> str:
        lines = [f"{self.image}: {self.predicted or self.verdict}"]
        lines += [f"  {name} {p:.3f} ± {self.std_error[name]:.3f}" for name, p in self.posterior.items()]
        lines += [f"  {self.reason or self.verdict}"]
        lines += [f"  warning: {self.warning}"] if self.warning else []
        return "\n".join(map(printable, lines))


def answer(run: Run, image: str | Path | NDArray) -> Answer:
    """The answer of a classifier for a file, or for pixels as ``Run.read`` takes them; the same as ``scorebayes predict``
    gives. A file that cannot be used has no answer. DataError where there is no such file."""
    about: dict[str, Any] = {"image": _name(image), "positive": run.classes[run.facts.info.positive]}
    try:
        x, key, warning = run.read(image)
    except DataError as error:
        return Answer(**about, reason=f"quarantined: {error}")
    table, task = run.evidence(x, [key]), task_of(run)
    found = task.answers(run, table, run.decision, pixels=run.restore(x))
    row = task.abstain(found, run.decision).iloc[0]
    return Answer(**about, warning=warning, **_judged(row), **_told(run, table, row))


def _name(image: str | Path | NDArray) -> str:
    if not isinstance(image, (str, Path)):
        return f"image of {' x '.join(map(str, image.shape))} pixels"
    if not Path(image).exists():
        raise DataError(f"{image}: no such file.", "Look at the spelling of its path.")
    return str(image)


def _judged(row: pd.Series) -> dict[str, Any]:
    """Whether the image is typical."""
    known = not pd.isna(row["typicality"])
    return {
        "typicality": float(row["typicality"]) if known else None,
        "typical": row["typical"] == "yes" if known else None,
    }


def _told(run: Run, table: EvidenceTable, row: pd.Series) -> dict[str, Any]:
    """The answer, or the reason why there is none."""
    if row["status"] != OK:
        return {"reason": str(row["status"])}
    of_classes = bayes(table, run.log_prior, run.calibration)
    prob, std_error = of_classes.prob[0], of_classes.log_odds_std_error[0]
    return {
        "predicted": str(row["predicted"]),
        "posterior": dict(zip(run.classes, prob.tolist(), strict=True)),
        "std_error": dict(zip(run.classes, (prob * (1 - prob) * std_error).tolist(), strict=True)),
        "log_odds": float(row["log_odds"]),
        "log_odds_std_error": float(row["log_odds_std_error"]),
        "above_threshold": row["above_threshold"] == "yes",
        "decided": row["decided"] == "yes",
    }
