"""Files of a run that were changed, damaged or made by a stranger; and outputs that must not lie among them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from scorebayes.cli.main import app
from scorebayes.decision.decision import Decision
from scorebayes.errors import ConfigError, DataError, ScoreBayesError
from scorebayes.report.places import without_places
from scorebayes.runs.config import resolve
from scorebayes.runs.facts import read_facts
from scorebayes.runs.inputs import start_run
from scorebayes.storage import sealed
from scorebayes.storage.checkpoint import Checkpoints

CPU = torch.device("cpu")
FACTS = {
    "format": 4, "name": "n", "title": "t", "classes": ["a", "b"], "positive": 1, "mean": 0.5, "std": 0.1,
    "train_counts": [3, 4],
}  # fmt: skip
DECISION = {
    "weights": {"pixels": [1.0, 2.0]}, "bias": [0.1, -0.1], "level_log_snr": {"pixels": [0.0, 1.0]},
    "kinds": {"pixels": "class-score"}, "penalties": {}, "shares": {}, "log_loss": 0.5, "n": 9, "draw_means": {},
    "threshold": 0.4, "log_prior": [-0.7, -0.7],
}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The bones of a run."""
    folder = tmp_path / "run"
    folder.mkdir()
    sealed.begin(folder)
    sealed.write(folder / "config.toml", "seed = 1\n")
    sealed.write(folder / "source.json", json.dumps(FACTS))
    Checkpoints(folder / "checkpoints").save("step", 1, {"w": torch.zeros(2)}, val_log_loss=0.5)
    return folder


def doctor(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["doctor", *map(str, words), "--quiet"])
    return done.exit_code, done.output


def test_the_doctor_tells_what_was_changed_and_accepts_it(run: Path) -> None:
    assert doctor(run) == (0, "all files are as they were written\n")
    (run / "config.toml").write_text("seed = 2\n")
    weights = next((run / "checkpoints").glob("step-*"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    code, words = doctor(run)
    assert (
        code == 1
        and "config.toml:" in words
        and f"checkpoints/{weights.name}:" in words
        and "--accept" in words
    )
    assert doctor(run, "--accept")[0] == 0
    assert doctor(run) == (0, "all files are as they were written\n")
    checkpoints = Checkpoints(run / "checkpoints")
    assert checkpoints.load(checkpoints.best())["w"][-1] != 0


def test_the_doctor_seals_a_run_of_an_older_format(run: Path) -> None:
    (run / sealed.SEAL).unlink()
    assert "not sealed" in doctor(run)[1] and not sealed.is_sealed(run)
    assert doctor(run, "--accept")[0] == 0 and sealed.is_sealed(run)
    assert doctor(run.parent)[0] == 2 or "not a run directory" in str(
        CliRunner().invoke(app, ["doctor", str(run.parent)]).exception
    )


@pytest.mark.parametrize(
    "name", ["../../victim", "state-x/../../../victim", "/etc/passwd", "step-1.txt", 5, None]
)
def test_a_manifest_cannot_name_files_elsewhere(run: Path, name: object) -> None:
    """H7: a manifest of a stranger removed files outside of the run."""
    victim = run.parent / "victim"
    victim.write_text("mine")
    checkpoints = Checkpoints(run / "checkpoints")
    entry = {"file": name, "sha256": "0" * 64, "step": 1, "seconds": 1.0, "val_log_loss": 1.0}
    (run / "checkpoints" / "manifest.json").write_text(json.dumps([entry]))
    sealed.accept(run)
    for act in (
        lambda: checkpoints.keep("state", lambda _: []),
        lambda: checkpoints.entries("step"),
        checkpoints.best,
    ):
        with pytest.raises(DataError, match="damaged"):
            act()
    assert victim.read_text() == "mine"


@pytest.mark.parametrize(
    "content", ["", "[]", "7", "[" * 99999, "{", '{"format": "x"}', '{"format": 4}', "\xff"]
)
def test_damaged_facts_are_refused_in_one_line(run: Path, content: str) -> None:
    (run / "source.json").write_bytes(content.encode("latin-1"))
    sealed.accept(run)
    with pytest.raises(ScoreBayesError, match="damaged") as error:
        read_facts(run)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"std": 0},
        {"std": float("nan")},
        {"mean": "x"},
        {"train_counts": [1]},
        {"positive": 2},
        {"classes": None},
    ],
)
def test_facts_that_make_no_sense_are_refused(run: Path, changes: dict) -> None:
    (run / "source.json").write_text(json.dumps(FACTS | changes))
    sealed.accept(run)
    with pytest.raises(DataError, match="damaged"):
        read_facts(run)


