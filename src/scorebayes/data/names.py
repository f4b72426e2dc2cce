"""Names as people write them: which spellings mean one class or one patient, and which names hold a patient."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral, Real
from pathlib import Path, PurePosixPath
from typing import Any

from scorebayes.errors import DataError

UNKNOWN = (
    "",
    "?",
    "-",
    "--",
    ".",
    "nan",
    "none",
    "null",
    "nat",
    "<na>",
    "#n/a",
    "n/a",
    "unknown",
    "unk",
    "not known",
)
NO_LABEL = (
    *("", "?", "-1", "-1.0", "n/a", "#n/a", "na", "<na>", "nan", "null"),
    *("unknown", "unlabelled", "unlabeled"),
)
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|[+-]?\d+,(?!\d{3}$)\d+")
_WHOLE = re.compile(r"([+-]?\d+)\.0+")
_TOKENS = re.compile(r"[^\W_]+")
MAX_CLASSES = 1000  # a data set with more is none, or its labels are something else
LEAST_LETTERS = 4  # of a word in which one other letter is taken for a slip, not for another class

_PATTERNS = (
    *(r"^([^_]+)_", r"^([^-]+)-", r"^([^ ]+) ", r"^([^.]+)\.[^.]+\."),
    *(r"^([^_]+_[^_]+)_", r"^([^-]+-[^-]+)-", r"/([^/]+)/[^/]+$"),
)
"""Where file names often hold the patient, shortest first; the last one is a folder below the class."""
MOST_OF_A_PATIENT = 20  # images; a prefix that more share on the average is no patient


def clean(text: str) -> str:
    """Text without invisible characters, in composed form (NFC), with single blanks."""
    visible = "".join(c for c in text if unicodedata.category(c) != "Cf")
    return unicodedata.normalize("NFC", " ".join(visible.split()))


def require_few_classes(name: Path | str, n_classes: int) -> None:
    """DataError where a data set has more classes than can be meant."""
    if n_classes > MAX_CLASSES:
        raise DataError(
            f"{name} has {n_classes} classes, but at most {MAX_CLASSES} are possible.",
            "Check that its labels are classes.",
        )


def has_label(text: str) -> bool:
    """Whether a table names a class here."""
    return clean(text).casefold() not in NO_LABEL


def class_key(label: str) -> str | float:
    """What two spellings of one class share: the number, or the cleaned text."""
    text = clean(label)
    return float(text.replace(",", ".")) if _NUMBER.fullmatch(text) else text


def patient_key(patient: str) -> str:
    """What two spellings of one patient share. 7 and 7.0 are one, 007 and 7 are two."""
    text = clean(patient)
    whole = _WHOLE.fullmatch(text)
    return whole[1] if whole else text


def one_spelling(names: Iterable[str], key: Callable[[str], Any]) -> dict[str, str]:
    """Every name -> the shortest that has the same key."""
    of_key: defaultdict[Any, set[str]] = defaultdict(set)
    for name in names:
        of_key[key(name)].add(name)
    return {name: min(same, key=lambda n: (len(n), n)) for same in of_key.values() for name in same}


def near_doubles(classes: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of class names that differ by blanks, hyphens, a plural or one letter, and may be one class."""
    pairs = [(a, b) for place, a in enumerate(classes) for b in classes[place + 1 :]]
    return [(a, b) for a, b in pairs if _nearly_equal(a, b)]


def _nearly_equal(a: str, b: str) -> bool:
    first, second = (_TOKENS.findall(name.casefold()) for name in (a, b))
    if "".join(first) == "".join(second):
        return not "".join(first).isdigit()  # 1-2 and 12 are two grades
    if len(first) != len(second):
        return False
    differing = [(one, other) for one, other in zip(first, second, strict=True) if one != other]
    if len(differing) != 1:
        return False
    one, other = sorted(differing[0], key=len)
    if other in (one + "s", one + "es") and len(one) >= 3:
        return True
    letters = one.isalpha() and other.isalpha() and len(one) >= LEAST_LETTERS
    # "typical" and "atypical" are a word and its contrary, "typea" and "typeb" or "gradei" and "gradev" a series.
    series = one[:-1] == other[:-1] and {one[-1], other[-1]} <= set("abcdefghivx")
    return letters and other != "a" + one and not series and _one_slip(one, other)


def _one_slip(short: str, long: str) -> bool:
    """One letter changed, lacking, or swapped with its neighbour."""
    start = next((k for k, (a, b) in enumerate(zip(short, long, strict=False)) if a != b), len(short))
    if len(long) == len(short) + 1:
        return short[start:] == long[start + 1 :]
    if len(long) != len(short):
        return False
    swapped = short[start + 1 : start + 2] + short[start : start + 1] + short[start + 2 :]
    return short[start + 1 :] == long[start + 1 :] or swapped == long[start:]


def known_patient(patient: Any) -> str | None:
    """The patient's name as text, or None where there is none: None, NaN, empty, "?", "nan", "unknown"."""
    if patient is None:
        return None
    if isinstance(patient, Real) and not isinstance(patient, Integral):
        number = float(patient)  # one column of numbers, read with gaps and without
        patient = int(number) if number.is_integer() else number
    name = clean(str(patient))
    return None if name.casefold() in UNKNOWN else name


def known_patients(patients: Iterable[Any]) -> list[str | None]:
    """``known_patient`` for every image, in one spelling. "NA" is a patient's initials at most once."""
    names = [known_patient(patient) for patient in patients]
    number = Counter(names)
    # R writes NA for a missing value. Taken for a patient, all of these would be one person.
    names = [None if name == "NA" and number[name] > 1 else name for name in names]
    spelling = one_spelling((name for name in names if name is not None), patient_key)
    return [None if name is None else spelling[name] for name in names]


def suggest_pattern(paths: Sequence[str], n_classes: int) -> str | None:
    """A ``patient_pattern`` for file names that look as if several images shared a patient; else None.

    ``paths`` lie below the root. ``a/P000_1.png``, ``a/P000_2.png`` ... -> ``^([^_]+)_``.
    """
    for pattern in _PATTERNS:
        found = [re.search(pattern, pattern_text(pattern, path)) for path in paths]
        if not paths or not all(found):
            continue
        groups = Counter(match[1] for match in found if match)
        # A patient's name holds a number. One for each class, or one for every image, is no patient.
        numbered = all(any(c.isdigit() for c in name) for name in groups)
        if numbered and max(2, n_classes) < len(groups) < len(paths) <= MOST_OF_A_PATIENT * len(groups):
            return pattern
    return None


def pattern_text(pattern: str, path: str) -> str:
    """What a ``patient_pattern`` is searched in: the file name, or the whole path if the pattern has a slash."""
    return path if "/" in pattern.replace("[^/]", "") else PurePosixPath(path).name
