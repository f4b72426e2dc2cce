"""Evidence maps: their sums are the log-odds, pixel by pixel and level by level."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.tiny_run import DATA, finish, trained_tiny
from PIL import Image
from typer.testing import CliRunner

from scorebayes.cli.main import app
from scorebayes.data import open_source
from scorebayes.decision.calibration import Calibration
from scorebayes.decision.posterior import bayes
from scorebayes.diffusion.draws import Draws
from scorebayes.diffusion.likelihood import Denoising
from scorebayes.diffusion.noise import VP
from scorebayes.diffusion.oracle import GaussianScore
from scorebayes.errors import ConfigError, DataError
from scorebayes.evidence.learned_score import logarithmic_mean, split_by_pixel
from scorebayes.explain.maps import explain, smooth
from scorebayes.explain.pictures import explain_cases, explain_file, overlay, read_class
from scorebayes.report.files import Run as Files
from scorebayes.report.sections.pictures import examples
from scorebayes.runs.run import open_run
from scorebayes.stages.evaluate import evaluate
from scorebayes.stages.predict import predict_files
from scorebayes.storage import sealed


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    run = finish(trained_tiny(tmp_path_factory.mktemp("evidence") / "run"))
    evaluate(run, "test")
    return run.path


@pytest.fixture
def run(path):
    return open_run(path, "cpu")


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    source = open_source(DATA)
    pixels = source.read(source.records()[3])
    path = tmp_path_factory.mktemp("file") / "case.png"
    Image.fromarray((pixels * 255).round().astype(np.uint8)).save(path)
    return path


def one(run, row=0):
    images = run.images("test")
    return run.standardise(images.images[row : row + 1]), images.keys[row]


def with_estimator(run, **changes):
    """The run with another class score, its calibration refitted to nothing but the number of levels."""
    run.config.sections["likelihood"] |= {"first": [], **changes}
    return run.likelihood


@pytest.mark.parametrize("changes", [{}, {"antithetic": False}, {"flips": False}, {"rows_per_call": 6}])
def test_the_map_sums_to_the_log_odds_that_bayes_reports(run, changes):
    estimator = with_estimator(run, repeats=3, **changes)
    assert (estimator.repeats, estimator.first) == (3, ())
    x, key = one(run)
    found = explain(run, x, key)
    reported = bayes(run.evidence(x, [key], estimator), run.log_prior, run.calibration)
    assert found.total.sum() + found.offset == pytest.approx(reported.log_odds[0, 1], abs=1e-5)
    assert found.log_odds_map.sum() == pytest.approx(reported.log_odds[0, 1], abs=1e-5)
    assert found.log_odds_std_error == pytest.approx(reported.log_odds_std_error[0, 1])
    own = run.calibration.bias + run.log_prior
    assert found.offset == pytest.approx(own[1] - own[0], abs=1e-9)


def test_levels_sum_to_what_each_level_says_in_the_table(run):
    x, key = one(run, 1)
    found = explain(run, x, key)
    assert list(found.parts) == list(found.table.blocks) == ["pixels", "wavelets"]
    for name, part in found.parts.items():
        means, weights = found.table.blocks[name].level_means[0], run.calibration.weights[name]
        levels = part.levels.sum((1, 2))
        levels[0] += part.offset
        np.testing.assert_allclose(levels, weights * (means[:, 1] - means[:, 0]), atol=1e-8)
    assert found.parts["pixels"].offset == 0
    assert (np.diff(found.parts["pixels"].log_snr) > 0).all()


def test_evidence_for_a_class_is_evidence_against_the_other(run):
    x, key = one(run)
    one_way, other = explain(run, x, key, target=1), explain(run, x, key, target=0)
    np.testing.assert_allclose(one_way.total, -other.total, atol=1e-9)
    assert one_way.offset == pytest.approx(-other.offset)
    np.testing.assert_allclose(one_way.std_error, other.std_error)


def test_another_prior_moves_the_offset_alone(run):
    x, key = one(run)
    rare = explain(run, x, key, log_prior=np.log([0.99, 0.01]))
    usual = explain(run, x, key)
    for name, part in usual.parts.items():
        np.testing.assert_array_equal(rare.parts[name].levels, part.levels)
    shift = np.log(0.01 / 0.99) - (run.log_prior[1] - run.log_prior[0])
    assert rare.log_odds - usual.log_odds == pytest.approx(shift)
    assert rare.offset - usual.offset == pytest.approx(shift)


def test_of_three_classes_the_map_still_sums_to_the_log_odds(run, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(3, 1, 6, 6, generator=generator, dtype=torch.float64)
    score = GaussianScore(VP(), mean, torch.full_like(mean, 0.5))
    estimator = with_estimator(run, levels=3, repeats=2)
    run.image_score.score = score
    run.log_prior = np.log([0.5, 0.3, 0.2])
    calibration = Calibration(
        {"pixels": np.array([0.02, 0.05, 0.01])}, np.array([0.1, -0.3, 0.2]), {"pixels": np.zeros(3)},
        {"pixels": "class-score"},
    )  # fmt: skip
    monkeypatch.setattr(type(run), "calibration", property(lambda _: calibration))
    run.sources = {"pixels": run.image_score}
    x = mean[[1]].float() + 0.3
    reported = bayes(run.evidence(x, ["k"], estimator), run.log_prior, calibration)
    for target in range(3):
        found = explain(run, x, "k", target)
        assert found.total.sum() + found.offset == pytest.approx(reported.log_odds[0, target], abs=1e-5)
    assert explain(run, x, "k").target == reported.predict()[0]


def test_mirrored_draws_are_turned_back(run):
    x, key = one(run)
    estimator = Denoising(levels=2, repeats=2, flips=True, antithetic=False)
    draws = Draws(0, [key]).common()

    class Silent(GaussianScore):
        """A score that removes no noise at all: the residual is the noise itself."""

        def __call__(self, x_t, t, y):
            return torch.zeros_like(x_t)

    score = Silent(VP(), torch.zeros(2, 1, 16, 16), torch.ones(2, 1, 16, 16))
    for number, squares in estimator.squared_residuals(score, x, draws):
        eps = draws.normal(f"eps/{number}", (1, 16, 16))[0].double()
        np.testing.assert_allclose(squares[0].numpy(), eps.square().numpy())


def test_the_standard_error_is_that_of_the_spread_between_repeats(run):
    with_estimator(run, repeats=4, common_noise=False)
    images = run.images("test")
    x = run.standardise(images.images[:1])
    found = [explain(run, x, f"key {i}") for i in range(30)]
    spread = np.std([one.total for one in found], axis=0, ddof=1)
    claimed = np.sqrt(np.mean([one.std_error**2 for one in found], axis=0))
    ratio = np.median(spread / claimed)
    assert 0.8 < ratio < 1.25


def test_the_logarithmic_mean_is_stable_where_its_arguments_meet():
    assert logarithmic_mean(3.0, 3.0) == 3.0
    assert logarithmic_mean(3.0, 3.0 * (1 + 1e-15)) == pytest.approx(3.0)
    assert logarithmic_mean(1.0, np.e) == pytest.approx(np.e - 1)
    assert logarithmic_mean(2.0, 5.0) == pytest.approx(logarithmic_mean(5.0, 2.0))


def test_equal_classes_give_no_evidence():
    squares = np.ones((2, 4, 4)) * np.arange(4)
    assert not split_by_pixel(squares, np.array([1.0, -1.0]), 16).any()
    squares[1, 0, 0] += 1
    assert split_by_pixel(squares, np.array([1.0, -1.0]), 16).any()


def test_smoothing_keeps_the_sum(run):
    x, key = one(run)
    levels = explain(run, x, key).parts["pixels"].levels
    np.testing.assert_allclose(smooth(levels).sum((1, 2)), levels.sum((1, 2)), atol=1e-6)


def test_densities_have_no_evidence_maps(run):
    run.config.sections["likelihood"] = {"kind": "bound", "levels": 4}
    x, key = one(run)
    with pytest.raises(ConfigError, match="evidence maps need the estimator 'denoising'"):
        explain(run, x, key)


def test_a_file_is_explained_by_the_draws_of_its_prediction(run, file, tmp_path):
    content = explain_file(run, file, tmp_path / "out", steps=2)
    predicted = predict_files(run, [file], force=True).iloc[0]
    assert content["log_odds"] == pytest.approx(predicted["log_odds"], abs=1e-9)
    stored = np.load(tmp_path / "out" / "evidence.npz", allow_pickle=False)
    assert stored["total"].sum() + content["offset"] == pytest.approx(predicted["log_odds"], abs=1e-5)
    assert stored["log_odds_map"].sum() == pytest.approx(predicted["log_odds"], abs=1e-5)
    written = json.loads((tmp_path / "out" / "evidence.json").read_text())
    assert written["posterior"]["malignant"] == pytest.approx(predicted["prob_malignant"])
    assert written["share_positive"] + written["share_negative"] == pytest.approx(1)
    for name, source in written["sources"].items():
        assert stored[name].sum() == pytest.approx(source["sum"])
        assert sum(level["sum"] for level in source["levels"]) == pytest.approx(source["sum"])
    assert sum(of["sum"] for of in written["sources"].values()) == pytest.approx(written["evidence"])
    assert "not a medical device" in written["note"]
    assert {written["counterfactual"]["from"], written["counterfactual"]["to"]} == {"benign", "malignant"}
    assert (np.asarray(Image.open(tmp_path / "out" / "evidence.png")) < 250).any()
    assert (tmp_path / "out" / "counterfactual.png").exists()


def test_without_a_counterfactual_none_is_written(run, file, tmp_path):
    content = explain_file(run, file, tmp_path, with_counterfactual=False, target=0)
    assert "counterfactual" not in content
    assert content["target"] == "benign"
    assert not (tmp_path / "counterfactual.png").exists()


def test_an_atypical_image_is_explained_with_a_warning(run, file, tmp_path):
    judge = run.decision.typicality
    strict = {name: replace(of, threshold=1e-9) for name, of in judge.levels.items()}
    run.decision = replace(run.decision, typicality=replace(judge, levels=strict))
    (warning,) = explain_file(run, file, tmp_path, with_counterfactual=False)["warnings"]
    assert warning.startswith("atypical")


def test_a_run_that_did_not_judge_typicality_gives_no_warning(run, file, tmp_path):
    run.decision = replace(run.decision, typicality=None)
    assert explain_file(run, file, tmp_path, with_counterfactual=False)["warnings"] == []


def test_colours_are_centred_at_zero():
    grey = np.full((2, 2, 3), 0.5)
    shown = overlay(grey, np.array([[0.0, 1.0], [-1.0, 0.0]]))
    np.testing.assert_array_equal(shown[0, 0], grey[0, 0])
    assert shown[0, 1, 0] > shown[0, 1, 2]
    assert shown[1, 0, 2] > shown[1, 0, 0]


def test_an_unknown_class_is_refused(run):
    assert read_class("", run) is None
    assert read_class("malignant", run) == 1
    with pytest.raises(ConfigError, match="unknown class 'cancer'"):
        read_class("cancer", run)


def test_the_report_shows_the_evidence_of_its_cases(run):
    def section():
        return examples(Files(run.path))

    assert f"scorebayes explain {run.path} --split test" in section().words[-1]
    stored = np.load(explain_cases(run, "test"), allow_pickle=False)
    np.testing.assert_allclose(
        stored["total"].astype(float).sum((1, 2)) + stored["offset"], stored["log_odds"], atol=1e-4
    )
    shown = section()
    pictures = {gallery.title: gallery.pictures for gallery in shown.galleries}
    assert len(pictures["Worst: evidence"]) == len(pictures["Worst"])
    assert {case["log_odds"] for case in shown.numbers["images"]} <= set(stored["log_odds"])
    assert not any("Not done" in text for text in shown.words)

    np.savez(run.path / "evidence.npz", **{**stored, "log_odds": stored["log_odds"] + 1})
    sealed.accept(run.path)
    assert "Not done: evidence maps" in section().words[-1]  # of another posterior than the predictions


def test_cases_of_another_split_are_refused(run):
    with pytest.raises(DataError, match="another split"):
        explain_cases(run, "val")
    (run.path / "thumbnails.npz").rename(run.path / "moved.npz")
    with pytest.raises(DataError, match="no cases have been chosen"):
        explain_cases(run, "test")
    (run.path / "moved.npz").rename(run.path / "thumbnails.npz")


def test_the_command_explains_a_file_or_the_shown_cases(run, file, tmp_path):
    def command(*arguments):
        return CliRunner().invoke(app, ["explain", str(run.path), *arguments])

    done = command(str(file), "--out", str(tmp_path / "out"), "--no-counterfactual", "--prior", "0.01")
    assert done.exit_code == 0, done.output
    assert "log-odds of malignant" in done.output
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"evidence.png", "evidence.npz", "evidence.json"}
    assert command("--split", "test").exit_code == 0
    assert command().exit_code == 2
    assert command(str(file), "--split", "test").exit_code == 2
