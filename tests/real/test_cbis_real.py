"""CBIS-DDSM: the real tables and eight real mammograms (reduced), from the data root."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from scorebayes.data.check import as_text, check
from scorebayes.data.load import load
from scorebayes.data.pixels.dicom import dicom_bits
from scorebayes.data.pixels.images import open_picture
from scorebayes.data.prepare import Prepare
from scorebayes.data.sources.cbis_ddsm import CbisDdsm, Lesion

pytestmark = pytest.mark.real
_NUMBERS = """
    16 41 159 394 495 510 591 601 639 652 678 723 753 882 906 924 969 1108 1152 1179
    1237 1307 1365 1467 1566 1605 1621 1635 1741 1803 1883
"""
LEAKING = {f"P_{int(number):05d}" for number in _NUMBERS.split()}


def dicom_tags(path):
    found = open_picture(path)
    return found.laterality, found.view


@pytest.fixture(scope="module")
def source(data_root: Path) -> CbisDdsm:
    return CbisDdsm(data_root / "cbis_ddsm_dicom_small", tables=data_root / "cbis_ddsm_tables")


@pytest.fixture(scope="module")
def lesions(source: CbisDdsm) -> list[Lesion]:
    return source.lesions()


def test_every_count_of_the_tables_is_the_published_one(source) -> None:
    counts = source.counts()
    assert len(counts) == 14
    assert [c for c in counts if c.found != c.published] == []


def test_the_published_quirks_are_there(lesions) -> None:
    assert len({x.image for x in lesions}) == 3103
    assert len({x.image_view for x in lesions}) == 3032
    assert not any("\n" in path for x in lesions for path in (x.image, x.crop, x.mask))
    assert {x.density for x in lesions} == {"0", "1", "2", "3", "4"}
    assert Counter(x.pathology for x in lesions) == {
        "BENIGN": 577 + 194 + 528 + 130,
        "BENIGN_WITHOUT_CALLBACK": 104 + 37 + 474 + 67,
        "MALIGNANT": 637 + 147 + 544 + 129,
    }


def everything(data_root: Path, monkeypatch, **options) -> CbisDdsm:
    """The source with a file for every row, so that labels can be counted without the images."""
    source = CbisDdsm(data_root, tables=data_root / "cbis_ddsm_tables", **options)
    monkeypatch.setattr(CbisDdsm, "_full_image", lambda self, x, files, silent=False: Path(x.image))
    return source


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("mass", {"train": (602, 1231), "test": (145, 361)}),
        ("calc", {"train": (509, 1227), "test": (119, 284)}),
    ],
)
def test_image_labels_are_the_published_ones(data_root, monkeypatch, kind, expected) -> None:
    records = everything(data_root, monkeypatch, lesions=kind).records()
    for split, (malignant, images) in expected.items():
        labels = [r.label for r in records if r.split == split]
        assert (sum(labels), len(labels)) == (malignant, images)


def test_the_31_leaking_patients_are_taken_out_of_one_side(data_root, monkeypatch) -> None:
    source = everything(data_root, monkeypatch)
    records = source.records()
    sides = {side: {r.patient_id for r in records if r.split == side} for side in ("train", "test")}
    assert not sides["train"] & sides["test"]
    assert sides["test"] >= LEAKING
    leaks = {entry.reason.split()[1] for entry in source.rejected if entry.reason.startswith("leak")}
    assert leaks == LEAKING
    assert len({(r.patient_id, r.laterality, r.view) for r in records}) == len(records)


def test_the_real_mammograms_are_read_and_prepared(source) -> None:
    records = source.records()
    assert [(r.image_id, r.label) for r in records if r.label] == [
        ("Mass-Test_P_00820_LEFT_CC", 1),
        ("Mass-Test_P_00820_LEFT_MLO", 1),
    ]
    assert len(records) == 8
    for record in records:
        assert dicom_bits(record.path) == 16
        assert dicom_tags(record.path) == (record.laterality, record.view)
        assert source.read(record).dtype == np.float32
    images, rejected = load(source, records, Prepare(128, bits=16, steps=("mammogram",)))
    assert rejected == [] and len(images) == 8
    left, right = (
        images.images[..., half].astype(float).sum((1, 2, 3)) for half in (slice(64), slice(64, 128))
    )
    assert (left > right).all()  # all flipped to the left, labels and tape gone
    assert (images.images[:, 0, :8, 100:] == 0).all()


def test_the_check_names_what_is_missing_and_finds_the_leak(source) -> None:
    result = check(source)
    assert len(result["left_out"]["missing"]) == 3031
    assert len(result["left_out"]["leak"]) == 83
    assert all(entry["found"] == entry["published"] for entry in result["counts"])
    assert result["leakage"]["patients_in_two_splits"] == []
    assert "missing: 3031" in as_text(result)
