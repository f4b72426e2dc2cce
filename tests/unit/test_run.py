"""The way of one image through a trained run."""

from __future__ import annotations

import dataclasses
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.tiny_run import DATA, finish, trained_tiny, write_pictures
from PIL import Image

import scorebayes
from scorebayes.data import open_source
from scorebayes.diffusion.likelihood import DenoisingBound, Flow, PaperFlow
from scorebayes.errors import ConfigError, DataError
from scorebayes.report import write_report
from scorebayes.runs.config import PRESETS
from scorebayes.runs.inputs import start_run, suggest
from scorebayes.runs.run import reconfigured
from scorebayes.stages import train as stages
from scorebayes.stages.calibrate import calibrate
from scorebayes.stages.evaluate import evaluate
from scorebayes.stages.predict import predict_files
from scorebayes.stages.score import read_table, score_split, table_path
from scorebayes.storage import sealed


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return finish(trained_tiny(tmp_path_factory.mktemp("runs") / "tiny"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"), 3)


def test_the_readme_example_runs_as_printed(run, pictures, monkeypatch, tmp_path, capsys):
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    blocks = [block for block in re.findall(r"```python\n(.*?)```", readme, re.S) if "case.png" in block]
    assert len(blocks) == 2
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "breast").symlink_to(run.path)
    Path("case.png").write_bytes(pictures[0].read_bytes())
    exec(compile("\n".join(blocks), "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert re.search(r"case.png: \w+\n  benign 0\.\d+ ± 0\.\d+\n", printed)
    assert re.search(r"\[\[0\.\d+", printed)


def test_an_image_alone_or_among_others_gives_the_same_numbers(run):
    images = run.images("test").subset(range(4))
    x = run.standardise(images.images)
    together = run.evidence(x, images.keys)
    alone = run.evidence(x[2:3], images.keys[2:3])
    backwards = run.evidence(x.flip(0), images.keys[::-1])
    for name, block in together.blocks.items():
        # The network's numbers to the bit; sums over features by a library up to rounding.
        rounding = {"rtol": 1e-5, "atol": 1e-5} if block.exact else {"rtol": 0}
        np.testing.assert_allclose(alone.blocks[name].draws[:, 0], block.draws[:, 2], **rounding)
        np.testing.assert_allclose(backwards.blocks[name].draws[:, ::-1], block.draws, **rounding)


def test_several_images_in_one_call_agree_to_a_millionth_in_the_posterior(run):
    images = run.images("test").subset(range(4))
    x = run.standardise(images.images)
    alone = dataclasses.replace(run.likelihood, images_per_call=1)
    one = scorebayes.bayes(run.evidence(x, images.keys, alone), run.log_prior, run.calibration)
    many = scorebayes.bayes(run.evidence(x, images.keys), run.log_prior, run.calibration)
    np.testing.assert_allclose(one.prob, many.prob, atol=1e-6)


def test_the_label_reaches_the_network(run):
    images = run.images("test").subset(range(3))
    table = run.evidence(run.standardise(images.images), images.keys)
    draws = table.blocks["pixels"].draws
    assert (np.abs(draws[..., 0] - draws[..., 1]).max(axis=0) > 1e-6).all()


def test_scoring_again_keeps_what_is_there_and_redoes_what_is_missing(run):
    folder = table_path(run, "test")
    before = read_table(run, "test")
    part = folder / "part-000000.parquet"
    stamp = part.stat().st_mtime_ns
    score_split(run, "test")
    assert part.stat().st_mtime_ns == stamp
    part.unlink()
    score_split(run, "test")
    for name, block in read_table(run, "test").blocks.items():
        np.testing.assert_array_equal(block.draws, before.blocks[name].draws)


def test_a_table_of_another_estimator_is_not_taken_for_this_one(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy)
    older = scorebayes.open_run(copy)
    evaluate(older, "test")
    # As many levels as before, elsewhere in noise: nothing in the table itself tells them apart.
    other = reconfigured(older, older.config.changed("likelihood", mean=older.likelihood.mean + 1))
    with pytest.raises(ConfigError, match=r"another estimator .*scorebayes score .* --split test`"):
        evaluate(other, "test")
    score_split(other, "val")
    calibrate(other)
    with pytest.raises(
        ConfigError, match=r"calibration has changed .*scorebayes evaluate \S+copy --split test`"
    ):
        write_report(copy)
    score_split(other, "test")
    assert evaluate(other, "test")["n"] == len(read_table(other, "test"))
    write_report(copy)


def test_other_estimators_write_files_of_their_own(run):
    for split in ("val", "test"):
        score_split(run, split, "bound")
    metrics = evaluate(run, "test", "bound")
    assert metrics["estimator"] == "bound"
    # Eight bits of noise would take 8; an image has structure, and three hundred dimensions of few training steps little.
    assert 0 < metrics["bits_per_dim"] < 12
    assert (run.path / "metrics-test.bound.json").exists()
    assert read_table(run, "test", "bound").only.nats.shape == (len(read_table(run, "test")), 2)


@pytest.mark.parametrize("kind", ["flow", "paper", "bound"])
def test_a_network_trained_in_half_precision_gives_nats_too(run, tmp_path, kind):
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy)
    config = copy / "config.toml"
    config.write_text(config.read_text().replace('precision = "fp32"', 'precision = "bf16"'))
    sealed.accept(copy)
    half = scorebayes.open_run(copy)
    assert half.precision == torch.bfloat16
    images = half.images("test").subset([0])
    easy = {
        "flow": Flow(solver="heun", steps=2),
        "paper": PaperFlow(rtol=0.1, atol=0.1),
        "bound": DenoisingBound(levels=2),
    }
    table = half.evidence(half.standardise(images.images), images.keys, easy[kind])
    assert table.status.tolist() == ["ok"] and np.isfinite(table.only.nats).all()


def test_metrics_have_what_the_documentation_promises(run):
    metrics = evaluate(run, "test")
    for name in ("auc", "accuracy", "balanced_accuracy", "log_loss", "ece"):
        low, high = metrics[f"{name}_ci95"]
        assert low <= metrics[name] <= high
    assert metrics["nfe_per_image"] == 16  # 4 levels x 2 antithetic evaluations x 2 classes
    assert metrics["seconds_per_image"] > 0
    assert "logistic regression on pixels" in metrics["baselines"]
    assert metrics["patient_level"]["n"] < metrics["n"]


def test_a_bad_file_among_good_ones_is_set_apart_and_changes_nothing(run, pictures, tmp_path):
    bad = tmp_path / "broken.png"
    bad.write_bytes(pictures[0].read_bytes()[:100])
    alone = predict_files(run, pictures)
    mixed = predict_files(run, [pictures[0], bad, *pictures[1:]])
    assert mixed.loc[1, "status"].startswith("quarantined") and "broken.png" in mixed.loc[1, "status"]
    assert np.isnan(mixed.loc[1, "log_odds"])
    np.testing.assert_array_equal(mixed.drop(index=1)["log_odds"], alone["log_odds"])


def test_the_same_image_under_another_name_gets_the_same_answer(run, pictures, tmp_path):
    other = tmp_path / "renamed.png"
    other.write_bytes(pictures[0].read_bytes())
    frame = predict_files(run, [pictures[0], other])
    assert frame.loc[0, "log_odds"] == frame.loc[1, "log_odds"]


def test_a_blank_image_gets_no_posterior(run, tmp_path):
    blank = tmp_path / "blank.png"
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(blank)
    assert predict_files(run, [blank]).loc[0, "status"].startswith("quarantined")


def test_standardised_pixels_come_back(run):
    images = run.images("test").subset(range(2))
    np.testing.assert_allclose(
        run.restore(run.standardise(images.images)), (images.images + 0.5) / 256, atol=1e-6
    )


def test_opening_what_is_no_run_says_how_to_make_one(tmp_path):
    with pytest.raises(ConfigError, match="scorebayes train"):
        scorebayes.open_run(tmp_path)


def test_weights_that_were_tampered_with_are_refused(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy)
    weights = next((copy / "checkpoints").glob("step-*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ConfigError, match="SHA-256"):
        _ = scorebayes.open_run(copy).score


def test_the_split_asked_for_must_exist(run):
    with pytest.raises(DataError, match="no image"):
        run.images("nonsense")


def test_a_given_prior_is_used_and_checked(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy)
    config = (copy / "config.toml").read_text()
    (copy / "config.toml").write_text(
        re.sub(r'kind = "train"\nprob = \[\]', 'kind = "given"\nprob = [0.9, 0.1]', config)
    )
    sealed.accept(copy)
    np.testing.assert_allclose(np.exp(scorebayes.open_run(copy).log_prior), [0.9, 0.1])
    (copy / "config.toml").write_text(
        re.sub(r'kind = "train"\nprob = \[\]', 'kind = "given"\nprob = [0.9, 0.2]', config)
    )
    sealed.accept(copy)
    with pytest.raises(ConfigError, match="sum to 1"):
        _ = scorebayes.open_run(copy).log_prior


def test_nothing_heavy_is_imported_for_help():
    import subprocess

    code = "import sys, scorebayes.cli.main; sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_samples_come_with_their_nearest_training_images(run):
    from scorebayes.stages.sample import draw_samples

    picture, nearest = draw_samples(run, per_class=2, steps=4)
    assert picture.stat().st_size > 1000
    stored = np.load(run.path / "samples.npz")
    assert stored["images"].shape == (4, 1, 16, 16) == stored["nearest"].shape
    assert stored["images"].min() >= 0 and stored["images"].max() <= 1
    assert (stored["distance"] > 0).all()
    assert nearest == {
        name: pytest.approx(stored["distance"][stored["labels"] == y].min())
        for y, name in enumerate(run.facts.classes)
    }


def test_the_network_stays_on_its_device_and_the_state_in_double_precision(run):
    x = run.standardise(run.images("test").subset([0]).images).double()
    score = run.score(x, torch.tensor([0.5], dtype=torch.float64), torch.tensor([0]))
    assert score.dtype == torch.float64


def test_larger_sets_are_trained_for_more_steps_unless_steps_are_given(tmp_path):
    source = open_source(DATA)
    records = list(source.records())

    def steps(n: int) -> int:
        return suggest(source, (records * n)[:n])["train"]["steps"]

    assert steps(80) == steps(1000) == 1000
    assert (steps(5856), steps(20_000)) == (2000, 3300)

    def begun(name: str, preset: str, *layers: dict) -> int:
        run, _ = start_run(tmp_path / name, DATA, layers, preset, torch.device("cpu"))
        return run.config.train.steps

    assert begun("own", "small", {"train": {"steps": 7}}) == 7
    assert begun("preset", "tiny") == PRESETS["tiny"]["train"]["steps"]


def test_a_run_with_its_own_steps_is_resumed_without_naming_them(tmp_path):
    layers = [{"net": {"channels": [8, 16], "blocks": 1}, "likelihood": {"levels": 2, "repeats": 1}}]
    few = [*layers, {"train": {"steps": 3, "batch": 8}}]
    cpu = torch.device("cpu")
    stages.train(tmp_path / "run", DATA, few, "small", cpu)
    again = stages.train(
        tmp_path / "run", DATA, [*layers, {"train": {"batch": 8}}], "small", cpu, resume=True
    )
    assert again.config.train.steps == 3
    with pytest.raises(ConfigError, match=r"train.steps: 3 -> 4"):
        stages.train(
            tmp_path / "run", DATA, [*few, {"train": {"steps": 4, "batch": 8}}], "small", cpu, resume=True
        )
