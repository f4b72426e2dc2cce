"""Run directories of older formats open, and answer as they did."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scorebayes import open_run
from scorebayes.report import write_report
from scorebayes.runs.run import FORMAT
from scorebayes.stages.evaluate import evaluate
from scorebayes.stages.predict import predict_files
from scorebayes.stages.score import read_table, score_split
from scorebayes.stages.train import train

HERE = Path(__file__).parent
ANSWER = [
    "prob_benign",
    "prob_malignant",
    "raw_prob_malignant",
    "log_odds",
    "log_odds_std_error",
    "typicality",
]


@pytest.fixture
def path(tmp_path):
    """A run of format 3, as the version before the evidence table had sources wrote it."""
    shutil.copytree(HERE / "run-format-3", tmp_path / "run")
    return tmp_path / "run"


def test_it_predicts_what_it_predicted(path):
    before = pd.read_csv(HERE / "predictions-format-3.csv")
    files = [HERE / "pictures" / Path(name).name for name in before["file"]]
    found = predict_files(open_run(path, "cpu"), files, force=True)
    np.testing.assert_allclose(found[ANSWER].astype(float), before[ANSWER], rtol=1e-3, atol=1e-4)
    assert (found["predicted"] == before["predicted"]).all() and (found["decided"] == before["decided"]).all()


def test_its_tables_are_read_and_evaluated_as_they_were(path):
    run = open_run(path, "cpu")
    assert list(read_table(run, "test").blocks) == ["pixels", "wavelets"]
    before = json.loads((path / "metrics-test.json").read_text())
    found = evaluate(run, "test")
    for name in ("auc", "log_loss", "brier", "threshold", "undecided", "nfe_per_image"):
        assert found[name] == pytest.approx(before[name], rel=1e-6), name
    assert found["baselines"].keys() == before["baselines"].keys()
    assert "wavelets" in write_report(path).read_text(encoding="utf-8")


def test_its_tables_are_not_scored_again_and_others_are_of_the_new_form(path):
    run = open_run(path, "cpu")
    part = path / "loglik-test.parquet" / "part-000000.parquet"
    stamp = part.stat().st_mtime_ns
    assert score_split(run, "test") == part.parent and part.stat().st_mtime_ns == stamp
    assert score_split(run, "train").name == "evidence-train.parquet"
    assert len(read_table(run, "train")) == (run.split["split"] == "train").sum()


def test_resuming_it_makes_it_a_run_of_today(path):
    layers = [
        {"seed": 3, "data": {"per_class": 7}, "net": {"channels": [8, 16], "blocks": 1, "attention": 1}},
        {"train": {"steps": 40, "batch": 8, "validate_every": 10, "warmup": 2, "precision": "fp32"}},
    ]
    before = open_run(path, "cpu")
    weights = before.checkpoints.best()["sha256"]
    run = train(path, before.config.data.source, layers, "tiny", before.device, resume=True)
    assert run.format == FORMAT and run.config.sources == ("pixels", "wavelets")
    assert json.loads((path / "source.json").read_text())["format"] == FORMAT
    assert run.checkpoints.best()["sha256"] == weights or run.checkpoints.entries("state")
    assert isinstance(json.loads((path / "calibration.json").read_text())["weights"], dict)
