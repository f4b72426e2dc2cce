"""The published BreastMNIST and PneumoniaMNIST files, and the DDSM at 64x64."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from scorebayes.data import open_source
from scorebayes.data.split import leakage_audit, split_patients

pytestmark = pytest.mark.real

COUNTS = {
    "breastmnist": {"train": (147, 399), "val": (21, 57), "test": (42, 114)},
    "pneumoniamnist": {"train": (1214, 3494), "val": (135, 389), "test": (234, 390)},
}


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_the_published_file_has_the_published_counts_and_sum(data_root: Path, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the MD5 sum fits
        source = open_source(f"medmnist:{data_root / 'medmnist' / name}.npz")
    records = source.records()
    found = Counter((r.split, r.label) for r in records)
    assert found == {(s, k): n for s, pair in COUNTS[name].items() for k, n in enumerate(pair)}
    assert split_patients(records) == {r.image_id: r.split for r in records}
    image = source.read(records[0])
    assert image.shape == (28, 28)
    assert image.dtype == np.float32


def test_the_twin_in_train_and_test_of_breastmnist_is_found(data_root: Path) -> None:
    source = open_source(f"medmnist:{data_root}/medmnist/breastmnist.npz")
    records = source.records()
    audit = leakage_audit(records, split_patients(records), map(source.read, records))
    assert audit["same_pixels_across_splits"] == [["train-000115", "test-000076"]]


def test_ddsm64_has_the_counts_of_its_description_and_no_patient_twice(data_root: Path) -> None:
    named = open_source(f"ddsm64:{data_root / 'ddsm64'}")
    assert Counter(r.split for r in named.records()) == {"train": 3551, "test": 552}
    source = open_source(f"ddsm64:{data_root / 'ddsm64'}", given_val="val")
    records = source.records()
    found = Counter((r.split, r.label) for r in records)
    assert found == {("train", 1): 1242, ("val", 1): 153, ("train", 0): 2309, ("val", 0): 399}
    assert {r.laterality for r in records} == {"L", "R"}
    assert {r.view for r in records} == {"CC", "MLO"}
    splits = split_patients(records)
    assert splits == {r.image_id: r.split for r in records}
    assert leakage_audit(records, splits)["patients_in_two_splits"] == []
    assert source.read(records[-1]).shape == (64, 64)


def test_ddsm64_by_file_and_by_folder_are_the_same_images(data_root: Path) -> None:
    folder, file = (open_source(f"ddsm64:{data_root}/ddsm64{end}") for end in ("", "/ddsm64.npz"))
    assert folder.records() == file.records()
