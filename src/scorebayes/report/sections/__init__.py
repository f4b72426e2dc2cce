"""The sections of an evaluation report: from the files of a run to words, tables, figures and numbers."""

from __future__ import annotations

from collections.abc import Callable

from scorebayes.report.files import Run
from scorebayes.report.parts import Section
from scorebayes.report.sections import decisions, inputs, performance, pictures, training

SECTIONS: tuple[Callable[[Run], Section], ...] = (
    performance.discrimination,
    performance.threshold,
    performance.comparison,
    performance.calibration,
    performance.usefulness,
    decisions.posteriors,
    decisions.levels,
    performance.subgroups,
    decisions.abstention,
    decisions.robustness,
    pictures.examples,
    pictures.samples,
    inputs.data,
    performance.precision,
    inputs.exclusions,
    inputs.leakage,
    training.training,
    training.curves,
    training.cost,
    inputs.model,
)
