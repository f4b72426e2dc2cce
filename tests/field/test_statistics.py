"""Statistics that are honest: what is told of a sample holds for the next one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fixtures.tables import one_source
from fixtures.tiny_run import trained_tiny
from scipy.special import expit

from scorebayes import metrics
from scorebayes.benchmark.stored import answers
from scorebayes.benchmark.stored.answers import Answers, seed_mean_difference
from scorebayes.benchmark.trained import maps
from scorebayes.data import open_source
from scorebayes.data.sources.arrays import save_arrays
from scorebayes.decision.calibration import _heaviest_that_may_be_best, fit_calibration
from scorebayes.decision.folds import held_out, labelled_folds
from scorebayes.decision.posterior import bayes
from scorebayes.decision.table import EvidenceTable
from scorebayes.decision.typicality import fit_typicality, typicality_of_place
from scorebayes.report.parts import p_words, percent, share
from scorebayes.stages.recalibrate import recalibrate
from scorebayes.stages.score import score_images

# --- intervals at the edge ------------------------------------------------------------------------------------


def separated(n_patients: int, views: int) -> dict:
    """Metrics of images that a model separates perfectly, half of the patients positive."""
    labels = np.repeat(np.arange(n_patients) % 2, views)
    positive = np.where(labels == 1, 0.9, 0.1) + np.linspace(0, 0.05, len(labels))
    patients = np.repeat(np.arange(n_patients), views).tolist()
    return metrics.classification_metrics(
        labels, np.stack([1 - positive, positive], 1), groups=patients, threshold=0.5
    )


@pytest.mark.parametrize(("n_patients", "views"), [(22, 1), (11, 2)])
def test_no_interval_of_22_images_without_an_error_is_one_to_one(n_patients, views):
    """S8: "1.000 [1.000, 1.000]" on 22 images, with one image a patient or with several."""
    got = separated(n_patients, views)
    for name in (
        "auc", "accuracy", "balanced_accuracy", "sensitivity", "specificity", "ppv", "npv",
        "sensitivity_at_90_specificity",
    ):  # fmt: skip
        low, high = got[f"{name}_ci95"]
        assert got[name] == high == 1 and low < 0.9, name
    for name in ("auprc", "mcc"):
        assert got[f"{name}_ci95"] is None and "replicates" in got[f"{name}_ci95_reason"]


def test_images_of_one_patient_do_not_tighten_an_interval_at_the_edge():
    """S8: 11 patients without an error say as much with four images each as with one."""
    one, four = separated(12, 1), separated(12, 4)
    for name in ("auc", "accuracy", "sensitivity"):
        assert four[f"{name}_ci95"] == pytest.approx(one[f"{name}_ci95"]), name


def test_one_error_does_not_make_an_interval_narrower_than_none():
    """S8: the worse result must not look surer, as DeLong's interval does beside the edge."""
    labels = np.repeat([0, 1], 11)
    perfect = np.arange(22.0)
    worse = perfect.copy()
    worse[[10, 11]] = worse[[11, 10]]
    assert metrics.auc_interval(labels, worse)[0] < metrics.auc_interval(labels, perfect)[0]


@pytest.mark.parametrize(("n_patients", "alike", "truth"), [(30, 0.3, 0.99), (60, 0.8, 0.99)])
def test_intervals_by_patient_cover_an_auc_near_one(n_patients, alike, truth):
    """S8: two images a patient; the bootstrap's own interval covers 77 to 80 of 100 here."""
    from scipy.stats import norm

    rng, distance = np.random.default_rng(0), norm.ppf(truth) * np.sqrt(2)
    labels, patients = np.repeat(np.arange(n_patients) % 2, 2), np.repeat(np.arange(n_patients), 2)
    covered = []
    for _ in range(100):
        person, image = rng.normal(size=n_patients)[patients], rng.normal(size=2 * n_patients)
        positive = 1 / (1 + np.exp(-distance * labels - np.sqrt(alike) * person - np.sqrt(1 - alike) * image))
        prob = np.stack([1 - positive, positive], 1)
        low, high = metrics.classification_metrics(labels, prob, groups=patients.tolist(), n_bootstrap=300)[
            "auc_ci95"
        ]
        covered.append(low <= truth <= high)
    assert np.mean(covered) >= 0.93


