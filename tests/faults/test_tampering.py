"""A changed byte or a cut in any file of a run: refused in words, or without effect; no other answer, no traceback.

``SCOREBAYES_TAMPER=1000 pytest tests/faults/test_tampering.py -s`` tries a thousand changes and prints what came of them.
"""

from __future__ import annotations

import os
import pickle
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures.tiny_run import DATA, LAYER, finish
from PIL import Image

from scorebayes import open_run
from scorebayes.baselines import read_predictions
from scorebayes.data import open_source
from scorebayes.errors import ScoreBayesError
from scorebayes.report import write_report
from scorebayes.report.files import Run as Stored
from scorebayes.stages import train as stages
from scorebayes.stages.evaluate import evaluate
from scorebayes.stages.predict import predict_files
from scorebayes.stages.score import read_table
from scorebayes.storage.lock import LOCK

TRIES = int(os.environ.get("SCOREBAYES_TAMPER", 60))
READ_BY_THE_REPORT = (
    "config", "source", "environment", "audit", "calibration", "metrics", "maker", "split_table", "predictions",
    "quarantine", "evidence", "weights", "log",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run with all its files: of pictures in a folder, so that they are in its cache, scored, evaluated and reported."""
    folder = tmp_path_factory.mktemp("tampered")
    source = open_source(DATA)
    for record in source.records():
        picture = folder / "images" / source.info.classes[record.label] / f"{record.image_id}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.rint(source.read(record) * 255).astype(np.uint8)).save(picture)
    run = finish(
        stages.train(folder / "run", f"folder:{folder / 'images'}", [LAYER], "tiny", torch.device("cpu"))
    )
    evaluate(run, "test")
    write_report(run.path)
    return run.path


def predicted(path: Path) -> Any:
    pictures = sorted((path.parent / "images").rglob("*.png"))[:1]
    return predict_files(open_run(path, "cpu"), pictures, force=True).drop(columns="seconds").to_csv()


def from_stored_tables(path: Path) -> Any:
    run = open_run(path, "cpu")
    tables = [read_table(run, split) for split in ("val", "test")]
    logits = [run.calibration.logits(table) for table in tables]
    baseline = read_predictions(run, "logistic", "test")
    assert baseline is not None
    return pickle.dumps([logits, [t.keys for t in tables], [t.labels for t in tables], baseline.to_csv()])


def prepared(path: Path) -> Any:
    images = open_run(path, "cpu").images("test")
    return images.images.tobytes(), images.keys, images.labels.tobytes()


def reported(path: Path) -> Any:
    stored = Stored(path)
    arrays = {name: array.tobytes() for name, array in (stored.arrays("thumbnails.npz") or {}).items()}
    return pickle.dumps([*(_plain(getattr(stored, name)) for name in READ_BY_THE_REPORT), arrays])


def _plain(value: Any) -> Any:
    if hasattr(value, "to_csv"):
        return value.to_csv()
    return value.to_frame().to_csv() if hasattr(value, "to_frame") else value


ANSWERS: tuple[Callable[[Path], Any], ...] = (predicted, from_stored_tables, prepared, reported)


def outcome(path: Path, answer: Callable[[Path], Any]) -> Any:
    """What a run answers; None where it refuses, in one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return answer(path)
    except ScoreBayesError as error:
        assert str(error).strip() and "\n" not in str(error)
        return None


def changed(content: bytes, random: np.random.Generator) -> bytes:
    """A bit flipped, a byte replaced, or the end cut off."""
    place, kind = int(random.integers(len(content))), random.integers(3)
    if kind == 0:
        return content[:place]
    other = content[place] ^ (1 << int(random.integers(8))) if kind == 1 else int(random.integers(256))
    return content[:place] + bytes([other]) + content[place + 1 :]


def test_a_changed_byte_or_a_cut_is_refused_or_changes_nothing(run):
    expected = {answer: outcome(run, answer) for answer in ANSWERS}
    assert None not in expected.values()
    random = np.random.default_rng(0)
    files = sorted(path for path in run.rglob("*") if path.is_file() and path.name != LOCK)
    counts: Counter[str] = Counter()
    different = []
    for number in range(TRIES):
        path = files[number % len(files)]
        content = path.read_bytes()
        path.write_bytes(changed(content, random))
        found = {answer: outcome(run, answer) for answer in ANSWERS}
        if any(of is not None and of != expected[answer] for answer, of in found.items()):
            different.append(path.name)
        counts["refused" if None in found.values() else "same"] += 1
        path.write_bytes(content)
    sys.stdout.write(f"\n{TRIES} changes of {len(files)} files: {dict(counts)}, {len(different)} different\n")
    assert not different
    assert counts["refused"] > TRIES / 3
    assert {answer: outcome(run, answer) for answer in ANSWERS} == expected
