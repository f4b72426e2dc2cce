"""The heat map of a benchmark, as a figure in the report and as a separate file for the docs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from scorebayes.plots.svg import Plot, drawn, short


@drawn("heat", "Values of one model by kind and severity of a corruption")
def heat_map(
    plot: Plot,
    values: NDArray,
    rows: Sequence[str],
    columns: Sequence[str],
    name: str,
    title: str,
    low: float,
) -> None:
    """values [R, C] written into coloured cells; ``low`` is the value of the palest colour, 1 that of the fullest."""
    plot.name = name
    plot.figure.set_size_inches(5.0, 0.9 + 0.27 * len(rows))
    axes = plot.axes
    axes.imshow(values, cmap="Blues", vmin=low, vmax=1.0, aspect="auto")
    for row, column in np.ndindex(*values.shape):
        value = float(values[row, column])
        ink = "white" if value > low + 0.65 * (1 - low) else "black"
        text = axes.text(column, row, f"{value:.2f}", ha="center", va="center", size=8, color=ink)
        plot.tip(text, f"{short(rows[row])}, {columns[column]}: {value:.3f}")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), [short(row) for row in rows])
    axes.grid(False)
    axes.set_xlabel("severity")
    axes.set_title(title)


def as_file(svg: str) -> str:
    """A figure made for a page as the text of an SVG file, which must name its language."""
    return svg.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
