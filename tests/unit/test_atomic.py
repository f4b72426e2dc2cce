"""A reader sees the old file or the new one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from scorebayes.storage.atomic import replacing, write_atomically


def test_the_file_is_replaced_at_the_end_of_the_block(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    write_atomically(path, "old")
    with replacing(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_fails_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    write_atomically(path, b"old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as partial:
        partial.write_text("ne")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_in_the_place_of_an_unfinished_file_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/table.csv.partial").symlink_to(victim)
    write_atomically(tmp_path / "run/table.csv", "new")
    assert victim.read_text() == "mine"
    assert (tmp_path / "run/table.csv").read_text() == "new"


def test_file_and_folder_reach_the_disk_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda number: order.append("sync") or fsync(number))
    monkeypatch.setattr(Path, "replace", lambda a, b: order.append("rename") or replace(a, b))
    write_atomically(tmp_path / "a", "x")
    assert order == ["sync", "rename", "sync"]
