"""Splits: by patient, official ones kept, leaks found, and reduced training sets."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from scorebayes.data.base import Record
from scorebayes.data.split import largest_per_class, leakage_audit, split_patients, subsample
from scorebayes.errors import ConfigError, DataError


def _record(
    number: int, label: int | None = 0, patient: str | None = None, split: str | None = None
) -> Record:
    return Record(f"i{number}", Path(f"{number}.png"), label=label, patient_id=patient, split=split)


def _patients(n: int, views: int = 2, malignant_every: int = 4) -> list[Record]:
    return [
        _record(views * p + v, label=int(p % malignant_every == 0), patient=f"p{p}")
        for p in range(n)
        for v in range(views)
    ]


def test_fractions_hold_in_every_class() -> None:
    records = _patients(400)
    splits = split_patients(records)
    counts = Counter((splits[r.image_id], r.label) for r in records)
    assert counts == {
        ("train", 1): 140, ("val", 1): 30, ("test", 1): 30,
        ("train", 0): 420, ("val", 0): 90, ("test", 0): 90,
    }  # fmt: skip


def test_another_seed_gives_another_split() -> None:
    records = _patients(40)
    assert split_patients(records, seed=0) != split_patients(records, seed=1)
    assert split_patients(records, seed=1) == split_patients(records, seed=1)


def test_official_splits_are_kept() -> None:
    records = [_record(k, k % 2, split=("train", "val", "test")[k % 3]) for k in range(30)]
    assert split_patients(records) == {r.image_id: r.split for r in records}


def test_a_lacking_val_is_carved_out_of_train_by_patient() -> None:
    records = [_record(k, k // 2 % 2, f"p{k // 2}", "test" if k < 20 else "train") for k in range(120)]
    splits = split_patients(records, fractions=(0.6, 0.2, 0.2))
    assert all(splits[r.image_id] == "test" for r in records[:20])
    assert Counter(splits[r.image_id] for r in records[20:]) == {"train": 76, "val": 24}
    assert not leakage_audit(records, splits)["patients_in_two_splits"]


def test_a_lacking_test_stays_lacking() -> None:
    records = [_record(k, k % 2, split="val" if k < 5 else "train") for k in range(20)]
    assert set(split_patients(records).values()) == {"train", "val"}


def test_an_image_without_a_split_follows_its_patient() -> None:
    records = [
        _record(0, patient="a", split="test"), _record(1, patient="a"),
        _record(2, patient="b", split="train"), _record(3, patient="c", split="val"),
    ]  # fmt: skip
    assert split_patients(records)["i1"] == "test"


def test_a_patient_in_two_official_splits_is_named() -> None:
    records = [_record(0, patient="P_007", split="train"), _record(1, patient="P_007", split="test")]
    with pytest.raises(DataError, match="P_007"):
        split_patients(records)


def test_official_splits_for_a_part_only_are_refused() -> None:
    with pytest.raises(DataError, match="1 of 2 patients have no official split: b"):
        split_patients([_record(0, patient="a", split="train"), _record(1, patient="b")])


def test_an_unknown_official_split_is_refused() -> None:
    with pytest.raises(DataError, match="training"):
        split_patients([_record(0, split="training")])


def test_repeated_image_ids_are_refused() -> None:
    with pytest.raises(DataError, match="i3"):
        split_patients([_record(3), _record(3)])


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.9, 0.2, -0.1), (0.5, 0.2, 0.2)])
def test_fractions_that_are_no_shares_are_refused(fractions: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="fractions"):
        split_patients(_patients(4), fractions=fractions)


def test_a_patient_of_two_classes_counts_for_the_rarer_one() -> None:
    # Of ten patients three have one malignant image each: every split gets one of them.
    records = [_record(2 * p + v, int(p < 3 and v == 0), f"p{p}") for p in range(10) for v in range(2)]
    splits = split_patients(records)
    assert {splits[r.image_id] for r in records if r.label == 1} == {"train", "val", "test"}


def test_an_image_named_like_a_patient_is_not_taken_for_one() -> None:
    records = [Record("x", Path("1")), Record("y", Path("2"), patient_id="x")]
    assert leakage_audit(records, {"x": "train", "y": "test"})["patients_in_two_splits"] == []


def test_the_audit_finds_torn_patients_and_equal_pixels() -> None:
    records = [_record(0, 0, "a"), _record(1, 1, "a"), _record(2, 0, "b"), _record(3, None, "c")]
    splits = {"i0": "train", "i1": "test", "i2": "train", "i3": "test"}
    black, white = np.zeros((2, 2), np.float32), np.ones((2, 2), np.float32)
    audit = leakage_audit(records, splits, [black, white, black, white.reshape(4, 1)])
    assert audit["patients_in_two_splits"] == ["a"]
    assert audit["same_pixels_within_split"] == [["i0", "i2"]]
    assert audit["same_pixels_across_splits"] == []
    assert audit["images"] == {"train": {"0": 2}, "test": {"1": 1, "unknown": 1}}
    assert audit["patients"] == {"train": 2, "test": 2}
    across = leakage_audit(records, splits, [black, black, white, white.reshape(4, 1)])
    assert across["same_pixels_across_splits"] == [["i0", "i1"]]


def _train_counts(records: list[Record], splits: dict[str, str]) -> Counter:
    return Counter(r.label for r in records if splits[r.image_id] == "train")


def test_a_reduced_training_set_has_whole_patients_and_leaves_the_rest_alone() -> None:
    records = _patients(80)
    splits = split_patients(records)
    kept = subsample(records, splits, per_class=5)
    assert _train_counts(kept, splits) == {0: 10, 1: 10}
    held_out = [r for r in records if splits[r.image_id] != "train"]
    assert [r for r in kept if splits[r.image_id] != "train"] == held_out


def test_smaller_training_sets_are_parts_of_larger_ones() -> None:
    records = _patients(80)
    splits = split_patients(records)
    small, large = ({r.image_id for r in subsample(records, splits, per_class=n, seed=3)} for n in (4, 9))
    assert small < large


def test_too_few_patients_are_refused_with_the_number_there_is() -> None:
    records = _patients(40)
    with pytest.raises(DataError, match="at most 7 per class"):
        subsample(records, split_patients(records), per_class=9)


def test_imbalance_alone_keeps_the_largest_set_of_that_ratio() -> None:
    records = [_record(k, k % 3, f"p{k}", "train") for k in range(300)]
    splits = {r.image_id: "train" for r in records}
    assert _train_counts(subsample(records, splits, imbalance=100), splits) == {0: 100, 1: 10, 2: 1}
    assert _train_counts(subsample(records, splits, imbalance=0.25), splits) == {0: 25, 1: 50, 2: 100}
    assert _train_counts(subsample(records, splits, imbalance=100, rare=0), splits) == {1: 100, 2: 10, 0: 1}


def test_imbalance_at_a_fixed_number_keeps_the_total_at_every_ratio() -> None:
    records = [_record(k, int(k % 4 == 0), f"p{k}", "train") for k in range(400)]
    splits = {r.image_id: "train" for r in records}
    counts = {
        ratio: _train_counts(subsample(records, splits, per_class=80, imbalance=ratio, rare=1), splits)
        for ratio in (1, 3, 10, 30)
    }
    assert counts[1] == {0: 80, 1: 80} and counts[3] == {0: 120, 1: 40}
    assert counts[10] == {0: 145, 1: 15} and counts[30] == {0: 155, 1: 5}
    assert {sum(found.values()) for found in counts.values()} == {160}


@pytest.mark.parametrize(("rare", "expected"), [(1, 100), (0, 51)])
def test_the_largest_number_that_every_ratio_allows_is_just_feasible(rare: int, expected: int) -> None:
    records = [_record(k, int(k % 4 == 0), f"p{k}", "train") for k in range(400)]  # 300 against 100
    splits = {r.image_id: "train" for r in records}
    most = largest_per_class(records, splits, (1, 30), rare)
    assert most == expected
    for ratio in (1, 30):
        subsample(records, splits, per_class=most, imbalance=ratio, rare=rare)
    with pytest.raises(DataError, match=f"at most {most} per class"):
        for ratio in (1, 30):
            subsample(records, splits, per_class=most + 1, imbalance=ratio, rare=rare)


def test_the_rare_patients_of_a_steeper_ratio_are_among_those_of_a_flatter_one() -> None:
    records = [_record(k, k % 2, f"p{k}", "train") for k in range(200)]
    splits = {r.image_id: "train" for r in records}
    rare = [
        {r.image_id for r in subsample(records, splits, per_class=50, imbalance=x, rare=1) if r.label == 1}
        for x in (1, 3, 10)
    ]
    assert rare[0] > rare[1] > rare[2]


def test_no_class_vanishes_and_unlabelled_images_follow_their_patient() -> None:
    records = [
        _record(0, 0, "a"),
        _record(1, 1, "b"),
        _record(2, None, "b"),
        _record(3, None, "c"),
        _record(4, 1, "d"),
    ]
    splits = {r.image_id: "train" for r in records}
    kept = subsample(records, splits, imbalance=5)
    assert Counter(r.label for r in kept if r.label is not None) == {0: 1, 1: 1}
    patients = {r.patient_id for r in kept}
    assert {"a", "c"} < patients and len(patients & {"b", "d"}) == 1
    assert ("i2" in {r.image_id for r in kept}) == ("b" in patients)


def test_val_is_reduced_to_the_shape_of_train_only_where_asked() -> None:
    records = _patients(400)
    splits = split_patients(records)  # train: 210 benign, 70 malignant patients; val: 45, 15
    options: dict = {"per_class": 100, "imbalance": 9, "rare": 1, "label_noise": 0.2}
    kept = subsample(records, splits, **options)
    assert sum(splits[r.image_id] == "val" for r in kept) == 120
    reduced = subsample(records, splits, **options, reduce_val=True)
    of_id = {r.image_id: r.label for r in records}
    in_val = [r for r in reduced if splits[r.image_id] == "val"]
    assert Counter(of_id[r.image_id] for r in in_val) == {0: 90, 1: 10}
    assert sum(of_id[r.image_id] != r.label for r in in_val) == 20
    few = subsample(records, splits, per_class=1, reduce_val=True)
    assert Counter(r.label for r in few if splits[r.image_id] == "val") == {0: 4, 1: 4}


def test_label_noise_flips_the_asked_share_patient_by_patient() -> None:
    records = _patients(80)
    splits = split_patients(records)
    noisy = subsample(records, splits, label_noise=0.25)
    wrong = [(old, new) for old, new in zip(records, noisy, strict=True) if old.label != new.label]
    assert {splits[old.image_id] for old, _ in wrong} == {"train"}
    assert Counter(old.label for old, _ in wrong) == {0: 20, 1: 8}  # of 42 and 14 patients, two images each
    assert all(len([w for w in wrong if w[0].patient_id == old.patient_id]) == 2 for old, _ in wrong)


@pytest.mark.parametrize("option", [{"per_class": 0}, {"imbalance": 0}, {"label_noise": 1.5}])
def test_values_out_of_range_are_refused_by_name(option: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(option))):
        subsample([_record(0)], {"i0": "train"}, **option)
