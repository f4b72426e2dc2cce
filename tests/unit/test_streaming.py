"""Scoring streams: its memory does not grow with the number of images."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass, replace
from types import MethodType

import numpy as np
import pytest
from fixtures.tiny_run import trained_tiny

from scorebayes.data.load import ImageSet
from scorebayes.decision.table import EvidenceTable
from scorebayes.diffusion.likelihood import LogProb
from scorebayes.runs.shards import shards
from scorebayes.stages import score as scoring

DRAWS = 2000


@dataclass(frozen=True)
class Constant:
    """An estimator with many draws and no network."""

    kind: str = "class-score"

    def __call__(self, score, x, draws):
        n = len(x)
        return LogProb(
            np.zeros((DRAWS, n, 2)), np.zeros((DRAWS, n)), np.zeros(DRAWS, dtype=np.int64),
            np.full(n, DRAWS), np.full(n, "ok"), self.kind,
        )  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained_tiny(tmp_path_factory.mktemp("runs") / "tiny")


def on_disk(images: ImageSet, n: int, path) -> ImageSet:
    """n images, one file, nothing in memory."""
    stored = np.memmap(path, images.images.dtype, "w+", shape=(n, *images.images.shape[1:]))
    stored[:] = images.images[np.arange(n) % len(images)]
    records = [replace(images.records[i % len(images)], image_id=f"image {i}") for i in range(n)]
    return ImageSet(stored, images.bits, tuple(records))


def test_peak_memory_of_scoring_is_that_of_a_part(run, monkeypatch, tmp_path):
    monkeypatch.setattr(scoring, "shards", lambda n, folder: shards(n, folder, images=4))
    monkeypatch.setattr(scoring, "make_likelihood", lambda run, estimator: Constant())
    images = run.images("test")

    def peak(n):
        many = on_disk(images, n, tmp_path / f"{n}.bin")
        monkeypatch.setattr(run, "images", MethodType(lambda self, split: many, run))
        tracemalloc.start()
        folder = scoring.score_split(run, "test", f"constant-{n}")
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(list(folder.glob("part-*.parquet"))) == n // 4
        assert len(EvidenceTable.read(folder)) == n
        return most

    peak(4)  # what is imported and cached at the first call
    few, many = peak(8), peak(80)
    table = 80 * DRAWS * 2 * 8
    assert few > 4 * DRAWS * 2 * 8, "the parts are not seen by the measurement"
    assert many - few < 0.1 * table
