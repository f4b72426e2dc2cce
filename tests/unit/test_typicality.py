"""Images that are not of the data set are told apart from those that are, without more network evaluations."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from fixtures.tables import one_source
from PIL import Image

from scorebayes import open_run
from scorebayes.benchmark.trained.foreign import FOREIGN
from scorebayes.data import open_source
from scorebayes.decision.appearance import Appearance, fit_appearance, statistics
from scorebayes.decision.table import EvidenceTable
from scorebayes.decision.typicality import SHARE_FLAGGED, Typicality, features, fit_typicality
from scorebayes.errors import ConfigError, DataError
from scorebayes.stages import train as stages
from scorebayes.stages.evaluate import evaluate
from scorebayes.stages.predict import predict_files
from scorebayes.stages.score import score_split
from scorebayes.storage import sealed

LEVELS, REPEATS = 6, 2
NAMES = ["good", "inverted", "noise", "grey", "dark"]
LAYER = {
    "train": {"steps": 300, "batch": 24, "validate_every": 300, "precision": "fp32"},
    "likelihood": {"levels": 8, "repeats": 2},
}  # a network that has learned nothing can tell images apart by their energy only


def table_of(log_error: np.ndarray, kind: str = "class-score", seed: int = 0) -> EvidenceTable:
    """A table whose values are minus log_error [N, L] up to the noise of the draws, for two classes."""
    rng = np.random.default_rng(seed)
    n = len(log_error)
    draws = -(np.tile(log_error.T, (REPEATS, 1)) + 0.05 * rng.normal(size=(LEVELS * REPEATS, n)))
    draws = np.stack([draws, draws - 0.1], axis=2)
    level = np.tile(np.arange(LEVELS), REPEATS)
    return one_source(draws, level, np.repeat(level[:, None] - 3.0, n, 1), kind=kind)


def images(n: int, seed: int) -> np.ndarray:
    """Log errors of images that differ in complexity, which acts on all levels: [n, L]."""
    rng = np.random.default_rng(seed)
    complexity = rng.normal(size=(n, 1))
    return (
        np.linspace(3, 5, LEVELS)
        + complexity * np.linspace(0.2, 1, LEVELS)
        + 0.1 * rng.normal(size=(n, LEVELS))
    )


@pytest.fixture(scope="module")
def fitted() -> Typicality:
    return fit_typicality(table_of(images(400, seed=1)))


def test_about_the_nominal_share_of_images_like_the_validation_ones_is_flagged(fitted):
    flagged = [
        1 - fitted.is_typical(fitted.distance(table_of(images(1000, s), seed=s))).mean() for s in range(2, 7)
    ]
    assert 0.3 * SHARE_FLAGGED < np.mean(flagged) < 0.05


@pytest.mark.parametrize("shift", [-0.8, 0.8])
@pytest.mark.parametrize("level", range(LEVELS))
def test_an_error_too_small_or_too_large_at_one_level_is_flagged(fitted, shift, level):
    strange = np.full((20, LEVELS), np.linspace(3, 5, LEVELS))
    assert fitted.is_typical(fitted.distance(table_of(strange))).all()
    strange[:, level] += (
        shift if level < LEVELS - 1 else 5 * shift
    )  # the finest level is complexity, which varies
    assert not fitted.is_typical(fitted.distance(table_of(strange))).any()


def test_a_complex_image_is_typical_if_all_its_levels_say_so(fitted):
    complex_image = np.linspace(3, 5, LEVELS) + 1.5 * np.linspace(0.2, 1, LEVELS)
    only_coarse = np.linspace(3, 5, LEVELS) + 1.5 * np.linspace(1, 0.2, LEVELS)
    distance = fitted.distance(table_of(np.stack([complex_image, only_coarse])))
    assert fitted.is_typical(distance).tolist() == [True, False]


def test_the_best_class_is_judged():
    table = table_of(images(10, seed=0))
    np.testing.assert_allclose(features(table.only), -table.only.level_means[..., 0])


def test_one_strange_validation_image_does_not_hide_others():
    log_error = images(100, seed=1)
    log_error[0] += 10
    robust = fit_typicality(table_of(log_error))
    assert not robust.is_typical(robust.distance(table_of(log_error[:1]))).any()


def test_few_images_give_a_cautious_answer_and_too_few_none():
    few = fit_typicality(table_of(images(12, seed=3)))
    assert (1 - few.is_typical(few.distance(table_of(images(500, seed=4))))).mean() < 0.25
    with pytest.raises(DataError, match="at least four"):
        fit_typicality(table_of(images(3, seed=0)))


def test_it_survives_json_and_refuses_another_estimator(fitted):
    again = Typicality.from_dict(json.loads(json.dumps(fitted.to_dict())))
    table = table_of(images(5, seed=0))
    np.testing.assert_array_equal(again.distance(table), fitted.distance(table))
    with pytest.raises(ConfigError, match="same estimator"):
        fitted.distance(table_of(images(5, seed=0), kind="density"))


# --- through a trained run ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("typicality") / "run"
    data = "phantom:n_patients=190,views=1,size=16"
    trained = stages.train(path, data, [LAYER], "tiny", torch.device("cpu"))
    score_split(trained, "test")
    return trained


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A synthetic mammogram as it should be, inverted, as noise, and as good as blank in two tones."""
    folder = tmp_path_factory.mktemp("pictures")
    source = open_source("phantom:n_patients=4,views=1,size=16,seed=5")
    good = np.rint(source.read(source.records()[0]) * 255).astype(np.uint8)
    rng = np.random.default_rng(0)
    found = {
        "good": good,
        "inverted": 255 - good,
        "noise": rng.integers(0, 256, (16, 16)).astype(np.uint8),
        "grey": (120 + rng.integers(0, 4, (16, 16))).astype(np.uint8),
        "dark": (5 + rng.integers(0, 4, (16, 16))).astype(np.uint8),
    }
    for name, pixels in found.items():
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return [folder / f"{name}.png" for name in found]


