"""What a training looks at to choose its checkpoint."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from fixtures.tiny_run import train_tiny

from scorebayes.runs.inputs import load_split
from scorebayes.training.loop import validation_images


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train_tiny(tmp_path_factory.mktemp("runs") / "tiny")


def looking_at(run, val_images: int, seed: int = 0):
    """What ``validation_images`` asks of a run."""
    config = SimpleNamespace(seed=seed, train=SimpleNamespace(val_images=val_images))
    return SimpleNamespace(config=config, facts=run.facts)


def test_some_validation_images_are_drawn_from_all_over_the_split(run):
    """Files come sorted: the first ones of a class would be those of one site."""
    images = load_split(run, "train")
    images = images.subset(np.argsort(images.labels, kind="stable"))
    n_first = int((images.labels == 0).sum())
    place = {key: row for row, key in enumerate(images.keys)}
    rows = [[place[key] for key in validation_images(looking_at(run, 12, s), images).keys] for s in range(6)]
    assert all(len(set(some)) == 12 and some == sorted(some) for some in rows)
    shares = [(np.array(some) < n_first).sum() for some in rows]
    assert set(shares) == {round(12 * n_first / len(images))}
    assert len({tuple(some) for some in rows}) == 6
    assert np.ptp(np.concatenate(rows)) > 0.8 * len(images)


def test_all_validation_images_are_looked_at_where_they_are_few(run):
    val = load_split(run, "val")
    assert sorted(validation_images(looking_at(run, 10_000), val).keys) == sorted(val.keys)
