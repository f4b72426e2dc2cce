"""One process works in a run directory; a dead one does not count; without the system's locks it is the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from scorebayes.errors import ConfigError
from scorebayes.runs.config import read_toml
from scorebayes.runs.inputs import start_run
from scorebayes.stages import train as stages
from scorebayes.storage import sealed
from scorebayes.storage.lock import HELD, LOCK, locked

HOLDER = """
import errno, fcntl, sys, time
from pathlib import Path
def refused(*_): raise OSError(errno.ENOLCK, "No locks available")
if sys.argv[2] == "without flock": fcntl.flock = refused
from scorebayes.storage.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""
SYSTEMS = pytest.mark.parametrize("system", ["with flock", "without flock"])


@contextmanager
def another_process(folder: Path, system: str) -> Iterator[subprocess.Popen]:
    """A process that holds the lock of a folder."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), system], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        yield holder
    finally:
        holder.kill()
        holder.wait()


def without_flock(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno
    import fcntl

    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    if system == "without flock":
        monkeypatch.setattr(fcntl, "flock", refused)


@SYSTEMS
def test_a_second_process_is_refused_and_a_killed_one_does_not_count(tmp_path, monkeypatch, system):
    """H13: NFS without flock said "No locks available"."""
    without_flock(system, monkeypatch)
    with another_process(tmp_path, system) as holder:
        with (
            pytest.raises(ConfigError, match="another process is working in this run directory"),
            locked(tmp_path),
        ):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with locked(tmp_path), locked(tmp_path):
            assert (tmp_path / HELD).exists() == (system == "without flock")
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("start", [start_run, stages.begin, stages.train])
def test_a_second_training_is_refused_before_it_writes_anything(tmp_path, start):
    """H1: the first run went on with the split of the second."""
    folder = tmp_path / "run"
    folder.mkdir()
    with another_process(folder, "with flock"):
        sealed_before = sorted(path.name for path in folder.iterdir())
        with pytest.raises(ConfigError, match="another process"):
            start(folder, "phantom:n_patients=12,size=16", [{}], "tiny", torch.device("cpu"))
        assert sorted(path.name for path in folder.iterdir()) == sealed_before == [LOCK]


@pytest.mark.parametrize("kind", ["pipe", "link", "folder"])
def test_what_is_no_lock_is_refused_in_one_line(tmp_path, kind):
    """H7, H13: a link's target was emptied, and a pipe hung."""
    run, victim = tmp_path / "run", tmp_path / "victim"
    run.mkdir()
    victim.write_text("mine")
    {"pipe": os.mkfifo, "link": lambda path: path.symlink_to(victim), "folder": Path.mkdir}[kind](run / LOCK)
    with pytest.raises(ConfigError, match="lock: expected an ordinary file"), locked(run):
        pass
    assert victim.read_text() == "mine"


def test_a_configuration_that_is_a_pipe_or_nested_without_end_is_refused_in_one_line(tmp_path):
    """H9, H13."""
    os.mkfifo(tmp_path / "pipe.toml")
    with pytest.raises(ConfigError, match="no configuration file"):
        read_toml(tmp_path / "pipe.toml")
    path = tmp_path / "deep.toml"
    for text in ("a = " + "[" * 5000, "a = " + "{b=" * 5000, "a" + ".b" * 50_000 + " = 1"):
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"deep\.toml: its tables or lists are nested too deeply"):
            read_toml(path)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_run_directory_that_is_moved_away_stops_the_work(tmp_path, replaced):
    """H14: training went on in a directory that it made anew, or in that of another run."""
    run = tmp_path / "run"
    run.mkdir()
    with locked(run):
        sealed.begin(run)
        run.rename(tmp_path / "moved")
        if replaced:
            run.mkdir()
            (run / sealed.SEAL).write_text((tmp_path / "moved" / sealed.SEAL).read_text())
        with pytest.raises(ConfigError, match="moved"):
            sealed.write(run / "facts.json", "{}")
        with pytest.raises(ConfigError, match="moved"):
            sealed.make_folder(run / "checkpoints")
    assert not (run / "facts.json").exists() and run.exists() == replaced
