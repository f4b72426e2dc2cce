"""The same file gives the same prepared pixels at every stage: for every data set and every option it has."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from contract.test_sources import MADE
from fixtures import native_trees
from fixtures.tiny_run import LAYER
from PIL import Image
from pytest import MonkeyPatch

from scorebayes.cli.main import app
from scorebayes.data import SOURCES, Source, open_source
from scorebayes.data.prepare import Prepare
from scorebayes.errors import DataError
from scorebayes.explain.pictures import explain_file
from scorebayes.runs.config import resolve
from scorebayes.runs.reader import Reader
from scorebayes.runs.run import Run
from scorebayes.sklearn import ScoreBayesClassifier
from scorebayes.stages import train as stages
from scorebayes.stages.recalibrate import recalibrate

Levels = dict[str, np.ndarray]


def _twelve_bits(root: Path, n: int = 6) -> str:
    """A folder of 12-bit pictures in 16 bits, two a patient."""
    for k in range(n):
        path = root / ("benign", "malignant")[k // 2 % 2] / f"P{k // 2:03d}_{k % 2}.png"
        path.parent.mkdir(exist_ok=True)
        grey = np.random.default_rng(k).integers(0, 4096, (24, 20)).astype(np.uint16)
        Image.fromarray(grey).save(path)
    return f"folder:{root}"


def _native(kind: str) -> Callable[[Path], str]:
    build = {
        "cbis-ddsm": native_trees.cbis_ddsm,
        "inbreast": native_trees.inbreast,
        "vindr-mammo": native_trees.vindr_mammo,
    }
    return lambda root: f"{kind}:{build[kind](root)}"


BUILD = {**MADE, "folder": _twelve_bits, **{kind: _native(kind) for kind in set(SOURCES) - set(MADE)}}
# Every option of every kind at a value that is not its default; "" is the data set without options.
MAMMOGRAMS = [{"task": "crop"}, {"task": "crop", "margin": 0.5}, {"task": "breast"}]
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "phantom": [
        {"bits": 12}, {"size": 24}, {"n_patients": 4}, {"views": 1}, {"difficulty": 0.6}, {"skew": 0.5}, {"seed": 3},
    ],
    "folder": [
        {"bits": 12}, {"bits": 13}, {"classes": "malignant,benign"}, {"positive": "benign"},
        {"patient_pattern": r"(P\d+)_"},
    ],
    "arrays": [{"positive": "benign"}, {"bits": 12}],
    "medmnist": [],
    "ddsm64": [{"given_val": "val"}],
    "cbis-ddsm": [*MAMMOGRAMS, {"lesions": "mass"}, {"split": "none"}, {"leak_side": "test"}],
    "inbreast": [*MAMMOGRAMS, {"convention": "1-2/4-6"}],
    "vindr-mammo": [*MAMMOGRAMS, {"convention": "1-2/4-5"}, {"split": "none"}],
}  # fmt: skip
ELSEWHERE = {("cbis-ddsm", "tables")}  # a place, not a way of reading
CASES = [(kind, options) for kind in sorted(SOURCES) for options in [{}, *OPTIONS.get(kind, [])]]


@pytest.mark.parametrize("kind", sorted(SOURCES))
def test_every_option_is_tried(kind: str) -> None:
    known = {p.name for p in inspect.signature(SOURCES[kind]).parameters.values() if p.kind is p.KEYWORD_ONLY}
    tried = {name for options in OPTIONS[kind] for name in options}
    assert known - {name for of, name in ELSEWHERE if of == kind} == tried, "a new option: add it to OPTIONS"


@pytest.mark.parametrize(("kind", "options"), CASES, ids=lambda value: str(value))
def test_every_way_to_the_pixels_is_the_same(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    """P5: cache cold and warm, a split, another data set of the same kind, a single file, an array."""
    (tmp_path / "data").mkdir()
    data = BUILD[kind](tmp_path / "data")
    source = open_source(data, **options)
    reader = _reader(tmp_path / "run", data, options, source)
    expected = _expected(source, reader.config.prepare)
    assert expected
    for _ in ("cold", "warm"):
        images, _ = reader.load(source, source.records(), options)
        _assert_same(dict(zip(images.keys, images.images, strict=True)), expected)
    table = pd.DataFrame(
        [
            (r.image_id, -1 if r.label is None else r.label, "test")
            for r in source.records()
            if r.image_id in expected
        ],
        columns=["image_id", "label", "split"],
    )
    images = reader.split(table, "test")
    _assert_same(dict(zip(images.keys, images.images, strict=True)), expected)
    labelled = {r.image_id for r in source.records() if r.label is not None} & expected.keys()
    images = reader.labelled(data)
    _assert_same(dict(zip(images.keys, images.images, strict=True)), {key: expected[key] for key in labelled})
    for record in source.records():
        whole = options.get("task") != "crop" and record.path.is_file() and record.path.suffix != ".npz"
        if whole and record.image_id in expected:
            levels, _ = reader.file(record.path)
            np.testing.assert_array_equal(levels, expected[record.image_id])
            if record.path.suffix == ".png":
                levels, _ = reader.array(np.asarray(Image.open(record.path)))
                np.testing.assert_array_equal(levels, expected[record.image_id])


@pytest.mark.parametrize(
    ("kind", "options"), [case for case in CASES if case[1]], ids=lambda value: str(value)
)
def test_the_cache_is_not_shared_by_other_options(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    """P5: a cache that was filled without the option."""
    (tmp_path / "data").mkdir()
    data = BUILD[kind](tmp_path / "data")
    plain, source = open_source(data), open_source(data, **options)
    _reader(tmp_path / "run", data, {}, plain, bits=8).load(plain, plain.records(), {})
    reader = _reader(tmp_path / "run", data, options, source, bits=8)
    images, _ = reader.load(source, source.records(), options)
    _assert_same(dict(zip(images.keys, images.images, strict=True)), _expected(source, reader.config.prepare))


@pytest.fixture(scope="module")
def twelve(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[Path, np.ndarray]]:
    """A run on 12-bit pictures with options of the data set, and the true grey values k / 4095 of every file."""
    folder = tmp_path_factory.mktemp("twelve")
    (folder / "data").mkdir()
    data = _twelve_bits(folder / "data", 48)
    layer = {
        "data": {"options": {"bits": 12, "patient_pattern": r"(P\d+)_", "classes": "malignant,benign"}},
        "prepare": {"size": 24, "bits": 12},
        "evidence": {"sources": ["pixels"]},
    }
    run = stages.train(folder / "run", data, [LAYER, layer], "tiny", torch.device("cpu"))
    prepare = run.config.prepare
    files = sorted((folder / "data").rglob("*.png"))
    return run, {path: prepare(np.asarray(Image.open(path)) / np.float32(4095)) for path in files}


def test_a_run_with_options_shows_the_same_pixels_at_every_stage(
    twelve: tuple[Run, dict[Path, np.ndarray]], tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    """P5: train and score, predict, explain, recalibrate, data show."""
    run, truth = twelve
    by_name = {path.relative_to(path.parents[1]).as_posix(): levels for path, levels in truth.items()}
    for split in ("train", "val", "test"):
        images = run.images(split)
        assert images.keys
        for key, levels in zip(images.keys, images.images, strict=True):
            np.testing.assert_array_equal(levels, by_name[key])
    path, levels = next(iter(truth.items()))
    x, _, _ = run.read(path)
    np.testing.assert_array_equal(x, run.standardise(levels[None]))
    explain_file(run, path, tmp_path / "explained", with_counterfactual=False)
    with np.load(tmp_path / "explained/evidence.npz") as arrays:
        np.testing.assert_array_equal(arrays["image"], run.restore(run.standardise(levels[None]))[0])

    seen: list[np.ndarray] = []
    call = Prepare.__call__
    monkeypatch.setattr(Prepare, "__call__", lambda *given: seen.append(call(*given)) or seen[-1])
    new = recalibrate(run, f"folder:{path.parents[1]}", tmp_path / "there").run
    assert new.config.data.options == run.config.data.options
    _assert_each_is_one_of(seen, truth.values())
    seen.clear()
    options = ["--option", "bits=12", "--size", "24", "--out", str(tmp_path / "sheet.png")]
    app(["data", "show", f"folder:{path.parents[1]}", *options], standalone_mode=False)
    _assert_each_is_one_of(seen, truth.values())


def test_arrays_of_the_classifier_are_prepared_as_in_training() -> None:
    images = np.random.default_rng(0).integers(0, 65536, (40, 16, 16)).astype(np.uint16)
    model = ScoreBayesClassifier("tiny", config={**LAYER, "evidence": {"sources": ["pixels"]}}).fit(
        images, np.arange(40) % 2
    )
    trained = model.run_.images("train")
    row = int(trained.keys[0].rpartition("-")[2])
    _, x, _ = model._ask(images[row : row + 1])
    np.testing.assert_array_equal(x, model.run_.standardise(trained.images[:1]))


def _reader(folder: Path, data: str, options: dict[str, Any], source: Source, **prepare: Any) -> Reader:
    folder.mkdir(exist_ok=True)
    suggested = {"size": 16, "channels": source.info.channels, "bits": source.info.bits}
    layer = {"data": {"source": data, "options": options}, "prepare": suggested | prepare}
    return Reader(folder, resolve(layer), source.info)


def _expected(source: Source, prepare: Prepare) -> Levels:
    """What the data set itself says: its pixels, prepared, of all images that can be used."""
    found = {}
    for record in source.records():
        with contextlib.suppress(DataError):
            found[record.image_id] = prepare(source.read(record), record.laterality, record.view)
    return found


def _assert_same(found: Levels, expected: Levels) -> None:
    assert found.keys() == expected.keys()
    for key, levels in expected.items():
        np.testing.assert_array_equal(found[key], levels, err_msg=key)


def _assert_each_is_one_of(found: list[np.ndarray], known: Any) -> None:
    wanted = {levels.tobytes() for levels in known}
    assert found
    assert {levels.tobytes() for levels in found} <= wanted
