"""VinDr-Mammo from a synthetic tree in its native layout."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from fixtures.native_trees import VINDR_STUDIES, breast, vindr_image, vindr_mammo

from scorebayes.data import open_source
from scorebayes.data.sources.vindr_mammo import VindrMammo
from scorebayes.errors import ConfigError, DataError

STUDY = VINDR_STUDIES[2][0]  # BI-RADS 4 on the left, training
LEFT = vindr_image(STUDY, "L", "CC")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return vindr_mammo(tmp_path_factory.mktemp("vindr"))


@pytest.fixture
def tree(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "copy")
    return tmp_path / "copy"


def rewrite(tree: Path, table: str, old: str, new: str) -> None:
    (path,) = tree.rglob(table)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def reasons(source: VindrMammo) -> dict[str, str]:
    return {entry.image_id: entry.reason for entry in source.rejected}


def test_images_labels_exams_and_the_official_split(whole: Path) -> None:
    source = open_source(f"vindr-mammo:{whole}")
    records = source.records()
    assert source.rejected == []
    assert Counter((r.split, r.label) for r in records) == {
        ("train", 0): 10, ("train", 1): 2, ("test", 0): 6, ("test", 1): 2,
    }  # fmt: skip
    record = next(r for r in records if r.image_id == LEFT)
    assert (record.patient_id, record.laterality, record.view, record.label) == (STUDY, "L", "CC", 1)
    assert record.extra == {
        "breast": f"{STUDY}_L", "density": "C", "birads": "4", "vendor": "IMS Model 2",
        "findings": "Mass; Skin Retraction",
    }  # fmt: skip


def test_the_background_is_dark_whatever_the_photometric_interpretation(whole: Path) -> None:
    source = VindrMammo(whole)
    for n, (study, _, _) in enumerate(VINDR_STUDIES):
        image = vindr_image(study, "L", "CC")
        pixels = source.read(next(r for r in source.records() if r.image_id == image))
        expected = breast(bits=12, side="L", seed=10 * n)
        np.testing.assert_allclose(pixels, expected / 4095, atol=2e-3)
        assert pixels[:, 60:].max() == 0 or (n % 2 and pixels[:, 60:].max() < 1e-3)


@pytest.mark.parametrize(
    ("convention", "malignant", "images"), [("1-3/4-5", 4, 20), ("1-2/4-5", 4, 18), ("1-2/3-5", 6, 20)]
)
def test_conventions(whole: Path, convention: str, malignant: int, images: int) -> None:
    source = VindrMammo(whole, convention=convention)
    records = source.records()
    assert (sum(r.label for r in records), len(records)) == (malignant, images)
    assert len(source.rejected) == 20 - images


def test_the_exams_can_be_divided_anew(whole: Path) -> None:
    assert {r.split for r in VindrMammo(whole, split="none").records()} == {None}


def test_crops_are_the_boxed_findings_with_their_own_assessment(whole: Path) -> None:
    source = VindrMammo(whole, task="crop", margin=0)
    records = source.records()
    assert Counter(r.label for r in records) == {1: 4, 0: 2}
    record = next(r for r in records if r.image_id == f"{LEFT}_1")
    assert record.extra["box"] == "12.25,30.5,30.75,52"
    pixels = VindrMammo(whole).read(record)
    np.testing.assert_array_equal(source.read(record), pixels[30:52, 11:32])


def test_breasts_pool_their_views(whole: Path) -> None:
    records = VindrMammo(whole, task="breast").records()
    assert len(records) == 20
    assert len({r.extra["breast"] for r in records}) == 10


def test_the_other_tables_may_be_missing_for_whole_images(tree: Path) -> None:
    for name in ("metadata.csv", "finding_annotations.csv"):
        next(tree.rglob(name)).unlink()
    record = VindrMammo(tree).records()[0]
    assert "vendor" not in record.extra and "findings" not in record.extra
    with pytest.raises(DataError, match=r"finding_annotations\.csv is not in"):
        VindrMammo(tree, task="crop").records()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("BI-RADS 4", "BI-RADS 7", "unknown assessment 'BI-RADS 7'"),
        ("training", "validation", "unknown split"),
        (f"{LEFT},L", f"{LEFT},B", "unknown laterality"),
        (f"{STUDY},", "../../etc,", "do not name a file inside"),
    ],
)
def test_a_row_that_cannot_be_trusted_is_set_apart(tree: Path, old: str, new: str, words: str) -> None:
    rewrite(tree, "breast-level_annotations.csv", old, new)
    source = VindrMammo(tree)
    assert len(source.records()) == 19
    assert sum(words in reason for reason in reasons(source).values()) == 1


def test_repeated_and_contradicting_rows_are_named(tree: Path) -> None:
    (path,) = tree.rglob("breast-level_annotations.csv")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[1], lines[2].replace("BI-RADS 1", "BI-RADS 5")]))
    source = VindrMammo(tree)
    assert len(source.records()) == 19
    found = list(reasons(source).values())
    assert "duplicate row: the image is listed twice." in found
    assert "conflicting labels: 2 rows differ." in found


def test_missing_and_unlisted_files_are_named(tree: Path) -> None:
    (path,) = tree.rglob(f"{LEFT}.dicom")
    path.rename(path.with_name("0" * 32 + ".dicom"))
    source = VindrMammo(tree)
    assert len(source.records()) == 19
    assert reasons(source)[LEFT] == "missing: not in the data set."
    assert "no table row" in reasons(source)["0" * 32]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("['Mass', 'Skin Retraction']", "['Mass'"),
        ("['Mass', 'Skin Retraction']", "{'a': 1}"),
        ("30.75", "wide"),
        ("30.75", "nan"),
        ("30.75", "1.0"),
    ],
)
def test_a_finding_that_cannot_be_understood_is_set_apart(tree: Path, old: str, new: str) -> None:
    rewrite(tree, "finding_annotations.csv", old, new)
    source = VindrMammo(tree, task="crop")
    assert len(source.records()) == 5
    assert "a finding that cannot be read." in reasons(source).values()


def test_a_finding_without_assessment_is_left_out(tree: Path) -> None:
    rewrite(tree, "finding_annotations.csv", "Retraction']\",BI-RADS 4", "Retraction']\",")
    source = VindrMammo(tree, task="crop")
    assert len(source.records()) == 5
    assert "left out: BI-RADS not given." in reasons(source).values()


def test_counts_stand_beside_the_published_ones(whole: Path) -> None:
    counts = {count.what: count[1:] for count in VindrMammo(whole).counts()}
    assert counts["images"] == (20, 20000) and counts["images of BI-RADS 4 or 5"] == (4, 988)


def test_ages_of_patients_are_not_kept(whole: Path) -> None:
    assert "045Y" not in repr(VindrMammo(whole).records())


@pytest.mark.parametrize("options", [{"task": "view"}, {"convention": "1/2"}, {"split": "x"}, {"margin": 11}])
def test_a_wrong_option_is_refused(whole: Path, options: dict) -> None:
    with pytest.raises(ConfigError):
        VindrMammo(whole, **options)
