"""The commands as a user types them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from typing import Any

import numpy as np
import pandas as pd
import pytest
import typer
from fixtures.terminal import scorebayes
from fixtures.tiny_run import DATA
from PIL import Image
from typer.testing import CliRunner

from scorebayes.cli.main import app
from scorebayes.data import open_source
from scorebayes.errors import ConfigError

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
CONFIG = """
[net]
channels = [8, 16]
blocks = 1
attention = 1

[train]
batch = 8
warmup = 2
validate_every = 4

[likelihood]
levels = 4
"""


def commands(group: Any, *before: str) -> list[str]:
    """All that can be called, by their words."""
    if not hasattr(group, "commands"):
        return [" ".join(before)]
    return [words for name, of in group.commands.items() for words in commands(of, *before, name)]


def process(*arguments: str, then: str = "", **variables: str) -> subprocess.CompletedProcess:
    """The program in a process of its own, for what only such a one can show."""
    code = f"from scorebayes.cli.main import main\ntry: main()\nfinally:\n {then or 'pass'}"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=ENVIRONMENT | variables, check=False
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which the whole way was gone: train, score, evaluate, report."""
    path = tmp_path_factory.mktemp("cli")
    (path / "config.toml").write_text(CONFIG)
    for command in (
        f"train --data {DATA} --out run --preset tiny --config config.toml --steps 8 --seed 3",
        "score run --split test",
        "evaluate run --split test",
        "sample run --per-class 2 --steps 3",
        "report run",
    ):
        done = scorebayes(*command.split(), folder=path)
        assert done.code == 0, f"{command}\n{done.out}\n{done.err}"
    return path


@pytest.mark.parametrize("command", commands(typer.main.get_command(app)))
def test_every_command_has_help_with_an_example(command):
    done = CliRunner().invoke(app, [*command.split(), "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert done.exit_code == 0
    assert f"Example: scorebayes {command}" in done.output


def test_help_comes_without_the_heavy_libraries():
    done = process("--help", PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0 and "recalibrate" in done.stdout
    assert "scorebayes.cli.main" in done.stderr and not re.search(r"\| +torch$", done.stderr, re.MULTILINE)


def test_the_version_is_told():
    import scorebayes as package

    assert process("--version").stdout.strip() == f"scorebayes {package.__version__}"


def test_the_whole_way_leaves_the_files_that_are_documented(folder):
    run = folder / "run"
    for name in (
        "config.toml", "environment.json", "source.json", "split.parquet", "audit.json", "train.jsonl", "calibration.json",
        "quarantine.csv", "predictions-test.csv", "metrics-test.json", "samples.png", "report.html", "report.json",
    ):  # fmt: skip
        assert (run / name).stat().st_size > 0, name
    metrics = json.loads((run / "metrics-test.json").read_text())
    assert 0 <= metrics["auc"] <= 1
    assert "synthetic" in (run / "report.html").read_text().lower()
    assert {p.name for p in folder.iterdir()} == {"run", "config.toml"}


def test_predict_writes_a_row_per_file_and_tells_a_bad_one_by_its_exit_code(folder):
    source = open_source(DATA)
    pixels = np.rint(source.read(source.records()[0]) * 255).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "run" / "good.png")
    (folder / "run" / "bad.dcm").write_text("<html>not found</html>")
    # Eight steps and twelve validation images say little of what is typical: hence --force.
    files = ("run/good.png", "run/bad.dcm")
    done = scorebayes("predict", "run", *files, "--out", "run/out.csv", "--force", folder=folder)
    assert done.code == 3
    assert "bad.dcm" in done.err and "Traceback" not in done.err
    frame = pd.read_csv(folder / "run" / "out.csv")
    assert frame["status"].tolist()[0] == "ok" and frame["status"].tolist()[1].startswith("quarantined")
    assert frame.loc[0, ["prob_benign", "prob_malignant"]].sum() == pytest.approx(1)
    Image.fromarray(255 - pixels).save(folder / "run" / "inverted.png")
    done = scorebayes("predict", "run", "run/inverted.png", "--out", "run/out.csv", folder=folder)
    assert done.code == 3 and "abstained: atypical" in done.err
    done = scorebayes(
        "predict", "run", "run/inverted.png", "--out", "run/out.csv", "--force", "--quiet", folder=folder
    )
    assert done.code == 0 and not done.err
    assert pd.read_csv(folder / "run" / "out.csv").loc[0, "typical"] == "no"


def test_predict_takes_folders_and_passes_over_what_is_no_image(folder):
    given = folder / "given"
    (given / "visit" / ".hidden").mkdir(parents=True)
    source = open_source(DATA)
    pixels = np.rint(source.read(source.records()[0]) * 255).astype(np.uint8)
    for name in ("b.png", "a.png", "visit/.hidden/c.png", "visit/d.PNG"):
        Image.fromarray(pixels).save(given / name, format="PNG")
    (given / "a.png").rename(given / "visit" / "IM0001")  # as DICOM files often are: without a suffix
    (given / "notes.txt").write_text("no image")
    (given / "DICOMDIR").write_bytes(b"an index")
    done = scorebayes("predict", "run", "given", "--out", "folder.csv", "--force", folder=folder)
    assert done.code == 0, done.err
    assert pd.read_csv(folder / "folder.csv")["file"].tolist() == [
        "given/b.png",
        "given/visit/IM0001",
        "given/visit/d.PNG",
    ]
    (folder / "none").mkdir()
    done = scorebayes("predict", "run", "none", "--out", "none.csv", folder=folder)
    assert done.code == 3 and "none is a folder" in done.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("train --data nonsense:x --out r", "nonsense"),
        ("train --data medmnist:absent.npz --out r", "absent.npz"),
        ("train --data phantom --out r --preset smal", "did you mean 'small'"),
        ("train --data phantom --out r --config absent.toml", "absent.toml"),
        ("train --data phantom --out r --device cuda:0", "not available"),
        ("demo --data phantom --out r --device cuda:0", "not available"),
        ("score absent-run", "scorebayes train"),
        ("evaluate absent-run", "scorebayes train"),
        ("report absent-run", "scorebayes train"),
        ("predict absent-run x.png --out o.csv", "scorebayes train"),
    ],
)
def test_bad_input_is_one_clear_line_and_a_failure(tmp_path, arguments, says):
    done = scorebayes(*arguments.split(), folder=tmp_path)
    assert done.code == 1
    assert says in done.err
    assert "Traceback" not in done.err
    assert len([line for line in done.err.splitlines() if line.startswith("error:")]) == 1


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ("[train]\nstep = 5\n", "did you mean 'steps'"),
        ("[train]\nsteps = -5\n", "greater than 0"),
        ("[train]\nlr = nan\n", "finite"),
        ("[nets]\nblocks = 1\n", "did you mean 'net'"),
        ("[noise]\nkind = 'vpp'\n", "did you mean 'vp'"),
        ("[evidence]\nsources = ['pixel']\n", "did you mean 'pixels'"),
        ("[evidence]\nsources = []\n", "expected one or more"),
        ("[evidence.wavelets]\ngrid = 4\n", "unknown key 'grid' in [evidence.wavelets]"),
        ("[likelihood]\nkind = 'denoising'\nlevels = 'many'\n", "levels"),
        ("[train\n", "not a TOML file"),
        ("seed = -1\n", "seed"),
    ],
)
def test_a_wrong_configuration_names_field_and_remedy(tmp_path, toml, says):
    from scorebayes.runs.config import read_toml, resolve

    (tmp_path / "c.toml").write_text(toml)
    with pytest.raises(ConfigError) as caught:
        resolve(read_toml(tmp_path / "c.toml"), {"data": {"source": "phantom"}, "prepare": {"size": 16}})
    assert says in str(caught.value)


