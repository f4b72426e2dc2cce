"""Your own images: class folders, or a table that names the image files, their classes and their patients.

    DIR/benign/*.png, DIR/malignant/*.png                 class folders
    DIR/train/benign/*.png, DIR/test/benign/*.png, ...    class folders with prescribed splits
    DIR/labels.csv with columns path and label            table, with patient_id, split, view, laterality if
    known

Rows and files that cannot be used are left out one by one and listed with the reason; hidden files and those of the
system are counted in a note. An error that casts doubt on the whole table stops the program.
"""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scorebayes.data.base import Record, Rejected, SourceInfo
from scorebayes.data.listing import INDEX, MASK, NO_IMAGE, Listing, left_out_words, list_images
from scorebayes.data.names import (
    class_key,
    clean,
    has_label,
    known_patients,
    one_spelling,
    patient_key,
    pattern_text,
    require_few_classes,
)
from scorebayes.data.pixels.files import is_visible, require_file
from scorebayes.data.pixels.images import image_bits, read_image
from scorebayes.data.sources.paths import inside, names_below
from scorebayes.data.sources.tables import read_table
from scorebayes.errors import ConfigError, DataError

REQUIRED = ("path|file|image", "label|class|pathology")
EXTRA = ("density", "vendor", "lesion_type")
PATIENT_COLUMN = "patient_id|patient|subject_id|subject|participant_id|participant"
OPTIONAL = (
    PATIENT_COLUMN,
    "split",
    "view",
    "laterality",
    *EXTRA,
)
"""Columns by their names, best first. Others are never copied: they may identify a person."""

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
SIDES = {"l": "L", "left": "L", "r": "R", "right": "R"}
POSITIVE = ("malignant", "cancer", "positive", "abnormal", "disease", "pneumonia")
SPELLINGS: dict[str, Callable[[str], Any]] = {"label": class_key, "patient_id": patient_key, "split": str}
"""What two rows on one image must agree in, whatever their spelling."""
REASONS = {
    NO_IMAGE: "no image: neither its name nor its content is that of one.",
    MASK: f"left out: {MASK}.",
    INDEX: f"left out: {INDEX}.",
}
NO_ROW = "The table has no row for this file."
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
        all labels found, in numerical or alphabetical order. Equal numbers (0 and 0.0) are one class.
    positive: name of the class that "sensitivity" refers to. Without it: the one whose name says so, or the
        last one.
    patient_pattern: regular expression with one group that finds the patient in a file name, or in the path below
        the root if the pattern holds a slash; only where no table names the patients.

    Images whose class is unknown (empty, "?", "nan") are kept without a label, for a label-free start. Images whose
    patient is unknown stand alone.
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
        self.notes: list[str] = []
        given = Path(root)
        table = _find_table(given)
        self.root = given if table is None else table.parent
        listing = self._listing()
        rows = self._placed(listing) if table is None else self._listed(table, listing)
        rows = self._with_patients(rows, patient_pattern)
        names, class_of = self._classes(given, {row.label for row in rows}, classes)
        self._records = [record for row in rows if (record := self._record(row, names, class_of)) is not None]
        present = sorted({record.label for record in self._records if record.label is not None})
        if len(present) < 2:
            told = sorted(self.rejected, key=lambda entry: entry.reason == NO_ROW)
            first = f" ({len(told)} left out: {told[0].reason})" if told else ""
            noted = "".join(f" {note}" for note in self.notes)
            raise DataError(
                f"{given} has usable images of only {len(present)} classes{first}.{noted}",
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

    def _record(self, row: _Row, names: Sequence[str], class_of: Mapping[str, str]) -> Record | None:
        """A row whose file can be opened; otherwise, or if its class is not asked for, None, and the reason is kept."""
        named = class_of.get(row.label)
        if named is None and has_label(row.label):
            self._reject(row.name, f"Label {row.label!r} is not one of {', '.join(names)}.")
            return None
        try:
            path = inside(self.root, row.name)
        except DataError as error:
            self._reject(row.name, error.problem)
            return None
        return Record(
            row.name,
            path,
            None if named is None else names.index(named),
            row.patient_id,
            row.split,
            row.view,
            row.laterality,
            row.extra,
        )

    def _listed(self, table: Path, listing: Listing) -> list[_Row]:
        """One row per image of the table; contradictions and files without a row are left out."""
        of_image: defaultdict[str, list[_Row]] = defaultdict(list)
        for row in self._table_rows(table):
            of_image[row.name].append(row)
        rows = []
        for name, same in sorted(of_image.items()):
            contradictions = [
                f"{word} {' and '.join(sorted({str(getattr(row, word)) for row in same}))}"
                for word, key in SPELLINGS.items()
                if len({key(getattr(row, word) or "") for row in same}) > 1
            ]
            if contradictions:
                self._reject(name, f"Rows of the table contradict each other: {contradictions[0]}.")
            else:
                rows.append(same[0])
        for path in [*listing.images, *(p for p, reason in listing.left_out.items() if reason == MASK)]:
            unlisted = self._name(path)
            if unlisted is not None and unlisted not in of_image:
                mask = path in listing.left_out
                self._reject(unlisted, REASONS[MASK] if mask else NO_ROW)
        return rows

    def _table_rows(self, path: Path) -> list[_Row]:
        """All rows, every cell as text. DataError, with the line, where the table is not what it seems."""
        table = read_table(path, REQUIRED, OPTIONAL)
        names, moved = names_below(path.parent, [row["path"] for row in table.rows])
        for note in [*table.notes, *moved]:
            self.notes.append(note)
            warnings.warn(f"{path}: {note}", stacklevel=4)
        rows = []
        for row, name, line in zip(table.rows, names, table.lines, strict=True):
            split = row.get("split", "").lower()
            if split and split not in SPLIT_NAMES:
                raise DataError(
                    f"{path}, line {line}: split {split!r} is unknown.", "Expected train, val or test."
                )
            rows.append(
                _Row(
                    name=name,
                    label=row["label"],
                    patient_id=row.get("patient_id"),
                    split=SPLIT_NAMES.get(split),
                    view=row.get("view", "").upper(),
                    laterality=SIDES.get(row.get("laterality", "").lower(), ""),
                    extra={name: row[name] for name in EXTRA if name in row},
                )
            )
        return rows

    def _placed(self, listing: Listing) -> list[_Row]:
        """One row per image in a class folder."""
        folders = [path.name for path in _entries(self.root) if path.is_dir()]
        split_folders = [name for name in folders if name.lower() in SPLIT_NAMES]
        if split_folders and len(split_folders) < len(folders):
            others = ", ".join(sorted(set(folders) - set(split_folders))[:5])
            raise DataError(
                f"{self.root} mixes split folders ({', '.join(split_folders)}) with others ({others}).",
                "Put all classes into split folders, or none of them.",
            )
        rows = []
        for path in listing.images:
            name = self._name(path)
            if name is None:
                continue
            above = list(PurePosixPath(name).parts[:-1])
            split = SPLIT_NAMES[above.pop(0).lower()] if split_folders and above else None
            if above:
                rows.append(_Row(name, above[0], split=split))
            else:
                self._reject(name, "The file is not in a class folder.")
        for path, reason in listing.left_out.items():
            if reason in REASONS and (left := self._name(path)) is not None:
                self._reject(left, REASONS[reason])
        return rows

    def _listing(self) -> Listing:
        """The images below the root. What is passed over without a look is noted."""

        def unreadable(error: OSError) -> None:
            self._reject(str(error.filename), f"The folder cannot be opened: {error.strerror}.")

        listing = list_images(self.root, unreadable)
        unseen = {path: reason for path, reason in listing.left_out.items() if reason not in REASONS}
        if words := left_out_words(unseen, self.root):
            self.notes.append(words)
        return listing

    def _name(self, path: Path) -> str | None:
        """The path below the root; None, and the reason is kept, where it is not valid UTF-8."""
        name = path.relative_to(self.root).as_posix()
        try:
            name.encode()
        except UnicodeEncodeError:
            self._reject(ascii(name), "The file name is not valid UTF-8.")
            return None
        return name

    def _with_patients(self, rows: list[_Row], pattern: str | None) -> list[_Row]:
        """The rows with the patients as the table names them, or as the pattern finds them: then without the others."""
        patients = known_patients(row.patient_id for row in rows)
        if pattern is None:
            return [replace(row, patient_id=patient) for row, patient in zip(rows, patients, strict=True)]
        if any(patients):
            raise ConfigError(
                "folder: patient_pattern is given, but the table already names the patients.",
                "Leave out patient_pattern.",
            )
        search = compile_pattern(pattern)
        found = [(row, search.search(pattern_text(pattern, row.name))) for row in rows]
        for row, match in found:
            if not (match and match[1]):
                self._reject(row.name, "The pattern finds no patient in the name, but in others it does.")
        return [replace(row, patient_id=match[1]) for row, match in found if match and match[1]]

    def _classes(
        self, given: Path, labels: Iterable[str], classes: str | Sequence[str] | None
    ) -> tuple[tuple[str, ...], dict[str, str]]:
        """The names of the classes in their order, and the class of every label that is one."""
        if classes is not None:
            names = tuple(
                clean(name) for name in (classes.split(",") if isinstance(classes, str) else classes)
            )
            of_key = {class_key(name): name for name in names}
            if len(of_key) < max(2, len(names)) or "" in names:
                raise ConfigError(
                    f"folder: classes are {', '.join(names)}.", "Name two or more different classes."
                )
            return names, {label: of_key[key] for label in labels if (key := class_key(label)) in of_key}
        cleaned = {label: clean(label) for label in labels if has_label(label)}
        spelling = one_spelling(cleaned.values(), class_key)
        require_few_classes(given, len(set(spelling.values())))
        for name in sorted(set(spelling.values())):
            if len(same := sorted(other for other, chosen in spelling.items() if chosen == name)) > 1:
                self.notes.append(f"The labels {' and '.join(same)} are one class, {name}.")
        return _in_order(given, set(spelling.values())), {x: spelling[text] for x, text in cleaned.items()}

    def _probe(self) -> tuple[int, bool]:
        """Greatest bit depth and whether all are coloured, of some images from the first to the last."""
        depths, colours = [8], []
        for record in self._records[:: -(-len(self._records) // PROBED)]:
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


def _in_order(given: Path, names: set[str]) -> tuple[str, ...]:
    of_folded = {name.casefold(): name for name in names}
    for name in sorted(names):
        if (other := of_folded[name.casefold()]) != name:
            raise DataError(
                f"{given}: labels {name!r} and {other!r} differ only in case.", "Spell them the same way."
            )
    keys = {name: class_key(name) for name in names}
    numbers = all(isinstance(key, float) for key in keys.values())
    return tuple(sorted(names, key=lambda name: (keys[name], name) if numbers else name))


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


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """A pattern with one group. ConfigError for any other."""
    try:
        search = re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f"folder: patient_pattern {pattern!r} is not a valid regular expression: {error}."
        ) from None
    if search.groups != 1:
        raise ConfigError(f"folder: patient_pattern {pattern!r} has {search.groups} groups, expected one.")
    return search
