"""Who is in an image: unknown patients are unknown, copies stay together, and nothing tested was seen before."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fixtures.fake_run import write_fake_run
from fixtures.tiny_run import LAYER
from PIL import Image

from scorebayes.data import open_source
from scorebayes.data.base import Record
from scorebayes.data.check import as_text, check
from scorebayes.data.names import known_patients, suggest_pattern
from scorebayes.data.sources.arrays import save_arrays
from scorebayes.data.split import copies_of, leakage_audit, split_patients
from scorebayes.report.files import Run
from scorebayes.report.page import _cards
from scorebayes.report.sections.inputs import leak_words, leakage
from scorebayes.runs.inputs import start_run, unlabelled_of_start
from scorebayes.sklearn import ScoreBayesClassifier
from scorebayes.stages import train as stages

CPU = torch.device("cpu")
SMALL = {**LAYER, "prepare": {"size": 16}}


def pictures(root: Path, names: list[str], first: int = 0) -> Path:
    for k, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(first + k).integers(0, 256, (16, 16), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return root


def start(path: Path, data: str, *layers: dict):
    """A run directory with its split, and what was warned of; nothing is trained."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run, images = start_run(path, data, [SMALL, *layers], "tiny", CPU)
    return run, images, [str(warning.message) for warning in caught]


# --- L5: unknown patients ----------------------------------------------------------------------------------


def test_every_unknown_patient_is_another_one() -> None:
    """L5: None, NaN, empty and what programs write for these are nobody's name."""
    unknown = [
        None,
        float("nan"),
        np.nan,
        "",
        " ",
        "nan",
        "NaN",
        "None",
        "?",
        "unknown",
        "N/A",
        "<NA>",
        pd.NA,
        pd.NaT,
        "-",
    ]
    assert known_patients(unknown) == [None] * len(unknown)
    assert known_patients(["007", "7", "NA", "1e3", "p 1"]) == ["007", "7", "NA", "1e3", "p 1"]
    assert known_patients(["NA", "NA", "b"]) == [None, None, "b"]  # as R writes it


def test_one_patient_in_two_spellings_is_one_patient() -> None:
    """L5: numbers in a column with gaps become 7.0, and two forms of Unicode look the same."""
    assert known_patients([7, 7.0, np.float64(7), np.int64(7), "7.0", "7"]) == ["7"] * 6
    assert len(set(known_patients(["Mu\u0308ller", "M\u00fcller", " M\u00fcller "]))) == 1
    assert len(set(known_patients(["7", "07", "7a"]))) == 3


def test_unknown_patients_of_a_table_stand_alone(tmp_path) -> None:
    """L5: twenty empty cells are twenty images, and the check says how many."""
    names = [f"{k}.png" for k in range(24)]
    rows = [f"{name},{'ab'[k % 2]},{'' if k < 20 else f'p{k}'}" for k, name in enumerate(names)]
    (pictures(tmp_path, names) / "labels.csv").write_text("path,label,patient_id\n" + "\n".join(rows))
    source = open_source(f"folder:{tmp_path}")
    assert [record.patient_id for record in source.records()].count(None) == 20
    result = check(source)
    assert result["patients"] == 4 and result["leakage"]["images_without_patient"] == 20
    assert "20 of 24 images name no patient" in result["warnings"][0]
    assert "patients in two splits: 0; not checkable for 20 images: no patient ids" in as_text(result)
    assert set(split_patients(source.records()).values()) == {"train", "val", "test"}


def test_unknown_groups_of_an_array_stand_alone(tmp_path) -> None:
    """L5: groups with None and NaN, as pandas hands them on."""
    images = np.random.default_rng(0).integers(0, 256, (6, 16, 16), dtype=np.uint8)
    save_arrays(
        tmp_path / "a.npz",
        images,
        np.arange(6) % 2,
        classes=["a", "b"],
        patients=["p", "nan", "None", "", "q", "p"],
    )
    patients = [record.patient_id for record in open_source(f"arrays:{tmp_path / 'a.npz'}").records()]
    assert patients == ["p", None, None, None, "q", "p"]


# --- L6: patients unknown ----------------------------------------------------------------------------------


def test_unknown_patients_are_not_checkable_and_the_option_is_named(tmp_path) -> None:
    """L6: names like P000_1.png: a warning, no "in order", and the very option to give."""
    pictures(tmp_path, [f"{label}/P{k:03d}_{n}.png" for k, label in enumerate("ab" * 6) for n in range(2)])
    result = check(open_source(f"folder:{tmp_path}"))
    text = as_text(result)
    assert not result["ok"] and "patients in two splits: not checkable: no patient ids" in text
    assert "patients in two splits: 0" not in text and "in order" not in text
    pattern = result["warnings"][0].rpartition("--option 'patient_pattern=")[2].strip("'")
    known = open_source(f"folder:{tmp_path}", patient_pattern=pattern)
    assert len({record.patient_id for record in known.records()}) == 12
    assert check(known)["ok"]


