"""The accuracy benchmark: all models over seeds, their differences and costs, in one file that can be resumed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from fixtures.tiny_run import DATA, LAYER
from scipy.special import expit, logit
from sklearn.metrics import roc_auc_score
from torch import nn
from typer.testing import CliRunner

from scorebayes.baselines import BASELINES, read_predictions
from scorebayes.baselines.network import Network
from scorebayes.benchmark.names import BEST, CONTROL, MORE, OURS, REFERENCE, WITH_REFERENCE, alone
from scorebayes.benchmark.shown.figures import draw_costs
from scorebayes.benchmark.stored.answers import Answers, seed_mean_difference
from scorebayes.benchmark.stored.compare import compare_predictions
from scorebayes.benchmark.stored.posteriors import posteriors_path
from scorebayes.benchmark.training import accuracy, summary
from scorebayes.benchmark.training.accuracy import run_benchmark
from scorebayes.benchmark.training.seeds import BENCHMARKS, MORE_LIKELIHOOD, Benchmark
from scorebayes.benchmark.training.summary import add_mixtures, ensemble_entry, mixtures
from scorebayes.cli.benchmark import app
from scorebayes.errors import ConfigError, DataError
from scorebayes.runs import config
from scorebayes.runs.run import open_run
from scorebayes.stages.score import read_table
from scorebayes.storage.spreadsheet import csv_text

PARTS = [alone(source) for source in ("pixels", "wavelets")]


def little(side: int, channels: int, n_classes: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.Flatten(), nn.Linear(4 * (side - 2) ** 2, n_classes))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A benchmark of two seeds by its command: the folder, and the output."""
    folder = tmp_path_factory.mktemp("benchmark")
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        assert run_small(folder, "--baselines", "little").exit_code == 0
        patch.setattr(BASELINES["little"], "fit", None)  # what is finished is not trained again
        second = run_small(folder, "--baselines", "logistic,little")
        assert second.exit_code == 0, second.output
    return folder, second.output


def make_small(patch):
    """The benchmark on synthetic mammograms, with one network, in seconds."""
    patch.setitem(config.PRESETS, "tiny", {**LAYER, "train": {**LAYER["train"], "steps": 8}})
    patch.setitem(BASELINES, "little", Network("little network", little, "0", rates=(1e-3,)))
    patch.setitem(BENCHMARKS, "phantom", Benchmark(DATA, 8, "tiny", ("logistic", "little"), 6))


def run_small(folder, *options):
    command = ["phantom", "--seeds", "2", *options]
    for option in ("runs", "out", "figures"):
        command += [f"--{option}", str(folder / option)]
    return CliRunner().invoke(app, command)


def test_every_model_has_metrics_and_costs_over_the_seeds(done):
    folder, output = done
    found = json.loads((folder / "out" / "phantom.json").read_text())
    assert list(found["models"]) == [OURS, MORE, *PARTS, "logistic", "little", BEST, CONTROL]
    for name, model in found["models"].items():
        assert len(model["test"]["auc"]["values"]) == 2
        assert model["test"]["log_loss"]["mean"] > 0
        if name in PARTS:  # whose cost is in that of the whole
            assert "cost" not in model
            continue
        assert len(model["cost"]["training_seconds"]) == 2 and min(model["cost"]["ms_per_image"]) > 0
        assert model["cost"]["parameters"] > 0
    ours, rival = found["models"][OURS]["cost"], found["models"]["little"]["cost"]
    assert min(ours["multiply_adds"]) > min(rival["multiply_adds"]) > 0
    assert min(rival["tuning_seconds"]) > 0
    assert found["models"]["logistic"]["cost"]["multiply_adds"] == [None, None]
    assert set(found["mixtures"][BEST]) == {MORE, "logistic", "little"}
    assert found["models"][BEST]["cost"]["multiply_adds"] == [None, None]  # not known of all of them
    assert found["quick"] is False and "--baselines logistic,little" in found["command"]
    assert "little: test AUC" in output


