"""Are real files read right? Every file below some folders, against other libraries' readings of the same file.

    python benchmarks/real_files.py FOLDER... --out found.json

Each file counts as one of

    right      our pixels are those of another reader: Pillow or libtiff for TIFF, libspng for PNG, libjpeg for JPEG, NumPy
               for NPY, pydicom's modality and VOI LUT for DICOM (where no window fixes the scale, up to a linear scale)
    refused    a DataError, counted by its words
    unchecked  we read it, and no other reader could
    wrong      our pixels differ, or something else than a DataError came out; listed by name

Exit code 1 if any file is wrong. Nothing of a file is printed or kept but its path.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import sys
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import imagecodecs
import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut

from scorebayes.data import read_image
from scorebayes.errors import DataError

TOLERANCE = 2e-6
LOSSY = 2.5 / 255  # two decoders of the same lossy stream
UPRIGHT = {
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: np.rot90,
}


class Other(NamedTuple):
    """Another reading: pixels in [0, 1], how far ours may lie from it, where to compare, and whether only up to scale."""

    pixels: NDArray
    tolerance: float = TOLERANCE
    where: NDArray[np.bool_] | None = None
    up_to_scale: bool = False


def of_png(path: Path) -> Other:
    """libspng, or libpng for grey with alpha. Alpha is dropped; Pillow turns it by the EXIF tag."""
    data = path.read_bytes()
    try:
        pixels = imagecodecs.spng_decode(data)
    except imagecodecs.SpngError:
        pixels = imagecodecs.png_decode(data)
    top = (
        {1: 1, 2: 3, 4: 15}.get(data[24], 255)
        if data[25] == 0 and pixels.max() < 2 ** min(data[24], 8)
        else 255
    )
    if pixels.dtype == np.uint16:
        top = 65535
    with Image.open(path) as image:
        orientation = image.getexif().get(274, 1)
    return Other(UPRIGHT.get(orientation, np.asarray)(_without_alpha(pixels)) / top)


def of_jpeg(path: Path) -> Other:
    """libjpeg-turbo by imagecodecs, or its decoders of lossless streams."""
    pixels = imagecodecs.jpeg_decode(path.read_bytes())
    try:
        with Image.open(path) as image:
            orientation = image.getexif().get(274, 1)
    except OSError:
        orientation = 1
    top = 255 if pixels.dtype == np.uint8 else 4095 if b"\xff\xc1\x00\x0b\x0c" in path.read_bytes() else 65535
    return Other(UPRIGHT.get(orientation, np.asarray)(pixels) / top, LOSSY)


def of_tiff(path: Path) -> Other:
    """libtiff by imagecodecs, with the tags as Pillow parses them; in YCbCr, all of it by Pillow."""
    tags, index = _first_full_page(path)
    photometric, samples = tags.get(262, 0), tags.get(277, 1)
    if photometric == 6:
        with Image.open(path) as image:
            return Other(np.asarray(ImageOps.exif_transpose(image).convert("RGB")) / 255, 6 / 255)
    stored = imagecodecs.tiff_decode(path.read_bytes(), index=index)
    if stored.ndim == 3 and tags.get(284, 1) == 2:
        stored = np.moveaxis(stored, 0, -1)
    if photometric == 3:
        stored = stored if stored.ndim == 2 else stored[..., 0]
        colours = np.asarray(tags[320]).reshape(3, -1).T
        pixels = (colours // 256 if colours.max() > 255 else colours)[stored.astype(int)] / 255
    elif stored.dtype.kind == "f":
        pixels = stored.astype(np.float64)
    else:
        bits = tags.get(258, (1,))[0]
        least = -(2 ** (bits - 1)) if stored.dtype.kind == "i" else 0
        pixels = (stored.astype(np.float64) - least) / (2**bits - 1)
    pixels = _without_alpha(pixels) if pixels.ndim == 3 and samples in (2, 4) else pixels
    pixels = 1 - pixels if photometric == 0 else pixels
    return Other(
        UPRIGHT.get(tags.get(274, 1), np.asarray)(pixels), LOSSY if tags.get(259) in (7, 34712) else TOLERANCE
    )


def _first_full_page(path: Path) -> tuple[ImageFileDirectory_v2, int]:
    with path.open("rb") as file:
        head = file.read(16)
        tags = ImageFileDirectory_v2(head if head[2] == 43 or head[3] == 43 else head[:8])
        at, index = tags.next, 0
        while at:
            file.seek(at)
            tags.load(file)
            if not tags.get(254, 0) & 5:
                return tags, index
            at, index = tags.next, index + 1
        file.seek(ImageFileDirectory_v2(head[:8]).next)
        tags.load(file)
        return tags, 0


def _without_alpha(pixels: NDArray) -> NDArray:
    if pixels.ndim == 2 or pixels.shape[2] == 3:
        return pixels
    return pixels[..., :3] if pixels.shape[2] > 3 else pixels[..., 0]


def of_npy(path: Path) -> Other:
    """NumPy."""
    array = np.squeeze(np.load(path, allow_pickle=False))
    array = np.moveaxis(array, 0, -1) if array.ndim == 3 and array.shape[0] == 3 else array
    if array.dtype.kind in "iu":
        kind = np.iinfo(array.dtype)
        return Other((_without_alpha(array).astype(np.float64) - kind.min) / (int(kind.max) - int(kind.min)))
    return Other(_without_alpha(array).astype(np.float64).clip(0, 1))


def of_dicom(path: Path) -> Other:
    """pydicom's modality and VOI LUT, or palette; padding is left out of the comparison. What pydicom passes over is put
    where it looks: window and rescaling of an enhanced object, and bits that lie higher up."""
    dataset = pydicom.dcmread(path)
    for groups in dataset.get("SharedFunctionalGroupsSequence") or ():
        for name in ("FrameVOILUTSequence", "PixelValueTransformationSequence"):
            dataset.update(groups[name].value[0] if name in groups else {})
    shift = dataset.get("HighBit", dataset.BitsStored - 1) + 1 - dataset.BitsStored
    if shift:
        dataset.BitsStored = dataset.BitsAllocated
    stored = dataset.pixel_array >> shift
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        return Other(apply_color_lut(stored, dataset).astype(float), 1e-4, up_to_scale=True)
    values = apply_modality_lut(stored, dataset).astype(np.float64)
    where = np.ones(stored.shape, bool)
    if "PixelPaddingValue" in dataset:
        # Unsigned where the pixels are signed, and the reverse, occur: both are left out.
        ends = [
            int(dataset.get(name, dataset.PixelPaddingValue))
            for name in ("PixelPaddingValue", "PixelPaddingRangeLimit")
        ]
        for shift in (0, -(2**dataset.BitsAllocated), 2**dataset.BitsAllocated):
            where &= ~((stored >= ends[0] + shift) & (stored <= ends[1] + shift))
    window = not dataset.get("VOILUTSequence") and "WindowCenter" in dataset and "WindowWidth" in dataset
    function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    if window and function != "SIGMOID":
        center, width = (
            float(np.atleast_1d(np.asarray(dataset[name].value, dtype=float))[0])
            for name in ("WindowCenter", "WindowWidth")
        )
        if function == "LINEAR":
            center, width = center - 0.5, width - 1
        shown = np.clip((values - center) / width + 0.5, 0, 1) if width else (values > center).astype(float)
    elif dataset.get("VOILUTSequence") or window:
        shown = apply_voi_lut(values if window else np.rint(values).astype(int), dataset).astype(float)
    else:
        shown = values
    shown = -shown if dataset.PhotometricInterpretation == "MONOCHROME1" else shown
    if window and function != "SIGMOID":
        shown = shown + (dataset.PhotometricInterpretation == "MONOCHROME1")
        return Other(shown, 1e-4, where)
    return Other(shown, 1e-4, where, up_to_scale=True)


def difference(ours: NDArray, other: Other) -> float:
    """The greatest, after a linear scale with positive slope has been fitted where only that is known."""
    theirs, where = other.pixels, other.where if other.where is not None else np.ones(ours.shape[:2], bool)
    if ours.shape != theirs.shape:
        return float("inf")
    x, y = theirs[where].astype(np.float64), ours[where].astype(np.float64)
    if not x.size:
        return 0.0
    if other.up_to_scale:
        if np.ptp(x) == 0:
            return float(np.ptp(y))
        slope = np.cov(x.ravel(), y.ravel(), bias=True)[0, 1] / x.var()
        if slope <= 0:
            return float("inf")
        x = y.mean() + slope * (x - x.mean())
    return float(np.abs(x - y).max())


def judge(path: Path) -> tuple[str, str]:
    """("right" | "refused" | "unchecked" | "wrong", why) of one file."""
    warnings.simplefilter("ignore")
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    try:
        ours = read_image(path)
    except DataError as error:
        return "refused", _kind_of(str(error), path)
    except BaseException as error:  # whatever it is, it should not have come out
        return "wrong", f"{type(error).__name__} instead of a DataError: {error}"[:200]
    try:
        with path.open("rb") as file:
            head = file.read(132)
        kinds = [
            (b"\x89PNG", of_png),
            (b"\xff\xd8", of_jpeg),
            (b"II", of_tiff),
            (b"MM", of_tiff),
            (b"\x93NUMPY", of_npy),
        ]
        other = (
            of_dicom
            if head[128:132] == b"DICM"
            else next((f for begin, f in kinds if head.startswith(begin)), of_dicom)
        )
        found = other(path)
    except Exception as error:
        return "unchecked", f"{type(error).__name__}: {error}"[:200]
    apart = difference(ours, found)
    if apart <= found.tolerance:
        return "right", other.__name__.removeprefix("of_")
    return "wrong", f"{ours.shape} against {found.pixels.shape}, apart by {apart:.3g} ({other.__name__})"


def _kind_of(message: str, path: Path) -> str:
    """The words of a refusal without the file's name and numbers."""
    words = message.replace(str(path), "FILE")
    return re.sub(r"-?\d[\d.,e+-]*", "#", words)[:160]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument(
        "--out", type=Path, help="write the counts, the reasons and every file that is wrong as JSON"
    )
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    files = sorted(
        {
            p
            for folder in options.folders
            for p in ([folder] if folder.is_file() else folder.rglob("*"))
            if p.is_file()
        }
    )
    outcomes: dict[str, tuple[str, str]] = {}
    waiting = list(files)
    while waiting:
        # A decoder that kills its process takes down the pool: what was next is then tried alone.
        with ProcessPoolExecutor(options.workers) as pool:
            for path, job in [(path, pool.submit(judge, path)) for path in waiting]:
                try:
                    outcomes[str(path)] = job.result()
                except BrokenProcessPool:
                    break
        waiting = [path for path in files if str(path) not in outcomes]
        if waiting:
            with ProcessPoolExecutor(1) as pool:
                try:
                    outcomes[str(waiting[0])] = pool.submit(judge, waiting[0]).result()
                except BrokenProcessPool:
                    outcomes[str(waiting[0])] = "wrong", "the process died"
            waiting = waiting[1:]
    counts = Counter(kind for kind, _ in outcomes.values())
    reasons = {
        kind: Counter(why for k, why in outcomes.values() if k == kind).most_common() for kind in counts
    }
    result = {
        "files": len(files),
        "counts": dict(counts),
        "reasons": {kind: dict(found) for kind, found in reasons.items()},
        "wrong": {path: why for path, (kind, why) in outcomes.items() if kind == "wrong"},
    }
    if options.out:
        options.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    report = io.StringIO()
    for kind in ("right", "refused", "unchecked", "wrong"):
        report.write(f"{kind:10} {counts[kind]:6}\n")
        for why, n in reasons.get(kind, []) if kind != "wrong" else []:
            report.write(f"    {n:6}  {why}\n")
    for path, (kind, why) in outcomes.items():
        if kind == "wrong":
            report.write(f"    {path}: {why}\n")
    sys.stdout.write(report.getvalue())
    return 1 if counts["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
