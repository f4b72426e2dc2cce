"""Your own images: class folders, or a table that names the image files, their classes and their patients.

    DIR/benign/*.png, DIR/malignant/*.png                 class folders
    DIR/train/benign/*.png, DIR/test/benign/*.png, ...    class folders with prescribed splits
    DIR/labels.csv with columns path and label            table, with patient_id, split, view, laterality if
    known

Rows and files that cannot be used are left out one by one and listed with the reason. An error that casts doubt
on the whole table stops the program.
"""

from __future__ import annotations

import os
import re
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
from numpy.typing import NDArray

from scorebayes.data.base import Record, Rejected, SourceInfo
from scorebayes.data.pixels.files import files_below, is_visible, require_file
from scorebayes.data.pixels.images import SUFFIXES, image_bits, may_be_image, read_image
from scorebayes.data.sources.tables import read_table
from scorebayes.errors import ConfigError, DataError

REQUIRED = ("path|file|image", "label|class|pathology")
EXTRA = ("density", "vendor", "lesion_type")
OPTIONAL = ("patient_id|patient", "split", "view", "laterality", *EXTRA)
"""Columns by their names, best first. Others are never copied: they may identify a person."""

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
SIDES = {"l": "L", "left": "L", "r": "R", "right": "R"}
NO_LABEL = ("", "?", "-1", "n/a", "na", "nan", "unknown", "unlabelled", "unlabeled")
POSITIVE = ("malignant", "cancer", "positive", "abnormal", "disease", "pneumonia")
PROBED = 16  # files that tell depth and colour of all


@dataclass(frozen=True)
class _Row:
    """What a table row or the place of a file says; ``name`` is the path below the root."""

    name: str
    label: str
    patient_id: str | None = None
    split: str | None = None
    view: str = ""
    laterality: str = ""
    extra: Mapping[str, str] = field(default_factory=dict)


