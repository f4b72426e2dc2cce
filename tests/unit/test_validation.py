"""What a training looks at to choose its checkpoint."""

from __future__ import annotations

import numpy as np
import pytest
from fixtures.tiny_run import trained_tiny

from scorebayes.training.validate import validation_rows


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained_tiny(tmp_path_factory.mktemp("runs") / "tiny")


def test_some_validation_images_are_drawn_from_all_over_the_split(run):
    """Files come sorted: the first ones of a class would be those of one site."""
    images = run.images("train")
    images = images.subset(np.argsort(images.labels, kind="stable"))
    n_first = int((images.labels == 0).sum())
    rows = [validation_rows(images.labels, 2, 12, seed).tolist() for seed in range(6)]
    assert all(len(set(some)) == 12 and some == sorted(some) for some in rows)
    shares = [(np.array(some) < n_first).sum() for some in rows]
    assert set(shares) == {round(12 * n_first / len(images))}
    assert len({tuple(some) for some in rows}) == 6
    assert np.ptp(np.concatenate(rows)) > 0.8 * len(images)


def test_all_validation_images_are_looked_at_where_they_are_few(run):
    val = run.images("val")
    assert sorted(validation_rows(val.labels, 2, 10_000, 0)) == list(range(len(val)))
