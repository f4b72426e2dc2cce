"""CSV files that people open in spreadsheets: no cell may be taken for a formula.

Ids and file names come from strangers, and a text that begins with = + - or @ is run as a formula (CWE-1236). Such texts
get an apostrophe in front, the spreadsheet's own mark for text; numbers stay as they are.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

_STARTS = ("=", "+", "-", "@", "\t", "\r")


def csv_text(frame: pd.DataFrame) -> str:
    """A table as CSV, without its index."""
    return frame.map(_tame).rename(columns=_tame).to_csv(index=False)


def plain(cell: str) -> str:
    """A cell of such a file as it was."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(_STARTS) else cell


def _tame(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_STARTS) else cell
