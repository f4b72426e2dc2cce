"""The seal of a run directory: what was changed is refused, what was killed is whole, and nothing leads out of it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from fixtures.kills import killed_at

from scorebayes.errors import ConfigError, DataError
from scorebayes.storage import atomic, sealed
from scorebayes.storage.arrays import read_arrays
from scorebayes.storage.log import append_to_log, read_log
from scorebayes.storage.timings import note_seconds, seconds_of


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    sealed.begin(folder)
    sealed.write(folder / "facts.json", '{"mean": 1}')
    sealed.make_folder(folder / "evidence-val.parquet")
    sealed.write(folder / "evidence-val.parquet/part-000000.parquet", b"numbers")
    return folder


def test_a_changed_file_is_refused_with_the_command_that_accepts_it(run: Path) -> None:
    path = run / "facts.json"
    path.write_text('{"mean": 2}')
    with pytest.raises(
        ConfigError, match=r"facts\.json: the file has changed .*scorebayes doctor .*run --accept"
    ) as error:
        sealed.read_json(path)
    assert "\n" not in str(error.value)
    assert sealed.differences(run) == {"facts.json": "changed"}
    assert sealed.accept(run) == {"facts.json": "changed"}
    assert sealed.read_json(path) == {"mean": 2} and not sealed.differences(run)


def test_what_the_seal_does_not_list_is_not_read(run: Path) -> None:
    (run / "calibration.json").write_text("{}")
    with pytest.raises(ConfigError, match="has changed"):
        sealed.read(run / "calibration.json")
    assert sealed.differences(run) == {"calibration.json": "not sealed"}


def test_without_a_seal_files_are_read_as_they_are_until_they_get_one(tmp_path: Path) -> None:
    for name in sealed.MARKS:
        (tmp_path / name).write_text("")
    sealed.write(tmp_path / "a.json", "1")
    assert not sealed.is_sealed(tmp_path) and sealed.read(tmp_path / "a.json") == b"1"
    sealed.accept(tmp_path)
    (tmp_path / "a.json").write_text("2")
    with pytest.raises(ConfigError, match="has changed"):
        sealed.read(tmp_path / "a.json")


@pytest.mark.parametrize(
    "spoil", [lambda text: text[:-40], lambda text: text.replace("facts", "fakts"), lambda _: "[" * 9999]
)
def test_a_damaged_seal_is_refused_and_can_be_made_anew(run: Path, spoil: Callable[[str], str]) -> None:
    (run / sealed.SEAL).write_text(spoil((run / sealed.SEAL).read_text()))
    with pytest.raises(ConfigError, match="--accept"):
        sealed.read(run / "facts.json")
    assert sealed.accept(run)[sealed.SEAL] == "damaged"
    assert sealed.read_json(run / "facts.json") == {"mean": 1}


def test_removed_files_leave_the_seal(run: Path) -> None:
    sealed.remove(run / "evidence-val.parquet")
    assert not sealed.differences(run) and "evidence" not in (run / sealed.SEAL).read_text()


@pytest.mark.parametrize("replace", [True, False])
def test_killed_at_any_operation_a_file_is_whole_and_known(run: Path, replace: bool) -> None:
    """Killed for good, so that nothing is tidied up, at the k-th of all operations of a write."""
    path = run / ("facts.json" if replace else "new.json")
    before, after = (b'{"mean": 1}' if replace else None), b'{"mean": 3}'
    seen = set()
    for k in range(40):
        killed = killed_at(k, lambda: sealed.write(path, after))
        found = sealed.read(path) if path.exists() else None
        assert found in (before, after)
        seen.add(found)
        assert not sealed.differences(run) or sealed.differences(run) == {"new.json": "missing"}
        if not killed:
            break
        if path.exists():
            sealed.write(path, before) if replace else sealed.remove(path)
    assert not killed and k > 4 and seen == {before, after}


def test_a_reader_beside_a_writer_sees_one_of_the_two(run: Path) -> None:
    path = run / "facts.json"
    if not (child := os.fork()):
        for number in range(60):
            sealed.write(path, json.dumps({"mean": number}))
        os._exit(0)
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        assert "mean" in sealed.read_json(path)
    assert sealed.read_json(path) == {"mean": 59}


@pytest.mark.parametrize("name", ["facts.json", "evidence-val.parquet", sealed.SEAL])
def test_links_in_a_run_are_neither_read_nor_written(run: Path, name: str) -> None:
    """H7: what they lead to stays as it is."""
    outside = run.parent / "outside"
    (run / name).rename(outside)
    (run / name).symlink_to(outside)
    inner = run / name / "part-000000.parquet" if outside.is_dir() else run / name
    before = sorted(path.read_bytes() for path in [outside, *outside.rglob("*")] if path.is_file())
    for act in (
        lambda: sealed.read(inner), lambda: sealed.write(inner, b"new"), lambda: sealed.remove(inner),
        lambda: sealed.accept(run),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match="links within a run directory"):
            act()
    assert sorted(path.read_bytes() for path in [outside, *outside.rglob("*")] if path.is_file()) == before


def test_a_log_and_timings_that_are_links_are_not_followed(run: Path) -> None:
    for name in ("train.jsonl", "timings.json"):
        (run / name).symlink_to(run.parent / "victim")
    with pytest.raises(ConfigError, match="links"):
        append_to_log(run / "train.jsonl", {"step": 1})
    with pytest.raises(ConfigError, match="links"):
        note_seconds(run, "wavelets", 1.0)
    assert not (run.parent / "victim").exists()


def test_a_seal_whose_names_lead_out_of_the_run_is_refused(run: Path) -> None:
    files = {"../victim.json": ("0" * 64,)}
    (run / sealed.SEAL).write_text(json.dumps({"sha256": sealed._digest_of(files), "files": files}))
    with pytest.raises(ConfigError, match="damaged"):
        sealed.differences(run)
    with pytest.raises(ConfigError, match="leads out"):
        sealed.write(run / "evidence-val.parquet" / ".." / ".." / "victim.json", b"")


@pytest.mark.parametrize("name", ["facts.json", sealed.SEAL])
def test_a_pipe_in_the_place_of_a_file_is_refused_at_once(run: Path, name: str) -> None:
    (run / name).unlink()
    os.mkfifo(run / name)
    with pytest.raises(ConfigError, match="ordinary file"):
        sealed.read(run / "facts.json")


def test_a_file_has_the_modes_that_every_new_file_has(tmp_path: Path) -> None:
    """H15: weights were private."""
    (tmp_path / "new").touch()
    with atomic.replacing(tmp_path / "weights") as partial:
        partial.unlink()
        partial.touch(0o600)
    assert (tmp_path / "weights").stat().st_mode == (tmp_path / "new").stat().st_mode


def test_a_damaged_line_of_a_log_is_left_out_with_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    for step in range(3):
        append_to_log(path, {"step": step, "loss": 0.5})
    assert [entry["step"] for entry in read_log(path)] == [0, 1, 2] and read_log(path)[0] == {
        "step": 0,
        "loss": 0.5,
    }
    path.write_bytes(path.read_bytes().replace(b'"step": 1, "loss": 0.5', b'"step": 1, "loss": 9.5'))
    with pytest.warns(UserWarning, match="line 2"):
        assert [entry["step"] for entry in read_log(path)] == [0, 2]


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 nothing", b"\x93NUMPY\x01\x00\x04\x00((((", b"\x80\x04\x95."]
)
def test_damaged_arrays_are_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "thumbnails.npz").write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        read_arrays(tmp_path / "thumbnails.npz")


def test_times_that_are_lost_are_unknown(tmp_path: Path) -> None:
    note_seconds(tmp_path, "wavelets", 2.0)
    assert seconds_of(tmp_path, "wavelets") == 2
    (tmp_path / "timings.json").write_text("[1")
    assert seconds_of(tmp_path, "wavelets") != seconds_of(tmp_path, "wavelets")
