"""Shared by all tests: one thread each, and the data root with the real data."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with the real test data: $SCOREBAYES_DATA_ROOT or ../shared/data beside the project."""
    default = Path(__file__).parents[2] / "shared" / "data"
    root = Path(os.environ.get("SCOREBAYES_DATA_ROOT", default))
    if not root.is_dir():
        pytest.skip(f"real data absent: {root} is no folder (set SCOREBAYES_DATA_ROOT to the data root)")
    return root