def test_a_baseline_that_is_kept_is_compared_as_if_it_had_been_trained(done, tmp_path, monkeypatch):
    """From the result files alone: its own folder is gone."""
    shutil.copytree(done[0], tmp_path, dirs_exist_ok=True)
    for seed in (0, 1):
        shutil.rmtree(tmp_path / f"runs/phantom/seed-{seed}/baselines/little")
        for file in (tmp_path / f"runs/phantom/seed-{seed}").glob("*little*"):
            file.unlink()
    make_small(monkeypatch)
    result = run_small(tmp_path, "--baselines", "logistic", "--keep")
    assert result.exit_code == 0, result.output
    before, after = (json.loads((f / "out/phantom.json").read_text()) for f in (done[0], tmp_path))
    assert after["models"]["little"].pop("measured")["command"] == before["command"]
    assert list(after["models"]) == list(before["models"])
    assert after["models"]["little"] == before["models"]["little"]
    assert after["mixtures"] == before["mixtures"]
    for model in (OURS, BEST):
        leads = [found["paired"][model]["little"]["auc_difference"] for found in (before, after)]
        assert leads[0] == pytest.approx(leads[1], abs=1e-6)
    assert after["command"].endswith("--keep")


def test_a_baseline_is_trained_beside_ours_as_it_was_measured_and_ours_is_not_trained(
    done, tmp_path, monkeypatch
):
    """From the result files alone: there is no run of before."""
    shutil.copytree(done[0] / "out", tmp_path / "out")
    make_small(monkeypatch)
    for seed in ("0", "1"):
        alone = run_small(tmp_path, "--baselines", "little", "--keep-ours", "--only-seed", seed)
        assert alone.exit_code == 0, alone.output
    monkeypatch.setattr(BASELINES["little"], "fit", None)  # is found done
    result = run_small(tmp_path, "--baselines", "little", "--keep-ours")
    assert result.exit_code == 0, result.output
    before, after = (json.loads((f / "out/phantom.json").read_text()) for f in (done[0], tmp_path))
    assert list(after) == list(before) and list(after["models"]) == list(before["models"])
    for model in (OURS, MORE, "logistic"):
        assert after["models"][model].pop("measured")["command"] == before["command"]
        assert after["models"][model] == before["models"][model]
    assert "measured" not in after["models"]["little"]
    for model in ("little", BEST):
        for metric in ("auc", "log_loss"):
            values = [found["models"][model]["test"][metric]["values"] for found in (before, after)]
            assert values[1] == pytest.approx(values[0], abs=1e-4)
    leads = [found["paired"][OURS]["little"]["auc_difference"] for found in (before, after)]
    assert leads[1] == pytest.approx(leads[0], abs=1e-6)
    assert after["near_copies"]["images"] == before["near_copies"]["images"]
    assert after["test_images"] == before["test_images"]
    assert after["command"].endswith("--keep-ours")
    states = [list((folder / "runs").rglob("state*")) for folder in (done[0], tmp_path)]
    assert states[0] and not states[1]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda rows: rows[rows["model"] != OURS], ConfigError, "our posteriors of seed 0 are missing"),
        (lambda rows: rows.assign(image_id="x" + rows["image_id"]), DataError, "other test images"),
    ],
)
def test_ours_is_not_kept_without_its_posteriors_of_these_images(
    done, tmp_path, monkeypatch, change, error, message
):
    shutil.copytree(done[0], tmp_path, dirs_exist_ok=True)
    make_small(monkeypatch)
    path = posteriors_path(tmp_path / "out" / "phantom.json")
    change(pd.read_parquet(path)).to_parquet(path)
    with pytest.raises(error, match=message):
        run_benchmark(
            "phantom", tmp_path, tmp_path / "runs", tmp_path / "out", [0, 1],
            baselines=("little",), keep_ours=True,
        )  # fmt: skip


def test_nothing_is_kept_of_other_seeds_or_of_no_file(done, tmp_path, monkeypatch):
    make_small(monkeypatch)
    with pytest.raises(ConfigError, match="seeds are"):
        run_benchmark("phantom", tmp_path, tmp_path, done[0] / "out", [0], keep=True)
    with pytest.raises(ConfigError, match="does not exist"):
        run_benchmark("phantom", tmp_path, tmp_path, tmp_path / "out", [0, 1], keep=True)


