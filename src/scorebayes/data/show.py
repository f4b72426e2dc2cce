"""A contact sheet of the data: images before and after preparation."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from scorebayes.data.base import Record, Source
from scorebayes.data.prepare import Prepare
from scorebayes.errors import DataError

MOST_COLUMNS = 12
WIDTH, HEIGHT = 2.1, 4.8  # of an image and its prepared form, in inches
LEAST_WIDTH = 5.0  # what the title needs
MOST_PIXELS = 30_000  # in height; the file format and its viewers end soon above


def contact_sheet(source: Source, prepare: Prepare, out_png: Path, n: int = 8, seed: int = 0) -> list[Record]:
    """Write ``n`` images before (above) and after preparation (below) as PNG, in rows; return their records.

    As many of each class as there are, chosen by ``seed``. An image that cannot be used keeps its place, with
    the reason in its stead. Raises DataError where the data set has no image.
    """
    records = _choose(source.records(), n, seed)
    if not records:
        raise DataError(
            f"{source.info.title} has no usable image.", "See the reasons: scorebayes data check."
        )
    columns = columns_of(len(records))
    rows = math.ceil(len(records) / columns)
    width = max(LEAST_WIDTH, WIDTH * columns)
    figure = Figure(figsize=(width, HEIGHT * rows + 0.6), layout="constrained")
    title = f"{source.info.title}: as read, and prepared ({', '.join(prepare.steps) or 'resize only'})"
    figure.suptitle(textwrap.fill(title, int(12 * width)), fontsize=10, parse_math=False)
    axes = figure.subplots(2 * rows, columns, squeeze=False)
    pairs = [(axes[2 * k, j], axes[2 * k + 1, j]) for k in range(rows) for j in range(columns)]
    for axis in axes.ravel():
        axis.set_axis_off()
    for (above, below), record in zip(pairs, records, strict=False):
        above.set_title(_title(source, record), fontsize=7, parse_math=False)
        try:
            pixels = source.read(record)
            _draw(above, pixels)
            prepared = prepare(pixels, record.laterality, record.view) / (2**prepare.bits - 1)
            _draw(below, prepared[0] if prepare.channels == 1 else prepared.transpose(1, 2, 0))
        except DataError as error:
            below.text(0.5, 0.5, str(error), wrap=True, ha="center", va="center", fontsize=6)
    out_png.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out_png, dpi=min(120, int(MOST_PIXELS / figure.get_figheight())))
    return records


def columns_of(n: int) -> int:
    """How many images stand side by side, so that the sheet is about square."""
    return max(1, min(n, MOST_COLUMNS, round(math.sqrt(n * HEIGHT / WIDTH))))


def _title(source: Source, record: Record) -> str:
    """Whose image it is, and its class, in lines that are no wider than the image."""
    label = "unknown" if record.label is None else source.info.classes[record.label]
    words = (record.image_id[-24:], f"{label} {record.laterality} {record.view}".strip())
    return "\n".join(textwrap.fill(line, 28) for line in words)


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
