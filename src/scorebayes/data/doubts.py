"""What in a data set may mislead whoever trusts a figure from it, in words: unknown patients, a class that hides in the
depth of the files, one class under two names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from scorebayes.data.base import Record, Source
from scorebayes.data.listing import MASK_FOLDERS, masks
from scorebayes.data.names import near_doubles, suggest_pattern
from scorebayes.data.pixels.images import image_bits
from scorebayes.errors import DataError

NOT_CHECKABLE = "not checkable: no patient ids"
SHORTCUT = 0.25  # a depth whose share differs so much between two classes tells them apart


def doubts(
    source: Source,
    records: Sequence[Record],
    leakage: Mapping[str, Any] | None = None,
    headers: int | None = None,
) -> list[str]:
    """One sentence or two for every doubt, none where there is nothing to doubt.

    records: those that can be used. leakage: what ``leakage_audit`` found. headers: how many files at most are opened to
    learn their depth; None: all.
    """
    classes = source.info.classes
    words = [patient_words(records, len(classes))]
    words += [
        f"The classes {a!r} and {b!r} have nearly the same name. If they are one class, give it one name."
        for a, b in near_doubles(classes)
    ]
    present = {record.label for record in records}
    empty = [name for number, name in enumerate(classes) if number not in present]
    words.append(f"No usable image is of the class {' or '.join(empty)}." if empty and records else "")
    pictures = [name for name in classes if name.casefold() in MASK_FOLDERS]
    words.append(
        f"The class {' and '.join(pictures)} may be a folder of masks. If so, move it elsewhere."
        if pictures
        else ""
    )
    if shapes := masks([record.path for record in records]):
        words.append(
            f"{len(shapes)} images have names of masks beside their images, for example {shapes[0].name}. "
            "If they are masks, remove their rows from the table."
        )
    if torn := (leakage or {}).get("same_pixels_two_labels"):
        words.append(
            f"{_number(len(torn), 'image occurs', 'images occur')} under two labels, for example "
            f"{' = '.join(torn[0][:2])}. One of the labels is wrong."
        )
    return [text for text in [*words, depth_words(records, classes, headers)] if text]


def patient_words(records: Sequence[Record], n_classes: int) -> str:
    """What is not known of the patients, and what to do; empty where every image names its patient."""
    unknown = [record for record in records if record.patient_id is None]
    if not unknown:
        return ""
    if len(unknown) < len(records):
        return (
            f"{len(unknown)} of {len(records)} images name no patient, for example {unknown[0].image_id}. Each of them "
            "stands alone, so patients in two splits are not checkable for them. Name their patients."
        )
    text = (
        f"Patients in two splits are {NOT_CHECKABLE}. If a patient has several images, every figure is too good. Name the "
        "patients: the column patient_id of a table, patient_pattern for file names, or groups in Python."
    )
    named = all(PurePosixPath(record.image_id).name == record.path.name for record in records)
    if named and (pattern := suggest_pattern([record.image_id for record in records], n_classes)):
        text += (
            f" The file names look as if they held the patient. If so: --option 'patient_pattern={pattern}'"
        )
    return text


def depth_words(records: Sequence[Record], classes: Sequence[str], headers: int | None = None) -> str:
    """Where files have different depths: how many of each class, and whether the depth gives the class away."""
    step = 1 if headers is None else -(-len(records) // headers) or 1
    counts: dict[int, Counter[int | None]] = {}
    for record in records[::step]:
        if record.path.suffix.lower() != ".npz" and record.path.is_file():
            try:
                counts.setdefault(image_bits(record.path), Counter())[record.label] += 1
            except DataError:
                continue  # told when it is read for use
    if len(counts) < 2:
        return ""
    listed = "; ".join(
        f"{bits} bits: "
        + ", ".join(
            f"{n} {'without label' if label is None else classes[label]}" for label, n in found.items()
        )
        for bits, found in sorted(counts.items())
    )
    totals: Counter[int | None] = sum(counts.values(), Counter())
    shares = [
        [found[label] / totals[label] for label in range(len(classes)) if totals[label]]
        for found in counts.values()
    ]
    text = f"The files have different depths ({listed}), so that equal tissue may have unequal grey values."
    if any(len(of) > 1 and max(of) - min(of) >= SHORTCUT for of in shares):
        text += " The depth goes along with the class: a model may learn the depth instead of the disease."
    return f"{text} Save all images at one depth."


def _number(n: int, one: str, many: str) -> str:
    return f"{n} {one if n == 1 else many}"