def test_seeds_that_ran_alone_are_found_done(done, tmp_path, monkeypatch):
    make_small(monkeypatch)
    early = run_small(tmp_path, "--baselines", "little", "--only-seed", "1")
    assert isinstance(early.exception, ConfigError) and "seed-0" in str(early.exception)
    for seed in ("0", "1"):
        alone = run_small(tmp_path, "--baselines", "little", "--only-seed", seed)
        assert alone.exit_code == 0, alone.output
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(BASELINES["little"], "fit", None)
    together = run_small(tmp_path, "--baselines", "little")
    assert together.exit_code == 0, together.output
    here, there = (json.loads((f / "out/phantom.json").read_text())["models"] for f in (tmp_path, done[0]))
    for model in (OURS, MORE, "little"):
        assert here[model]["test"]["auc"] == there[model]["test"]["auc"]


def test_the_posteriors_give_the_figures_of_the_file(done):
    found = json.loads((done[0] / "out" / "phantom.json").read_text())
    rows = pd.read_parquet(done[0] / "out" / "phantom-posteriors.parquet")
    assert set(rows["model"]) == set(found["models"])
    for (model, seed), part in rows.groupby(["model", "seed"]):
        auc = roc_auc_score(part["label"] == "malignant", part["prob_malignant"])
        assert auc == pytest.approx(found["models"][model]["test"]["auc"]["values"][seed], abs=1e-3)


def test_predictions_from_elsewhere_are_compared_with_every_model(done, tmp_path):
    """Those of our own model are level with it, and lead a baseline by what the file says."""
    results = done[0] / "out" / "phantom.json"
    found, rows = json.loads(results.read_text()), pd.read_parquet(posteriors_path(results))
    table = tmp_path / "mine.csv"
    # Both seeds in one table: an image in both test splits has two answers, and keeps the first here and there.
    own = rows[rows["model"] == OURS].drop_duplicates("image_id")
    own[["image_id", "prob_malignant"]].to_csv(table, index=False)
    output = CliRunner().invoke(app, ["compare", str(results), str(table)], catch_exceptions=False).stdout
    assert output.startswith("test AUC ") and output.count("minus ") == len(found["models"])
    compared = compare_predictions(results, table)
    first = rows[(rows["model"] == OURS) & (rows["seed"] == 0)]
    auc = roc_auc_score(first["label"] == "malignant", first["prob_malignant"])
    assert compared["minus"][OURS]["auc_difference_values"][0] == pytest.approx(0)
    for model, lead in compared["minus"].items():
        other = rows[(rows["model"] == model) & (rows["seed"] == 0)]
        theirs = roc_auc_score(other["label"] == "malignant", other["prob_malignant"])
        assert lead["auc_difference_values"][0] == pytest.approx(auc - theirs)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda table: table.iloc[1:], "lacks 1 of"),
        (
            lambda table: table.rename(columns={"prob_malignant": "score"}),
            "lacks the column 'prob_malignant'",
        ),
        (lambda table: table.assign(prob_malignant="high"), "not a number"),
    ],
)
def test_incomplete_predictions_are_refused(done, tmp_path, change, message):
    results = done[0] / "out" / "phantom.json"
    own = pd.read_parquet(posteriors_path(results)).query("model == @OURS").drop_duplicates("image_id")
    change(own[["image_id", "prob_malignant"]]).to_csv(tmp_path / "mine.csv", index=False)
    with pytest.raises(DataError, match=message):
        compare_predictions(results, tmp_path / "mine.csv")
    with pytest.raises(DataError, match="the results or their file"):
        compare_predictions(tmp_path / "phantom.json", tmp_path / "mine.csv")


def test_ids_that_were_tamed_for_spreadsheets_are_known_again(done, tmp_path):
    """As ``scorebayes predict`` writes them."""
    results = Path(shutil.copy(done[0] / "out" / "phantom.json", tmp_path))
    rows = pd.read_parquet(posteriors_path(done[0] / "out" / "phantom.json"))
    rows = rows.assign(image_id="-" + rows["image_id"])
    rows.to_parquet(posteriors_path(results))
    own = rows[rows["model"] == OURS].drop_duplicates("image_id")[["image_id", "prob_malignant"]]
    (tmp_path / "mine.csv").write_text(csv_text(own))
    assert "'-" in (tmp_path / "mine.csv").read_text()
    assert 0 <= compare_predictions(results, tmp_path / "mine.csv")["auc"] <= 1


