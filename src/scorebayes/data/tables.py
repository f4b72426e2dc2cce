"""Tables as people save them: CSV with any separator and encoding, read as text, with every oddity named."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scorebayes.data.files import require_file
from scorebayes.errors import DataError

SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab"}


@dataclass(frozen=True)
class Table:
    """Rows of a table. All cells are text, stripped, so that ``007`` and ``NA`` stay what they are.

    ``rows`` holds the asked-for columns only, under the names asked for; ``notes`` says what was guessed.
    """

    path: Path
    rows: tuple[dict[str, str], ...]
    notes: tuple[str, ...] = ()


def normal(name: str) -> str:
    """Column names compared without case, blanks, underscores and byte order mark."""
    return "".join(name.strip("\ufeff").lower().replace("_", " ").split())


def read_table(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> Table:
    """Read the named columns. Names match whatever their case, blanks or underscores (``breast density``).

    UTF-8, UTF-16 and Windows-1252, and comma, semicolon or tab are told apart by the content; all but UTF-8
    with commas is noted. Raises DataError, naming the line, where the table is empty, cut, ragged or lacks a
    column, or where two readings are possible.
    """
    require_file(path)
    text, notes = _decode(path)
    candidates = {s: _header(text, s) for s in SEPARATORS}
    wanted = [normal(column) for column in columns]
    fitting = [s for s, header in candidates.items() if set(wanted) <= set(header)]
    if not fitting:
        best = max(candidates.values(), key=lambda header: len(set(wanted) & set(header)))
        lacking = [column for column in columns if normal(column) not in best]
        raise DataError(
            f"{path} lacks the column {', '.join(map(repr, lacking))}.", "Check that it is the right table."
        )
    # A table of one column fits every separator, and then none matters.
    fitting = [s for s in fitting if len(candidates[s]) > 1] or fitting[:1]
    if len(fitting) > 1:
        names = " and ".join(SEPARATORS[s] for s in fitting)
        raise DataError(f"{path}: {names} both separate its columns.", "Save it again with commas.")
    (separator,) = fitting
    if separator != ",":
        notes.append(f"{path.name} is separated by {SEPARATORS[separator]}s.")
    header = candidates[separator]
    positions = {column: header.index(normal(column)) for column in columns}
    positions |= {column: header.index(normal(column)) for column in optional if normal(column) in header}
    for column, position in positions.items():
        if normal(column) in header[position + 1 :]:
            raise DataError(f"{path} has the column {column!r} twice.", "Remove one of them.")
    return Table(path, _rows(path, text, separator, len(header), positions), tuple(notes))


def _decode(path: Path) -> tuple[str, list[str]]:
    data = path.read_bytes()
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        try:
            return data.decode("utf-16"), [f"{path.name} is encoded as UTF-16."]
        except UnicodeDecodeError:
            raise DataError(f"{path} is damaged UTF-16.", "Save it again as UTF-8.") from None
    if b"\0" in data:
        raise DataError(f"{path} is no text table (it has null bytes).", "Save it as CSV in UTF-8.")
    try:
        return data.decode("utf-8-sig"), []
    except UnicodeDecodeError:
        pass
    try:
        return data.decode("cp1252"), [f"{path.name} is not UTF-8; it was read as Windows-1252."]
    except UnicodeDecodeError:
        raise DataError(f"{path} is neither UTF-8 nor Windows-1252.", "Save it again as UTF-8.") from None


def _header(text: str, separator: str) -> list[str]:
    return [normal(name) for name in next(csv.reader(io.StringIO(text), delimiter=separator), [])]


def _rows(
    path: Path, text: str, separator: str, width: int, positions: dict[str, int]
) -> tuple[dict[str, str], ...]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows = []
    try:
        next(reader)
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != width:
                raise DataError(
                    f"{path}, line {reader.line_num}: {len(cells)} cells, the header has {width}.",
                    "Check the quotes and separators there.",
                )
            rows.append({column: cells[position].strip() for column, position in positions.items()})
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}.", "Check the quotes there.") from None
    if not rows:
        raise DataError(f"{path} has a header but no rows.", "Check that the download is complete.")
    return tuple(rows)