class Folder:
    """Images in a folder, with their classes.

    Parameters
    ----------
    root: folder with class folders or with one table (csv, tsv), or the path of a table; the paths in a table
        are relative to its folder.
    bits: true bit depth where 16-bit files hold less; without it the first files tell.
    classes: names of the classes in order, or one text with commas; other labels are left out. Without it:
        all labels found, in numerical or alphabetical order.
    positive: name of the class that "sensitivity" refers to. Without it: the one whose name says so, or the
        last one.
    patient_pattern: regular expression with one group that finds the patient in a file name; only where no
        table names the patients.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        bits: int | None = None,
        classes: str | Sequence[str] | None = None,
        positive: str | None = None,
        patient_pattern: str | None = None,
    ) -> None:
        if bits is not None and not 1 <= bits <= 16:
            raise ConfigError(f"folder: bits is {bits}, expected 1 to 16.")
        self.rejected: list[Rejected] = []
        given = Path(root)
        table = _find_table(given)
        self.root = given if table is None else table.parent
        rows = self._placed() if table is None else self._listed(table)
        rows = self._with_patients(rows, patient_pattern)
        names = _class_names(given, rows, classes)
        self._records = [record for row in rows if (record := self._record(row, names)) is not None]
        present = sorted({record.label for record in self._records if record.label is not None})
        if len(present) < 2:
            first = f" ({len(self.rejected)} left out: {self.rejected[0].reason})" if self.rejected else ""
            raise DataError(
                f"{given} has usable images of only {len(present)} classes{first}.",
                "Give at least two classes, as class folders or in a table with columns path and label.",
            )
        number = positive_class("folder", names, positive)
        self.bits = bits
        depth, colour = self._probe()
        self.info = SourceInfo(
            name=self.root.resolve().name,
            title=f"Own images in {self.root.resolve().name}",
            classes=names,
            positive=number,
            bits=bits or depth,
            file_bits=bits,
            channels=3 if colour else 1,
            access="local",
        )

    def records(self) -> list[Record]:
        """All usable images in the order of their names; ``image_id`` is the path below the root."""
        return list(self._records)

    def read(self, record: Record) -> NDArray:
        """Pixels [H, W] or [H, W, 3], float32 in [0, 1]."""
        require_file(record.path, self.root)
        return read_image(record.path, self.bits)

    def _reject(self, name: str, reason: str) -> None:
        self.rejected.append(Rejected(name, str(self.root / name), reason))

    def _record(self, row: _Row, names: Sequence[str]) -> Record | None:
        """A row whose class is known and whose file can be opened; otherwise None, and the reason is kept."""
        if row.label not in names:
            self._reject(row.name, f"Label {row.label!r} is not one of {', '.join(names)}.")
            return None
        try:
            path = _inside(self.root, row.name)
        except DataError as error:
            self._reject(row.name, error.problem)
            return None
        return Record(
            row.name,
            path,
            names.index(row.label),
            row.patient_id,
            row.split,
            row.view,
            row.laterality,
            row.extra,
        )

    def _listed(self, table: Path) -> list[_Row]:
        """One row per image of the table; contradictions and files without a row are left out."""
        of_image: defaultdict[str, list[_Row]] = defaultdict(list)
        for row in _table_rows(table):
            of_image[row.name].append(row)
        rows = []
        for name, same in sorted(of_image.items()):
            contradictions = [
                f"{word} {' and '.join(values)}"
                for word in ("label", "patient_id", "split")
                if len(values := sorted({str(getattr(row, word)) for row in same})) > 1
            ]
            if contradictions:
                self._reject(name, f"Rows of the table contradict each other: {contradictions[0]}.")
            else:
                rows.append(same[0])
        for name in self._files():
            if name not in of_image and PurePosixPath(name).suffix.lower() in SUFFIXES:
                self._reject(name, "The table has no row for this file.")
        return rows

    def _placed(self) -> list[_Row]:
        """One row per file in a class folder."""
        folders = [path.name for path in _entries(self.root) if path.is_dir()]
        split_folders = [name for name in folders if name.lower() in SPLIT_NAMES]
        if split_folders and len(split_folders) < len(folders):
            others = ", ".join(sorted(set(folders) - set(split_folders))[:5])
            raise DataError(
                f"{self.root} mixes split folders ({', '.join(split_folders)}) with others ({others}).",
                "Put all classes into split folders, or none of them.",
            )
        rows = []
        for name in self._files():
            *above, file = PurePosixPath(name).parts
            split = SPLIT_NAMES[above.pop(0).lower()] if split_folders and above else None
            if not above:
                self._reject(name, "The file is not in a class folder.")
            elif not may_be_image(PurePosixPath(file)):
                self._reject(name, "The file name does not look like an image.")
            else:
                rows.append(_Row(name, above[0], split=split))
        return rows

    def _files(self) -> Iterator[str]:
        """Paths of all visible files below the root."""

        def unreadable(error: OSError) -> None:
            self._reject(str(error.filename), f"The folder cannot be opened: {error.strerror}.")

        for path in files_below(self.root, unreadable):
            name = path.relative_to(self.root).as_posix()
            try:
                name.encode()
            except UnicodeEncodeError:
                self._reject(ascii(name), "The file name is not valid UTF-8.")
            else:
                yield name

    def _with_patients(self, rows: list[_Row], pattern: str | None) -> list[_Row]:
        """The rows whose patient is known, or all of them where no patient is named at all."""
        named = any(row.patient_id for row in rows)
        if pattern is None and not named:
            return [replace(row, patient_id=None) for row in rows]
        if pattern is not None:
            if named:
                raise ConfigError(
                    "folder: patient_pattern is given, but the table already names the patients.",
                    "Leave out patient_pattern.",
                )
            search = _compile(pattern)
            found = [(row, search.search(PurePosixPath(row.name).name)) for row in rows]
            rows = [replace(row, patient_id=match[1] if match else None) for row, match in found]
        for row in rows:
            if not row.patient_id:
                self._reject(row.name, "The patient is not named, but other images name theirs.")
        return [row for row in rows if row.patient_id]

    def _probe(self) -> tuple[int, bool]:
        """Greatest bit depth and whether all are coloured, of the first images that can be read."""
        depths, colours = [8], []
        for record in self._records[:PROBED]:
            try:
                pixels = self.read(record)
                depths.append(image_bits(record.path))
            except DataError:
                continue  # told when it is read for use
            # Grey saved as RGB is grey, but for what lossy compression does to it.
            colours.append(pixels.ndim == 3 and float(np.ptp(pixels, axis=2).max()) > 0.01)
        return max(depths), bool(colours) and all(colours)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if is_visible(path.name))
    except OSError as error:
        raise DataError(
            f"{folder} cannot be opened as a folder: {error.strerror}.", "Check the path."
        ) from None


def _find_table(given: Path) -> Path | None:
    """The table to read; None where class folders are meant."""
    if given.is_file():
        return given
    tables = [path for path in _entries(given) if path.suffix.lower() in (".csv", ".tsv")]
    if len(tables) > 1:
        raise DataError(
            f"{given} holds {len(tables)} tables: {', '.join(path.name for path in tables[:5])}.",
            f"Name the one to use: folder:{tables[0]}",
        )
    return tables[0] if tables else None


def _table_rows(path: Path) -> Iterator[_Row]:
    """All rows, every cell as text. DataError, with the line, where the table is not what it seems."""
    table = read_table(path, REQUIRED, OPTIONAL)
    for note in table.notes:
        warnings.warn(f"{path}: {note}", stacklevel=2)
    for row, line in zip(table.rows, table.lines, strict=True):
        split = row.get("split", "").lower()
        if split and split not in SPLIT_NAMES:
            raise DataError(
                f"{path}, line {line}: split {split!r} is unknown.", "Expected train, val or test."
            )
        yield _Row(
            name=_posix(path.parent, row["path"]),
            label=row["label"],
            patient_id=row.get("patient_id"),
            split=SPLIT_NAMES.get(split),
            view=row.get("view", "").upper(),
            laterality=SIDES.get(row.get("laterality", "").lower(), ""),
            extra={name: row[name] for name in EXTRA if name in row},
        )


def _posix(root: Path, text: str) -> str:
    """A path of a table, with the separators of Windows turned if it does not exist otherwise."""
    name = PurePosixPath(text).as_posix()
    if "\\" in name and "\0" not in name and not os.path.lexists(root / name):
        name = PureWindowsPath(text).as_posix()
    return name


def _inside(root: Path, name: str) -> Path:
    """The file of that name, which can be opened and lies below the root."""
    windows = PureWindowsPath(name)
    if windows.drive or windows.root or ".." in windows.parts:
        raise DataError(f"The path {name} points outside the data folder.")
    if "\0" in name:
        raise DataError(f"The path {name!r} contains a null character.")
    require_file(root / name, root)
    return root / name


def _class_names(given: Path, rows: Sequence[_Row], classes: str | Sequence[str] | None) -> tuple[str, ...]:
    if classes is not None:
        names = tuple(name.strip() for name in (classes.split(",") if isinstance(classes, str) else classes))
        if len(set(names)) < max(2, len(names)) or "" in names:
            raise ConfigError(
                f"folder: classes are {', '.join(names)}.", "Name two or more different classes."
            )
        return names
    labels = {row.label for row in rows if row.label.casefold() not in NO_LABEL}
    of_folded = {label.casefold(): label for label in labels}
    for label in labels:
        if (other := of_folded[label.casefold()]) != label:
            raise DataError(
                f"{given}: labels {label!r} and {other!r} differ only in case.", "Spell them the same way."
            )
    if all(label.isdecimal() for label in labels):
        return tuple(sorted(labels, key=int))
    return tuple(sorted(labels))


def positive_class(kind: str, names: Sequence[str], positive: str | None) -> int:
    """Number of the class that "sensitivity" speaks of: the one asked for, else the one whose name says so, else the last.

    ConfigError, naming the ``kind`` of data, where there is no such class.
    """
    if positive is not None:
        if positive not in names:
            raise ConfigError(f"{kind}: positive is {positive!r}, but the classes are {', '.join(names)}.")
        return names.index(positive)
    telling = [names.index(name) for name in names if name.casefold() in POSITIVE]
    return telling[0] if telling else len(names) - 1


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        search = re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f"folder: patient_pattern {pattern!r} is not a valid regular expression: {error}."
        ) from None
    if search.groups != 1:
        raise ConfigError(f"folder: patient_pattern {pattern!r} has {search.groups} groups, expected one.")
    return search
