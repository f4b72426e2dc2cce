"""What every figure is drawn on: one axis that becomes inline SVG.

Colours are those of Okabe and Ito, which colour-blind readers can tell apart; they are written as CSS
variables with a fallback, so that the page can change them in the dark. Text stays text. Nothing refers to
anything outside the figure.
"""

from __future__ import annotations

import functools
import html
import io
import re
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec

from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

P = ParamSpec("P")

# Colours by role; the page may override the variables, for example in dark mode.
INK, MUTED, GRID, PAPER = "#1c2127", "#66707a", "#dfe3e8", "#fefefe"
MODEL, POSITIVE, NEGATIVE, THIRD = "#0072b2", "#d55e00", "#0072b3", "#009e73"
SEVERAL = (NEGATIVE, POSITIVE, THIRD, INK)  # of several classes or models, in this order
_VARIABLES = {
    INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper",
    MODEL: "model", POSITIVE: "positive", NEGATIVE: "negative", THIRD: "third",
}  # fmt: skip

_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "scorebayes",
    "text.parse_math": False,  # a class may be called "$x"
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
}


class Plot:
    """One figure being drawn: a matplotlib axis, and texts to be shown where the pointer rests."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.figure = Figure(figsize=(5.0, 3.9), layout="constrained")
        self.axes: Axes = self.figure.add_subplot()
        self._tips: list[str] = []

    def tip(self, artist: Artist, text: str) -> None:
        """Show ``text`` when the pointer rests on the artist."""
        artist.set_gid(f"tip{len(self._tips)}")
        self._tips.append(text)

    def svg(self, description: str) -> str:
        """The finished figure for use inside HTML; ``name`` makes its element ids unique in the page."""
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        self.figure.savefig(buffer, format="svg", metadata=nothing)
        text = buffer.getvalue()
        text = text[text.index("<svg") :]
        for number, tip in enumerate(self._tips):
            group = f'<g id="tip{number}">'
            text = text.replace(group, f"{group}<title>{html.escape(tip)}</title>")
        # An inline SVG needs no namespaces, and they look like addresses to whoever checks for requests.
        text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
        text = re.sub(r'\bid="', f'id="{self.name}-', text)
        text = re.sub(r'(href="#|url\(#)', rf"\g<1>{self.name}-", text)
        for colour, variable in _VARIABLES.items():
            text = text.replace(colour, f"var(--{variable}, {colour})")
        text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
        text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
        opening = f'<svg id="{self.name}" role="img" aria-label="{html.escape(description)}"'
        return text.replace("<svg", opening, 1)


def drawn(name: str, description: str) -> Callable[[Callable[Concatenate[Plot, P], None]], Callable[P, str]]:
    """Turns a function that draws on a plot into one that returns the SVG text."""

    def decorate(draw: Callable[Concatenate[Plot, P], None]) -> Callable[P, str]:
        @functools.wraps(draw)
        def drawn(*args: P.args, **kwargs: P.kwargs) -> str:
            with rc_context(_STYLE):
                plot = Plot(name)
                draw(plot, *args, **kwargs)
                return plot.svg(description)

        return drawn

    return decorate


def short(name: object, length: int = 34) -> str:
    """A name fit for one line of a figure: printable, without line breaks, not too long."""
    text = "".join(c if c.isprintable() else " " for c in str(name))
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"
