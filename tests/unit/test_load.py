"""Loading: order, quarantine, cache, worker processes."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from scorebayes.data.base import Record, Rejected, SourceInfo
from scorebayes.data.load import load
from scorebayes.data.prepare import Prepare
from scorebayes.errors import DataError

PREPARE = Prepare(size=16)
INFO = SourceInfo("npy", "NumPy files", ("a", "b"), positive=1)


@dataclass
class NpyFolder:
    """A data set of .npy files, some of which do what bad files do."""

    root: Path
    info: SourceInfo = INFO
    rejected: list[Rejected] = field(default_factory=list)

    def records(self) -> list[Record]:
        paths = sorted(self.root.glob("*.npy"))
        return [Record(path.stem, path, label=row % 2) for row, path in enumerate(paths)]

    def read(self, record: Record) -> np.ndarray:
        if "crash" in record.image_id:
            os.abort()
        if "surprise" in record.image_id:
            raise ZeroDivisionError("of a decoder\nwith a second line")
        if "refused" in record.image_id:
            raise DataError("Not a picture.", "Leave it out.")
        if "growing" in record.image_id:
            with record.path.open("ab") as file:
                file.write(b"more")
        return np.load(record.path) / np.float32(255)


def write(root: Path, *names: str, seed: int = 0) -> NpyFolder:
    generator = np.random.default_rng(seed)
    root.mkdir(exist_ok=True)
    for name in names:
        np.save(root / f"{name}.npy", generator.integers(0, 256, (16, 16), dtype=np.uint8))
    return NpyFolder(root)


def originals(source: NpyFolder, *names: str) -> np.ndarray:
    return np.stack([np.load(source.root / f"{name}.npy")[None] for name in names])


def test_images_come_in_the_order_of_the_records_with_their_exact_values(tmp_path: Path) -> None:
    source = write(tmp_path / "data", "a", "b", "c")
    records = source.records()[::-1]
    images, rejected = load(source, records, PREPARE)
    assert rejected == []
    assert images.keys == ("c", "b", "a")
    assert images.bits == 8 and len(images) == 3
    np.testing.assert_array_equal(images.images, originals(source, "c", "b", "a"))


def test_labels_patients_and_subsets_follow_the_rows(tmp_path: Path) -> None:
    source = write(tmp_path / "data", "a", "b", "c")
    a, b, c = source.records()
    images, _ = load(source, [replace(a, label=None), replace(b, patient_id="p"), c], PREPARE)
    assert images.labels.tolist() == [-1, 1, 0] and images.labels.dtype == np.int64
    assert images.patients == ("a", "p", "c")
    part = images.subset([2, 0])
    assert part.keys == ("c", "a")
    np.testing.assert_array_equal(part.images, originals(source, "c", "a"))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_image_is_set_apart_with_its_reason_and_the_others_are_unchanged(tmp_path, workers) -> None:
    source = write(tmp_path / "data", "a", "b-refused", "c-surprise", "d")
    images, rejected = load(source, source.records(), PREPARE, workers=workers)
    assert images.keys == ("a", "d")
    np.testing.assert_array_equal(images.images, originals(source, "a", "d"))
    assert [r.image_id for r in rejected] == ["b-refused", "c-surprise"]
    assert rejected[0].reason == "Not a picture. Leave it out."
    assert rejected[1].reason.endswith(
        "could not be decoded: ZeroDivisionError: of a decoder with a second line"
    )


def test_missing_empty_and_changing_files_are_set_apart(tmp_path: Path) -> None:
    source = write(tmp_path / "data", "a", "empty", "gone", "growing")
    (source.root / "empty.npy").write_bytes(b"")
    records = source.records()
    (source.root / "gone.npy").unlink()
    images, rejected = load(source, records, PREPARE)
    assert images.keys == ("a",)
    reasons = {r.image_id: r.reason for r in rejected}
    assert "is empty (0 bytes)" in reasons["empty"]
    assert "FileNotFoundError" in reasons["gone"]
    assert "has changed since it was indexed" in reasons["growing"]


def test_a_worker_that_dies_costs_one_image_and_no_other(tmp_path: Path) -> None:
    names = ["a", "b", "c-crash", "d", "e"]
    source = write(tmp_path / "data", *names)
    images, rejected = load(source, source.records(), PREPARE, workers=1)
    assert images.keys == ("a", "b", "d", "e")
    assert [r.image_id for r in rejected] == ["c-crash"]
    assert "crashed the process" in rejected[0].reason
    assert os.environ.get("OMP_NUM_THREADS") == "1"


def _end_at_once(*_: object) -> None:
    os._exit(1)


def test_where_no_worker_can_start_the_images_are_read_without(tmp_path: Path, monkeypatch) -> None:
    from scorebayes.data import load as module

    monkeypatch.setattr(module, "_start_worker", _end_at_once)
    source = write(tmp_path / "data", "a", "b-refused")
    images, rejected = load(source, source.records(), PREPARE, workers=1)
    assert images.keys == ("a",) and len(rejected) == 1


def test_where_no_worker_can_start_again_only_what_is_left_is_read_without(
    tmp_path: Path, monkeypatch
) -> None:
    from scorebayes.data import load as module

    starts, works = [], module._works
    monkeypatch.setattr(
        module, "_works", lambda pool: starts.append(pool) is None and len(starts) == 1 and works(pool)
    )
    source = write(tmp_path / "data", "a-crash", *"bcdefgh")
    images, rejected = load(source, source.records(), PREPARE, workers=1)
    assert len(starts) > 1
    assert sorted([*images.keys, *(r.image_id for r in rejected)]) == ["a-crash", *"bcdefgh"]
    assert {"f", "g", "h"} <= set(images.keys)


def test_the_second_start_reads_the_cache_and_not_the_files(tmp_path: Path, monkeypatch) -> None:
    source = write(tmp_path / "data", "a", "b", "c")
    records = source.records()
    first, _ = load(source, records, PREPARE, cache=tmp_path / "cache")
    monkeypatch.setattr(NpyFolder, "read", lambda *_: pytest.fail("read again"))
    second, rejected = load(source, records, PREPARE, cache=tmp_path / "cache")
    assert rejected == []
    assert isinstance(second.images, np.memmap)
    np.testing.assert_array_equal(first.images, second.images)
    mixed, _ = load(source, [records[2], records[0]], PREPARE, cache=tmp_path / "cache")
    np.testing.assert_array_equal(mixed.images, first.images[[2, 0]])


def test_a_changed_file_record_or_pipeline_is_read_anew(tmp_path: Path) -> None:
    source = write(tmp_path / "data", "a", "b")
    cache = tmp_path / "cache"
    load(source, source.records(), PREPARE, cache=cache)
    write(source.root, "b", seed=1)
    os.utime(source.root / "b.npy", ns=(time.time_ns(), time.time_ns() + 10**9))
    images, _ = load(source, source.records(), PREPARE, cache=cache)
    np.testing.assert_array_equal(images.images, originals(source, "a", "b"))
    seen: list[tuple[int, int]] = []
    record = replace(source.records()[0], extra={"margin": "0.2"})
    load(source, [record], PREPARE, cache=cache, progress=lambda *state: seen.append(state))
    assert seen == [(0, 1), (1, 1)]
    seen.clear()
    load(source, [record], PREPARE, cache=cache, options="bits", progress=lambda *state: seen.append(state))
    assert seen == [(0, 1), (1, 1)]
    load(source, source.records(), Prepare(size=8), cache=cache)
    assert len(list(cache.iterdir())) == 2


def test_a_cut_cache_keeps_what_was_whole_and_the_rest_is_read_again(tmp_path: Path) -> None:
    source = write(tmp_path / "data", "a", "b", "c")
    cache = tmp_path / "cache"
    load(source, source.records(), PREPARE, cache=cache)
    (data,) = cache.glob("*/*.bin")
    data.write_bytes(data.read_bytes()[: 2 * 256 + 7])
    index = data.with_suffix(".jsonl")
    index.write_bytes(index.read_bytes()[:-5])
    seen: list[tuple[int, int]] = []
    images, _ = load(source, source.records(), PREPARE, cache=cache, progress=lambda *s: seen.append(s))
    assert seen == [(2, 3), (3, 3)]
    np.testing.assert_array_equal(images.images, originals(source, "a", "b", "c"))


def test_an_interrupted_run_resumes_where_it_stopped(tmp_path: Path) -> None:
    source = write(tmp_path / "data", "a", "b", "c")

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(source, source.records(), PREPARE, cache=tmp_path / "cache", progress=stop)
    seen: list[tuple[int, int]] = []
    images, _ = load(
        source, source.records(), PREPARE, cache=tmp_path / "cache", progress=lambda *s: seen.append(s)
    )
    assert seen[0] == (2, 3)
    np.testing.assert_array_equal(images.images, originals(source, "a", "b", "c"))


def test_rejections_are_not_cached_and_leave_no_empty_shard(tmp_path: Path) -> None:
    source = write(tmp_path / "data", "a-refused")
    for _ in range(2):
        images, rejected = load(source, source.records(), PREPARE, cache=tmp_path / "cache")
        assert len(images) == 0 and images.images.shape == (0, 1, 16, 16)
        assert len(rejected) == 1
    assert list((tmp_path / "cache").glob("*/*")) == []


def test_a_cache_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    source = write(tmp_path / "data", "a")
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(DataError, match="cache folder"):
        load(source, source.records(), PREPARE, cache=tmp_path / "cache")


def test_deep_images_are_kept_in_sixteen_bits(tmp_path: Path) -> None:
    source = write(tmp_path / "data", "a")
    images, _ = load(source, source.records(), Prepare(size=16, bits=12), cache=tmp_path / "cache")
    assert images.images.dtype == np.uint16
    levels = np.rint(np.load(source.root / "a.npy") / 255 * 4095)
    np.testing.assert_array_equal(images.images[0, 0], levels)
