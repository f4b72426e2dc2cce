"""What every data set must do, over all of ``SOURCES`` that can be built from made-up files."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scorebayes.data import SOURCES, Source, open_source
from scorebayes.data.sources.arrays import save_arrays
from scorebayes.errors import ConfigError, DataError


def _pixels(k: int, size: int = 16) -> np.ndarray:
    return np.random.default_rng(k).integers(0, 256, (size, size), dtype=np.uint8)


def _phantom(root: Path) -> str:
    return "phantom:n_patients=6,size=16"


def _medmnist(root: Path) -> str:
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = np.stack([_pixels(k) for k in range(4)])
        arrays[f"{split}_labels"] = np.arange(4)[:, None] % 2
    np.savez(root / "own.npz", **arrays)
    return f"medmnist:{root / 'own.npz'}"


def _folder(root: Path) -> str:
    for k in range(6):
        path = root / ("benign", "malignant")[k % 2] / f"{k}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(_pixels(k)).save(path)
    return f"folder:{root}"


def _ddsm64(root: Path) -> str:
    lines = ["source_file,patient_group,site_letter,laterality,view,label,split"]
    for k in range(6):
        (root / f"case{k}").mkdir()
        Image.fromarray(_pixels(k, 64)).save(root / f"case{k}/a.png")
        lines.append(f"case{k}/a.png,000{k},A,LEFT,CC,{k % 3 - 1},{'val' if k > 3 else 'train'}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return f"ddsm64:{root}"


def _arrays(root: Path) -> str:
    images = np.stack([_pixels(k) for k in range(6)])
    save_arrays(root / "own.npz", images, np.arange(6) % 2, classes=["benign", "malignant"])
    return f"arrays:{root / 'own.npz'}"


MADE: dict[str, Callable[[Path], str]] = {
    "phantom": _phantom,
    "medmnist": _medmnist,
    "folder": _folder,
    "ddsm64": _ddsm64,
    "arrays": _arrays,
}
# Their own formats are made up, and their contract is tested, where their readers are.
ELSEWHERE = {"cbis-ddsm", "inbreast", "vindr-mammo"}


@pytest.fixture(params=sorted(set(SOURCES) - ELSEWHERE))
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Source:
    if request.param not in MADE:
        pytest.fail(f"no made-up files for {request.param}: add them to MADE")
    return open_source(MADE[request.param](tmp_path))


def test_records_are_the_same_on_every_call(source: Source) -> None:
    assert source.records() == source.records()
    assert source.rejected == []


def test_image_ids_are_unique_and_labels_are_classes(source: Source) -> None:
    records = source.records()
    assert len({r.image_id for r in records}) == len(records) > 1
    assert {r.label for r in records} == set(range(len(source.info.classes)))
    assert {r.split for r in records} <= {"train", "val", "test", None}
    assert 0 <= source.info.positive < len(source.info.classes)


def test_pixels_are_float32_in_the_unit_interval_and_always_the_same(source: Source) -> None:
    for record in source.records():
        pixels = source.read(record)
        assert pixels.dtype == np.float32
        assert pixels.ndim == (2 if source.info.channels == 1 else 3)
        assert 0 <= pixels.min() < pixels.max() <= 1
        np.testing.assert_array_equal(pixels, source.read(record))


def test_pixels_use_the_levels_of_the_bit_depth(source: Source) -> None:
    levels = source.read(source.records()[0]).astype(np.float64) * (2**source.info.bits - 1)
    np.testing.assert_allclose(levels, np.round(levels), atol=1e-3)


def test_a_source_can_be_sent_to_another_process(source: Source) -> None:
    records = source.records()
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy.read(records[-1]), source.read(records[-1]))


def test_different_images_differ(source: Source) -> None:
    first, second, *_ = source.records()
    assert (source.read(first) != source.read(second)).any()


# --- open_source -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("phantm", "Did you mean 'phantom'"),
        ("folders:/x", "Did you mean 'folder'"),
        ("zzz", "Known kinds: phantom"),
        (".", "Write folder:."),
        ("folder", "Write folder:PATH"),
        ("medmnist:", "Write medmnist:PATH"),
        ("phantom:dificulty=1", "Did you mean 'difficulty'"),
        ("phantom:zzz=1", "Known options: n_patients"),
        ("phantom:views", "is no option"),
        ("phantom:size=big", "size is 'big', expected a whole number"),
    ],
)
def test_a_data_argument_that_does_not_fit_is_refused_with_the_remedy(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_source(text)


def test_options_given_by_keyword_win_over_those_in_the_text() -> None:
    assert len(open_source("phantom:n_patients=3,views=1", n_patients=5).records()) == 5
    with pytest.raises(ConfigError, match="no option 'bitz'"):
        open_source("folder:/x", bitz=8)


def test_only_the_first_colon_ends_the_kind() -> None:
    with pytest.raises(DataError, match=r"C:\\data"):
        open_source(r"folder:C:\data")


def test_importing_the_package_imports_no_decoder() -> None:
    slow = ("pydicom", "pandas", "torch", "PIL")
    code = f"import sys, scorebayes.data; print([m for m in {slow} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