def test_images_unlike_the_training_data_get_no_posterior(run, pictures):
    frame = predict_files(run, pictures).set_index(np.array(NAMES))
    assert frame.loc["good", "status"] == "ok" and frame.loc["good", "typical"] == "yes"
    for name in NAMES[1:]:
        assert frame.loc[name, "status"].startswith("abstained: atypical"), name
        assert (
            frame.loc[name, ["predicted", "prob_benign", "raw_prob_benign", "log_odds", "decided"]]
            .isna()
            .all()
        )
        assert frame.loc[name, "typicality"] > frame.loc["good", "typicality"]


def test_forced_the_posterior_is_given_and_the_mark_stays(run, pictures):
    frame = predict_files(run, pictures, force=True)
    assert (frame["status"] == "ok").all() and frame["prob_benign"].notna().all()
    assert frame["typical"].tolist() == ["yes", *["no"] * 4]


def test_few_images_of_the_same_kind_are_flagged(run):
    source = open_source("phantom:n_patients=150,views=1,size=16,seed=9")
    records = source.records()
    x = torch.cat([run.prepare(source.read(record)) for record in records])
    judge = run.decision.typicality
    distance = judge.distance(run.evidence(x, [record.image_id for record in records]), run.restore(x))
    assert 1 - judge.is_typical(distance).mean() <= 0.08
    assert evaluate(run, "test")["atypical"] <= 0.08 * (run.split["split"] == "test").sum()


def test_a_run_calibrated_before_typicality_was_judged_still_opens(run, pictures, tmp_path):
    shutil.copytree(run.path, tmp_path / "old")
    path = tmp_path / "old" / "calibration.json"
    stored = json.loads(path.read_text())
    del stored["typicality"]
    path.write_text(json.dumps(stored))
    sealed.accept(tmp_path / "old")
    old = open_run(tmp_path / "old")
    assert old.decision.typicality is None
    frame = predict_files(old, pictures)
    assert (frame["status"] == "ok").all()
    assert frame["typicality"].isna().all() and (frame["typical"] == "").all()


# --- appearance --------------------------------------------------------------------------------------------


def looks(n: int, seed: int, size: int = 16) -> np.ndarray:
    source = open_source(f"phantom:n_patients={n},views=1,size={size},seed={seed}")
    return np.stack([source.read(record) for record in source.records()])[:, None]


@pytest.fixture(scope="module")
def appearance() -> Appearance:
    return fit_appearance(looks(300, seed=1), share=0.02)


def test_few_images_of_the_data_set_look_unlike_it(appearance):
    assert (appearance.distance(looks(300, seed=2)) > appearance.threshold).mean() < 0.06


@pytest.mark.parametrize("name", FOREIGN)
def test_every_foreign_kind_looks_unlike_the_data_set(appearance, name):
    rng = np.random.default_rng(0)
    strange = np.stack([FOREIGN[name](image[0], rng) for image in looks(30, seed=3)])[:, None]
    assert (appearance.distance(strange) > appearance.threshold).all()


@pytest.mark.parametrize("shape", [(8, 1), (16, 3), (64, 1), (65, 1)])
def test_statistics_are_finite_at_every_size_even_for_blank_images(shape):
    side, channels = shape
    rng = np.random.default_rng(0)
    some = np.concatenate([rng.random((3, channels, side, side)), np.zeros((1, channels, side, side))])
    found = statistics(some)
    assert np.isfinite(found).all() and found.shape[0] == 4 and found.shape[1] % channels == 0


def test_an_image_must_pass_both_judgements():
    table, pixels = table_of(images(60, seed=1)), looks(60, seed=1)
    judge = fit_typicality(table, images=looks(100, seed=4))
    again = Typicality.from_dict(json.loads(json.dumps(judge.to_dict())))
    np.testing.assert_array_equal(again.distance(table, pixels), judge.distance(table, pixels))
    assert judge.is_typical(judge.distance(table, pixels)).mean() > 0.8
    assert not judge.is_typical(judge.distance(table, 1 - pixels)).any()
    strange = table_of(np.full((60, LEVELS), 20.0))
    assert not judge.is_typical(judge.distance(strange, pixels)).any()
    with pytest.raises(ConfigError, match="pixels"):
        judge.distance(table)


def test_appearance_refuses_other_sizes_and_too_few_images(appearance):
    with pytest.raises(ConfigError, match="another size"):
        appearance.distance(looks(2, seed=0, size=64))
    with pytest.raises(DataError, match="at least 20"):
        fit_appearance(looks(19, seed=0), share=0.02)


# --- undecided ---------------------------------------------------------------------------------------------


def test_prediction_reports_a_posterior_within_two_standard_errors_of_the_threshold_as_undecided(
    run, pictures
):
    """The cut is put beside a prediction: 1.9 standard errors away leaves it open, 2.1 do not."""
    good = pictures[:1]
    row = predict_files(run, good).iloc[0]
    path = run.path / "calibration.json"
    before = path.read_text()
    try:
        for distance, decided in ((1.9, "no"), (2.1, "yes")):
            cut = row["log_odds"] + distance * row["log_odds_std_error"]
            path.write_text(json.dumps({**json.loads(before), "threshold": 1 / (1 + np.exp(-cut))}))
            sealed.accept(run.path)
            assert predict_files(open_run(run.path), good)["decided"].tolist() == [decided]
    finally:
        path.write_text(before)
        sealed.accept(run.path)
