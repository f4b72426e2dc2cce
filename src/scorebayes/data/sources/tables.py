"""Tables as people save them: CSV with any separator and encoding, read as text, with every oddity named."""

from __future__ import annotations

import csv
import functools
import io
import itertools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scorebayes.data.pixels.files import require_file
from scorebayes.errors import DataError

SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?', re.IGNORECASE)
_TEXT_FORMULA = re.compile(r'="(.*)"')
MAX_BYTES = 100_000_000
MAX_ROWS = 1_000_000
MAX_HEADER = 1_000_000  # characters
MAX_ABOVE = 1000  # lines above a header
MAX_MARKS = 30  # combining marks in a row, as in Unicode's stream-safe format (UAX 15): their order takes quadratic time


@dataclass(frozen=True)
class Table:
    """Rows of a table. All cells are text, stripped and in composed form (NFC), so that ``007`` and ``NA`` stay what they
    are.

    ``rows`` holds the asked-for columns only, under the names asked for; ``lines`` the line on which each row ends;
    ``notes`` says what was guessed.
    """

    path: Path
    rows: tuple[dict[str, str], ...]
    lines: tuple[int, ...]
    notes: tuple[str, ...] = ()


def normal(name: str) -> str:
    """Column names compared without case, blanks, hyphens, underscores, byte order mark and the sign of a comment."""
    return "".join(_cell(name).lstrip("\ufeff#").lower().replace("_", " ").replace("-", " ").split())