@pytest.mark.parametrize(
    ("names", "n_classes", "patient"),
    [
        (["a/P000_1.png", "a/P000_2.png", "b/P001_1.png", "b/P002_1.png"], 2, "P000"),
        (["a/12-L.png", "a/12-R.png", "b/13-L.png", "b/14-L.png"], 2, "12"),
        (
            ["a/case_0001_l.png", "a/case_0001_r.png", "b/case_0002_l.png", "b/case_0003_l.png"],
            2,
            "case_0001",
        ),
        (["a/7/x1.png", "a/7/x2.png", "b/8/x1.png", "b/9/x1.png"], 2, "7"),
        (["a/benign (1).png", "a/benign (2).png", "b/malignant (1).png", "b/malignant (2).png"], 2, None),
        (["a/IMG_0001.png", "a/IMG_0002.png", "b/IMG_0003.png"], 2, None),
        (["train/0/a.png", "train/1/b.png", "train/2/c.png", "test/0/d.png", "test/1/e.png"], 3, None),
        ([f"a/2021_{k}.png" for k in range(50)] + [f"a/2022_{k}.png" for k in range(50)], 2, None),
        ([], 2, None),
    ],
)
def test_a_pattern_is_suggested_only_where_names_share_a_patient(names, n_classes, patient) -> None:
    """L6: a class, a year or a camera's prefix is no patient."""
    from re import search

    pattern = suggest_pattern(names, n_classes)
    assert (None if pattern is None else search(pattern, names[0])[1].rpartition("/")[2]) == patient


def test_training_and_the_first_screen_of_the_report_say_that_patients_are_unknown(tmp_path) -> None:
    """L6: the report said "None is"."""
    names = [f"{label}/{k}.png" for k, label in enumerate("ab" * 12)]
    run, _, said = start(tmp_path / "run", f"folder:{pictures(tmp_path / 'data', names)}")
    assert any("not checkable: no patient ids" in text for text in said)
    assert "not checkable" in json.loads((run.path / "audit.json").read_text())["warnings"][0]
    folder = write_fake_run(tmp_path / "fake", n_patients=30)
    assert leak_words(Run(folder)) == ""
    table = pd.read_parquet(folder / "split.parquet")
    for unknown, words in (
        (len(table), "not checkable: no patient ids"),
        (3, f"for 3 of {len(table)} images"),
    ):
        table.assign(patient_id=[None] * unknown + list(table["patient_id"][unknown:])).to_parquet(
            folder / "split.parquet"
        )
        report = Run(folder)
        assert words in dict(_cards(report))["How sure"]
        assert words in " ".join(leakage(report).words) and "None was found." not in leakage(report).words


# --- R5: copies --------------------------------------------------------------------------------------------


def records(patients: list[str | None], split: str | None = None) -> list[Record]:
    return [Record(f"i{k}", Path(f"i{k}"), k % 2, p, split) for k, p in enumerate(patients)]


