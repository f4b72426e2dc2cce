"""Tables as people save them: CSV with any separator and encoding, read as text, with every oddity named."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scorebayes.data.pixels.files import require_file
from scorebayes.errors import DataError

SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
MAX_BYTES = 500_000_000


@dataclass(frozen=True)
class Table:
    """Rows of a table. All cells are text, stripped, so that ``007`` and ``NA`` stay what they are.

    ``rows`` holds the asked-for columns only, under the names asked for; ``lines`` the line on which each row ends;
    ``notes`` says what was guessed.
    """

    path: Path
    rows: tuple[dict[str, str], ...]
    lines: tuple[int, ...]
    notes: tuple[str, ...] = ()


def normal(name: str) -> str:
    """Column names compared without case, blanks, hyphens, underscores and byte order mark."""
    return "".join(name.strip("\ufeff").lower().replace("_", " ").replace("-", " ").split())


def read_table(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> Table:
    """Read the named columns. Names match whatever their case, blanks or underscores (``breast density``).

    A column that goes by several names is given as "path|file|image": the first that is there is read, and the
    rows have it as ``path``. UTF-8, UTF-16 and Windows-1252, and comma, semicolon, tab or bar are told apart by
    the content; all but UTF-8 with commas (tabs, in a .tsv) is noted. Raises DataError, naming the line, where
    the table is empty, cut, ragged or lacks a column, or where two readings are possible.
    """
    if require_file(path).st_size > MAX_BYTES:
        raise DataError(f"{path} is larger than {MAX_BYTES / 1e6:.0f} MB.", "Check that it is a table.")
    text, notes = _decode(path)
    headers = {separator: _header(text, separator) for separator in SEPARATORS}
    places = {separator: _places(header, columns) for separator, header in headers.items()}
    fitting = [separator for separator in SEPARATORS if len(places[separator]) == len(columns)]
    if not fitting:
        best = max(SEPARATORS, key=lambda separator: (len(places[separator]), len(headers[separator])))
        lacking = [" or ".join(c.split("|")) for c in columns if c.split("|")[0] not in places[best]]
        raise DataError(
            f"{path} lacks the column {', '.join(map(repr, lacking))}. It has {', '.join(headers[best])[:300]}.",
            "Check that it is the right table.",
        )
    # A table of one column fits every separator, and then none matters.
    fitting = [separator for separator in fitting if len(headers[separator]) > 1] or fitting[:1]
    if len(fitting) > 1:
        names = " and ".join(SEPARATORS[separator] for separator in fitting)
        raise DataError(f"{path}: both {names} could separate its columns.", "Save it again with commas.")
    (separator,) = fitting
    if separator != ("\t" if path.suffix.lower() == ".tsv" else ","):
        notes.append(f"{path.name} is separated by {SEPARATORS[separator]}s.")
    header = headers[separator]
    found = places[separator] | _places(header, optional)
    for column, place in found.items():
        if header[place] in header[place + 1 :]:
            raise DataError(f"{path} has the column {column!r} twice.", "Remove one of them.")
    rows, lines = _rows(path, text, separator, len(header), found)
    return Table(path, rows, lines, tuple(notes))


def _decode(path: Path) -> tuple[str, list[str]]:
    data = path.read_bytes()
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        try:
            return data.decode("utf-16"), [f"{path.name} is encoded in UTF-16."]
        except UnicodeDecodeError:
            raise DataError(f"{path} is damaged UTF-16.", "Save it again as UTF-8.") from None
    if b"\0" in data:
        raise DataError(
            f"{path} is not a text table (it has null bytes; UTF-16 without a byte order mark?).",
            "Save it as CSV in UTF-8.",
        )
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


def _places(header: Sequence[str], columns: Sequence[str]) -> dict[str, int]:
    """First name of each column that is there, by any of its names -> its place."""
    found = {}
    for column in columns:
        names = column.split("|")
        present = [normal(name) for name in names if normal(name) in header]
        if present:
            found[names[0]] = header.index(present[0])
    return found


def _rows(
    path: Path, text: str, separator: str, width: int, places: dict[str, int]
) -> tuple[tuple[dict[str, str], ...], tuple[int, ...]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows, lines = [], []
    try:
        next(reader)
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != width:
                raise DataError(
                    f"{path}, line {reader.line_num}: {len(cells)} cells, but the header has {width}.",
                    "Check the quotes and separators in this line.",
                )
            rows.append({column: cells[place].strip() for column, place in places.items()})
            lines.append(reader.line_num)
    except csv.Error as error:
        raise DataError(
            f"{path}, line {reader.line_num}: {error}.", "Check the quotes in this line."
        ) from None
    if not rows:
        raise DataError(f"{path} has a header but no rows.", "Check that the download is complete.")
    return tuple(rows), tuple(lines)
