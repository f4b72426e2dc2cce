"""Segmentation: signed distances, training that resumes, masks drawn, what validation fixes, and how masks are judged."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from fixtures.tiny_masks import LAYER, square, train_tiny_masks
from safetensors.torch import load_file
from scipy.special import expit

import scorebayes
from scorebayes.data.masks import Frame
from scorebayes.errors import ConfigError, DataError, Stopped
from scorebayes.runs import run as classifier_runs
from scorebayes.segmentation import fit as masks_fit
from scorebayes.segmentation.config import resolve_masks
from scorebayes.segmentation.decision import MaskDecision, dice_of, fit_decision
from scorebayes.segmentation.distance import FAR, covered, signed_distance
from scorebayes.segmentation.drawn import Drawn
from scorebayes.segmentation.figures import each_image, pixel_ece
from scorebayes.segmentation.fit import guess_loss
from scorebayes.segmentation.network import GUESS, LOGIT, MaskNet
from scorebayes.segmentation.run import open_mask_run
from scorebayes.segmentation.segmenters import SEGMENTERS, fit_segmenter, judge_segmenter
from scorebayes.segmentation.stages import evaluate_masks, predict_masks, score_masks
from scorebayes.sklearn_segmenter import ScoreBayesSegmenter


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = train_tiny_masks(tmp_path_factory.mktemp("masks") / "run")
    score_masks(run, "test")
    evaluate_masks(run, "test")
    return run


# -- distances --------------------------------------------------------------------------------------------------------


def test_a_signed_distance_is_exact_and_runs_through_the_boundary():
    distance = signed_distance(square(9, 3, 6))
    assert distance[4, 4] == -1.5 and distance[4, 3] == -0.5 and distance[4, 2] == 0.5
    assert distance[0, 0] == pytest.approx(np.hypot(3, 3) - 0.5)
    assert ((distance < 0) == square(9, 3, 6)).all()


def test_nothing_and_everything_are_far_from_a_boundary():
    assert (signed_distance(square(4, 0, 0)) == FAR).all()
    assert (signed_distance(square(4, 0, 4)) == -FAR).all()


def test_the_covered_area_of_a_square_is_its_area():
    assert covered(signed_distance(square(12, 3, 9))).sum() == 36


# -- the network and its loss -----------------------------------------------------------------------------------------


def test_at_the_highest_noise_the_answer_is_the_guess():
    net = MaskNet(1, channels=(8,), scorer_channels=(8,), features=1).eval()
    with torch.no_grad():
        torch.nn.init.normal_(net.reader.head.weight)
        condition = net.read(torch.randn(2, 1, 16, 16))
        out = net(torch.randn(2, 1, 16, 16), torch.full((2,), -3.0), condition)
    assert condition[:, LOGIT].std() > 0.01
    assert torch.allclose(out, condition[:, GUESS], atol=1e-4)  # the scorer's last layer begins at zero


def test_the_guess_s_loss_is_lowest_for_the_mask_itself():
    mask = torch.from_numpy(square(8, 2, 5))[None, None]
    right, wrong = (guess_loss(torch.where(of, 9.0, -9.0), mask) for of in (mask, ~mask))
    assert right < 0.01 and wrong > 1


def test_interrupted_and_resumed_the_weights_are_those_of_an_undisturbed_run(tmp_path, run, monkeypatch):
    real, calls = masks_fit.MaskScore.batch, []

    def interrupted(self, generator):
        calls.append(None)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(self, generator)

    monkeypatch.setattr(masks_fit.MaskScore, "batch", interrupted)
    with pytest.raises(Stopped):
        train_tiny_masks(tmp_path / "run")
    monkeypatch.undo()
    resumed = train_tiny_masks(tmp_path / "run")
    a, b = (
        load_file(of.path / "checkpoints" / of.checkpoints.entries("state")[-1]["file"])
        for of in (resumed, run)
    )
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in b)


def test_another_configuration_is_not_resumed(run):
    with pytest.raises(ConfigError, match=r"segment.samples: 4 -> 6"):
        train_tiny_masks(run.path, segment={**LAYER["segment"], "samples": 6})


def test_unknown_sections_and_odd_samples_are_refused():
    data = {"data": {"source": "phantom"}, "prepare": {"size": 16}}
    with pytest.raises(ConfigError, match="did you mean 'segment'"):
        resolve_masks(data, {"segmnt": {}})
    with pytest.raises(ConfigError, match="even"):
        resolve_masks(data, {"segment": {"samples": 5}})


def test_masks_without_any_object_cannot_be_learned(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (12, 16, 16), dtype=np.uint8)
    with pytest.raises(DataError, match="whose mask is not empty"):
        ScoreBayesSegmenter("tiny", steps=2, config=LAYER).fit(images, np.zeros((12, 16, 16), bool))


# -- what is drawn ----------------------------------------------------------------------------------------------------


def test_an_image_gets_the_same_masks_alone_and_among_others(run):
    seen = run.seen(run.examples("test"))
    together, alone = run.draw(seen), run.draw(seen[1:2])
    assert (together.share[1] == alone.share[0]).all() and (together.areas[1] == alone.areas[0]).all()
    assert together.areas.shape == (len(seen), 4)


def test_both_mirror_images_have_the_same_guess(run):
    seen = run.seen(run.examples("test"))[0]
    one, other = (run.draw([seen._replace(x=x)]).guess[0] for x in (seen.x, seen.x.flip(-1)))
    assert np.allclose(one, other[:, ::-1], atol=1e-5)


def test_what_was_drawn_is_stored_whole(run, tmp_path):
    drawn = Drawn.load(run.path / "masks-test.npz")
    assert drawn.keys == run.examples("test").keys
    (tmp_path / "cut.npz").write_bytes((run.path / "masks-test.npz").read_bytes()[:200])
    with pytest.raises(DataError, match="damaged"):
        Drawn.load(tmp_path / "cut.npz")


# -- what validation images fix ---------------------------------------------------------------------------------------


def _known(n: int, seed: int, sharpness: float = 2.0) -> tuple[Drawn, np.ndarray, np.ndarray]:
    """Images whose log-odds are known, given ``sharpness`` times too sharply, and masks drawn from them."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1.5, 1.0, (n, 1, 1)) + rng.normal(0, 1.5, (n, 16, 16))
    masks = rng.random(logits.shape) < expit(logits)
    none = np.zeros((n, 0), np.float32)
    guess = (sharpness * logits).astype(np.float32)
    drawn = Drawn(tuple(map(str, range(n))), guess, none[..., None], none[..., None], none, np.ones(n))
    return drawn, masks, np.ones_like(masks)


