"""The reader of the 64x64 DDSM, on made-up files of its format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scorebayes.data import open_source
from scorebayes.data.sources.ddsm64 import Ddsm64
from scorebayes.data.split import leakage_audit, split_patients
from scorebayes.errors import ConfigError, DataError

LABELS = [0, 1, -1, 0, 1]


def _table(
    root: Path, labels: list[int], columns: str = "source_file,patient_group,laterality,view,label,split"
) -> None:
    lines = [f"c{k}/a.png,000{k // 2},RIGHT,MLO,{label},train" for k, label in enumerate(labels)]
    (root / "labels.csv").write_text("\n".join([columns, *lines]) + "\n")


def _packed(root: Path) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (5, 64, 64), dtype=np.uint8)
    groups = np.array([f"000{k // 2}" for k in range(5)])
    np.savez(
        root / "ddsm64.npz",
        images=images,
        labels=np.array(LABELS, np.int8),
        split=np.array(["train"] * 5),
        patient_group=groups,
    )
    return root


def test_the_packed_file_needs_no_table_and_gains_the_view_from_one(tmp_path: Path) -> None:
    source = Ddsm64(_packed(tmp_path) / "ddsm64.npz")
    bare = source.records()
    assert [(r.image_id, r.label, r.patient_id, r.split, r.view) for r in bare] == [
        ("ddsm64-00000", 0, "0000", "train", ""),
        ("ddsm64-00001", 1, "0000", "train", ""),
        ("ddsm64-00003", 0, "0001", "train", ""),
        ("ddsm64-00004", 1, "0002", "train", ""),
    ]
    stored = np.load(tmp_path / "ddsm64.npz")["images"]
    np.testing.assert_array_equal(np.round(source.read(bare[2]) * 255), stored[3])
    _table(tmp_path, LABELS)
    assert {(r.view, r.laterality) for r in Ddsm64(tmp_path).records()} == {("MLO", "R")}


def _given_parts(root: Path, groups: int = 20) -> Path:
    """Two images per patient, the last four patients in the given "val"."""
    rows = [
        (f"{k // 2:04d}", k // 2 % 2, "val" if k // 2 >= groups - 4 else "train") for k in range(2 * groups)
    ]
    patients, labels, splits = (np.array(column) for column in zip(*rows, strict=True))
    images = np.random.default_rng(1).integers(0, 256, (len(rows), 64, 64), dtype=np.uint8)
    np.savez(root / "ddsm64.npz", images=images, labels=labels, split=splits, patient_group=patients)
    return root


def test_the_given_val_is_the_test_split_and_chooses_nothing(tmp_path: Path) -> None:
    source = Ddsm64(_given_parts(tmp_path))
    records = source.records()
    splits = split_patients(records)
    in_test = {r.patient_id for r in records if splits[r.image_id] == "test"}
    assert in_test == {"0016", "0017", "0018", "0019"}
    audit = leakage_audit(records, splits, [source.read(r) for r in records])
    assert audit["patients"] == {"train": 14, "val": 2, "test": 4}
    assert audit["images"]["val"] == {"0": 2, "1": 2}
    assert audit["patients_in_two_splits"] == [] == audit["same_pixels_across_splits"]


def test_the_given_parts_keep_their_names_where_asked(tmp_path: Path) -> None:
    source = open_source(f"ddsm64:{_given_parts(tmp_path)}", given_val="val")
    assert {r.split for r in source.records()} == {"train", "val"}
    with pytest.raises(ConfigError, match="given_val"):
        Ddsm64(tmp_path, given_val="train")


def test_the_real_data_have_whole_patients_and_no_copies_across_splits(data_root: Path) -> None:
    source = Ddsm64(data_root / "ddsm64")
    records = source.records()
    splits = split_patients(records)
    audit = leakage_audit(records, splits, [source.read(r) for r in records])
    assert audit["images"]["test"] == {"0": 399, "1": 153} and audit["patients"]["test"] == 179
    assert audit["patients_in_two_splits"] == [] == audit["same_pixels_across_splits"]
    assert sum(audit["images"][name]["1"] for name in ("train", "val")) == 1242


def test_a_table_of_another_edition_is_refused(tmp_path: Path) -> None:
    _packed(tmp_path)
    _table(tmp_path, [1, *LABELS[1:]])
    with pytest.raises(DataError, match="disagree"):
        Ddsm64(tmp_path).records()


def test_single_files_that_are_missing_are_left_out_with_the_reason(tmp_path: Path) -> None:
    _table(tmp_path, LABELS)
    for k in (0, 1):
        (tmp_path / f"c{k}").mkdir()
        Image.new("L", (64, 64), k).save(tmp_path / f"c{k}/a.png")
    source = Ddsm64(tmp_path)
    assert len(source.records()) == 2
    assert [r.image_id for r in source.rejected] == ["ddsm64-00003", "ddsm64-00004"]
    assert "does not exist" in source.rejected[0].reason


@pytest.mark.parametrize(
    ("labels", "columns", "message"),
    [
        ([0, 7], "source_file,patient_group,laterality,view,label,split", "line 3: label '7'"),
        ([0, 1], "source_file,patient,laterality,view,label,split", "lacks the column 'patient_group'"),
    ],
)
def test_a_malformed_table_is_refused(tmp_path: Path, labels: list[int], columns: str, message: str) -> None:
    _table(tmp_path, labels, columns)
    with pytest.raises(DataError, match=message):
        Ddsm64(tmp_path).records()


def test_a_folder_without_any_of_its_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"labels\.csv does not exist"):
        Ddsm64(tmp_path).records()
