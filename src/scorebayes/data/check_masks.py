"""Look at a data set with masks before training."""

from __future__ import annotations

from collections import Counter
from typing import Any

from scorebayes.data.base import MaskSource, Rejected
from scorebayes.data.masks import ODDITIES, oddities_of, require_size
from scorebayes.errors import DataError

SHOWN = 10
WORDS = {
    "empty": "empty (no object)",
    "touching_the_edge": "touching the edge",
    "tiny": "smaller than 9 pixels",
}


def check_masks(source: MaskSource) -> dict[str, Any]:
    """Read every image and mask. ``ok``: nothing was left out or unusable."""
    unusable, odd, splits = list(source.rejected), Counter[str](), Counter[str]()
    records = source.records()
    for record in records:
        try:
            mask = source.mask(record)
            require_size(mask, source.read(record).shape, f"the mask of {record.image_id}")
        except DataError as error:
            unusable.append(Rejected(record.image_id, str(record.path), str(error)))
            continue
        odd.update(oddities_of(mask))
        splits[record.split or "not prescribed"] += 1
    return {
        "title": source.info.title,
        "images": sum(splits.values()),
        "splits": dict(splits),
        "patients_known": sum(record.patient_id is not None for record in records),
        "masks": {name: odd[name] for name in ODDITIES},
        "unusable": [{"image_id": of.image_id, "reason": of.reason} for of in unusable],
        "notes": list(source.notes),
        "ok": not unusable,
    }


def masks_as_text(found: dict[str, Any]) -> str:
    """The same for people."""
    unusable = found["unusable"]
    return "\n".join(
        [
            found["title"],
            f"{found['images']} images with a usable mask ("
            + ", ".join(f"{name}: {n}" for name, n in found["splits"].items())
            + ")",
            *(f"  {found['masks'][name]} masks are {WORDS[name]}" for name in ODDITIES),
            f"  the patient is known for {found['patients_known']} images",
            *(f"note: {note}" for note in found["notes"]),
            *([f"{len(unusable)} images cannot be used:"] if unusable else []),
            *(f"  {of['image_id']}: {of['reason']}" for of in unusable[:SHOWN]),
            *([f"  and {len(unusable) - SHOWN} more (--json lists all)"] if len(unusable) > SHOWN else []),
        ]
    )
