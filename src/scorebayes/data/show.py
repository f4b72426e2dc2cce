"""A contact sheet of the data: images before and after preparation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from scorebayes.data.base import Record, Source
from scorebayes.data.prepare import Prepare
from scorebayes.errors import DataError


def contact_sheet(source: Source, prepare: Prepare, out_png: Path, n: int = 8, seed: int = 0) -> list[Record]:
    """Write ``n`` images before (above) and after preparation (below) as PNG; return their records.

    As many of each class as there are, chosen by ``seed``. An image that cannot be used keeps its place, with
    the reason in its stead. Raises DataError where the data set has no image.
    """
    records = _choose(source.records(), n, seed)
    if not records:
        raise DataError(
            f"{source.info.title} has no usable image.", "See the reasons: scorebayes data check."
        )
    figure = Figure(figsize=(2.1 * len(records), 5.2), layout="constrained")
    figure.suptitle(
        f"{source.info.title}: as read, and prepared ({', '.join(prepare.steps) or 'resize only'})"
    )
    axes = figure.subplots(2, len(records), squeeze=False)
    for (above, below), record in zip(axes.T, records, strict=True):
        label = "unknown" if record.label is None else source.info.classes[record.label]
        above.set_title(f"{record.image_id[-24:]}\n{label} {record.laterality} {record.view}", fontsize=7)
        try:
            pixels = source.read(record)
            _draw(above, pixels)
            prepared = prepare(pixels, record.laterality, record.view) / (2**prepare.bits - 1)
            _draw(below, prepared[0] if prepare.channels == 1 else prepared.transpose(1, 2, 0))
        except DataError as error:
            below.text(0.5, 0.5, str(error), wrap=True, ha="center", va="center", fontsize=6)
        above.set_axis_off()
        below.set_axis_off()
    out_png.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out_png, dpi=120)
    return records


def _choose(records: list[Record], n: int, seed: int) -> list[Record]:
    """``n`` records in turn from each class, classes in order."""
    rng = np.random.default_rng(seed)
    by_class: dict[int, list[Record]] = {}
    for row in rng.permutation(len(records)):
        record = records[row]
        by_class.setdefault(-1 if record.label is None else record.label, []).append(record)
    turns = [found[k] for k in range(n) for _, found in sorted(by_class.items()) if k < len(found)]
    return sorted(turns[:n], key=lambda r: (-1 if r.label is None else r.label, r.image_id))


def _draw(axes: Axes, pixels: NDArray) -> None:
    # Every fourth pixel of a large film is enough for a stamp.
    stride = max(1, max(pixels.shape[:2]) // 600)
    axes.imshow(pixels[::stride, ::stride], cmap="gray" if pixels.ndim == 2 else None)
