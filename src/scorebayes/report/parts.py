"""The parts of a report section: text, tables, figures and pictures, and how numbers are printed."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from scorebayes.report.files import Run

MOST_PROBABLE = "naming the most probable class"
_RULES = {"youden": "Youden's index", "accuracy": "the number of correct answers"}


class Panel(NamedTuple):
    """A figure with the caption that says how to read it."""

    svg: str
    caption: str


class Table(NamedTuple):
    """Cells of text; the first column names the row."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


class Picture(NamedTuple):
    """A small image as a data address, with one or two lines below it."""

    data: str
    title: str
    detail: str = ""


class Gallery(NamedTuple):
    """A row of pictures under a heading."""

    title: str
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Section:
    """One section of the report. ``missing`` says what was not done, and ``command`` how to do it."""

    key: str
    title: str
    words: Sequence[str] = ()
    tables: Sequence[Table] = ()
    panels: Sequence[Panel] = ()
    galleries: Sequence[Gallery] = ()
    flow: Sequence[tuple[str, str, str]] = ()
    numbers: Mapping[str, Any] = field(default_factory=dict)
    missing: str = ""
    command: str = ""


def estimate(values: Mapping[str, Any], name: str, digits: int = 3) -> str:
    """``0.901 (0.850 to 0.952)``, or why there is no number."""
    value = values.get(name)
    if value is None:
        reason = values.get(f"{name}_reason")
        return f"not defined: {reason}" if reason else "not done"
    bounds = values.get(f"{name}_ci95")
    if not bounds:
        return f"{value:.{digits}f}"
    # Spaces that do not break: a narrow table cell breaks before the bounds, not within.
    return f"{value:.{digits}f} ({bounds[0]:.{digits}f}\u00a0to\u00a0{bounds[1]:.{digits}f})"


def interval(values: Mapping[str, Any], name: str) -> tuple[float | None, float | None]:
    """The bounds of a metric's interval, or None twice."""
    low, high = values.get(f"{name}_ci95") or (None, None)
    return low, high


def percent(value: float) -> str:
    """A share with one decimal, rounded down; 0 and 100 are said only of what is none or all."""
    tenths = math.floor(1000 * value + 1e-9)
    if 0 < value < 1:
        tenths = min(max(tenths, 1), 999)
    return f"{tenths / 10:.1f}%"


def share(part: int, whole: int) -> str:
    """``3 of 12 (25.0%)``."""
    return f"{part} of {whole} ({percent(part / whole)})" if whole else f"{part} of {whole}"


def flat_texts(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested dictionaries as (dotted name, text) pairs."""
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flat_texts(value, f"{name}.")
        elif isinstance(value, list):
            shown = "; ".join(", ".join(map(str, v)) if isinstance(v, list) else str(v) for v in value[:8])
            yield name, f"{len(value)} entries: {shown}; …" if len(value) > 8 else shown or "none"
        else:
            yield name, "yes" if value is True else "no" if value is False else str(value)


def png_address(image: NDArray) -> str:
    """Image [H, W], [H, W, 3] or [C, H, W], uint8 or float in [0, 1] -> data address of a PNG."""
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8:
        pixels = (np.clip(np.nan_to_num(pixels), 0, 1) * 255 + 0.5).astype(np.uint8)
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3):
        pixels = np.moveaxis(pixels, 0, -1)
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def threshold_words(run: Run) -> str:
    """How a case is decided."""
    threshold, rule = run.metrics.get("threshold"), str(run.metrics.get("threshold_rule") or "")
    if threshold is None:
        return MOST_PROBABLE
    rule = rule.removesuffix(" on the validation split")
    chosen = f", chosen on validation by {_RULES.get(rule, rule)}" if rule else ""
    return f"at the probability threshold {threshold:.3f}{chosen}"


def p_value(p: float) -> str:
    """A p-value in the cell of a table."""
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def p_words(p: float) -> str:
    """The same in a sentence: ``p = 0.012`` or ``p < 0.001``."""
    return f"p = {p_value(p)}" if p >= 0.001 else f"p {p_value(p)}"


def seconds(duration: float) -> str:
    """A duration in seconds, in the unit that suits it."""
    if duration < 1:
        return f"{duration * 1000:.0f} ms"
    if duration < 120:
        return f"{duration:.1f} s"
    return f"{duration / 60:.0f} min" if duration < 7200 else f"{duration / 3600:.1f} h"


def grouping_columns(table: pd.DataFrame) -> list[str]:
    """Columns that name few groups; not the identifiers, the label and the split."""
    fixed = {"image_id", "patient_id", "label", "split", "path", "path_hash"}
    return [c for c in table if c not in fixed and 1 < texts(table[c]).nunique() <= 12]


def texts(column: pd.Series) -> pd.Series:
    """Cells as text, empty where nothing is known."""
    return column.astype(object).where(column.notna(), "").astype(str)


def not_evaluated(run: Run, key: str, title: str) -> Section:
    """The section where the images were not evaluated, with the command that does it."""
    missing, command = "the images have not been evaluated", run.command("evaluate", "--split", run.split)
    return Section(key, title, missing=missing, command=command)
