"""A whole set of images that lies elsewhere is noticed; another prevalence, or patients with many images, are not."""

from __future__ import annotations

import numpy as np
import pytest
from fixtures.tiny_run import finish, trained_tiny
from typer.testing import CliRunner

from scorebayes.cli.main import app
from scorebayes.decision import shift
from scorebayes.decision.shift import NOTICED, Sample, measure_shift
from scorebayes.report import write_report
from scorebayes.stages.evaluate import evaluate


def sample(seed, n=120, images=1, labels=None, moved=0.0):
    """n patients with so many images each; every patient has a look of its own, class 1 another one than class 0."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n) if labels is None else labels
    look = rng.normal(size=(n, 12)) + labels[:, None] + moved
    found = np.repeat(look, images, axis=0) + 0.1 * rng.normal(size=(n * images, 12))
    return Sample(found, np.repeat(labels, images), [f"p{i}" for i in np.repeat(np.arange(n), images)])


def test_images_that_lie_elsewhere_are_told_apart_in_every_class():
    found = measure_shift(sample(0), sample(1, moved=0.5), ["a", "b"])
    assert list(found) == ["a", "b"]
    for values in found.values():
        low, high = values["auc_ci95"]
        assert low < values["auc"] < high and values["auc"] > NOTICED and values["noticed"]
    assert sum(values["patients"] for values in found.values()) == 120


def test_another_prevalence_is_no_shift():
    rare = np.arange(800) % 8 == 0
    found = measure_shift(sample(0, 800), sample(1, 800, labels=rare.astype(int)), ["a", "b"])
    assert [values["patients"] for values in found.values()] == [700, 100]
    assert not any(values["noticed"] for values in found.values())
    pooled = [
        Sample(s.statistics, 0 * s.labels, s.patients) for s in (sample(0, 800), sample(1, 800, labels=rare))
    ]
    assert measure_shift(*pooled, ["all"])["all"]["noticed"]  # what asking within each class avoids


def test_a_patient_counts_once_whatever_the_number_of_images():
    """Else their looks, of which every set has its own, would tell the sets apart."""
    known, new = (sample(side, 50, images=8, labels=np.zeros(50, int)) for side in (0, 1))
    found = measure_shift(known, new, ["a"])["a"]
    assert found["patients"] == 50 and not found["noticed"]
    alone = [Sample(s.statistics, s.labels, [str(i) for i in range(len(s.labels))]) for s in (known, new)]
    assert measure_shift(*alone, ["a"])["a"]["noticed"]


def test_a_false_alarm_is_rare():
    """Of 400 pairs of sets that are alike, in one of forty, which is one side of the interval."""
    pairs = [(sample(2 * k, 160), sample(2 * k + 1, 160)) for k in range(200)]
    found = [v for pair in pairs for v in measure_shift(*pair, ["a", "b"]).values()]
    assert len(found) == 400 and sum(values["noticed"] for values in found) <= 20
    assert abs(np.mean([values["auc"] for values in found]) - 0.5) < 0.02


def test_a_class_of_few_patients_is_left_out():
    few = np.r_[np.zeros(60, int), np.ones(shift.LEAST_PATIENTS - 1, int)]
    found = measure_shift(sample(0), sample(1, len(few), images=2, labels=few), ["a", "b"])
    assert list(found) == ["a"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return finish(trained_tiny(tmp_path_factory.mktemp("runs") / "tiny"))


def test_an_evaluation_compares_the_split_with_the_training_images(run, monkeypatch):
    monkeypatch.setattr(shift, "LEAST_PATIENTS", 2)
    found = evaluate(run, "test")["shift"]
    assert list(found) == list(run.facts.classes)
    patients = run.split.groupby(["split", "label"])["patient_id"].nunique()
    for y, values in enumerate(found.values()):
        assert (values["training_patients"], values["patients"]) == (
            patients["train", y],
            patients["test", y],
        )


def test_a_shift_is_told_by_command_and_report(run, monkeypatch):
    told = {"auc": 0.81, "auc_ci95": [0.7, 0.9], "patients": 30, "training_patients": 90, "noticed": True}
    quiet = {**told, "auc": 0.52, "noticed": False}
    found = dict(zip(run.facts.classes, (told, quiet), strict=True))
    monkeypatch.setattr("scorebayes.stages.evaluate.measure_shift", lambda *_: found)
    output = CliRunner().invoke(app, ["evaluate", str(run.path)], catch_exceptions=False).output
    assert output.count("look different from the training images") == 1
    assert f"{run.facts.classes[0]!r} look different from the training images (AUC 0.81)" in output
    report = write_report(run.path).read_text()
    assert f"{run.facts.classes[0]} 0.810 (0.700\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}0.900)" in report
    assert "may not hold here" in report