@pytest.mark.parametrize("views", [1, 2])
def test_two_perfect_models_of_few_images_are_not_surely_equal(views):
    """S8: a difference of 0 [0, 0] between two models that both separate 22 images."""
    labels = np.repeat(np.arange(22 // views) % 2, views)
    rng = np.random.default_rng(0)
    one, other = (labels + 0.9 * rng.random(22) for _ in range(2))
    patients = np.repeat(np.arange(22 // views), views).tolist()
    got = metrics.compare(labels, one / 2, other / 2, groups=patients)
    low, high = got["auc_difference_ci95"]
    assert got["auc_difference"] == 0 and got["auc_difference_p"] == 1
    assert low < -0.1 and high > 0.1
    assert metrics.compare(labels, one / 2, one / 3, groups=patients)["auc_difference_ci95"] == [0, 0]


# --- patients stay together --------------------------------------------------------------------------------


def of_patients(n_patients: int, views: int, n_levels: int, seed: int) -> EvidenceTable:
    """Levels that say a little about the class, and much about the patient, who is the same in every view."""
    rng = np.random.default_rng(seed)
    patients = np.repeat(np.arange(n_patients), views)
    labels = patients % 2
    person = rng.normal(size=(n_levels, n_patients))[:, patients]
    said = 0.25 * (2 * labels - 1) + person + 0.3 * rng.normal(size=(n_levels, len(labels)))
    draws = np.stack([-said, said], axis=2) / 2
    table = one_source(draws, np.arange(n_levels), np.zeros((n_levels, len(labels))), labels)
    return table.with_labels(labels, [f"patient {p}" for p in patients])


@pytest.fixture(scope="module")
def told_and_true() -> dict[str, float]:
    """Cross-fitted and true log-loss, mean over many validation splits of 30 patients with 4 images each; with the told one
    if every image passes for a patient of its own."""
    prior, found = np.log([0.5, 0.5]), {"by patient": [], "by image": [], "true": []}
    fresh = of_patients(4000, 4, 8, seed=999)
    for seed in range(12):
        table = of_patients(30, 4, 8, seed)
        calibration = fit_calibration(table, prior)
        prob = bayes(fresh, prior, calibration).prob[np.arange(len(fresh)), fresh.labels]
        found["true"].append(-np.log(prob).mean())
        found["by patient"].append(calibration.log_loss)
        found["by image"].append(fit_calibration(table.with_labels(table.labels, table.keys), prior).log_loss)
    return {name: float(np.mean(of)) for name, of in found.items()}


def test_the_told_log_loss_is_the_true_one_where_patients_have_several_images(told_and_true):
    """S1: simulated with 4 images a patient; folds by image tell far less than is true."""
    assert told_and_true["by patient"] == pytest.approx(told_and_true["true"], abs=0.06)
    assert told_and_true["by image"] < told_and_true["true"] - 0.1


def test_the_standard_error_that_chooses_a_penalty_is_of_patients():
    """S1: what four images of a patient say is said once; one image a patient leaves the usual standard error."""
    rng = np.random.default_rng(0)
    excess = rng.normal(size=100)
    excess += 1.5 * excess.std(ddof=1) / 10 - excess.mean()  # 1.5 standard errors above the lighter penalty
    losses = np.stack([np.full(100, 9.0), 9 + excess])
    assert _heaviest_that_may_be_best(losses, np.arange(100)) == 0
    assert _heaviest_that_may_be_best(np.repeat(losses, 4, axis=1), np.repeat(np.arange(100), 4)) == 0
    assert _heaviest_that_may_be_best(np.repeat(losses, 4, axis=1)[:, :100], np.repeat(np.arange(25), 4)) in (
        0,
        1,
    )
    of_25 = losses[:, :25] - np.array([[0], [excess[:25].mean() - 1.5 * excess[:25].std(ddof=1) / 10]])
    assert _heaviest_that_may_be_best(np.repeat(of_25, 4, axis=1), np.arange(100)) == 0
    assert _heaviest_that_may_be_best(np.repeat(of_25, 4, axis=1), np.repeat(np.arange(25), 4)) == 1


@pytest.mark.parametrize("held", ["labelled", "unlabelled"])
def test_folds_never_divide_a_patient(held):
    """S1: calibration, recalibration and the baselines' temperature; typicality, which has no labels."""
    rng = np.random.default_rng(0)
    patients = np.sort(rng.integers(0, 40, 200))
    labels = rng.integers(0, 2, 40)[patients]
    if held == "labelled":
        parts = [part for _, part in labelled_folds(labels, patients, 5, seed=0)]
    else:
        parts = held_out([f"p{p}" for p in patients], 5, seed=0)
    assert sorted(np.concatenate(parts)) == list(range(200)) and len(parts) == 5
    for part in parts:
        assert not set(patients[part]) & set(np.delete(patients, part))


def test_typicality_declines_what_it_says_where_patients_have_several_images():
    """S1: the limit is measured on patients that were held out whole."""
    n_levels = 6

    def table(n_patients: int, seed: int) -> EvidenceTable:
        rng, patients = np.random.default_rng(seed), np.repeat(np.arange(n_patients), 8)
        value = rng.normal(size=(n_levels, n_patients))[:, patients] + 0.05 * rng.normal(
            size=(n_levels, 8 * n_patients)
        )
        level = np.arange(n_levels)
        made = one_source(
            np.stack([value, value - 1], 2), level, np.repeat(level[:, None] - 3.0, len(patients), 1)
        )
        return made.with_labels(made.labels, [f"p{p}" for p in patients])

    fresh, by_patient, by_image = table(1500, seed=99), [], []
    for seed in range(15):
        known = table(12, seed)
        for told, patients in ((by_patient, known.patients), (by_image, known.keys)):
            judge = fit_typicality(known.with_labels(known.labels, patients), share=0.1)
            told.append(1 - judge.is_typical(judge.distance(fresh)).mean())
    assert np.mean(by_patient) < 0.2 < np.mean(by_image)


# --- another place -------------------------------------------------------------------------------------------


def place(path, n_patients: int, seed: int) -> str:
    """Synthetic mammograms as another machine would show them: brighter, flatter and noisier."""
    source = open_source(f"phantom:n_patients={n_patients},views=2,size=16,seed={seed}")
    records, rng = source.records(), np.random.default_rng(seed)
    images = np.stack([source.read(record) for record in records])
    images = np.clip(0.25 + 0.6 * images**0.7 + 0.03 * rng.normal(size=images.shape), 0, 1)
    save_arrays(
        path, np.rint(255 * images).astype(np.uint8), np.array([r.label for r in records]),
        classes=list(source.info.classes), patients=[r.patient_id for r in records],
    )  # fmt: skip
    return f"arrays:{path}"


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """A run, recalibrated on 60 images of another place, and further images from there."""
    folder = tmp_path_factory.mktemp("elsewhere")
    run = trained_tiny(folder / "run")
    found = recalibrate(run, place(folder / "there.npz", 30, seed=21), folder / "there")
    images = run.reader.labelled(place(folder / "further.npz", 150, seed=22))
    return run, found, score_images(run, images, run.likelihood, lambda *_: None), run.pixels(images)


def test_a_recalibrated_run_declines_few_images_of_its_new_place(elsewhere):
    """S5: accuracy .98, yet 18 % of the images that it was fitted on were declined."""
    run, found, table, pixels = elsewhere
    declined = [
        1 - judge.is_typical(judge.distance(table, pixels)).mean()
        for judge in (run.decision.typicality, found.run.decision.typicality)
    ]
    assert declined[0] > 0.5 and declined[1] < 0.1
    assert found.before["declined"] > 0.5
    assert found.after["declined"] == pytest.approx(declined[1], abs=0.06)  # cross-fitted: of 60 images
    strange = 1 - pixels
    judge = found.run.decision.typicality
    assert judge.is_typical(judge.distance(table, strange)).mean() < 0.1


def test_a_place_of_few_images_keeps_the_look_and_moves_its_limit(elsewhere):
    """S5: fewer than 20 images cannot show what images look like, but how far away those of a place are."""
    run, _, table, pixels = elsewhere
    some = slice(0, 12)
    judge = typicality_of_place(run.decision.typicality, table.rows(some), pixels[some])
    assert (judge.appearance.mean == run.decision.typicality.appearance.mean).all()
    rest = slice(12, None)
    assert 1 - judge.is_typical(judge.distance(table.rows(rest), pixels[rest])).mean() < 0.35


# --- what trainings and patients say together ----------------------------------------------------------------


def trained(strengths: list[float], n_patients: int = 400) -> list[Answers]:
    """Answers of one training a strength: "ours" separates the classes by it, "other" always by 1."""
    labels = np.arange(n_patients) % 2
    names = tuple(f"p{i}" for i in range(n_patients))
    case = np.random.default_rng(0).normal(size=n_patients)
    each = []
    for seed, strength in enumerate(strengths):
        own = np.random.default_rng(seed + 1).normal(size=(2, n_patients))
        scores = {"ours": strength * labels + case + 0.3 * own[0], "other": labels + case + 0.3 * own[1]}
        prob = {name: np.stack([1 - expit(s), expit(s)], axis=1) for name, s in scores.items()}
        each.append(Answers(labels, names, names, prob))
    return each


def test_a_lead_that_depends_on_the_training_is_not_sure(monkeypatch):
    """S3: many patients agree that one training of three is far ahead; the next training may not be."""
    steady, chance = (
        seed_mean_difference(trained(s), "ours", "other") for s in ([1.4, 1.4, 1.4], [3.5, 0.9, 1.0])
    )
    assert steady["auc_difference_ci95"][0] > 0 and steady["auc_difference_p"] < 0.01
    assert chance["auc_difference_ci95"][0] < 0 and chance["auc_difference_p"] > 0.05
    assert chance["auc_difference_method"] == "bootstrap over seeds and patients"
    monkeypatch.setattr(answers, "_seed_shares", lambda n_seeds: np.full((1, n_seeds), 1 / n_seeds))
    assert seed_mean_difference(trained([3.5, 0.9, 1.0]), "ours", "other")["auc_difference_ci95"][0] > 0


def test_the_spread_of_trainings_is_in_the_interval_in_full():
    """S3: of few seeds, drawing as many as there are would leave a third of the variance out."""
    each = trained([2.2, 1.8, 1.4, 1.0, 0.6], n_patients=4000)
    found = seed_mean_difference(each, "ours", "other")
    half = np.diff(found["auc_difference_ci95"])[0] / 2
    expected = 1.96 * np.std(found["auc_difference_values"], ddof=1) / np.sqrt(5)
    assert half == pytest.approx(expected, rel=0.15)


def test_of_one_training_the_interval_says_so():
    """S3: a single seed has no spread to draw from."""
    found = seed_mean_difference(trained([1.4]), "ours", "other")
    assert found["auc_difference_method"] == "bootstrap over patients, one training"


# --- maps are not judged by the draws that made them ----------------------------------------------------------


def test_deletion_is_judged_by_other_draws_than_those_that_made_the_maps(elsewhere, monkeypatch):
    """S2: with common noise another key gives the same draws, and a map is credited with their chance."""
    run = elsewhere[0]
    assert run.likelihood.common_noise
    made, judged = [], []
    real_explain, real_posterior = maps.explain, maps._posterior

    def explain(run, x, key, target):
        found = real_explain(run, x, key, target)
        made.append(found.table.blocks["pixels"])
        return found

    def posterior(run, x, key):
        judged.append(run.evidence(x[:1], [key]).blocks["pixels"])
        return real_posterior(run, x, key)

    monkeypatch.setattr(maps, "explain", explain)
    monkeypatch.setattr(maps, "_posterior", posterior)
    monkeypatch.setattr(
        maps,
        "_maps",
        lambda run, baseline, x, key, target: {maps.OURS: maps.explain(run, x, key, target).total},
    )
    network = SimpleNamespace(logits=lambda x: x.mean((2, 3)) @ torch.tensor([[-1.0, 1.0]]))
    maps.deletion_test(run, network, run.images("test").subset([0, 1]), lambda _: None)
    assert len(made) == 4 and len(judged) == 2 * (1 + 2 * 2)
    for one in made:
        for other in judged:
            assert not np.isin(one.log_snr, other.log_snr).any()
            assert not np.isin(one.draws, other.draws).any()
    first = judged[0].log_snr  # but one curve, and every curve of a run, is judged by the same draws
    assert all((of.log_snr == first).all() for of in judged)


# --- words ----------------------------------------------------------------------------------------------------


def test_a_share_is_said_to_be_all_or_none_only_where_it_is():
    """S8: a headline of "100% of the time" at an AUC of 0.996."""
    said = {0.996: "99.6%", 0.9999: "99.9%", 1.0: "100.0%", 0.0001: "0.1%", 0.0: "0.0%", 0.29: "29.0%"}
    assert {value: percent(value) for value in said} == said
    assert share(1999, 2000) == "1999 of 2000 (99.9%)"


def test_a_small_p_is_less_than_not_equal_to_less_than():
    """S8: "p = <0.001"."""
    assert p_words(0.0004) == "p < 0.001" and p_words(0.0312) == "p = 0.031"


@pytest.mark.parametrize("page", ["README.md", "docs/results.md", "docs/benchmarks.md"])
def test_where_one_ratio_of_cost_stands_the_other_stands_too(page) -> None:
    """S4: one image at a time, and with the paper's evaluations in batches; both as they were measured."""
    project = Path(__file__).parents[2]
    found = json.loads((project / "benchmarks/results/speed-breastmnist.json").read_text(encoding="utf-8"))[
        "runs"
    ][0]
    alone, batched = (
        f"{ratio:.0f}"
        for ratio in (found["speedup_vs_paper_cpu"], found["paper_in_batches"]["speedup_of_default"])
    )
    paragraphs = (project / page).read_text(encoding="utf-8").split("\n\n")
    told = [text for text in paragraphs if re.search(rf"\b{alone} times", text)]
    assert told
    assert all(re.search(rf"\b{batched}\b", text) for text in told)