def read_table(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> Table:
    """Read the named columns. Names match whatever their case, blanks or underscores (``breast density``).

    A column that goes by several names is given as "path|file|image": the first that is there is read, and the
    rows have it as ``path``. UTF-8, UTF-16 and Windows-1252, and comma, semicolon, tab or bar are told apart by
    the content; all but UTF-8 with commas (tabs, in a .tsv) is noted. Any line ends are read, and what spreadsheets add:
    a first line ``sep=;``, ``="007"``, empty cells at the end. Lines that begin with # and repeated headers are passed
    over with a note. Raises DataError, naming the line, where the table is empty, cut, ragged or lacks a column, or where
    two readings are possible.
    """
    if require_file(path).st_size > MAX_BYTES:
        raise DataError(f"{path} is larger than {MAX_BYTES / 1e6:.0f} MB.", "Check that it is a table.")
    text, notes = _decode(path)
    text, above, told = _without_preface(path, text.replace("\r\n", "\n").replace("\r", "\n"), columns)
    headers = {separator: _header(text, separator) for separator in told or SEPARATORS}
    places = {separator: _places(header, columns) for separator, header in headers.items()}
    fitting = [separator for separator in headers if len(places[separator]) == len(columns)]
    if not fitting:
        best = max(headers, key=lambda separator: (len(places[separator]), len(headers[separator])))
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
    if not told and separator != ("\t" if path.suffix.lower() == ".tsv" else ","):
        notes.append(f"{path.name} is separated by {SEPARATORS[separator]}s.")
    header = headers[separator]
    found = places[separator] | _places(header, optional)
    for column, place in found.items():
        if header[place] in header[place + 1 :]:
            raise DataError(f"{path} has the column {column!r} twice.", "Remove one of them.")
    rows, lines, passed_over = _rows(path, text, separator, header, found, above)
    if passed_over:
        notes.append(f"{path.name}: {passed_over} comments or repeated headers were passed over.")
    return Table(path, rows, lines, tuple(notes))


def _without_preface(path: Path, text: str, columns: Sequence[str]) -> tuple[str, int, str]:
    """The text from its header on, the number of lines above it, and the separator that a line ``sep=;`` names.

    Blank lines and comments may stand above a header, which may itself begin with #.
    """
    start, above, told = 0, 0, ""
    while start < len(text):
        end = text.find("\n", start) + 1 or len(text) + 1
        first = text[start : end - 1]
        comment = first.startswith("#") and not any(_places(_header(first, s), columns) for s in SEPARATORS)
        if match := _SEPARATOR_LINE.fullmatch(first.strip(" ")):
            told = match[1]
        elif first.strip() and not comment:
            break
        start, above = end, above + 1
        if above > MAX_ABOVE:
            raise DataError(
                f"{path} has no header in its first {MAX_ABOVE} lines.", "Check that it is a table."
            )
    return text[start:], above, told


def _decode(path: Path) -> tuple[str, list[str]]:
    text, notes = _text(path, path.read_bytes())
    if not text.isascii() and _marks().search(text):
        raise DataError(
            f"{path} has more than {MAX_MARKS} combining marks in a row.", "Check that it is a table of text."
        )
    return text, notes


@functools.cache
def _marks() -> re.Pattern[str]:
    """More combining marks in a row than any language has."""
    points = [point for point in range(0x300, 0x20000) if unicodedata.combining(chr(point))]
    runs = [
        [point for _, point in run]
        for _, run in itertools.groupby(enumerate(points), lambda pair: pair[1] - pair[0])
    ]
    ranges = "".join(f"{chr(run[0])}-{chr(run[-1])}" for run in runs)
    return re.compile(f"[{ranges}]{{{MAX_MARKS + 1}}}")


def _text(path: Path, data: bytes) -> tuple[str, list[str]]:
    if data.startswith((b"PK\3\4", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1")):
        raise DataError(f"{path} is a workbook, not a text table.", "Save the sheet as CSV in UTF-8.")
    if data[:4] in (b"\xff\xfe\0\0", b"\0\0\xfe\xff"):
        raise DataError(f"{path} is encoded in UTF-32.", "Save it again as UTF-8.")
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
    """The names of the columns; empty ones at the end, of trailing separators, do not count."""
    try:
        header = [normal(name) for name in next(_reader(text[:MAX_HEADER], separator), [])]
    except csv.Error:  # a cell without end
        return []
    while header and not header[-1]:
        header.pop()
    return header


def _reader(text: str, separator: str, strict: bool = False) -> Any:
    return csv.reader(
        io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=strict
    )


def _cell(text: str) -> str:
    """Without the blanks around it, what Excel writes to keep leading zeros (``="007"``), and in one form of Unicode."""
    text = unicodedata.normalize("NFC", text).strip()
    formula = _TEXT_FORMULA.fullmatch(text)
    return formula[1].strip() if formula else text


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
    path: Path, text: str, separator: str, header: Sequence[str], places: dict[str, int], above: int
) -> tuple[tuple[dict[str, str], ...], tuple[int, ...], int]:
    """The rows, the line on which each ends, and how many comments and repeated headers there are."""
    reader = _reader(text, separator, strict=True)
    rows: list[dict[str, str]] = []
    lines, passed_over, width = [], 0, len(header)
    try:
        next(reader)
        for cells in reader:
            cells = [_cell(cell) for cell in cells]
            if not any(cells):
                continue
            while len(cells) > width and not cells[-1]:
                cells.pop()
            if (cells[0].startswith("#") and len(cells) < width) or list(map(normal, cells)) == header:
                passed_over += 1
                continue
            if len(cells) != width:
                raise DataError(
                    f"{path}, line {above + reader.line_num}: {len(cells)} cells, but the header has {width}.",
                    "Check the quotes and separators in this line.",
                )
            if len(rows) == MAX_ROWS:
                raise DataError(f"{path} has more than {MAX_ROWS} rows.", "Split it.")
            rows.append({column: cells[place] for column, place in places.items()})
            lines.append(above + reader.line_num)
    except csv.Error as error:
        raise DataError(
            f"{path}, line {above + reader.line_num}: {error}.", "Check the quotes in this line."
        ) from None
    if not rows:
        raise DataError(f"{path} has a header but no rows.", "Check that the download is complete.")
    return tuple(rows), tuple(lines), passed_over
