"""Results as Markdown: tables, their cells, and where a table comes from. Nothing is computed here."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ABSENT = "–"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table, every row as long as the header."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def number(value: float | None, digits: int = 3) -> str:
    """A number, or a dash."""
    return ABSENT if value is None else f"{value:.{digits}f}"


def spread(found: Mapping[str, Any] | None) -> str:
    """``mean`` ± ``std`` [``ci95``], each where it is known."""
    if found is None or found.get("mean") is None:
        return ABSENT
    deviation, limits = found.get("std"), found.get("ci95")
    text = number(found["mean"])
    text += "" if deviation is None else f" ± {deviation:.3f}"
    return text + ("" if limits is None else f" {interval(limits)}")


def within(value: float, limits: Sequence[float]) -> str:
    """A value and its interval."""
    return spread({"mean": value, "ci95": limits})


def interval(limits: Sequence[float], sign: str = "") -> str:
    """[low, high]; with ``sign`` "+" both are signed."""
    low, high = limits
    return f"[{low:{sign}.3f}, {high:{sign}.3f}]"


def difference(lead: Mapping[str, Any] | None) -> tuple[str, str]:
    """The AUC difference of a paired test with its interval, and p."""
    if lead is None or lead.get("auc_difference") is None:
        return ABSENT, ABSENT
    limits, p = lead.get("auc_difference_ci95"), lead.get("auc_difference_p")
    shown = f"{lead['auc_difference']:+.3f}" + ("" if limits is None else f" {interval(limits, '+')}")
    return shown, ABSENT if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def span(values: Sequence[int]) -> str:
    """From the smallest to the largest."""
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


def origin(found: Mapping[str, Any], facts: Sequence[str]) -> str:
    """What a result was measured on and with, when, and by which command. Empty facts are left out."""
    processor = found.get("environment", {}).get("processor")
    known = [
        *facts,
        f"on {processor}" if processor else "",
        f"written {found['written']}" if "written" in found else "",
    ]
    words = "; ".join(filter(None, known))
    command = f" Command: `{found['command']}`." if "command" in found else ""
    return f"{words[:1].upper()}{words[1:]}.{command}"


def not_run(command: str) -> str:
    """The text for a missing file."""
    return f"Not run yet. Command: `{command}`."


def embedded(figure: Path, page: Path) -> str:
    """A figure, linked relative to the page."""
    link = Path(os.path.relpath(figure, page.parent)).as_posix()
    return f"![{figure.stem.replace('-', ' ')}]({link})"