def test_together_with_baselines_the_log_odds_are_the_mean_and_the_costs_add_up(done):
    found = json.loads((done[0] / "out" / "phantom.json").read_text())
    for seed in range(2):
        run = open_run(done[0] / "runs" / "phantom" / f"seed-{seed}-more", "cpu")
        ours = pd.read_csv(run.path / "predictions-test.csv", dtype={"image_id": str}).set_index("image_id")
        beside = open_run(done[0] / "runs" / "phantom" / f"seed-{seed}", "cpu")
        frames = [read_predictions(beside, name, "test").loc[ours.index] for name in ("little", "logistic")]
        theirs = sum(logit(frame["prob_malignant"]) for frame in frames)
        for model, log_odds in ((BEST, logit(ours["prob_malignant"]) + theirs), (CONTROL, theirs)):
            auc = found["models"][model]["test"]["auc"]["values"][seed]
            assert auc == pytest.approx(roc_auc_score(ours["label"] == "malignant", log_odds), abs=1e-3)
    for model, parts in ((BEST, (MORE, "little", "logistic")), (CONTROL, ("little", "logistic"))):
        costs = [found["models"][name]["cost"]["training_seconds"] for name in (model, *parts)]
        assert costs[0] == pytest.approx(np.sum(costs[1:], axis=0))
    assert CONTROL in found["paired"][BEST]


def test_a_network_is_tuned_anew_where_the_test_split_is_another(done):
    tried = [
        json.loads((done[0] / f"runs/phantom/seed-{seed}/baselines/little/baseline.json").read_text())
        for seed in (0, 1)
    ]
    assert tried[0]["settings_tried"] != tried[1]["settings_tried"]


def test_the_variant_of_more_evaluations_has_the_same_weights(done):
    default, more = (open_run(done[0] / "runs" / "phantom" / f"seed-0{end}", "cpu") for end in ("", "-more"))
    assert more.checkpoints.best()["sha256"] == default.checkpoints.best()["sha256"]
    draws = [len(read_table(run, "test").blocks["pixels"].level) for run in (default, more)]
    assert draws[1] == MORE_LIKELIHOOD["levels"] * MORE_LIKELIHOOD["repeats"] > draws[0]
    assert not np.array_equal(*(run.calibration.weights["pixels"] for run in (default, more)))


def test_the_lead_over_a_baseline_is_the_mean_over_the_seeds(done):
    found = json.loads((done[0] / "out" / "phantom.json").read_text())
    models = found["models"]
    for rival, lead in found["paired"][OURS].items():
        difference = models[OURS]["test"]["auc"]["mean"] - models[rival]["test"]["auc"]["mean"]
        assert lead["auc_difference"] == pytest.approx(difference)
        low, high = lead["auc_difference_ci95"]
        assert low <= difference <= high
        assert lead["auc_difference_p_holm"] >= lead["auc_difference_p"]


def test_the_figure_of_costs_names_every_model(done):
    text = (done[0] / "figures" / "phantom-costs.svg").read_text()
    ElementTree.fromstring(text)
    for name in (OURS, "logistic", "little"):
        assert text.count(f">{name}<") == 1  # one legend for training and prediction


def test_models_of_unknown_cost_are_not_drawn(done, tmp_path):
    result = json.loads((done[0] / "out" / "phantom.json").read_text())
    del result["models"]["logistic"]["cost"]
    draw_costs(result, tmp_path / "deeper" / "costs.svg")
    assert ">logistic<" not in (tmp_path / "deeper" / "costs.svg").read_text()


def answers(labels, **scores) -> Answers:
    prob = {name: np.stack([1 - s, s], axis=1) for name, s in scores.items()}
    images = tuple(str(i) for i in range(len(labels)))
    return Answers(labels, images, images, prob)


def test_the_difference_of_two_models_has_the_sign_and_size_of_their_aucs():
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 2
    good = [1 / (1 + np.exp(-rng.normal(3 * labels - 1.5))) for _ in range(3)]
    bad = [rng.random(120) for _ in range(3)]
    each_seed = [answers(labels, good=g, bad=b) for g, b in zip(good, bad, strict=True)]
    found = seed_mean_difference(each_seed, "good", "bad")
    each = [roc_auc_score(labels, g) - roc_auc_score(labels, b) for g, b in zip(good, bad, strict=True)]
    np.testing.assert_allclose(found["auc_difference_values"], each)
    assert found["auc_difference_ci95"][0] > 0 and found["auc_difference_p"] < 0.01
    same = seed_mean_difference(each_seed, "good", "good")
    assert same["auc_difference"] == 0 and same["auc_difference_p"] == 1
    other = seed_mean_difference(each_seed, "bad", "good")
    assert other["auc_difference"] == pytest.approx(-found["auc_difference"])


