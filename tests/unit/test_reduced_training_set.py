"""Runs with few, skewed or mislabelled training images: what is stored, read again and resumed."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch
from fixtures.tiny_run import DATA, LAYER, train_tiny

from scorebayes.data import open_source
from scorebayes.errors import ConfigError
from scorebayes.runs.config import resolve
from scorebayes.runs.inputs import start_run
from scorebayes.training import validate

ASKED = {"per_class": 6, "imbalance": 3.0, "label_noise": 0.25}


def _started(path, **data):
    return start_run(path, DATA, [LAYER, {"data": data}], "tiny", torch.device("cpu"))


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    return _started(tmp_path_factory.mktemp("runs") / "few", **ASKED)


def _true_labels():
    return {record.image_id: record.label for record in open_source(DATA).records()}


def test_the_training_split_has_the_asked_shape_and_the_others_are_whole(started):
    run, images = started
    true = _true_labels()
    assert Counter(true[key] for key in images["train"].keys) == {0: 18, 1: 6}  # 9 and 3 patients, two views
    assert Counter(run.split["split"]) == {"train": 24, "val": 12, "test": 12}
    held_out = run.split.query("split != 'train'")
    assert list(held_out["label"]) == [true[key] for key in held_out["image_id"]]


def test_wrong_labels_are_the_same_when_the_images_are_read_again(started):
    run, images = started
    again = run.images("train")
    assert again.keys == images["train"].keys
    np.testing.assert_array_equal(again.labels, images["train"].labels)
    true = _true_labels()
    wrong = [key for key, label in zip(again.keys, again.labels, strict=True) if label != true[key]]
    assert len(wrong) == 6  # round(0.25 * 9) + round(0.25 * 3) patients, two views
    assert run.facts.train_counts == tuple(np.bincount(again.labels))


def test_the_audit_tells_what_was_done_on_purpose(started):
    run, _ = started
    audit = json.loads((run.path / "audit.json").read_text())
    assert audit["images_left_out_on_purpose"] == 80 - 48
    assert audit["labels_made_wrong_on_purpose"] == 6
    assert sum(audit["images"]["train"].values()) == 24


def test_an_ordinary_run_leaves_nothing_out(tmp_path):
    run, _ = _started(tmp_path / "run")
    audit = json.loads((run.path / "audit.json").read_text())
    assert audit["images_left_out_on_purpose"] == 0 == audit["labels_made_wrong_on_purpose"]
    assert len(run.split) == 80


def test_the_validation_split_is_reduced_too_where_asked(tmp_path):
    _, images = _started(tmp_path / "run", per_class=2, reduce_val=True)
    assert Counter(images["val"].labels) == {0: 4, 1: 4} == Counter(images["train"].labels)


def test_a_reduced_run_resumes_only_as_it_was_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(validate, "validate", lambda *_, **__: (1.0, 0.5))  # beside the point here, and slow
    train_tiny(tmp_path / "run", data=ASKED)
    run = train_tiny(tmp_path / "run", data=ASKED, resume=True)
    assert run.checkpoints.best()["final"]
    with pytest.raises(ConfigError, match="per_class"):
        train_tiny(tmp_path / "run", data=ASKED | {"per_class": 5}, resume=True)


@pytest.mark.parametrize("wrong", [{"per_class": 0}, {"imbalance": -1.0}, {"label_noise": 1.5}])
def test_values_out_of_range_are_refused_before_anything_is_read(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        resolve({"data": {"source": DATA, **wrong}})
