"""How fast mammograms are prepared: full-size synthetic DICOM files in the layout of VinDr-Mammo, invented content.

    python benchmarks/preparation.py --images 100 --workers 2

Writes benchmarks/results/preparation.json: images per second of each pipeline, of JPEG 2000 files, the largest memory of
a process, the time to index 20,000 table rows, and the second start from the cache.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import gdcm
import numpy as np
import pydicom
from pydicom import uid
from pydicom.dataset import FileDataset, FileMetaDataset
from scipy import ndimage

from scorebayes.data.load import load
from scorebayes.data.prepare import Prepare
from scorebayes.data.sources.vindr_mammo import VindrMammo

HEIGHT, WIDTH, BITS = 3000, 2400, 16
INDEXED = 20_000
PIPELINES = {
    "plain, 224": (224, ()),
    "mammogram, 224": (224, ("mammogram",)),
    "paper, 384": (384, ("paper",)),
}
HEADER = ["study_id", "image_id", "laterality", "view_position", "breast_birads", "breast_density", "split"]


def mammogram(seed: int) -> np.ndarray:
    """Half an ellipse of textured tissue on black [H, W] uint16, with noise in all bits, as detectors have."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    inside = (x / (0.7 * WIDTH)) ** 2 + ((y - HEIGHT / 2) / (0.45 * HEIGHT)) ** 2 < 1
    coarse = ndimage.zoom(rng.normal(size=(HEIGHT // 50, WIDTH // 50)), 50, order=1)
    tissue = 20_000 + 6_000 * coarse + rng.normal(0, 200, (HEIGHT, WIDTH))
    return np.where(inside, tissue, 0).clip(0, 2**BITS - 1).astype(np.uint16)


def write_dicom(path: Path, pixels: np.ndarray) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = uid.SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = uid.generate_uid()
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = (
        meta.MediaStorageSOPClassUID,
        meta.MediaStorageSOPInstanceUID,
    )
    dataset.Modality, dataset.PhotometricInterpretation, dataset.SamplesPerPixel = "MG", "MONOCHROME2", 1
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated = dataset.BitsStored = BITS
    dataset.HighBit, dataset.PixelRepresentation = BITS - 1, 0
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OW"
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


def to_jpeg2000(path: Path) -> None:
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEG2000Lossless))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


def write_tree(root: Path, n: int, pixels: bool) -> VindrMammo:
    """``n`` images, four an exam; without ``pixels`` the files are there but empty, which is enough for indexing."""
    rows = []
    patterns = [mammogram(seed) for seed in range(4)] if pixels else []
    for k in range(n):
        study, image = f"{k // 4:032x}", f"{k:032x}"
        rows.append(
            [
                study,
                image,
                "L",
                "CC",
                f"BI-RADS {1 + k // 4 % 5}",
                "DENSITY C",
                "training" if k % 20 < 16 else "test",
            ]
        )
        path = root / "images" / study / f"{image}.dicom"
        if pixels:
            write_dicom(path, np.roll(patterns[k % 4], k, axis=0))
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    with (root / "breast-level_annotations.csv").open("w", newline="") as file:
        csv.writer(file).writerows([HEADER, *rows])
    return VindrMammo(root)


def timed(work: Callable[[], object], n: int) -> dict[str, float]:
    """Images per second by the clock, and processor seconds per image, which other load on the machine hardly changes."""
    start, before = time.perf_counter(), _processor_seconds()
    work()
    clock, processor = time.perf_counter() - start, _processor_seconds() - before
    return {"images_per_second": n / clock, "processor_seconds_per_image": processor / n, "seconds": clock}


def _processor_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def main() -> None:
    # Not above: every worker process imports this file again, and torch takes seconds.
    import torch

    from scorebayes.runs.device import environment

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--jpeg2000", type=int, default=16, help="images of the JPEG 2000 part")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "preparation.json")
    options = parser.parse_args()
    result: dict = {
        "images": options.images,
        "pixels": [HEIGHT, WIDTH],
        "bits": BITS,
        "workers": options.workers,
        "pipelines": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        source = write_tree(root / "raw", options.images, pixels=True)
        records = source.records()
        for name, (size, steps) in PIPELINES.items():
            prepare = partial(
                load,
                source,
                records,
                Prepare(size, 1, 12, steps),
                cache=root / "cache",
                workers=options.workers,
            )
            result["pipelines"][name] = timed(prepare, len(records))
            result["pipelines"][name]["second_start_seconds"] = timed(prepare, len(records))["seconds"]
        few = records[: options.jpeg2000]
        for record in few:
            to_jpeg2000(record.path)
        prepare = partial(load, source, few, Prepare(224, 1, 12, ("mammogram",)), workers=options.workers)
        result["pipelines"]["mammogram, 224, JPEG 2000 lossless"] = timed(prepare, len(few))
        shutil.rmtree(root / "raw")
        large = write_tree(root / "large", INDEXED, pixels=False)
        result["index"] = {"rows": INDEXED, "seconds": timed(large.records, INDEXED)["seconds"]}
    result["largest_process_megabytes"] = {
        "main": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "worker": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3,
    }
    result["load_average_at_the_end"] = os.getloadavg()[0]
    versions = {"gdcm": gdcm.Version.GetVersion(), "pydicom": pydicom.__version__}
    result["environment"] = environment(torch.device("cpu"))
    result["environment"]["versions"] |= versions
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