def test_three_equal_seeds_are_no_three_times_as_many_patients():
    rng = np.random.default_rng(0)
    labels = np.arange(80) % 2
    a, b = rng.random(80), rng.random(80)
    one = seed_mean_difference([answers(labels, a=a, b=b)], "a", "b")
    three = seed_mean_difference([answers(labels, a=a, b=b)] * 3, "a", "b")
    np.testing.assert_allclose(three["auc_difference_ci95"], one["auc_difference_ci95"])


def test_a_quick_try_has_files_of_its_own_and_says_so(tmp_path, monkeypatch):
    asked = []

    def one_seed(benchmark, source, path, seed, tuned):
        asked.append((benchmark, path))
        raise KeyboardInterrupt

    monkeypatch.setattr(accuracy, "one_seed", one_seed)
    with pytest.raises(KeyboardInterrupt):
        run_benchmark("phantom", tmp_path, tmp_path / "runs", tmp_path, [0], baselines=(), quick=True)
    (quick, path) = asked[0]
    assert path == tmp_path / "runs" / "phantom-quick" / "seed-0"
    assert quick == replace(BENCHMARKS["phantom"].quick(), baselines=())
    assert quick.steps < BENCHMARKS["phantom"].steps


def test_unknown_baselines_and_absent_data_are_named(tmp_path):
    with pytest.raises(ConfigError, match="Known: logistic"):
        run_benchmark("phantom", tmp_path, tmp_path, tmp_path, [0], baselines=("resnet17",))
    with pytest.raises(DataError, match="no such file"):
        run_benchmark("ddsm64", tmp_path, tmp_path, tmp_path, [0])


def test_the_mean_of_all_seeds_costs_all_of_them():
    one = {
        "training_seconds": [1.0, 2.0],
        "multiply_adds": [3, 4],
        "ms_per_image": [5.0, 6.0],
        "parameters": 7,
    }
    assert summary._of_all(one) == {
        "training_seconds": [3.0], "multiply_adds": [7], "ms_per_image": [11.0], "parameters": 14,
    }  # fmt: skip


def test_an_ensemble_is_the_mean_log_odds_of_seeds_that_share_their_test_images():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    scores = [1 / (1 + np.exp(-rng.normal(labels))) for _ in range(3)]
    each = [answers(labels, shown=score) for score in scores]
    cost = {"training_seconds": [1.0, 2.0, 3.0], "parameters": 7}
    found = ensemble_entry("shown", {"cost": cost}, each)
    assert list(found) == ["shown-ensemble"]
    expected = roc_auc_score(labels, np.mean([logit(score) for score in scores], axis=0))
    assert found["shown-ensemble"]["test"]["auc"]["values"] == pytest.approx([expected])
    assert found["shown-ensemble"]["cost"] == {"training_seconds": [6.0], "parameters": 21}
    assert not ensemble_entry("shown", {"cost": cost}, each[:1])
    elsewhere = replace(each[1], images=tuple(f"x{i}" for i in range(60)))
    assert not ensemble_entry("shown", {"cost": cost}, [each[0], elsewhere])


def test_the_partners_are_the_baselines_of_the_lowest_validation_loss_over_all_seeds():
    losses = {"a": [0.1, 0.9], "b": [0.5, 0.2], "c": [0.3, 0.3]}
    assert mixtures(losses) == {BEST: (OURS, "c", "b"), CONTROL: ("c", "b")}
    assert mixtures({name: values[:1] for name, values in losses.items()})[CONTROL] == ("a", "c")
    assert mixtures({REFERENCE: [0.1]}) == {WITH_REFERENCE: (OURS, REFERENCE)}
    assert mixtures({"a": [0.1]}) == {}


def test_of_a_mixture_the_log_odds_are_the_mean_of_its_parts():
    scores = {OURS: np.array([0.9, 0.3]), "a": np.array([0.5, 0.1]), "b": np.array([0.2, 0.6])}
    mixed = {BEST: (OURS, "a", "b"), CONTROL: ("a", "b")}
    (found,) = add_mixtures([answers(np.array([1, 0]), **scores)], mixed)
    for model, names in mixed.items():
        log_odds = np.mean([logit(scores[name]) for name in names], axis=0)
        assert found.prob[model][:, 1] == pytest.approx(expit(log_odds))
