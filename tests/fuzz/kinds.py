"""What is fuzzed: for every kind of file some good ones, and the function of the library that reads it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import plistlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
import safetensors.torch
import tifffile
import torch
from fixtures.dicom_streams import jpeg_2000, ramp, with_stream
from fixtures.fake_run import write_fake_run
from fixtures.native_trees import breast, inbreast, write_dicom
from PIL import Image
from pydicom import uid

from scorebayes.data import open_source
from scorebayes.data.pixels.images import image_bits, open_picture
from scorebayes.data.sources.inbreast import read_regions
from scorebayes.decision.table import EvidenceTable
from scorebayes.errors import ScoreBayesError
from scorebayes.runs.config import read_toml, resolve
from scorebayes.runs.run import Facts, Run, create_run, open_run
from scorebayes.storage import sealed
from scorebayes.storage.checkpoint import Checkpoints

PHANTOM = {"data": {"source": "phantom"}, "prepare": {"size": 64, "bits": 8}}


@dataclass(frozen=True)
class Kind:
    """``seeds`` makes good files in an empty folder; ``read`` reads one that lies at ``name`` in a folder of its own."""

    seeds: Callable[[Path], list[bytes]]
    read: Callable[[Path], object]
    name: str


def _picture(path: Path) -> object:
    """Depth first, as a data set does. Pixels must be what is promised."""
    with contextlib.suppress(ScoreBayesError):
        image_bits(path)
    pixels = open_picture(path).pixels
    assert pixels.dtype == np.float32 and pixels.ndim in (2, 3), pixels.dtype
    assert np.isfinite(pixels).all() and 0 <= pixels.min() <= pixels.max() <= 1, "beyond [0, 1]"
    return pixels.shape


def _source(text: str) -> object:
    source = open_source(text)
    records = source.records()
    for record in records[:3]:
        with contextlib.suppress(ScoreBayesError):
            source.read(record)
    return len(records)


def _dicom(folder: Path) -> list[bytes]:
    eight = breast(bits=8).astype(np.uint8)
    streams = [
        (uid.JPEG2000Lossless, jpeg_2000(ramp(12))),
        (uid.JPEGLSLossless, imagecodecs.jpegls_encode(ramp(12))),
        (uid.JPEGLosslessSV1, imagecodecs.ljpeg_encode(ramp(12), bitspersample=12)),
    ]
    made = [with_stream(folder / f"{syntax}.dcm", stream, syntax, 32, 48, 12) for syntax, stream in streams]
    jpeg = imagecodecs.jpeg8_encode(eight, level=90)
    made.append(with_stream(folder / "jpeg.dcm", jpeg, uid.JPEGBaseline8Bit, 96, 64, 8, BitsAllocated=8))
    made.append(write_dicom(folder / "window.dcm", breast(bits=12), 12, WindowCenter=2048, WindowWidth=4096))
    for syntax in (uid.RLELossless, uid.DeflatedExplicitVRLittleEndian, uid.ImplicitVRLittleEndian):
        made.append(write_dicom(folder / f"{syntax}.dcm", breast(), 16, syntax))
    return [path.read_bytes() for path in made]


def _raster(form: str) -> Callable[[Path], list[bytes]]:
    def seeds(_: Path) -> list[bytes]:
        grey, colour = (
            breast(40, 30, 8).astype(np.uint8),
            np.stack([breast(40, 30, 8).astype(np.uint8)] * 3, -1),
        )
        images = [Image.fromarray(grey), Image.fromarray(colour)]
        if form == "PNG":
            images += [
                Image.fromarray(breast(40, 30)),
                images[0].convert("P"),
                images[0].convert("1"),
                images[1].convert("RGBA"),
            ]
        files = [io.BytesIO() for _ in images]
        for image, file in zip(images, files, strict=True):
            image.save(file, form, **({"progressive": image is images[1]} if form == "JPEG" else {}))
        return [file.getvalue() for file in files] + (
            [imagecodecs.ljpeg_encode(breast(40, 30, 12), bitspersample=12)] if form == "JPEG" else []
        )

    return seeds


def _tiff(_: Path) -> list[bytes]:
    files = []
    for compression in (None, "lzw", "zlib", "packbits", "jpeg", "jpeg2000", "lzma", "zstd"):
        for tile in (None, (32, 32)):
            file = io.BytesIO()
            pixels = breast(48, 40, 8).astype(np.uint8) if compression == "jpeg" else breast(48, 40)
            tifffile.imwrite(file, pixels, compression=compression, tile=tile, metadata=None)
            files.append(file.getvalue())
    return files


def _npy(_: Path) -> list[bytes]:
    files = []
    for array in (
        breast(20, 16),
        np.asfortranarray(breast(20, 16, 8).astype(np.uint8)),
        np.random.rand(3, 8, 8),
    ):
        file = io.BytesIO()
        np.save(file, array)
        files.append(file.getvalue())
    return files


def _npz(_: Path) -> list[bytes]:
    images, labels = np.random.default_rng(0).integers(0, 256, (6, 8, 8)).astype(np.uint8), np.arange(6) % 2
    contents = [
        {
            "images": images,
            "labels": labels,
            "patients": np.array(list("aabbcc")),
            "classes": np.array(["x", "y"]),
        },
        {
            f"{s}_{p}": of
            for s in ("train", "val", "test")
            for p, of in (("images", images), ("labels", labels[:, None]))
        },
    ]
    files = [io.BytesIO() for _ in range(4)]
    for number, file in enumerate(files):
        (np.savez if number < 2 else np.savez_compressed)(file, **contents[number % 2])
    return [file.getvalue() for file in files]


def _read_npz(path: Path) -> object:
    try:
        return _source(f"arrays:{path}")
    except ScoreBayesError:
        return _source(f"medmnist:{path}")


def _csv(_: Path) -> list[bytes]:
    table = "path,label,patient_id,split,view,laterality\n" + "".join(
        f"{k}.png,{'xy'[k % 2]},{k // 2:03d},{('train', 'test')[k > 3]},CC,L\n" for k in range(6)
    )
    return [
        table.encode(), table.replace(",", ";").encode("utf-8-sig"), table.encode("utf-16"),
        ("sep=\t\n# note\n" + table.replace(",", "\t")).encode(), table.replace("\n", "\r\n").encode("cp1252"),
    ]  # fmt: skip


def _read_csv(path: Path) -> object:
    for k in range(6):
        Image.new("L", (8, 8), k).save(path.with_name(f"{k}.png"))
    return _source(f"folder:{path}")


def _annotations(binary: bool) -> Callable[[Path], list[bytes]]:
    def seeds(folder: Path) -> list[bytes]:
        texts = [path.read_bytes() for path in sorted(inbreast(folder).rglob("*.xml"))]
        return (
            [plistlib.dumps(plistlib.loads(text), fmt=plistlib.FMT_BINARY) for text in texts]
            if binary
            else texts
        )

    return seeds


def _toml(_: Path) -> list[bytes]:
    return [resolve(PHANTOM, preset=preset).to_toml().encode() for preset in ("small", "tiny", "paper")]


def _parts(folder: Path) -> list[bytes]:
    run = write_fake_run(folder / "run", n_patients=4)
    return [path.read_bytes() for path in sorted(run.glob("evidence-test.parquet/*.parquet"))]


def _read_table(path: Path) -> object:
    return len(EvidenceTable.read(path.parent))


def _tensors(_: Path) -> list[bytes]:
    return [
        safetensors.torch.save({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.int64)})
    ]


def _read_tensors(path: Path) -> object:
    """Whoever changes weights can change their manifest."""
    return Checkpoints(path.parent).load(
        {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    )


def _source_json(folder: Path) -> list[bytes]:
    source = open_source("phantom:n_patients=4")
    run = Run(
        folder, resolve(PHANTOM, preset="tiny"), Facts(source.info, 0.5, 0.2, (3, 3)), torch.device("cpu")
    )
    create_run(run)
    return [(folder / "source.json").read_bytes()]


def _read_source_json(path: Path) -> object:
    """The facts of a run; the configuration beside them is good."""
    path.with_name("config.toml").write_text(resolve(PHANTOM, preset="tiny").to_toml())
    sealed.accept(path.parent)  # or the seal would refuse all that is changed
    return open_run(path.parent, "cpu").classes


KINDS = {
    "DICOM": Kind(_dicom, _picture, "a.dcm"),
    "PNG": Kind(_raster("PNG"), _picture, "a.png"),
    "JPEG": Kind(_raster("JPEG"), _picture, "a.jpg"),
    "TIFF": Kind(_tiff, _picture, "a.tif"),
    "NPY": Kind(_npy, _picture, "a.npy"),
    "NPZ": Kind(_npz, _read_npz, "a.npz"),
    "CSV": Kind(_csv, _read_csv, "a.csv"),
    "XML": Kind(_annotations(False), read_regions, "a.xml"),
    "plist": Kind(_annotations(True), read_regions, "a.xml"),
    "TOML": Kind(_toml, lambda path: resolve(read_toml(path)), "config.toml"),
    "safetensors": Kind(_tensors, _read_tensors, "step-1.safetensors"),
    "Parquet": Kind(_parts, _read_table, "part-000000.parquet"),
    "JSON": Kind(_source_json, _read_source_json, "source.json"),
}  # fmt: skip
