"""What holds for the split of any data set."""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from scorebayes.data.base import Record
from scorebayes.data.split import SPLITS, leakage_audit, split_patients, subsample

images = st.lists(
    st.tuples(st.one_of(st.none(), st.text(max_size=3)), st.one_of(st.none(), st.integers(0, 3))), max_size=60
)
shares = st.tuples(st.integers(1, 20), st.integers(0, 20), st.integers(0, 20)).map(
    lambda parts: tuple(part / sum(parts) for part in parts)
)


def _records(rows: list[tuple[str | None, int | None]]) -> list[Record]:
    return [
        Record(f"image {k}", Path("x"), label=label, patient_id=patient)
        for k, (patient, label) in enumerate(rows)
    ]


@settings(max_examples=40, deadline=None)
@given(rows=images, fractions=shares, seed=st.integers(0, 2**32))
def test_every_image_has_one_split_and_no_patient_has_two(rows: list, fractions: tuple, seed: int) -> None:
    records = _records(rows)
    splits = split_patients(records, fractions=fractions, seed=seed)
    assert set(splits) == {r.image_id for r in records}
    assert set(splits.values()) <= {s for s, share in zip(SPLITS, fractions, strict=True) if share > 0}
    assert leakage_audit(records, splits)["patients_in_two_splits"] == []


@settings(max_examples=50, deadline=None)
@given(rows=images, seed=st.integers(0, 2**32))
def test_the_order_of_the_records_does_not_matter(rows: list, seed: int) -> None:
    records = _records(rows)
    shuffled = random.Random(seed).sample(records, len(records))
    assert split_patients(records, seed=seed) == split_patients(shuffled, seed=seed)


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.integers(3, 60), min_size=1, max_size=4), fractions=shares, seed=st.integers(0, 99))
def test_every_class_is_divided_in_the_fractions(sizes: list[int], fractions: tuple, seed: int) -> None:
    records = _records([(f"{label}/{k}", label) for label, n in enumerate(sizes) for k in range(n)])
    splits = split_patients(records, fractions=fractions, seed=seed)
    found: defaultdict[tuple[int | None, str], int] = defaultdict(int)
    for record in records:
        found[record.label, splits[record.image_id]] += 1
    for label, n in enumerate(sizes):
        for name, share in zip(SPLITS, fractions, strict=True):
            # Within rounding, but for one patient lent to a split that would be empty.
            assert abs(found[label, name] - n * share) < 3
            assert share == 0 or found[label, name] > 0


@settings(max_examples=50, deadline=None)
@given(rows=images, seed=st.integers(0, 99), noise=st.floats(0, 1), ratio=st.floats(0.1, 10))
def test_subsampling_touches_nothing_but_train(rows: list, seed: int, noise: float, ratio: float) -> None:
    records = _records(rows)
    splits = split_patients(records, seed=seed)
    kept = subsample(records, splits, imbalance=ratio, label_noise=noise, seed=seed)
    of_id = {r.image_id: r for r in kept}
    assert all(of_id[r.image_id] == r for r in records if splits[r.image_id] != "train")
    assert {r.label for r in kept} <= {r.label for r in records} | set(range(4))
    in_train = {r.patient_id for r in kept if splits[r.image_id] == "train" and r.patient_id is not None}
    for record in records:
        if record.patient_id in in_train and record.label is not None:
            assert record.image_id in of_id
