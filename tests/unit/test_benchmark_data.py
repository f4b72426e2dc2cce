"""Curves over the training data, on a phantom of a few patients."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from scorebayes.baselines import score_step_cost
from scorebayes.benchmark.names import BEST, CONTROL, OURS, alone
from scorebayes.benchmark.stored import answers
from scorebayes.benchmark.training import data_curves
from scorebayes.benchmark.training.data_curves import (
    CURVES,
    Study,
    default_values,
    draw_curve,
    measure_curve,
    parse_values,
)
from scorebayes.benchmark.training.seeds import Benchmark
from scorebayes.benchmark.training.summary import METRICS
from scorebayes.cli.benchmark import app
from scorebayes.errors import ConfigError, DataError
from scorebayes.runs.run import open_run
from scorebayes.training import validate

PARTS = [alone(source) for source in ("pixels", "wavelets")]


@pytest.fixture(scope="module", autouse=True)
def small():
    """A benchmark of 60 patients and a few steps; what training validates is beside the point here."""
    with pytest.MonkeyPatch.context() as patch:
        phantom = Benchmark("phantom:n_patients=60,views=1,size=16", steps=6, preset="tiny", baselines=())
        patch.setitem(data_curves.BENCHMARKS, "phantom", phantom)
        patch.setitem(CURVES, "imbalance", replace(CURVES["imbalance"], values=(1, 3)))
        patch.setattr(answers, "N_BOOTSTRAP", 100)
        patch.setattr(data_curves, "LEAST_STEPS", 3)
        patch.setattr(data_curves, "FREE_STEPS", 4)
        patch.setattr(validate, "validate", lambda *_, **__: (1.0, 0.5))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("curves")


def _measure(study, folder):
    return measure_curve(study, folder, folder / "runs", folder / "results", folder / "figures")


def _imbalance(seeds):
    return Study(
        "phantom",
        "imbalance",
        (1.0, 3.0),
        tuple(range(seeds)),
        ("scorebayes", "logistic", "hog-svm"),
        scratch=True,
    )


@pytest.fixture(scope="module")
def measured(folder):
    return json.loads(_measure(_imbalance(2), folder).read_text())


def test_an_imbalance_curve_keeps_the_number_and_names_the_rare_class(measured):
    assert measured["rare_class"] == "malignant"
    per_class = [point["train_images_per_class"] for point in measured["points"]]
    # 21 patients of either class: 3/4 of a total of 2 * 14 are the most that 1:3 allows.
    assert per_class == [[[14, 14]] * 2, [[21, 7]] * 2]
    assert [point["test_images"] for point in measured["points"]] == [[8, 8], [8, 8]]


def test_a_point_of_an_imbalance_curve_is_the_same_whichever_others_are_asked_for(tmp_path):
    alone = Study("phantom", "imbalance", (1.0,), (0,), ("scorebayes",))
    point = json.loads(_measure(alone, tmp_path).read_text())["points"][0]
    assert point["train_images_per_class"] == [[14, 14]]


def test_every_point_has_the_metrics_of_every_model_and_our_lead(measured):
    for point in measured["points"]:
        assert set(point["models"]) == {OURS, *PARTS, "logistic", "hog-svm", BEST, CONTROL}
        assert set(point["paired"]) == {OURS, BEST} and set(point["paired"][BEST]) == {CONTROL}
        assert sorted(point["mixtures"][CONTROL]) == ["hog-svm", "logistic"]
        for name, model in point["models"].items():
            assert set(model["test"]) == set(METRICS)
            assert len(model["test"]["auc"]["values"]) == 2
            assert name in PARTS or len(model["cost"]["training_seconds"]) == 2
        lead = point["paired"][OURS]["logistic"]
        ours, theirs = (point["models"][name]["test"]["auc"]["values"] for name in (OURS, "logistic"))
        np.testing.assert_allclose(lead["auc_difference_values"], np.subtract(ours, theirs))
        low, high = lead["auc_difference_ci95"]
        assert low <= lead["auc_difference"] <= high and 0 < lead["auc_difference_p"] <= 1


def test_a_curve_that_is_run_again_trains_nothing_anew(measured, folder):
    weights = sorted((folder / "runs").rglob("step-*.safetensors"))
    before = [path.stat().st_mtime_ns for path in weights]
    options = [
        "--vary",
        "imbalance",
        "--values",
        "1,3",
        "--seeds",
        "2",
        "--models",
        "scorebayes,logistic,hog-svm",
    ]
    options.append("--scratch")
    for option, name in (("--runs", "runs"), ("--out", "results"), ("--figures", "figures")):
        options += [option, str(folder / name)]
    result = CliRunner().invoke(app, ["data-curves", "phantom", *options])
    assert result.exit_code == 0 and "phantom-imbalance-scratch.svg" in result.output.replace("\n", "")
    again = json.loads((folder / "results" / "phantom-imbalance-scratch.json").read_text())
    assert [path.stat().st_mtime_ns for path in weights] == before and len(before) == 4
    assert again["points"] == measured["points"]


def test_the_steps_follow_the_images_and_the_prior_does_not(measured, folder):
    share = 28 / 42
    assert [p["steps"] for p in measured["points"]] == [[round(6 * math.sqrt(share))] * 2] * 2
    for run in (folder / "runs").rglob("config.toml"):
        assert "prob = [\n    0.5,\n    0.5,\n]" in run.read_text()


def test_the_figure_shows_both_panels(measured, folder):
    text = (folder / "figures" / "phantom-imbalance-scratch.svg").read_text()
    assert "mean and range of 2 seeds" in text and ">logistic<" in text and f">{OURS} minus logistic<" in text


def test_all_patients_stand_at_their_number_on_the_axis(measured, tmp_path):
    points = [
        measured["points"][0] | {"value": 5, "shown": "5"},
        measured["points"][1] | {"value": None, "shown": "all"},
    ]
    draw_curve({**measured, "vary": "per-class", "points": points}, tmp_path / "figure.svg")
    assert ">all<" in (tmp_path / "figure.svg").read_text()


def test_few_patients_and_a_reduced_validation_split(folder):
    study = Study("phantom", "per-class", (3.0,), (0,), ("scorebayes",), reduce_val=True, scratch=True)
    point = json.loads(_measure(study, folder).read_text())["points"][0]
    assert point["train_images_per_class"] == [[3, 3]] and point["val_images"] == [6]
    assert point["steps"] == [3] and point["paired"] == {OURS: {}}
    assert point["models"][OURS]["test"]["auc"]["std"] is None


def test_wrong_labels_leave_the_number_of_images(folder):
    study = Study("phantom", "label-noise", (0.4,), (0,), ("scorebayes",), quick=True)
    path = _measure(study, folder)
    assert path.name == "phantom-label-noise-quick.json"
    assert json.loads(path.read_text())["points"][0]["train_images"] == [42]
    audit = json.loads(next((folder / "runs" / "curves" / study.title).rglob("audit.json")).read_text())
    assert audit["labels_made_wrong_on_purpose"] == 16


def test_all_points_of_a_seed_start_from_one_label_free_training_on_the_whole_split(folder):
    study = Study("phantom", "per-class", (3.0, 5.0), (0,), ("scorebayes",))
    found = json.loads(_measure(study, folder).read_text())
    starts = list((folder / "runs" / "curves" / "label-free" / "phantom").glob("seed-*/config.toml"))
    assert len(starts) == 1 and found["label_free_steps"] == 4
    assert json.loads((starts[0].parent / "source.json").read_text())["train_counts"] == [21, 21]
    points = sorted((folder / "runs" / "curves" / study.title).rglob("config.toml"))
    assert [f'init = "{starts[0].parent.resolve()}"' in path.read_text() for path in points] == [True, True]
    cost = [point["models"][OURS]["cost"]["multiply_adds"][0] for point in found["points"]]
    alone = open_run(starts[0].parent)
    assert cost == [(4 + 2) * score_step_cost(alone)] * 2  # 6 steps in all, the label-free ones included


def test_steps_shrink_with_the_root_of_the_share_down_to_a_least_number(monkeypatch):
    monkeypatch.setitem(data_curves.BENCHMARKS, "phantom", Benchmark("phantom", steps=8000))
    monkeypatch.setattr(data_curves, "MOST_STEPS", 3000)
    monkeypatch.setattr(data_curves, "FREE_STEPS", 1000)
    scratch, started = (Study("phantom", "per-class", (5.0,), (0,), scratch=flag) for flag in (True, False))
    assert [scratch.steps(share) for share in (1, 0.25, 1e-8)] == [3000, 1500, 3]
    assert [started.steps(share) for share in (1, 0.25, 1e-8)] == [2000, 1000, 100]
    monkeypatch.setitem(data_curves.BENCHMARKS, "phantom", Benchmark("phantom", steps=2))
    assert scratch.steps(0.5) == 2


def test_values_are_read_and_shown_as_they_are_written():
    assert parse_values("5, 10,all") == (5, 10, math.inf)
    study = Study("breastmnist", "per-class", (5.0, math.inf), (0, 1), reduce_val=True)
    assert "--values 5,all --seeds 2" in study.command and "--reduce-val" in study.command
    assert "--values" not in Study("phantom", "imbalance", CURVES["imbalance"].values, (0,)).command
    assert default_values("label-noise")[-1] == 0.4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: parse_values("5,many"), "5,many"),
        (lambda: default_values("size"), "unknown curve 'size'"),
        (lambda: Study("chestmnist", "imbalance", (1,), (0,)), "unknown benchmark 'chestmnist'"),
        (lambda: Study("phantom", "imbalance", (1,), (0,), ("scorebayes", "resnet1")), "unknown model"),
        (lambda: Study("phantom", "imbalance", (1,), (0,), ("logistic",)), "lack 'scorebayes'"),
        (lambda: Study("phantom", "imbalance", (math.inf,), (0,)), "all is not a value"),
        (lambda: Study("phantom", "per-class", (2.5,), (0,)), "2.5 is not a value"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is_trained(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


def test_absent_data_are_named(tmp_path):
    study = Study("breastmnist", "imbalance", (1.0,), (0,))
    with pytest.raises(DataError, match=r"breastmnist\.npz"):
        measure_curve(study, tmp_path, tmp_path, tmp_path, tmp_path)
