"""Three classes, both breasts of a patient, two views of each: the whole way from files to the report."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from fixtures.tiny_run import LAYER, finish
from PIL import Image

from scorebayes.report import write_report
from scorebayes.report.files import Run as Files
from scorebayes.report.sections import SECTIONS
from scorebayes.stages import train as stages
from scorebayes.stages.evaluate import evaluate
from scorebayes.stages.predict import predict_files, read_prior

CLASSES = ("normal", "benign", "malignant")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """45 patients; a breast is of one class, which its images show as their mean grey."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    rows = ["path,label,patient_id,laterality,view"]
    for patient in range(45):
        for side in "LR":
            label = int(rng.integers(3)) if patient > 2 else patient
            for view in ("CC", "MLO"):
                name = f"{patient}-{side}-{view}.png"
                pixels = rng.normal(70 + 45 * label, 25, (16, 16)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / name)
                rows.append(f"{name},{CLASSES[label]},p{patient},{side},{view}")
    (folder / "labels.csv").write_text("\n".join(rows))
    layer = {
        **LAYER,
        "seed": 0,
        "train": {**LAYER["train"], "steps": 20},
        "data": {"options": {"classes": ",".join(CLASSES)}},
    }
    path = tmp_path_factory.mktemp("runs") / "three"
    made = finish(stages.train(path, f"folder:{folder}", [layer], "tiny", torch.device("cpu")))
    evaluate(made, "test")
    write_report(path)
    return made


@pytest.fixture(scope="module")
def metrics(run):
    return json.loads((run.path / "metrics-test.json").read_text())


def test_calibration_has_a_bias_of_every_class_and_the_posterior_adds_up(run):
    assert len(run.calibration.bias) == 3
    frame = predict_files(run, [], force=True)
    assert frame.empty
    predictions = Files(run.path).cases
    assert predictions.prob.shape[1] == 3 and predictions.raw_prob.shape == predictions.prob.shape
    np.testing.assert_allclose(predictions.prob.sum(1), 1, atol=1e-6)


def test_metrics_of_three_classes_have_intervals_raw_and_calibrated(metrics):
    for name in ("auc", "accuracy", "balanced_accuracy", "log_loss", "brier", "ece"):
        low, high = metrics[f"{name}_ci95"]
        assert low <= metrics[name] <= high, name
    for name in ("auprc", "mcc"):  # no interval where nothing is wrong in any replicate
        assert metrics[f"{name}_ci95"] or (metrics[name] == 1 and metrics[f"{name}_ci95_reason"])
    assert 0 < metrics["majority_accuracy"] < 1
    assert {"log_loss", "brier", "ece", "saturated"} <= set(metrics["raw"])
    assert metrics["log_loss"] < np.log(3) + 0.3


def test_metrics_are_given_by_breast_and_by_patient_for_the_positive_class(run, metrics):
    table = run.split.query("split == 'test'")
    breasts, patients = metrics["breast_level"], metrics["patient_level"]
    assert breasts["n"] == len(table) / 2 and patients["n"] == table["patient_id"].nunique()
    assert breasts["n_patients"] == patients["n"]
    malignant = table.assign(positive=table["label"] == 2).groupby("patient_id")["positive"].any()
    assert patients["prevalence"] == pytest.approx(malignant.mean())
    for level in (breasts, patients):
        assert 0 <= level["correlation"] <= 1
        assert level["at_threshold"]["majority_accuracy"] == level["majority_accuracy"]


def test_a_prior_of_three_numbers_moves_the_posterior_of_all_classes(run):
    picture = run.path / "case.png"
    Image.fromarray(np.full((16, 16), 90, np.uint8) + np.eye(16, dtype=np.uint8) * 40).save(picture)
    rare = read_prior("0.9,0.09,0.01", run)
    before = predict_files(run, [picture], force=True).iloc[0]
    after = predict_files(run, [picture], force=True, log_prior=rare).iloc[0]
    names = [f"prob_{name}" for name in CLASSES]
    moved = np.log(after[names].to_numpy(float)) - np.log(before[names].to_numpy(float))
    expected = rare - run.log_prior
    np.testing.assert_allclose(moved - moved[0], expected - expected[0], atol=1e-9)


def test_the_report_of_three_classes_is_whole(run):
    built = {build.__name__.strip("_"): build(Files(run.path)) for build in SECTIONS}
    undone = {key for key, section in built.items() if section.missing}
    assert undone <= {"samples", "curves", "evidence", "robustness"}
    header = built["discrimination"].tables[0].header
    assert tuple(header) == ("Metric", "by image", "by breast", "by patient")
    assert len(built["threshold"].tables[0].rows) == 3
    text = (run.path / "report.html").read_text(encoding="utf-8")
    assert "separates 3 classes of held-out test images with a mean AUC" in text