@pytest.mark.parametrize(
    "changes",
    [
        {"weights": {"pixels": [1.0, float("nan")]}}, {"bias": [0.1, float("inf")]}, {"threshold": float("nan")},
        {"log_prior": [float("nan"), 0.0]}, {"log_prior": [0.0]}, {"weights": {"pixels": 1.0}}, {"weights": None},
    ],
)  # fmt: skip
def test_a_decision_of_no_numbers_is_none(changes: dict) -> None:
    """H2: "benign, decided yes" by weights that were NaN."""
    assert Decision.from_dict(DECISION).threshold == 0.4
    with pytest.raises((LookupError, TypeError, ValueError, AttributeError)):
        Decision.from_dict(DECISION | changes)


@pytest.mark.parametrize(
    "name", ["config.toml", "metrics-test.json", "checkpoints/x.csv", "sealed.json", "lock", "."]
)
def test_no_output_takes_the_place_of_a_file_of_a_run(run: Path, name: str) -> None:
    """H11: ``predict --out`` overwrote the configuration."""
    with pytest.raises(ConfigError, match="belongs to the run"):
        sealed.require_free(run / name)
    (run.parent / "link.csv").symlink_to(run / "config.toml")
    with pytest.raises(ConfigError, match="belongs to the run"):
        sealed.require_free(run.parent / "link.csv")
    sealed.require_free(run / "mine.csv")
    sealed.require_free(run.parent / "mine.csv")


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ({"train": {"lr": True}}, "lr = True"), ({"train": {"steps": "7"}}, "steps = '7'"),
        ({"train": {"flip": "no"}}, "flip = 'no'"), ({"train": {"flip": 1}}, "flip = 1"),
        ({"net": {"channels": [8, "9"]}}, "channels.1"), ({"train": {"lr": 1e300}}, "at most"),
        ({"train": {"batch": 10**9}}, "at most"), ({"likelihood": {"levels": 10**8}}, "at most"),
        ({"train": {"steps": 10**500}}, "a huge number"), ({"evidence": {"sources": "pixels"}}, "valid list"),
    ],
)  # fmt: skip
def test_values_of_another_type_or_beyond_all_bounds_are_refused(layer: dict, words: str) -> None:
    """H8, H12."""
    with pytest.raises(ConfigError, match=words) as error:
        resolve({"data": {"source": "phantom"}, "prepare": {"size": 16}}, layer)
    assert len(str(error.value)) < 300


def test_a_whole_number_will_do_where_any_number_does() -> None:
    config = resolve({"data": {"source": "phantom"}, "prepare": {"size": 16}, "train": {"lr": 1}})
    assert config.train.lr == 1.0


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ({"net": {"heads": 7}}, "heads = 7"),
        ({"net": {"channels": [8] * 99}}, "99 widths"),
        ({"likelihood": {"std": -1.0}}, "std"),
    ],
)
def test_what_cannot_be_built_is_refused_before_an_image_is_read(
    tmp_path: Path, layer: dict, words: str
) -> None:
    """H9."""
    with pytest.raises(ConfigError, match=words):
        start_run(tmp_path / "run", "phantom:n_patients=12,size=16", [layer], "tiny", CPU)
    assert not (tmp_path / "run" / "split.parquet").exists()


def test_a_report_does_not_say_where_the_data_lie() -> None:
    """H15: names of users."""
    data = {"source": "folder:/home/al_ice/breast data", "options": {"table": "/mnt/x/labels.csv"}}
    text = 'folder:/home/al_ice/breast data, "/mnt/x/labels.csv", /home/al\\_ice/breast data/7.png, https://a.b/mnt/x'
    found = without_places(text, data)
    assert found == 'folder:breast data, "labels.csv", breast data/7.png, https://a.b/mnt/x'
    assert without_places(str(Path.home() / "runs"), {}) == "~/runs"
