"""The split into train, val and test, always by patient.

Everything here is a pure function of records. Random choices are a hash of (seed, patient), so that they
do not depend on the order of the records.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from scorebayes.data.base import Record
from scorebayes.errors import ConfigError, DataError

SPLITS = ("train", "val", "test")
Patient = tuple[str, str]
Name = TypeVar("Name", str, int)


def split_patients(
    records: Sequence[Record],
    *,
    fractions: Sequence[float] = (0.7, 0.15, 0.15),
    seed: int = 0,
    copies: Mapping[str, Patient] | None = None,
) -> dict[str, str]:
    """Image id -> "train", "val" or "test".

    Official splits are kept. Where they lack "val" but have "train", it is carved out of "train"; a lacking
    "test" is left lacking. Without official splits the patients are divided in the given fractions, each
    class for itself; a patient with images of several classes counts for the rarest of them. Images without
    patient id stand alone, or with their ``copies`` (see ``copies_of``).

    Raises DataError for a patient in two official splits, an unknown split name, an image id that occurs
    twice, or official splits for a part of the patients only; ConfigError for fractions that are no three
    shares of 1.
    """
    if len(fractions) != 3 or min(fractions) < 0 or not math.isclose(sum(fractions), 1, abs_tol=1e-6):
        raise ConfigError(
            f"Split fractions are {tuple(fractions)}, but three shares that sum to 1 are expected."
        )
    repeated = [image_id for image_id, n in Counter(r.image_id for r in records).items() if n > 1]
    if repeated:
        raise DataError(f"Some image ids occur more than once: {_some(repeated)}.", "Make them unique.")
    whose = {r.image_id: (copies or {}).get(r.image_id) or _patient(r) for r in records}
    patients: defaultdict[Patient, list[Record]] = defaultdict(list)
    for record in records:
        patients[whose[record.image_id]].append(record)
    official = _official(patients)
    if not official:
        chosen = _divide(patients, dict(zip(SPLITS, fractions, strict=True)), seed)
    else:
        chosen = official
        if "train" in official.values() and "val" not in official.values() and fractions[1] > 0:
            share = fractions[1] / (fractions[0] + fractions[1])
            train = {p: images for p, images in patients.items() if official[p] == "train"}
            chosen = official | _divide(train, {"train": 1 - share, "val": share}, seed)
    return {image_id: chosen[patient] for image_id, patient in whose.items()}


def judged_split(splits: Iterable[str]) -> str:
    """The split that figures are told of: "test", or "val" where no image is in it."""
    return "test" if "test" in set(splits) else "val"


def copies_of(records: Sequence[Record], images: Iterable[NDArray]) -> dict[str, Patient]:
    """Image id -> who stands for it and all images with the same pixels, for images without patient that have copies.

    A copy of one patient's image belongs to that patient. Copies in different official splits stay there.
    """
    found: dict[str, Patient] = {}
    for same in _equal_pixels(records, images):
        patients = {r.patient_id for r in same if r.patient_id is not None}
        if len({r.split for r in same}) == 1 and len(patients) < 2:
            first = min(r.image_id for r in same)
            whose = ("patient", patients.pop()) if patients else ("image", first)
            found |= {r.image_id: whose for r in same if r.patient_id is None}
    return found


def leakage_audit(
    records: Sequence[Record], splits: Mapping[str, str], images: Iterable[NDArray] | None = None
) -> dict[str, Any]:
    """Find leaks between the splits. Returns a dictionary of plain values, ready for JSON.

    ``images``: the pixels of the records, in their order; without them equal pixels are not looked for.

    Keys: ``patients_in_two_splits`` (ids), ``images_without_patient`` (number: for these it is not checkable),
        ``same_pixels_across_splits``, ``same_pixels_within_split`` and, of both, ``same_pixels_two_labels`` (groups of
        image ids), ``images`` (split -> label -> number), ``patients`` (split -> number; images where there are no ids).
    """
    seen: defaultdict[Patient, set[str]] = defaultdict(set)
    labels: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        split = splits[record.image_id]
        seen[_patient(record)].add(split)
        labels[split]["unknown" if record.label is None else str(record.label)] += 1
    twins = _equal_pixels(records, images) if images is not None else []
    groups = [[r.image_id for r in same] for same in twins]
    across = [ids for ids in groups if len({splits[i] for i in ids}) > 1]
    return {
        "patients_in_two_splits": sorted(p for (_, p), where in seen.items() if len(where) > 1),
        "images_without_patient": sum(r.patient_id is None for r in records),
        "same_pixels_across_splits": across,
        "same_pixels_within_split": [ids for ids in groups if ids not in across],
        "same_pixels_two_labels": [
            ids for ids, same in zip(groups, twins, strict=True) if len({r.label for r in same} - {None}) > 1
        ],
        "images": {split: dict(sorted(labels[split].items())) for split in SPLITS if split in labels},
        "patients": {s: sum(s in where for where in seen.values()) for s in SPLITS if s in labels},
    }


def _equal_pixels(records: Sequence[Record], images: Iterable[NDArray]) -> list[list[Record]]:
    """Groups of records whose images are the same."""
    twins: defaultdict[bytes, list[Record]] = defaultdict(list)
    for record, image in zip(records, images, strict=True):
        pixels = np.ascontiguousarray(image)
        content = hashlib.blake2b(f"{pixels.shape} {pixels.dtype}".encode(), digest_size=16)
        content.update(pixels.tobytes())
        twins[content.digest()].append(record)
    return [same for same in twins.values() if len(same) > 1]


def subsample(
    records: Sequence[Record],
    splits: Mapping[str, str],
    *,
    per_class: int | None = None,
    imbalance: float | None = None,
    rare: int | None = None,
    label_noise: float = 0.0,
    reduce_val: bool = False,
    seed: int = 0,
) -> list[Record]:
    """The records with a smaller, skewed or mislabelled training set; the test split is unchanged.

    Parameters
    ----------
    per_class: training patients kept per class (images where there are no ids). Smaller sets are parts of
        larger ones.
    imbalance: patients of the most frequent class per patient of the class ``rare``; classes between are
        spaced geometrically (Cui et al. 2019, arXiv 1901.05555, section 5). With ``per_class`` the total,
        ``per_class`` times the number of classes, is the same at every ratio; without it the largest set
        with this ratio is kept.
    rare: the class that ``imbalance`` makes rare; by default the last one.
    label_noise: share of each class's training patients that get another class, all images of a patient the
        same way.
    reduce_val: give val the same treatment: the class counts of the training set, scaled down to what val
        has (at least two patients per class), and the same share of wrong labels. By default val is kept.

    Raises ConfigError for values out of range, DataError where a class has too few patients.
    """
    if per_class is not None and per_class < 1:
        raise ConfigError(f"per_class is {per_class}, expected at least 1.")
    if imbalance is not None and not 0 < imbalance < math.inf:
        raise ConfigError(f"imbalance is {imbalance}, expected a positive number.")
    if not 0 <= label_noise <= 1:
        raise ConfigError(f"label_noise is {label_noise}, expected 0 to 1.")
    train = _labelled_strata(records, splits, "train", seed)
    counts = _class_counts(train, per_class, imbalance, rare)
    chosen = [(train, counts)]
    if reduce_val:
        val = _labelled_strata(records, splits, "val", seed)
        scale = min([1.0, *(len(val.get(label, ())) / n for label, n in counts.items())])
        chosen.append((val, {label: max(2, int(n * scale + 1e-9)) for label, n in counts.items()}))
    n_classes = 1 + max((r.label for r in records if r.label is not None), default=0)
    left_out: set[Patient] = set()
    shift: dict[Patient, int] = {}  # how far a wrong label is from the true one
    for strata, kept in chosen:
        for label, members in strata.items():
            stay = members[: kept.get(label, 0)]
            left_out |= set(members[len(stay) :])
            if n_classes > 1:
                in_turn = sorted(stay, key=lambda p: _hash(seed, "noise", p))
                wrong = in_turn[: round(label_noise * len(stay))]
                shift |= {p: 1 + _hash(seed, "shift", p) % (n_classes - 1) for p in wrong}

    result = []
    for record in records:
        patient = _patient(record)
        if patient in shift and record.label is not None:
            record = dataclasses.replace(record, label=(record.label + shift[patient]) % n_classes)
        if patient not in left_out:
            result.append(record)
    return result


def largest_per_class(
    records: Sequence[Record], splits: Mapping[str, str], imbalances: Sequence[float], rare: int | None = None
) -> int:
    """The largest ``per_class`` with which ``subsample`` can make every one of these ratios."""
    strata = _labelled_strata(records, splits, "train", seed=0)
    return min(_largest_total(strata, _shares(strata, ratio, rare)) for ratio in imbalances) // len(strata)


def _labelled_strata(
    records: Sequence[Record], splits: Mapping[str, str], split: str, seed: int
) -> dict[int, list[Patient]]:
    labelled = (r for r in records if splits[r.image_id] == split and r.label is not None)
    return _strata(_patients(labelled), seed, "subsample")


def _class_counts(
    strata: Mapping[int, Sequence[Patient]], per_class: int | None, imbalance: float | None, rare: int | None
) -> dict[int, int]:
    """How many patients of each class stay."""
    available = {label: len(members) for label, members in strata.items()}
    if not available or (per_class is None and imbalance is None):
        return available
    shares = _shares(strata, imbalance or 1.0, rare)
    largest = _largest_total(strata, shares)
    total = largest if per_class is None else per_class * len(available)
    counts = _counts(total, shares)
    for label, n in counts.items():
        if n > available[label]:
            raise DataError(
                f"Class {label} has {available[label]} training patients, but at least {n} are needed.",
                f"Ask for at most {largest // len(available)} per class.",
            )
    return counts


def _shares(strata: Mapping[int, Any], imbalance: float, rare: int | None) -> dict[int, float]:
    """Class -> its share of the patients, where the first has ``imbalance`` times those of the rare one."""
    labels = sorted(strata, key=lambda label: (label == rare, label))
    steps = max(1, len(labels) - 1)
    weights = {label: imbalance ** (-place / steps) for place, label in enumerate(labels)}
    return {label: weight / sum(weights.values()) for label, weight in weights.items()}


def _largest_total(strata: Mapping[int, Sequence[Patient]], shares: Mapping[int, float]) -> int:
    most = min(len(members) / shares[label] for label, members in strata.items())
    return max(len(strata), int(most + 1e-9))  # no class vanishes


def _patient(record: Record) -> Patient:
    """Who the image is of; the image itself where no patient is known, never mistaken for a patient of that
    name.
    """
    return ("image", record.image_id) if record.patient_id is None else ("patient", record.patient_id)


def _patients(records: Iterable[Record]) -> dict[Patient, list[Record]]:
    patients: defaultdict[Patient, list[Record]] = defaultdict(list)
    for record in records:
        patients[_patient(record)].append(record)
    return dict(patients)


def _official(patients: Mapping[Patient, list[Record]]) -> dict[Patient, str]:
    """The split that the data set prescribes for each patient; empty where it prescribes none."""
    found = {p: {r.split for r in images if r.split is not None} for p, images in patients.items()}
    unknown = {split for splits in found.values() for split in splits} - set(SPLITS)
    if unknown:
        raise DataError(
            f"Official split {_some(sorted(unknown))} is unknown.", f"Expected {', '.join(SPLITS)}."
        )
    torn = sorted(name for (_, name), splits in found.items() if len(splits) > 1)
    if torn:
        raise DataError(
            f"Some patients are in more than one official split: {_some(torn)}.",
            "Give each patient one split.",
        )
    without = sorted(name for (_, name), splits in found.items() if not splits)
    if without and len(without) < len(found):
        raise DataError(
            f"{len(without)} of {len(found)} patients have no official split: {_some(without)}.",
            "Give a split to all of them, or to none.",
        )
    return {p: next(iter(splits)) for p, splits in found.items() if splits}


def _divide(
    patients: Mapping[Patient, list[Record]], fractions: Mapping[str, float], seed: int
) -> dict[Patient, str]:
    chosen: dict[Patient, str] = {}
    for members in _strata(patients, seed, "split").values():
        names = [s for s, n in _counts(len(members), fractions).items() for _ in range(n)]
        chosen |= dict(zip(members, names, strict=True))
    return chosen


def _strata(patients: Mapping[Patient, list[Record]], seed: int, use: str) -> dict[int, list[Patient]]:
    """Class -> its patients in random order. A patient counts for the rarest of its classes, -1 without
    labels.
    """
    labels = {p: {-1 if r.label is None else r.label for r in images} for p, images in patients.items()}
    frequency = Counter(label for found in labels.values() for label in found)
    strata: defaultdict[int, list[Patient]] = defaultdict(list)
    for patient, found in labels.items():
        strata[min(found, key=lambda label: (frequency[label], -label))].append(patient)
    return {k: sorted(strata[k], key=lambda p: _hash(seed, use, p)) for k in sorted(strata)}


def _counts(n: int, fractions: Mapping[Name, float]) -> dict[Name, int]:
    """n patients in the given fractions (largest remainders), none empty while another could spare one."""
    counts = {name: int(n * share) for name, share in fractions.items()}
    rest = sorted(fractions, key=lambda name: counts[name] - n * fractions[name])
    for name in rest[: n - sum(counts.values())]:
        counts[name] += 1
    for name, share in fractions.items():
        richest = max(counts, key=lambda other: counts[other])
        if share > 0 and counts[name] == 0 and counts[richest] > 1:
            counts[richest] -= 1
            counts[name] = 1
    return counts


def _hash(seed: int, use: str, patient: Patient) -> int:
    text = "\0".join((str(seed), use, *patient))
    return int.from_bytes(
        hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big"
    )


def _some(names: Sequence[str], limit: int = 5) -> str:
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
