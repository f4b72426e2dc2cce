"""Foreign, corrupted and attacked images: the benchmarks measure what they say, and the report shows it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.tiny_run import finish, trained_tiny
from typer.testing import CliRunner

from scorebayes.baselines import fit_baseline
from scorebayes.benchmark.trained.attacks import OurTarget, PeerTarget, Pgd, Square, grey_levels
from scorebayes.benchmark.trained.images import as_images, corrupted, foreign, score_images
from scorebayes.benchmark.trained.ood import measure_ood
from scorebayes.benchmark.trained.robustness import OURS, auc_grid, measure_robustness
from scorebayes.cli import benchmark as cli_benchmark
from scorebayes.decision.posterior import bayes
from scorebayes.diffusion.likelihood import Denoising, Flow
from scorebayes.errors import ConfigError
from scorebayes.report import write_report
from scorebayes.runs.run import open_run
from scorebayes.stages import score as scoring
from scorebayes.stages.evaluate import evaluate
from scorebayes.tasks.classify import reference_pixels


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny run with the simplest baseline."""
    trained = finish(trained_tiny(tmp_path_factory.mktemp("runs") / "tiny"))
    evaluate(trained, "test")
    fit_baseline(trained, "logistic")
    return open_run(trained.path)


@pytest.fixture(scope="module")
def images(run):
    return run.images("test").drawn(6, seed=0)


