"""Segmentation as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from fixtures.tiny_masks import DATA, LAYER, square, write_mask, write_picture
from typer.testing import CliRunner

from scorebayes.benchmark.names import MASK_BENCHMARKS
from scorebayes.benchmark.training import segmentation as benchmark
from scorebayes.cli.main import app
from scorebayes.segmentation import demo

CONFIG = """
[net]
channels = [8, 16]
scorer_channels = [8]
scorer_patch = 2
features = 2

[train]
batch = 4
warmup = 1

[segment]
samples = 2
evaluations = 2
"""


def told(*words: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, f"{result.output}\n{result.exception}"
    return result.stdout


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("commands")
    (folder / "tiny.toml").write_text(CONFIG)
    told("train", "--task", "segment", "--data", DATA, "--out", folder / "run", "--config", folder / "tiny.toml",
         "--preset", "tiny", "--steps", 4, "--quiet", "--device", "cpu")  # fmt: skip
    return folder / "run"


def test_train_score_evaluate_report(run_dir):
    assert "masks-test.npz" in told("score", run_dir, "--quiet")
    found = json.loads(told("evaluate", run_dir, "--json"))
    assert found["task"] == "segment" and 0 <= found["dice"] <= 1
    told("report", run_dir)
    page = (run_dir / "report.html").read_text()
    assert "Synthetic images" in page and page.count("data:image/png;base64,") == 3
    assert json.loads((run_dir / "report.json").read_text())["splits"]["test"]["dice"] == found["dice"]


def test_a_finished_run_is_resumed_without_further_options(run_dir):
    assert "trained and calibrated" in told("train", "--resume", run_dir, "--quiet", "--device", "cpu")


def test_predict_writes_masks_and_a_table(run_dir, tmp_path):
    write_picture(tmp_path / "in" / "case.png", (20, 30))
    (tmp_path / "in" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    out = tmp_path / "out"
    told("predict", run_dir, tmp_path / "in", "--out", out, "--quiet", "--device", "cpu", code=3)
    assert np.load(out / "case.npy").shape == (20, 30)
    rows = (out / "masks.csv").read_text().splitlines()
    assert len(rows) == 3 and "quarantined" in rows[1] and rows[2].endswith(",ok")


def test_data_check_counts_masks_and_names_what_cannot_be_used(tmp_path):
    for name, mask in (("a", square(16, 0, 2)), ("b", square(16, 0, 0)), ("c", square(12, 2, 9))):
        write_picture(tmp_path / "images" / f"{name}.png")
        write_mask(tmp_path / "masks" / f"{name}.png", mask)
    found = json.loads(told("data", "check", f"folder:{tmp_path}", "--task", "segment", "--json", code=1))
    assert found["masks"] == {"empty": 1, "touching_the_edge": 1, "tiny": 1} and found["images"] == 2
    assert "12 x 12" in found["unusable"][0]["reason"]
    words = told("data", "check", f"folder:{tmp_path}", "--task", "segment", code=1)
    assert "1 masks are empty" in words and "images/c.png" in words


def test_the_demonstration_ends_with_a_report(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "DEMO_STEPS", 3)
    words = told("demo", "--task", "segment", "--data", DATA, "--out", tmp_path / "demo", "--device", "cpu")
    assert "Dice on the test split" in words and (tmp_path / "demo" / "report.html").exists()


def test_options_of_classification_are_refused(run_dir, tmp_path):
    found = CliRunner().invoke(
        app, ["train", "--task", "segment", "--data", DATA, "--out", str(tmp_path / "x"), "--label-free"]
    )
    assert "for classification only" in str(found.exception)


def test_the_benchmark_writes_what_it_promises(tmp_path, monkeypatch):
    assert set(benchmark.STUDIES) == set(MASK_BENCHMARKS)
    tiny = benchmark.MaskBenchmark(DATA, 3, "tiny", LAYER)
    monkeypatch.setitem(benchmark.STUDIES, "segmentation-phantom", tiny)
    path = benchmark.run_mask_benchmark(
        "segmentation-phantom", tmp_path, tmp_path / "runs", tmp_path / "out", [0], steps=3
    )
    found = json.loads(path.read_text())
    assert set(found["models"]) == {"scorebayes", "unet"}
    for of in found["models"].values():
        assert len(of["test"]["dice"]["values"]) == 1 and 0 <= of["test"]["coverage"]["mean"] <= 1
        assert of["seconds_per_image"] > 0 and of["evaluations"] >= 1
    lead = found["paired"]["scorebayes"]["unet"]
    ours, rival = (found["models"][name]["test"]["dice"]["mean"] for name in ("scorebayes", "unet"))
    assert lead["dice_difference"] == pytest.approx(ours - rival, abs=1e-6)
