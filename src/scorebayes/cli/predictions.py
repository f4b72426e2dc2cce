"""The answers of ``predict`` in a terminal: one row a file, with its error, or the reason why there is no answer."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from numpy.typing import NDArray

from scorebayes.cli.common import number
from scorebayes.cli.face import aligned
from scorebayes.decision.decision import verdict
from scorebayes.runs.run import Run

YES_OR_NO = ("above_threshold", "decided", "typical")
"""Columns that are truth values for machines, whatever the table for people calls them."""


def rows_of(run: Run, frame: pd.DataFrame, log_prior: NDArray | None) -> dict[str, Any]:
    """The table of ``predict_files`` as facts: one dictionary a file, without what does not apply to it."""
    info = run.facts.info
    prior = run.log_prior if log_prior is None else log_prior
    answers = [
        {name: value for name, value in row.items() if value is not None and value == value and value != ""}
        for row in frame.to_dict("records")
    ]
    for answer in answers:
        answer |= {name: str(answer[name]) in ("yes", "True") for name in YES_OR_NO if name in answer}
        if answer["status"] == "ok":
            answer["verdict"] = verdict(run.facts.classes, info.positive, answer["above_threshold"])
    return {
        "run": run.path,
        "classes": run.facts.classes,
        "positive": info.classes[info.positive],
        "threshold": run.decision.under(prior, info.positive).threshold,
        "files": len(answers),
        "classified": sum(answer["status"] == "ok" for answer in answers),
        "answers": answers,
    }


def table_of(facts: dict[str, Any]) -> str:
    """One row a file, and what the verdicts go by."""
    positive, two = facts["positive"], len(facts["classes"]) == 2
    beside = sorted({name for answer in facts["answers"] for name in answer if _is_beside(name, positive)})
    partners = [name.removeprefix("prob_with_").removesuffix(f"_{positive}") for name in beside]
    header = ("file", "most probable", f"probability of {positive}" if two else "probability", "verdict")
    rows: list[tuple[str, ...]] = [(*header, *(f"{positive}, with {names}" for names in partners))]
    undecided = False
    for answer in facts["answers"]:
        if answer["status"] != "ok":
            rows.append((str(answer["file"]), "-", "-", str(answer["status"]), *("-" for _ in beside)))
            continue
        undecided |= not answer["decided"]
        shown = positive if two else answer["predicted"]
        rows.append(
            (
                str(answer["file"]),
                str(answer["predicted"]),
                _probability(answer, shown, positive),
                answer["verdict"] + ("" if answer["decided"] else " (undecided)"),
                *(number(answer[name]) for name in beside),
            )
        )
    words = f"verdict: probability of {positive} against the threshold {facts['threshold']:.3f}"
    if undecided:
        words += "; undecided: the Monte-Carlo error (±) reaches across it"
    return f"{aligned(rows)}\n\n{words}"


def _is_beside(name: str, positive: str) -> bool:
    return name.startswith("prob_with_") and name.endswith(f"_{positive}")


def _probability(answer: dict[str, Any], shown: str, positive: str) -> str:
    """With its Monte-Carlo standard error, by the delta method from that of the log-odds of the positive class."""
    prob = answer[f"prob_{shown}"]
    error = answer.get("log_odds_std_error", math.nan) * prob * (1 - prob)
    known = shown == positive and math.isfinite(error)
    return f"{prob:.3f} ± {error:.3f}" if known else f"{prob:.3f}"
