"""Near copies of training images among the test images, and the figures without them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fixtures.tiny_run import LAYER
from PIL import Image
from sklearn.metrics import roc_auc_score

from scorebayes.benchmark.stored.answers import Answers
from scorebayes.benchmark.training.copies import NEAR, closest, near_copies
from scorebayes.runs.inputs import start_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Images of noise; of the test images a0 is a noisy copy of a training image, b0 one of its mirror image."""
    folder, rng = tmp_path_factory.mktemp("copies"), np.random.default_rng(0)
    train = {}
    for split, n in (("train", 6), ("val", 2), ("test", 8)):
        for label in "ab":
            (folder / "data" / split / label).mkdir(parents=True)
            for i in range(n):
                image = rng.integers(30, 220, size=(16, 16))
                if split == "train":
                    train[label, i] = image
                if split == "test" and i == 0:
                    image = train[label, 3] if label == "a" else train[label, 3][:, ::-1]
                    image = image + rng.integers(-8, 8, size=(16, 16))
                Image.fromarray(image.astype(np.uint8)).save(
                    folder / "data" / split / label / f"{label}{i}.png"
                )
    layer = {**LAYER, "prepare": {"size": 16}}
    return start_run(folder / "run", f"folder:{folder / 'data'}", [layer], "tiny", torch.device("cpu"))[0]


def answers(run, seed=0):
    images = run.images("test")
    prob = np.random.default_rng(seed).dirichlet([1, 1], size=len(images))
    return Answers(images.labels, images.keys, images.patients, {"ours": prob, "other": prob[::-1]})


def test_a_noisy_copy_and_a_mirror_image_are_near_and_nothing_else(run):
    found = dict(zip(run.images("test").keys, closest(run), strict=True))
    near = {key.rpartition("/")[2].partition(".")[0] for key, value in found.items() if value > NEAR}
    assert near == {"a0", "b0"}
    assert max(value for value in found.values() if value <= NEAR) < 0.5


def test_figures_without_them_are_of_the_other_images(run):
    each = [answers(run, 0), answers(run, 1)]
    found = near_copies([run, run], each, ["ours", "other"])
    assert found["images"] == [2, 2] and found["correlation"] == NEAR
    keep = closest(run) <= NEAR
    for model in ("ours", "other"):
        expected = [roc_auc_score(of.labels[keep], of.prob[model][keep, 1]) for of in each]
        assert found["auc"][model]["values"] == pytest.approx(expected)
        assert found["auc"][model]["mean"] == pytest.approx(np.mean(expected))


def test_without_near_copies_there_is_nothing_to_leave_out(run, monkeypatch):
    monkeypatch.setattr("scorebayes.benchmark.training.copies.NEAR", 1.1)
    assert near_copies([run], [answers(run)], ["ours"]) == {"correlation": 1.1, "images": [0], "auc": {}}
