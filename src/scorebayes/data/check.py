"""Is the data set whole? Counts against the published ones, what is missing or wrong, and what leaks between
splits.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

from scorebayes.data.base import Record, Source
from scorebayes.data.doubts import NOT_CHECKABLE, doubts
from scorebayes.data.load import Progress, load
from scorebayes.data.prepare import Prepare
from scorebayes.data.sources.cbis_ddsm import CbisDdsm
from scorebayes.data.sources.inbreast import InBreast
from scorebayes.data.sources.mammograms import Count
from scorebayes.data.sources.vindr_mammo import VindrMammo
from scorebayes.data.split import Patient, copies_of, leakage_audit, split_patients
from scorebayes.errors import DataError, printable

COUNTS: dict[str, Callable[[Any], list[Count]]] = {
    "cbis-ddsm": CbisDdsm.counts,
    "inbreast": InBreast.counts,
    "vindr-mammo": VindrMammo.counts,
}
"""Data sets with published counts."""

SHOWN = 5  # ids per line of text; the dictionary holds all
THUMBNAIL = 64  # pixels; images that agree at this size are called the same


def check(
    source: Source,
    *,
    pixels: bool = True,
    workers: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Check a data set. Returns a dictionary of plain values, ready for JSON.

    Parameters
    ----------
    pixels: also decode every image, which finds unreadable images and equal pictures.
    workers, progress: as in ``load``.

    Keys: ``name``, ``ok``, ``counts``, ``records``, ``patients``, ``images`` (split -> class -> number),
        ``left_out`` (kind of reason -> list of id, path, reason), ``leakage`` (see ``leakage_audit``),
        ``warnings`` (see ``doubts``), ``notes``.

    ``ok`` is False where a count differs, an image is missing or unreadable, something leaks, or there is a warning.
    Raises DataError where the tables cannot be read at all.
    """
    name = source.info.name
    table_counts = COUNTS[name](source) if name in COUNTS else []
    records = source.records()
    notes = list(source.notes)
    rejected = list(source.rejected)
    images = None
    if pixels and records:
        channels = source.info.channels
        shown, unreadable = load(
            source, records, Prepare(THUMBNAIL, channels, 16), workers=workers, progress=progress
        )
        rejected += unreadable
        records, images = list(shown.records), shown.images
    left_out: defaultdict[str, list[dict[str, str]]] = defaultdict(list)
    for entry in rejected:
        kind = entry.reason.split(":")[0] if ": " in entry.reason[:40] else "unreadable"
        left_out[kind].append({"id": entry.image_id, "path": entry.path, "reason": entry.reason})
    splits, problem = _splits(records, copies_of(records, images) if images is not None else {})
    leakage = leakage_audit(records, splits, images) if splits else {}
    warned = doubts(source, records, leakage) if records else []
    unlabelled = sum(record.label is None for record in records)
    if unlabelled:
        notes.append(f"{unlabelled} images have no label. They serve a label-free start only.")
    leaks = bool(leakage.get("patients_in_two_splits") or leakage.get("same_pixels_across_splits"))
    harmless = {"left out by the convention", "left out", "duplicate", "leak"}
    return {
        "name": source.info.title,
        "ok": not (
            leaks or problem or warned or set(left_out) - harmless or any(n != m for _, n, m in table_counts)
        ),
        "counts": [count._asdict() for count in table_counts],
        "records": len(records),
        "patients": len({r.patient_id for r in records if r.patient_id is not None}),
        "images": _images(source, records, splits),
        "left_out": dict(left_out),
        "leakage": leakage,
        "warnings": warned,
        "notes": [*notes, *([problem] if problem else [])],
    }


def _splits(records: list[Record], copies: dict[str, Patient]) -> tuple[dict[str, str], str]:
    if not records:
        return {}, "No image is usable."
    try:
        return split_patients(records, copies=copies), ""
    except DataError as error:
        return {}, str(error)


def _images(source: Source, records: list[Record], splits: dict[str, str]) -> dict[str, dict[str, int]]:
    names = [*source.info.classes, "unknown"]
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        found[splits.get(record.image_id, "all")][names[-1 if record.label is None else record.label]] += 1
    return {split: dict(found[split]) for split in ("train", "val", "test", "all") if split in found}


def as_text(result: dict[str, Any]) -> str:
    """The result of ``check`` for people, at most a screen or two."""
    of = f"of {result['patients']} patients" if result["patients"] else "(no patient ids)"
    lines = [f"{result['name']}: {result['records']} usable images {of}"]
    if result["counts"]:
        width = max(len(entry["what"]) for entry in result["counts"])
        lines.append("\nTables compared with the published counts")
        for entry in result["counts"]:
            mark = "" if entry["found"] == entry["published"] else "   differs"
            lines.append(f"  {entry['what']:<{width}} {entry['found']:>7} of {entry['published']}{mark}")
    lines.append("\nUsable images")
    for split, classes in result["images"].items():
        lines.append(f"  {split:<6}" + ", ".join(f"{n} {name}" for name, n in classes.items()))
    if result["left_out"]:
        lines.append("\nLeft out")
    for kind, entries in sorted(result["left_out"].items()):
        lines.append(f"  {kind}: {len(entries)}")
        lines += [f"    {printable(entry['id'])}: {printable(entry['reason'])}" for entry in entries[:SHOWN]]
        if len(entries) > SHOWN:
            lines.append(f"    and {len(entries) - SHOWN} more (--json lists all)")
    if result["leakage"]:
        lines.append("\nLeakage between splits")
        for key in ("patients_in_two_splits", "same_pixels_across_splits", "same_pixels_within_split"):
            found, unknown = result["leakage"][key], result["leakage"]["images_without_patient"]
            some = "; ".join(
                entry if isinstance(entry, str) else " = ".join(entry) for entry in found[:SHOWN]
            )
            told = f"{len(found)}" + (f" ({printable(some)})" if found else "")
            if key == "patients_in_two_splits" and unknown:
                told += f"; not checkable for {unknown} images: no patient ids"
            if key == "patients_in_two_splits" and not result["patients"]:
                told = NOT_CHECKABLE
            lines.append(f"  {key.replace('_', ' ')}: {told}")
    lines += [f"\n{printable(note)}" for note in result["notes"]]
    lines += [f"\nWarning: {printable(warning)}" for warning in result["warnings"]]
    fine = "Nothing is wrong. See the notes above." if result["notes"] else "Everything is in order."
    lines.append(f"\n{fine if result['ok'] else 'Some things above need a look.'}")
    return "\n".join(lines)