def test_a_configuration_survives_its_file():
    import tomllib

    from scorebayes.runs.config import PRESETS, resolve

    for preset in PRESETS:
        config = resolve({"data": {"source": "phantom"}, "prepare": {"size": 16}}, preset=preset)
        again = resolve(tomllib.loads(config.to_toml()), preset=None)
        assert not config.differences(again)


def test_a_file_overrides_the_preset_and_an_option_the_file(folder):
    config = tomllib.loads((folder / "run" / "config.toml").read_text())
    assert config["seed"] == 3
    assert config["train"]["steps"] == 8
    assert config["net"]["channels"] == [8, 16]
    assert config["train"]["ema"] == 0.99


def test_of_several_files_the_later_overrides(tmp_path):
    few = "[train]\nsteps = 1\n\n[likelihood]\nlevels = 2\n"
    (tmp_path / "first.toml").write_text(CONFIG.replace("batch = 8", "batch = 4"))
    (tmp_path / "second.toml").write_text(few)
    files = ("--config", "first.toml", "--config", "second.toml")
    done = scorebayes("train", "--data", DATA, "--out", "run", "--preset", "tiny", *files, folder=tmp_path)
    assert done.code == 0, done.err
    config = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    assert (config["train"]["batch"], config["train"]["steps"], config["likelihood"]["levels"]) == (4, 1, 2)


def test_an_error_in_a_process_of_its_own_is_a_line_and_a_failure():
    done = process("score", "absent-run")
    assert (done.returncode, done.stdout) == (1, "")
    assert "error: " in done.stderr and "Traceback" not in done.stderr


def test_with_debug_the_traceback_is_shown(tmp_path):
    with pytest.raises(ConfigError, match="absent-run"):
        scorebayes("--debug", "score", "absent-run", folder=tmp_path)


def test_the_doctor_tells_versions_and_an_absent_data_root(tmp_path):
    done = scorebayes("doctor", "--data-root", tmp_path, folder=tmp_path)
    assert done.code == 0 and "torch" in done.out
    assert scorebayes("doctor", "--data-root", tmp_path / "absent", folder=tmp_path).code == 1


def test_waiting_threads_leave_their_core_to_others_unless_the_user_says_otherwise():
    # Told by the library of the threads itself, when it is loaded.
    told = process("--version", then="import torch", OMP_DISPLAY_ENV="TRUE").stderr
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in told
    told = process("--version", then="import torch", OMP_DISPLAY_ENV="TRUE", OMP_WAIT_POLICY="ACTIVE").stderr
    assert "OMP_WAIT_POLICY = 'ACTIVE'" in told
