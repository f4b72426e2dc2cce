"""Killed at any file operation and started again, a run ends with the same files as one that nobody disturbed.

``SCOREBAYES_KILLS=200 pytest tests/faults/test_kills.py -s`` kills two hundred times, spread over all operations.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from fixtures.kills import killed_at
from fixtures.tiny_run import DATA, LAYER

from scorebayes.stages import train as stages
from scorebayes.stages.score import score_split
from scorebayes.storage import sealed

KILLS = int(os.environ.get("SCOREBAYES_KILLS", 2))
LITTLE = {"train": {"steps": 4, "validate_every": 2}, "evidence": {"sources": ["pixels"]}}
TIMES = ("seconds", "images_per_second")


def work(path: Path) -> None:
    """Train and score, from wherever an earlier attempt was stopped."""
    warnings.simplefilter("ignore")
    run = stages.train(path, DATA, [LAYER, LITTLE], "tiny", torch.device("cpu"), resume=path.exists())
    score_split(run, "test")


def files_of(path: Path) -> dict[str, Any]:
    """What the files say, but for times."""
    found: dict[str, Any] = {}
    for name in sealed.names_below(path):
        content = (path / name).read_bytes()
        if name.endswith(".parquet"):
            table = pd.read_parquet(io.BytesIO(content))
            found[name] = table.drop(columns="seconds", errors="ignore").to_csv()
        elif name.endswith("manifest.json"):
            found[name] = [{k: of for k, of in e.items() if k != "seconds"} for e in json.loads(content)]
        elif name == sealed.SEAL:
            found[name] = sorted(json.loads(content)["files"])
        elif name == "train.jsonl":
            lines = [json.loads(line) for line in content.splitlines()]
            found[name] = [{k: of for k, of in e.items() if k not in (*TIMES, "check")} for e in lines]
        elif name != "timings.json":
            found[name] = content
    return found


@pytest.mark.slow
def test_killed_anywhere_and_started_again_the_files_are_the_same(tmp_path):
    expected_at, operations = tmp_path / "undisturbed", 0
    assert not killed_at(10**6, lambda: work(expected_at))
    expected = files_of(expected_at)
    path, killed, different = tmp_path / "run", 0, []
    for k in _places(path):
        if not killed_at(k, lambda: work(path)):
            break
        killed, operations = killed + 1, max(operations, k)
        assert not killed_at(10**6, lambda: work(path))
        different += [(k, name) for name, of in files_of(path).items() if of != expected.get(name)]
        assert not sealed.differences(path)
        shutil.rmtree(path)
    sys.stdout.write(f"\n{killed} kills up to operation {operations}: {len(different)} files differ\n")
    assert not different and killed >= min(KILLS, 2)


def _places(path: Path) -> list[int]:
    """Operations to kill at, spread evenly over about 220 of them, at random within each part."""
    parts = np.linspace(0, 220, KILLS + 1)
    random = np.random.default_rng(0)
    return [int(random.integers(int(a), max(int(a) + 1, int(b)))) for a, b in itertools.pairwise(parts)]
