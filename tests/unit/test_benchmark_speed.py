"""The benchmarks of cost measure what they say, and go on where they were stopped."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.tiny_run import trained_tiny
from typer.testing import CliRunner

from scorebayes.benchmark.trained import contest, evaluations, speed
from scorebayes.cli import benchmark as cli_benchmark
from scorebayes.diffusion.likelihood import Denoising, Flow, PaperFlow
from scorebayes.stages.sequential import Sequential, decide_sequentially

EASY = {"rtol": 1e-2, "atol": 1e-2}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained_tiny(tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture
def quick(monkeypatch):
    """The same benchmark with loose tolerances and few repetitions."""
    for module in (contest, speed):
        monkeypatch.setattr(module, "PaperFlow", lambda **options: PaperFlow(**EASY, **options))
    monkeypatch.setattr(evaluations, "EVALUATIONS_PER_LEVEL", 4)
    monkeypatch.setattr(
        evaluations, "CURVES", {"probability flow, Heun": {2: Flow("heun", 2, mode="reverse")}}
    )
    monkeypatch.setattr(speed, "_median_ms", lambda call, repeats: (call(), (2.0, 1.0))[1])


def test_speed_compares_both_on_the_same_images_and_resumes(run, quick, tmp_path):
    out = tmp_path / "speed.json"
    command = ["speed", str(run.path), "--images", "8", "--literal-images", "4", "--out", str(out)]
    result = CliRunner().invoke(cli_benchmark.app, command, catch_exceptions=False)
    assert "times fewer seconds" in result.output and "in batches" in result.output  # both ratios
    found = json.loads(out.read_text())
    assert set(found) > {"speedup_vs_paper", "auc", "auc_paper", "nfe_per_class", "ms_per_image"}
    assert found["nfe_per_class"] == 8 and found["speedup_vs_paper"] > 1
    detail = found["runs"][0]
    assert detail["contestants"]["paper"]["images"] == 8
    assert detail["contestants"]["paper, all noise levels, a probe per class"]["images"] == 4
    assert detail["environment"]["versions"]["torch"] == torch.__version__

    parts = sorted((run.path / "benchmark").rglob("*.parquet"))
    before = {part: part.stat().st_mtime_ns for part in parts}
    parts[0].unlink()
    CliRunner().invoke(cli_benchmark.app, command, catch_exceptions=False)
    changed = [part for part in parts if part.stat().st_mtime_ns != before[part]]
    assert changed == [parts[0]], "only the missing part is computed again"


def test_curves_hold_every_estimator_and_the_figure_is_drawn(run, quick, tmp_path):
    out, figure = tmp_path / "curves.json", tmp_path / "figures" / "curves.svg"
    command = ["curves", str(run.path), "--images", "10", "--val-images", "10", "--flow-images", "10",
               "--out", str(out), "--figure", str(figure)]  # fmt: skip
    CliRunner().invoke(cli_benchmark.app, command, catch_exceptions=False)
    curves = json.loads(out.read_text())["curves"]
    assert [point["evaluations_per_class"] for point in curves["class score"]] == [8, 16]
    assert [p["evaluations_per_class"] for p in curves["class score, independent draws"]] == [4, 8, 12, 16]
    assert {"bound", "bound, all noise levels", "sequential", "probability flow, Heun"} <= set(curves)
    assert all(8 <= point["evaluations_per_class"] <= 16 for point in curves["sequential"])
    text = figure.read_text()
    assert text.lstrip().startswith("<?xml") and "sequential" in text


def test_a_replayed_sequential_decision_is_the_real_one(run):
    images = run.images("test").subset(range(6))
    x = run.standardise(images.images)
    table = run.evidence(x, images.keys, replace(run.likelihood, repeats=4))
    each = 2 if run.likelihood.antithetic else 1
    replay = evaluations._Replay(table.alone("pixels"), run.likelihood.levels, each, "pixels")
    rule = Sequential(run.calibration, run.log_prior, [replay], 4, 0.5)
    replayed = rule(torch.empty(6), images.keys, {"wavelets": table.blocks["wavelets"]})
    real = decide_sequentially(run, x, images.keys, budget=4, target_error=0.5)
    np.testing.assert_allclose(replayed.posterior.log_prob, real.posterior.log_prob, rtol=1e-4, atol=1e-5)
    assert np.array_equal(replayed.evaluations, real.evaluations)


def test_a_choice_of_images_keeps_the_class_shares(run):
    images = run.images("test")
    some = contest.some_images(images, 6, seed=0)
    assert len(set(some.keys)) == 6
    assert abs((some.labels == 1).mean() - (images.labels == 1).mean()) < 0.2
    assert len(contest.some_images(images, 10_000, seed=0)) == len(images)


def test_few_passes_of_a_table_are_what_fewer_repeats_would_give(run):
    images = run.images("test").subset(range(2))
    x = run.standardise(images.images)
    many, few = (run.evidence(x, images.keys, Denoising(levels=4, repeats=r)).alone("pixels") for r in (3, 2))
    cut = evaluations._first_passes(many, 4, 2)
    np.testing.assert_allclose(cut.only.draws, few.only.draws, rtol=1e-4)
    assert cut.nfe.tolist() == few.nfe.tolist() and cut.only.level.tolist() == few.only.level.tolist()
