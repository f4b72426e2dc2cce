"""Statistics that are honest: what is told of a sample holds for the next one."""

from __future__ import annotations

import numpy as np
import pytest

from scorebayes import metrics

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


@pytest.mark.parametrize(("n_patients", "alike", "truth"), [(30, 0.3, 0.99), (60, 0.3, 0.97), (60, 0.8, 0.99)])
def test_intervals_by_patient_cover_an_auc_near_one(n_patients, alike, truth):
    """S8: two images a patient; the bootstrap's own interval covers 77 to 91 of 100 here."""
    from scipy.stats import norm

    rng, distance = np.random.default_rng(0), norm.ppf(truth) * np.sqrt(2)
    labels, patients = np.repeat(np.arange(n_patients) % 2, 2), np.repeat(np.arange(n_patients), 2)
    covered = []
    for _ in range(150):
        person, image = rng.normal(size=n_patients)[patients], rng.normal(size=2 * n_patients)
        positive = 1 / (
            1 + np.exp(-distance * labels - np.sqrt(alike) * person - np.sqrt(1 - alike) * image)
        )
        prob = np.stack([1 - positive, positive], 1)
        low, high = metrics.classification_metrics(labels, prob, groups=patients.tolist(), n_bootstrap=300)[
            "auc_ci95"
        ]
        covered.append(low <= truth <= high)
    assert np.mean(covered) >= 0.92


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