def test_copies_without_patients_are_on_one_side() -> None:
    """R5: a bootstrapped set, whatever the order of its records."""
    images = [np.full((4, 4), k // 4, np.uint8) for k in range(80)]
    found = records([None] * 80)
    for seed in range(5):
        splits = split_patients(found, seed=seed, copies=copies_of(found, images))
        assert leakage_audit(found, splits, images)["same_pixels_across_splits"] == []
        turned = split_patients(found[::-1], seed=seed, copies=copies_of(found[::-1], images[::-1]))
        assert turned == splits and set(splits.values()) == {"train", "val", "test"}
    assert copies_of(found[::4], images[::4]) == {}


def test_a_copy_without_patient_goes_with_the_patient_it_shows() -> None:
    """R5: partly known patients; copies of two patients, and official splits, are left as they are."""
    one = [np.zeros((4, 4), np.uint8)] * 2
    assert copies_of(records(["p", None]), one) == {"i1": ("patient", "p")}
    assert copies_of(records(["p", "q"]), one) == {}
    torn = [
        replace(record, split=split)
        for record, split in zip(records([None] * 2), ("train", "test"), strict=True)
    ]
    assert copies_of(torn, one) == {}


def test_oversampled_images_train_without_groups(tmp_path) -> None:
    """R5: exact copies, through fit."""
    rng = np.random.default_rng(0)
    base = rng.integers(0, 256, (24, 16, 16), dtype=np.uint8)
    rows = np.concatenate([np.arange(24), rng.integers(0, 24, 24)])
    config = {name: LAYER[name] for name in ("net", "train", "likelihood")} | {
        "evidence": {"sources": ["pixels"]}
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ScoreBayesClassifier("tiny", config=config, device="cpu", random_state=6).fit(
            base[rows], rows % 2
        )
    audit = json.loads((model.run_.path / "audit.json").read_text())
    assert audit["same_pixels_across_splits"] == [] and audit["same_pixels_within_split"]


# --- R2: unlabelled images ---------------------------------------------------------------------------------


def unlabelled(root: Path, patients: bool = True) -> str:
    """24 labelled images and 24 without a label, each of its own patient, who is named or not."""
    names = [f"{k}.png" for k in range(48)]
    rows = [
        f"{name},{'ab'[k % 2] if k < 24 else '?'},{f'p{k}' if patients else ''}"
        for k, name in enumerate(names)
    ]
    (pictures(root, names) / "labels.csv").write_text("path,label,patient_id\n" + "\n".join(rows))
    return f"folder:{root}"


def test_unlabelled_images_serve_a_label_free_start_only(tmp_path) -> None:
    """R2: as the guide says."""
    data = unlabelled(tmp_path / "data")
    free, images, said = start(tmp_path / "free", data, {"train": {"null_label": 1.0}})
    assert (
        (images["train"].labels < 0).sum() == (free.split.query("split == 'train'")["label"] < 0).sum() > 10
    )
    assert not any("have no label" in text for text in said)
    labelled, images, said = start(tmp_path / "labelled", data, {"train": {"init": str(free.path)}})
    assert "24 images have no label. They are not used for training with labels, nor for validation." in said
    assert (images["val"].labels >= 0).all() and (labelled.images("val").labels >= 0).all()
    assert sum(labelled.facts.train_counts) == (images["train"].labels >= 0).sum() < 20
    given = unlabelled_of_start(labelled)
    assert set(given.keys) == set(images["train"].keys) - set(images["train"].labelled().keys)


def test_a_run_is_trained_and_calibrated_beside_unlabelled_images(tmp_path) -> None:
    """R2: from the images to a calibrated run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = stages.train(tmp_path / "run", unlabelled(tmp_path / "data"), [SMALL], "tiny", CPU)
    assert run.calibration_path.exists()


# --- L7: what the start has seen ---------------------------------------------------------------------------


@pytest.mark.parametrize("patients", [True, False])
def test_a_start_of_another_seed_has_seen_test_images_and_that_is_said(tmp_path, patients) -> None:
    """L7: warned of, in the audit and in the report; with the same seed, nothing is said."""
    data = unlabelled(tmp_path / "data", patients)
    free, _, _ = start(tmp_path / "free", data, {"train": {"null_label": 1.0}})
    own, _, said = start(tmp_path / "own", data, {"train": {"init": str(free.path)}})
    assert not any("has seen" in text for text in said)
    assert json.loads((own.path / "audit.json").read_text())["seen_by_start"]["test"] == []
    other, _, said = start(tmp_path / "other", data, {"seed": 99, "train": {"init": str(free.path)}})
    first, second = (run.split.set_index("image_id")["split"] for run in (free, other))
    expected = sorted(second.index[(second == "test") & first[second.index].isin(["train", "val"])])
    audit = json.loads((other.path / "audit.json").read_text())
    assert sorted(audit["seen_by_start"]["test"]) == expected and expected
    assert any(f"has seen {len(expected)} test images" in text for text in said)
    assert f"had seen {len(expected)} test images" in leak_words(Run(other.path))


def test_a_start_on_other_files_is_compared_by_the_pixels(tmp_path) -> None:
    """L7: the same pictures under other names, as in "all images" and "the labelled ones"."""
    data = unlabelled(tmp_path / "data")
    free, _, _ = start(tmp_path / "free", data, {"train": {"null_label": 1.0}})
    names = [f"{'ab'[k % 2]}/other-{k}.png" for k in range(48)]
    same, _, said = start(
        tmp_path / "same",
        f"folder:{pictures(tmp_path / 'again', names)}",
        {"train": {"init": str(free.path)}},
    )
    seen = json.loads((same.path / "audit.json").read_text())["seen_by_start"]
    assert 0 < len(seen["test"]) < (same.split["split"] == "test").sum() + 1
    fresh = f"folder:{pictures(tmp_path / 'new', names, first=1000)}"
    new, _, said = start(tmp_path / "fresh", fresh, {"train": {"init": str(free.path)}})
    assert json.loads((new.path / "audit.json").read_text())["seen_by_start"]["test"] == []
    assert not any("has seen" in text for text in said)


def test_a_start_whose_images_are_gone_is_not_called_clean(tmp_path) -> None:
    """L7: what cannot be compared is said."""
    data = unlabelled(tmp_path / "data")
    free, _, _ = start(tmp_path / "free", data, {"train": {"null_label": 1.0}})
    (tmp_path / "data").rename(tmp_path / "moved")
    names = [f"{'ab'[k % 2]}/{k}.png" for k in range(24)]
    new, _, said = start(
        tmp_path / "new",
        f"folder:{pictures(tmp_path / 'new-data', names)}",
        {"train": {"init": str(free.path)}},
    )
    assert any("is not known" in text for text in said)
    assert "is not known" in leak_words(Run(new.path))
