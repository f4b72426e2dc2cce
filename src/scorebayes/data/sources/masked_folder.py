"""Your own images with masks: two folders side by side.

    DIR/images/x.png, DIR/masks/x.png                       the same name, whatever the file type
    DIR/images/x.png, DIR/masks/x_mask.png, x_mask_1.png    several masks of a picture are united
    DIR/train/images, DIR/train/masks, DIR/val/..., ...     prescribed splits

A picture without anything to outline has a mask that is 0 everywhere.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scorebayes.data.base import Record, Rejected, SourceInfo
from scorebayes.data.listing import mask_bases
from scorebayes.data.masks import binary, require_size
from scorebayes.data.names import pattern_text
from scorebayes.data.pixels.files import files_below, require_file
from scorebayes.data.pixels.images import SUFFIXES, image_bits, read_image
from scorebayes.data.sources.folder import PROBED, SPLIT_NAMES, compile_pattern
from scorebayes.data.sources.masked_arrays import OUTSIDE_AND_INSIDE
from scorebayes.errors import ConfigError, DataError

IMAGES, MASKS = "images", "masks"
_NUMBERED = re.compile(r"(?P<base>.+?)[ _.-]+\d+")


class MaskedFolder:
    """Images in DIR/images and their masks in DIR/masks.

    Parameters
    ----------
    root: the folder.
    bits: true bit depth where 16-bit files hold less; without it the first files tell.
    patient_pattern: regular expression with one group that finds the patient in a file name.
    instances: masks number their objects, 1, 2, ...
    """

    def __init__(
        self,
        root: str | Path,
        *,
        bits: int | None = None,
        patient_pattern: str | None = None,
        instances: bool = False,
    ) -> None:
        if bits is not None and not 1 <= bits <= 16:
            raise ConfigError(f"folder: bits is {bits}, expected 1 to 16.")
        self.root, self.bits, self.instances = Path(root), bits, instances
        self.rejected: list[Rejected] = []
        self.notes: list[str] = []
        self._masks: dict[str, list[Path]] = {}
        self._records: list[Record] = []
        for folder, split in self._parts():
            self._add(folder, split, patient_pattern)
        if not self._records:
            reason = f" ({self.rejected[0].path}: {self.rejected[0].reason})" if self.rejected else ""
            raise DataError(
                f"{self.root} has no image with a mask{reason}.", "Give DIR/images and DIR/masks."
            )
        depth, colour = self._probe()
        self.info = SourceInfo(
            name=f"masked-{self.root.resolve().name}",
            title=f"Own images in {self.root.resolve().name}",
            classes=OUTSIDE_AND_INSIDE,
            positive=1,
            bits=bits or depth,
            file_bits=bits,
            channels=3 if colour else 1,
            access="local",
        )

    def records(self) -> list[Record]:
        """All images with a mask, by name; ``image_id`` is the path below the root."""
        return list(self._records)

    def read(self, record: Record) -> NDArray:
        """Pixels [H, W] or [H, W, 3], float32 in [0, 1]."""
        require_file(record.path, self.root)
        return read_image(record.path, self.bits)

    def mask(self, record: Record) -> NDArray[np.bool_]:
        """Where the object is, [H, W]: all masks of the picture united."""
        shape = self.read(record).shape
        united = np.zeros(shape[:2], dtype=bool)
        for path in self._masks[record.image_id]:
            require_file(path, self.root)
            mask = binary(read_image(path), str(path), objects=self.instances)
            require_size(mask, shape, str(path))
            united |= mask
        return united

    def _parts(self) -> list[tuple[Path, str | None]]:
        """Folders that hold images and masks, with their prescribed split."""
        if (self.root / IMAGES).is_dir():
            return [(self.root, None)]
        below = sorted(path for path in self.root.iterdir() if path.is_dir()) if self.root.is_dir() else []
        parts: list[tuple[Path, str | None]] = [
            (path, SPLIT_NAMES[path.name.lower()]) for path in below if path.name.lower() in SPLIT_NAMES
        ]
        if not parts:
            raise DataError(
                f"{self.root} has no folder named {IMAGES}.",
                f"Put the pictures into DIR/{IMAGES} and their masks into DIR/{MASKS}.",
            )
        return parts

    def _add(self, folder: Path, split: str | None, pattern: str | None) -> None:
        for name in (IMAGES, MASKS):
            if not (folder / name).is_dir():
                raise DataError(
                    f"{folder} has no folder named {name}.",
                    f"Put the pictures into DIR/{IMAGES} and their masks into DIR/{MASKS}.",
                )
        pictures = _pictures(folder / IMAGES)
        masks, strangers = _masks_of(pictures, _pictures(folder / MASKS))
        if strangers:
            self.notes.append(f"{len(strangers)} masks have no picture, for example {strangers[0].name}.")
        search = compile_pattern(pattern) if pattern else None
        for path in pictures:
            name = path.relative_to(self.root).as_posix()
            found = search.search(pattern_text(pattern or "", name)) if search else None
            if not masks[path]:
                self._reject(path, f"There is no mask of it in {folder / MASKS}. If nothing is to be outlined, give one "
                             "that is 0 everywhere.")  # fmt: skip
            elif search and not (found and found[1]):
                self._reject(path, "The pattern finds no patient in the name, but in others it does.")
            else:
                self._masks[name] = masks[path]
                self._records.append(Record(name, path, patient_id=found[1] if found else None, split=split))

    def _reject(self, path: Path, reason: str) -> None:
        self.rejected.append(Rejected(path.relative_to(self.root).as_posix(), str(path), reason))

    def _probe(self) -> tuple[int, bool]:
        """Greatest bit depth and whether all are coloured, of some images from the first to the last."""
        depths, colours = [8], []
        for record in self._records[:: -(-len(self._records) // PROBED)]:
            try:
                pixels = self.read(record)
                depths.append(image_bits(record.path))
            except DataError:
                continue  # told when it is read for use
            colours.append(pixels.ndim == 3 and float(np.ptp(pixels, axis=2).max()) > 0.01)
        return max(depths), bool(colours) and all(colours)


def _pictures(folder: Path) -> list[Path]:
    """Files of a known type below a folder, by name."""
    passed: dict[Path, str] = {}
    return sorted(
        path for path in files_below(folder, None, passed.__setitem__) if path.suffix.lower() in SUFFIXES
    )


def _masks_of(pictures: list[Path], masks: list[Path]) -> tuple[dict[Path, list[Path]], list[Path]]:
    """The masks of every picture, and those of none: by the same name, or one that says which picture it belongs to."""
    by_name: defaultdict[str, list[Path]] = defaultdict(list)
    for path in pictures:
        by_name[path.stem.casefold()].append(path)
    found: dict[Path, list[Path]] = {path: [] for path in pictures}
    strangers = []
    for mask in masks:
        numbered = _NUMBERED.fullmatch(mask.stem)
        names = [mask.stem, *mask_bases(mask), *([numbered["base"]] if numbered else [])]
        owners = next((by_name[n.casefold()] for n in names if n.casefold() in by_name), [])
        if not owners:
            strangers.append(mask)
        for owner in owners:
            found[owner].append(mask)
    return found, strangers