def test_a_sharp_guess_is_cooled_and_its_area_interval_covers():
    decision = fit_decision(*_known(150, 0))
    assert decision.samples == 0 and decision.guess == pytest.approx(0.5, abs=0.03)
    fresh, masks, inside = _known(300, 1)
    prob = decision.prob(fresh)
    assert pixel_ece(prob[inside], masks[inside]) < 0.01
    _, low, high = decision.area(fresh, prob, inside).T
    assert 0.9 <= np.mean((low <= masks.sum((1, 2))) & (masks.sum((1, 2)) <= high)) <= 0.99
    assert (high - low).mean() < 50  # the standard deviation is about 6 pixels


def test_the_threshold_is_the_one_of_the_best_dice():
    drawn, masks, inside = _known(60, 2)
    decision = fit_decision(drawn, masks, inside)
    prob = decision.prob(drawn)
    best = dice_of(prob > decision.threshold, masks).mean()
    assert best >= max(dice_of(prob > t, masks).mean() for t in (0.1, 0.3, 0.5, 0.7))
    assert MaskDecision.from_dict(json.loads(json.dumps(decision.to_dict()))) == decision


# -- how masks are judged ---------------------------------------------------------------------------------------------


def _certain(found: np.ndarray) -> Drawn:
    n = len(found)
    none = np.zeros((n, 0), np.float32)
    guess = np.where(found, 9, -9).astype(np.float32)
    return Drawn(tuple(map(str, range(n))), guess, none[..., None], none[..., None], none, np.ones(n))


def test_figures_of_known_masks():
    masks = np.stack([square(16, 2, 6), square(16, 2, 6), square(16, 0, 0)])
    found = np.stack([square(16, 2, 6), np.roll(square(16, 2, 6), 2, axis=1), square(16, 0, 0)])
    as_it_is = MaskDecision(0, 1, 0, 0.5, 0, 2)
    figures = each_image(_certain(found), as_it_is, masks, np.ones_like(masks))
    assert figures["dice"][:2].tolist() == [1.0, 0.5] and np.isnan(figures["dice"][2])
    assert figures["iou"][1] == pytest.approx(1 / 3)
    assert figures["hd95"][:2].tolist() == [0, 2]
    assert figures["dice_with_empty"].tolist() == [1, 0.5, 1]
    assert figures["covered"].all()


