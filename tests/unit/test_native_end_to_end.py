"""The mammography sets from their native downloads to metrics, by the commands a user types, in a few steps."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fixtures import native_trees
from fixtures.native_trees import cbis_ddsm, inbreast, vindr_mammo
from PIL import Image
from typer.testing import CliRunner

from scorebayes.cli.main import app
from scorebayes.data import open_source
from scorebayes.errors import DataError
from scorebayes.evidence import mixtures
from scorebayes.runs.config import resolve
from scorebayes.runs.device import pick_device

CPU = pick_device("cpu")
FEW_STEPS = """
[net]
channels = [8, 8, 8, 16, 16]

[train]
steps = 2
batch = 4

[likelihood]
levels = 2
"""
ALONE = """
[evidence]
sources = ["pixels"]
"""


def scorebayes(*arguments: str | Path) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def train_score_evaluate(tmp_path: Path, data: str, *options: str, config: str = FEW_STEPS + ALONE) -> dict:
    split = "test"
    (tmp_path / "few.toml").write_text(config)
    run = tmp_path / "run"
    scorebayes("train", "--data", data, "--out", run, "--config", tmp_path / "few.toml", *options)
    scorebayes("score", run, "--split", split)
    scorebayes("evaluate", run, "--split", split)
    return json.loads((run / f"metrics-{split}.json").read_text())


def many_exams(n: int) -> list[tuple[str, str, str]]:
    """Exams of which every second has a malignant left breast; the last quarter tests."""
    return [
        (native_trees._hex("exam", str(k)), "test" if k >= 0.75 * n else "training", "25"[k % 2])
        for k in range(n)
    ]


def test_the_experiment_of_the_paper_is_one_command(tmp_path, monkeypatch):
    monkeypatch.setattr(native_trees, "VINDR_STUDIES", many_exams(16))
    root = vindr_mammo(tmp_path / "data")
    metrics = train_score_evaluate(
        tmp_path, f"vindr-mammo:{root}", "--preset", "paper", "--size", "64", config=FEW_STEPS
    )
    run = tmp_path / "run"
    config = tomllib.loads((run / "config.toml").read_text())
    assert config["prepare"] == {"size": 64, "channels": 1, "bits": 12, "steps": ["paper"]}
    assert (config["noise"]["kind"], config["noise"]["beta_min"], config["noise"]["beta_max"]) == (
        "vp",
        0.1,
        20.0,
    )
    split = pd.read_parquet(run / "split.parquet").set_index("image_id")
    official = {record.image_id: record.split for record in open_source(f"vindr-mammo:{root}").records()}
    assert all((where == "test") == (official[key] == "test") for key, where in split["split"].items())
    assert split.groupby("patient_id")["split"].nunique().max() == 1
    assert metrics["n"] == 16 and metrics["failed"] == 0


def test_the_preset_of_the_paper_has_its_size_network_and_schedule():
    config = resolve(
        {"data": {"source": "phantom"}}, preset="paper", defaults={"prepare": {"size": 64, "bits": 12}}
    )
    assert (config.prepare.size, config.prepare.steps) == (384, ("clahe",))
    assert config.sections["net"]["channels"] == [32, 64, 128, 256, 512]
    assert (config.train.batch, config.train.lr, config.train.flip) == (32, 1e-4, True)
    assert config.build("net", image_channels=1, n_classes=2).n_classes == 2


def test_cbis_ddsm_goes_the_whole_way(tmp_path):
    def lesions(split: str) -> list[tuple]:
        first = 100 if split == "test" else 0
        return [
            (f"P_{first + k:05d}", "LEFT", "CC", 1, ("BENIGN", "MALIGNANT")[k % 2])
            for k in range(8 if split == "test" else 28)
        ]

    rows = {("mass", split): lesions(split) for split in ("train", "test")}
    rows |= {
        ("calc", "train"): [("P_00200", "LEFT", "CC", 1, "BENIGN")],
        ("calc", "test"): [("P_00201", "LEFT", "CC", 1, "MALIGNANT")],
    }
    root = cbis_ddsm(tmp_path / "data", rows=rows)
    metrics = train_score_evaluate(tmp_path, f"cbis-ddsm:{root}", "--preset", "tiny", "--size", "32")
    assert metrics["n"] == 9


def test_inbreast_goes_the_whole_way_with_splits_by_patient(tmp_path):
    rows = [
        (f"{29990000 + k}", f"{k // 2:016x}", "LR"[k % 2], "CC", "1" if k % 4 < 2 else "5", "2")
        for k in range(56)
    ]
    metrics = train_score_evaluate(
        tmp_path, f"inbreast:{inbreast(tmp_path / 'data', rows)}", "--preset", "tiny", "--size", "32"
    )
    split = pd.read_parquet(tmp_path / "run" / "split.parquet")
    assert split.groupby("patient_id")["split"].nunique().max() == 1
    assert metrics["n"] == (split["split"] == "test").sum() > 0


@pytest.fixture
def short_demo(monkeypatch):
    """Few steps, and no report (which has tests of its own)."""
    from scorebayes.stages import demo as stages

    monkeypatch.setattr(stages, "DEMO_STEPS", 2)
    monkeypatch.setattr(mixtures, "CLUSTERINGS", 1)
    monkeypatch.setattr(stages, "write_report", lambda path: path / "report.html")
    return stages


def own_images(root: Path, splits: tuple[str, ...], per_class: int) -> Path:
    rng = np.random.default_rng(0)
    for split in splits:
        for label in ("benign", "malignant"):
            folder = root / split / label
            folder.mkdir(parents=True)
            for k in range(per_class):
                Image.fromarray(rng.integers(0, 256, (16, 16)).astype(np.uint8)).save(folder / f"{k}.png")
    return root


@pytest.mark.parametrize(
    ("splits", "evaluated", "n"),
    [((".",), "test", 6), (("train", "test"), "test", 36), (("train", "val"), "val", 36)],
)
def test_the_demonstration_takes_ones_own_folder(tmp_path, short_demo, splits, evaluated, n):
    data = f"folder:{own_images(tmp_path / 'data', splits, 18)}"
    metrics, _ = short_demo.demo(tmp_path / "run", data, CPU)
    assert (metrics["split"], metrics["n"]) == (evaluated, n)


def test_a_vanished_data_folder_stops_and_the_run_goes_on_when_it_is_back(tmp_path, short_demo):
    root = own_images(tmp_path / "data", (".",), 18)
    short_demo.demo(tmp_path / "run", f"folder:{root}", CPU)
    root.rename(tmp_path / "away")
    with pytest.raises(DataError, match="data"):
        short_demo.demo(tmp_path / "run", f"folder:{root}", CPU)
    (tmp_path / "away").rename(root)
    assert short_demo.demo(tmp_path / "run", f"folder:{root}", CPU)[0]["n"] == 6