def command(run, *arguments: str) -> str:
    result = CliRunner().invoke(cli_benchmark.app, [*arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


# --- changed images ----------------------------------------------------------------------------------------


def test_an_image_is_changed_alike_whatever_else_is_in_the_set(images):
    alone = corrupted(images.subset([2]), "speckle", 3, seed=0)
    np.testing.assert_array_equal(alone.images[0], corrupted(images, "speckle", 3, seed=0).images[2])
    other_seed = corrupted(images.subset([2]), "speckle", 3, seed=1)
    assert (alone.images != other_seed.images).any()


def test_inverted_images_keep_their_records(images):
    found = foreign(images, "inverted", seed=0)
    np.testing.assert_array_equal(found.images, 255 - images.images)
    assert found.records == images.records


def test_what_is_scored_is_kept_and_is_what_the_run_itself_would_say(run, images, monkeypatch):
    first = score_images(run, images, run.likelihood)
    stored = scoring.read_table(run, "test")
    rows = [stored.keys.index(key) for key in images.keys]
    assert list(first.blocks) == list(stored.blocks) == ["pixels", "wavelets"]
    known = {name: block.draws[:, rows] for name, block in stored.blocks.items()}
    np.testing.assert_array_equal(first.blocks["pixels"].draws, known["pixels"])
    # Wavelets are taken of several images at once, and float32 sums depend on how many.
    np.testing.assert_allclose(first.blocks["wavelets"].draws, known["wavelets"], rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(type(run), "evidence", None)
    again = score_images(run, images, run.likelihood)
    for name, block in first.blocks.items():
        np.testing.assert_array_equal(again.blocks[name].draws, block.draws)
    with pytest.raises(TypeError):  # other pixels are other images
        score_images(run, foreign(images, "inverted", 0), run.likelihood)


def test_pictures_are_prepared_as_the_run_does_and_refusals_are_counted(run):
    rng = np.random.default_rng(0)
    pictures = [rng.random((40, 30, 3)), rng.random((20, 20)), np.zeros((20, 20))]
    found, refused = as_images(run, [p.astype(np.float32) for p in pictures], "x")
    assert refused == 1 and found.images.shape == (2, 1, 16, 16)
    nothing, refused = as_images(run, [np.zeros((20, 20), np.float32)], "x")
    assert len(nothing) == 0 and refused == 1


# --- foreign images ----------------------------------------------------------------------------------------


def test_ood_names_every_kind_beside_the_likelihood_and_the_report_shows_it(run, tmp_path):
    out = tmp_path / "ood.json"
    said = command(
        run, "ood", str(run.path), "--images", "3", "--data-root", str(tmp_path), "--out", str(out)
    )
    assert "foreign images declined" in said
    found = json.loads(out.read_text())
    assert found == json.loads((run.path / "ood.json").read_text())
    assert {"black", "inverted", "uniform noise", "pixels shuffled"} < set(found["kinds"])
    for name in ("black", "white", "uniform noise", "checkerboard"):
        row = found["kinds"][name]
        assert row["n"] == 3 and row["flagged"] == 1.0 and row["auc"] == 1.0, name
    assert found["kinds"]["blank, some grey"]["median_nats_above_test_images"] != 0
    own = found["in_distribution"]
    assert own["n"] == (run.split["split"] == "test").sum() and own["flagged"] <= 0.25
    for curve in (found["coverage"]["all"], found["coverage"]["typical"]):
        assert len(curve["coverage"]) == len(curve["risk"]) > 0
    assert found["coverage"]["typical"]["coverage"][-1] == pytest.approx(1 - own["flagged"])
    assert found["judged_by_prediction"]

    page = write_report(run.path).read_text()
    assert "Foreign images" in page and "checkerboard" in page


def test_what_preparation_refuses_counts_as_declined(run, monkeypatch):
    blank = [np.zeros((20, 20), np.float32)] * 3
    monkeypatch.setattr("scorebayes.benchmark.trained.ood.pictures", lambda *_: {"blank files": blank})
    row = measure_ood(run, 2, run.path)["kinds"]["blank files"]
    assert row == {"n": 3, "refused": 3, "flagged": 1.0, "flagged_by_likelihood": 1.0}


# --- corrupted images --------------------------------------------------------------------------------------


def test_robustness_pairs_the_models_on_every_corruption(run, tmp_path):
    out, figure = tmp_path / "robustness.json", tmp_path / "robustness.svg"
    said = command(
        run, "robustness", str(run.path), "--images", "8", "--severities", "5", "--out", str(out),
        "--figure", str(figure),
    )  # fmt: skip
    assert "mean AUC" in said
    found = json.loads(out.read_text())
    assert len(found["conditions"]) == 1 + 12 and found["baselines"] == ["logistic"]
    for row in found["conditions"]:
        assert set(row["models"]) == {OURS, "logistic"} and 0 <= row["declined"] <= 1
        ours, peer = row["models"].values()
        difference = row["against"]["logistic"]["auc_difference"]
        assert difference == pytest.approx(ours["auc"] - peer["auc"])
    raw, adjusted = np.array(
        [
            [row["against"]["logistic"][key] for key in ("auc_difference_p", "auc_difference_p_holm")]
            for row in found["conditions"][1:]
        ]
    ).T
    assert (adjusted >= raw).all()
    kinds, severities, grid = auc_grid(found, OURS)
    assert grid.shape == (12, 1) and severities == [5]
    assert found["summary"][OURS]["mean_auc"] == pytest.approx(grid.mean())
    assert found["summary"]["logistic"]["mean_corruption_error"] == pytest.approx(1.0)
    assert all(kind in figure.read_text() for kind in kinds)
    assert figure.read_text().startswith("<svg xmlns=")

    page = write_report(run.path).read_text()
    assert "Corrupted and attacked images" in page and "acoustic shadow" in page
    assert "Not done: attacks" in page


@pytest.mark.parametrize("severities", [[], [0, 1], [6]])
def test_unknown_severities_are_refused(run, severities):
    with pytest.raises(ConfigError, match="severities"):
        measure_robustness(run, 8, severities)


# --- attacked images ---------------------------------------------------------------------------------------


def test_the_differentiable_log_odds_are_those_of_the_decision(run, images):
    """Up to the noise, which for an attack is every image's own."""
    target = OurTarget(run, repeats=run.likelihood.repeats)
    table = score_images(run, images, replace(run.likelihood, common_noise=False))
    expected = bayes(table, run.log_prior, run.calibration).log_odds
    for row, key in enumerate(images.keys):
        logits = target.logits(run.standardise(images.images[row : row + 1]), key)
        odds = float(logits[1] - logits[0])
        assert odds == pytest.approx(expected[row, 1], rel=1e-4, abs=1e-4)


def margins(run, target, images) -> np.ndarray:
    """Log-odds of the true class of each image, on draws that the attacks did not see."""
    x = run.standardise(images.images)
    with torch.no_grad():
        logits = [target.logits(x[row : row + 1], "judge").numpy() for row in range(len(images))]
    own = images.labels
    return np.array([found[y] - found[1 - y] for found, y in zip(logits, own, strict=True)])


@pytest.mark.parametrize("name", ["ours", "logistic"])
@pytest.mark.parametrize("attack", [Pgd(steps=4), Square(queries=20)])
def test_an_attack_stays_in_its_budget_and_lowers_the_margin(run, images, name, attack):
    ours = name == "ours"
    target = OurTarget(run, repeats=4) if ours else PeerTarget(fit_baseline(run, "logistic"))
    some, budget = images.subset([0, 1, 2]), 24.0
    found = attack(run, target, some, budget, seed=0)
    change = np.abs(found.images.astype(int) - some.images.astype(int))
    assert found.images.dtype == np.uint8 and 0 < change.max() <= budget
    judge = OurTarget(run, repeats=16) if ours else target
    assert margins(run, judge, found).sum() < margins(run, judge, some).sum()
    again = attack(run, target, some, budget, seed=0)
    np.testing.assert_array_equal(again.images, found.images)


def test_the_gradient_is_that_of_the_log_odds(run, images):
    """Against a central difference along the gradient, in float32 arithmetic."""
    target = OurTarget(run)
    x = run.standardise(images.images[:1]).double().requires_grad_(True)
    logits = target.logits(x, "a")
    (gradient,) = torch.autograd.grad(logits[0] - logits[1], x)
    direction = gradient / gradient.norm()

    def margin(step: float) -> float:
        with torch.no_grad():
            found = target.logits(x + step * direction, "a")
        return float(found[0] - found[1])

    assert (margin(0.05) - margin(-0.05)) / 0.1 == pytest.approx(float(gradient.norm()), rel=0.05)


def test_budgets_are_whole_grey_levels_of_the_images():
    assert grey_levels((1, 8), bits=8) == [1.0, 8.0]
    assert grey_levels((1,), bits=12) == [16.0]


def test_the_adversarial_benchmark_shows_both_models(run, tmp_path):
    out = tmp_path / "adversarial.json"
    said = command(
        run, "adversarial", str(run.path), "--images", "2", "--peer", "logistic", "--steps", "1", "--queries", "2",
        "--out", str(out),
    )  # fmt: skip
    assert "Square 8/255" in said
    rows = json.loads(out.read_text())["results"]
    assert len(rows) == 2 * 6
    assert {(row["model"], row["attack"]) for row in rows} == {
        (model, attack) for model in (OURS, "logistic") for attack in ("none", "PGD", "Square")
    }
    assert all(("declined" in row) == (row["model"] == OURS) for row in rows)
    assert "PGD, 8/255" in write_report(run.path).read_text()


def test_what_cannot_be_attacked_is_named(run, monkeypatch):
    result = CliRunner().invoke(cli_benchmark.app, ["adversarial", str(run.path), "--peer", "hog-svm"])
    assert isinstance(result.exception, ConfigError) and "no gradient" in str(result.exception)
    monkeypatch.setattr(type(run), "likelihood", Flow())
    with pytest.raises(ConfigError, match="class score"):
        OurTarget(run)
    assert replace(Denoising(), repeats=3).repeats == 3


def test_appearance_is_judged_on_what_the_network_is_shown(run, images):
    found = run.pixels(images)
    np.testing.assert_allclose(found, (images.images + 0.5) / 256, atol=1e-6)
    some = images.subset([3])
    np.testing.assert_array_equal(run.pixels(some), run.restore(run.standardise(some.images)))
    known = len(run.split.query("split != 'test'"))
    assert len(reference_pixels(run)[0]) == known