def test_the_calibration_error_is_zero_where_the_share_is_the_probability():
    inside = np.arange(100) < 30
    assert pixel_ece(np.full(100, 0.3), inside) == pytest.approx(0)
    assert pixel_ece(np.full(100, 0.9), inside) == pytest.approx(0.6)


def test_metrics_and_cases_of_a_split(run):
    metrics = json.loads((run.path / "metrics-test.json").read_text())
    assert metrics["images"] == len(run.examples("test")) and metrics["samples"] == 4
    assert set(metrics["cases"]) == {"best", "median", "worst"}
    for name in metrics["cases"]:
        assert (run.path / "overlays-test" / f"{name}.png").stat().st_size > 100
    with pytest.raises(ConfigError, match="not scored"):
        evaluate_masks(run, "train")


# -- an image, an answer ----------------------------------------------------------------------------------------------


def test_an_answer_has_the_size_of_its_image(run):
    segmenter = scorebayes.open_run(run.path, "cpu")
    wide = np.random.default_rng(0).random((24, 40)).astype(np.float32)
    answer = segmenter.predict(wide)
    assert answer.mask.shape == answer.probability.shape == answer.std_dev.shape == (24, 40)
    assert 0 <= answer.area_low <= answer.area <= answer.area_high <= 24 * 40
    assert f"area {answer.area:.0f} pixels" in str(answer)
    assert answer.area == pytest.approx(answer.probability.sum(), rel=0.1)


def test_an_unusable_image_has_no_answer_and_an_absent_one_is_an_error(run, tmp_path):
    segmenter = scorebayes.open_run(run.path, "cpu")
    (tmp_path / "x.png").write_text("no picture")
    assert segmenter.predict(str(tmp_path / "x.png")).reason.startswith("quarantined")
    with pytest.raises(DataError, match="no such file"):
        segmenter.predict(str(tmp_path / "y.png"))


def test_predicted_files_of_the_same_name_do_not_overwrite_each_other(run, tmp_path):
    for folder in "ab":
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "x.npy", np.random.default_rng(ord(folder)).random((16, 16)))
    frame, _ = predict_masks(run, [tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert frame["mask"].tolist() == ["x.png", "x-2.png"] and (tmp_path / "out" / "x-2.npy").exists()
    assert (
        (tmp_path / "out" / "masks.csv").read_text().startswith("file,mask,objects,area,area_low,area_high")
    )


def test_the_runs_of_the_two_tasks_are_not_mistaken_for_each_other(run, tmp_path):
    with pytest.raises(ConfigError, match="'segment', and this is for classifiers"):
        classifier_runs.open_run(run.path)
    with pytest.raises(ConfigError, match="not a segmentation run"):
        open_mask_run(tmp_path)


def test_data_that_changed_since_training_are_noticed(tmp_path, run):
    found = run.examples("test")
    assert found.frames[0] == Frame(16, 16, 16)
    table = run.split
    table.loc[table["split"] == "val", "image_id"] = "not-there"
    copy = open_mask_run(run.path)
    copy.path = tmp_path
    table.to_parquet(tmp_path / "split.parquet")
    with pytest.raises(DataError, match="not-there"):
        copy.examples("val")


# -- the estimator, and plain segmenters ------------------------------------------------------------------------------


def test_the_estimator_fits_and_predicts_masks_of_colour_images(tmp_path):
    rng = np.random.default_rng(0)
    masks = np.stack([np.roll(square(16, 4, 10), shift, axis=1) for shift in rng.integers(-3, 4, 24)])
    images = np.clip(0.3 * rng.random((24, 16, 16, 3)) + 0.6 * masks[..., None], 0, 1).astype(np.float32)
    model = ScoreBayesSegmenter("tiny", config=LAYER, device="cpu").fit(images, masks)
    assert model.predict(images[:2]).shape == (2, 16, 16)
    assert model.predict_proba(images[:2]).max() <= 1
    assert 0 <= model.score(images[:4], masks[:4]) <= 1
    with pytest.raises(ConfigError, match="one mask per image"):
        model.fit(images, masks[:3])


@pytest.mark.parametrize("name", SEGMENTERS)
def test_a_plain_segmenter_trains_and_is_judged_like_ours(run, name):
    fit_segmenter(run, name, steps=2)
    judged = judge_segmenter(run, name, "test")
    assert judged["samples"] == 0 and judged["coverage_by_samples"] is None
    assert 0 <= judged["dice"] <= 1 and judged["step_multiply_adds"] > 0


def test_an_unknown_segmenter_is_named(run):
    with pytest.raises(ConfigError, match="'unett' is unknown"):
        fit_segmenter(run, "unett")
