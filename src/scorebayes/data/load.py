"""From records to arrays: read, prepare and cache all images of a data set; set the bad ones apart.

The cache holds prepared images, one folder per pipeline. Every run that has something to add writes a shard
of its own (``*.bin`` with the images, ``*.jsonl`` with their keys and digests), so that runs side by side need
no lock and a killed one leaves whole what it had finished. A damaged image is prepared again.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scorebayes.data.base import Record, Rejected, Source
from scorebayes.data.pixels import VERSION as PIXELS_VERSION
from scorebayes.data.pixels.files import require_file
from scorebayes.data.prepare import Prepare
from scorebayes.errors import DataError
from scorebayes.storage.sealed import make_folder

FSYNC_EVERY = 64  # images a power cut may cost
Outcome = NDArray[np.unsignedinteger] | str  # a prepared image, or why there is none
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Prepared images and their records, row by row.

    ``images``: [N, C, S, S] uint8 or uint16, whole numbers in [0, 2**bits); in memory or mapped from the
    cache.
    """

    images: NDArray[np.unsignedinteger]
    bits: int
    records: tuple[Record, ...]

    def __len__(self) -> int:
        return len(self.records)

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class indices [N]; -1 where unknown."""
        return np.array([-1 if r.label is None else r.label for r in self.records], dtype=np.int64)

    @property
    def keys(self) -> tuple[str, ...]:
        """Image ids, one per row."""
        return tuple(r.image_id for r in self.records)

    @property
    def patients(self) -> tuple[str, ...]:
        """Patient ids, one per row; the image's own id where the data set names no patient."""
        return tuple(r.image_id if r.patient_id is None else r.patient_id for r in self.records)

    def labelled(self) -> ImageSet:
        """The images whose class is known; the same set, without a copy, where all are."""
        known = self.labels >= 0
        return self if known.all() else self.subset(np.flatnonzero(known))

    def subset(self, rows: Sequence[int] | NDArray[np.integer]) -> ImageSet:
        """The given rows, in the given order."""
        rows = np.asarray(rows, dtype=np.int64)
        return ImageSet(self.images[rows], self.bits, tuple(self.records[row] for row in rows))

    def drawn(self, n: int, seed: int) -> ImageSet:
        """At most ``n`` of the images, drawn at random and in their order."""
        rows = np.random.default_rng(seed).permutation(len(self))[:n]
        return self.subset(np.sort(rows))


def load(
    source: Source,
    records: Sequence[Record],
    prepare: Prepare,
    *,
    cache: Path | None = None,
    options: str = "",
    workers: int = 0,
    progress: Progress | None = None,
) -> tuple[ImageSet, list[Rejected]]:
    """Read and prepare every record, in order; images that cannot be used come back as ``Rejected`` with the
    reason.

    Parameters
    ----------
    cache: folder for prepared images, keyed by the file (path, size, time), the record and the pipeline.
        Images whose path is no file (synthetic ones) are not cached, and neither are rejections.
    options: of the data set, where its pixels depend on them; they enter the keys of the cache.
    workers: processes; 0 reads in this one, as do others where none can be started (inside a worker of another
        pool). ``source`` must be picklable then. An image that kills its process (a crash in a decoder, out of
        memory) is rejected, the others are read by a new one.
    progress: called with (images done, images in all).
    """
    stamps = [_stamp(record.path) for record in records]
    keys = [_key(source, record, stamp, options) for record, stamp in zip(records, stamps, strict=True)]
    store = _Store(cache / prepare.fingerprint, prepare) if cache is not None else None
    places: dict[int, NDArray[np.unsignedinteger] | Place] = {}
    if store is not None:
        places |= store.sound(keys)
    jobs = [(row, records[row], stamps[row]) for row in range(len(records)) if row not in places]
    done = len(places)
    rejected: list[Rejected] = []
    if progress is not None:
        progress(done, len(records))
    with ExitStack() as stack:
        add = stack.enter_context(store.writer()) if store is not None and jobs else None
        read = (
            _in_turn(source, prepare, jobs) if workers == 0 else _in_processes(source, prepare, jobs, workers)
        )
        for row, outcome in read:
            if isinstance(outcome, str):
                rejected.append(Rejected(records[row].image_id, str(records[row].path), outcome))
            else:
                key = keys[row]
                places[row] = outcome if add is None or key is None else add(key, outcome)
            done += 1
            if progress is not None:
                progress(done, len(records))
    kept = sorted(places)
    images = _gather(store, [places[row] for row in kept], prepare)
    return ImageSet(images, prepare.bits, tuple(records[row] for row in kept)), rejected


def _stamp(path: Path) -> tuple[int, int] | None:
    """Size and time of a file; None where the path is no file (an image made by the program, or a missing
    one).
    """
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _key(source: Source, record: Record, stamp: tuple[int, int] | None, options: str) -> str | None:
    """What the prepared image depends on beside the pipeline; None where the content is not known from a
    file.
    """
    if stamp is None:
        return None
    parts = [
        source.info.name,
        record.image_id,
        str(record.path.absolute()),
        *stamp,
        record.laterality,
        record.view,
    ]
    text = json.dumps([PIXELS_VERSION, *parts, sorted(record.extra.items()), options])
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def _prepare_one(source: Source, prepare: Prepare, record: Record, stamp: tuple[int, int] | None) -> Outcome:
    try:
        if stamp is not None:
            require_file(record.path)
        image = prepare(source.read(record), record.laterality, record.view)
    except DataError as error:
        return _one_line(str(error))
    except Exception as error:  # a decoder may raise anything; one bad file must not end the run
        return _one_line(f"{record.path} could not be decoded: {type(error).__name__}: {error}")[:500]
    if _stamp(record.path) != stamp:
        return f"{record.path} has changed since it was indexed. Start again when copying has finished."
    return image


def _one_line(text: str) -> str:
    """File names and foreign messages may hold line ends."""
    return " ".join(text.split())


Job = tuple[int, Record, tuple[int, int] | None]


def _in_turn(source: Source, prepare: Prepare, jobs: Sequence[Job]) -> Iterator[tuple[int, Outcome]]:
    for row, record, stamp in jobs:
        yield row, _prepare_one(source, prepare, record, stamp)


_worker: tuple[Source, Prepare] | None = None  # set in worker processes only


def _start_worker(source: Source, prepare: Prepare) -> None:
    global _worker
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches all processes; the first one ends the others
    _worker = (source, prepare)


def _work(record: Record, stamp: tuple[int, int] | None) -> Outcome:
    assert _worker is not None
    return _prepare_one(*_worker, record, stamp)


@contextmanager
def _pool(source: Source, prepare: Prepare, workers: int) -> Iterator[Executor | None]:
    """Processes of one thread each; None where they cannot be started.

    Those of the standard library would import the caller's script again, and with it do the caller's work again; to fork a
    process with threads may hang.
    """
    from joblib.externals import loky  # takes a third of a second, and not every command reads images

    one_thread = {"OMP_NUM_THREADS": "1"}  # read by the libraries when the worker imports them
    pool = loky.ProcessPoolExecutor(
        workers, initializer=_start_worker, initargs=(source, prepare), env=one_thread
    )
    try:
        yield pool if _works(pool) else None
    finally:
        pool.shutdown(wait=True, kill_workers=True)


def _works(pool: Executor) -> bool:
    try:
        return pool.submit(os.getpid).result() != os.getpid()
    except (BrokenProcessPool, OSError, AssertionError):  # the last: a worker of others may have no children
        return False


def _in_processes(
    source: Source, prepare: Prepare, jobs: Sequence[Job], workers: int
) -> Iterator[tuple[int, Outcome]]:
    """Outcomes in the order of ``jobs``, so that a shard lies in the order of the records."""
    ready: dict[int, Outcome] = {}
    waiting = list(reversed(jobs))
    order = deque(row for row, _, _ in jobs)
    while order:
        running: dict[Future[Outcome], Job] = {}
        with _pool(source, prepare, workers) as pool:
            if pool is None:
                yield from _in_turn(source, prepare, list(reversed(waiting)))
                return
            try:
                while waiting or running:
                    while waiting and len(running) < 4 * workers:
                        running[pool.submit(_work, *waiting[-1][1:])] = waiting[-1]
                        waiting.pop()
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        ready[running[future][0]] = future.result()
                        del running[future]
                    while order and order[0] in ready:
                        yield order[0], ready.pop(order.popleft())
            except BrokenProcessPool:
                pass  # by one of those running: each is tried on its own below
        for row, record, stamp in running.values():
            ready[row] = _alone(source, prepare, record, stamp)
        while order and order[0] in ready:
            yield order[0], ready.pop(order.popleft())


def _alone(source: Source, prepare: Prepare, record: Record, stamp: tuple[int, int] | None) -> Outcome:
    with _pool(source, prepare, 1) as pool:
        if pool is None:
            return f"{record.path} could not be read: no process can be started any more."
        try:
            return pool.submit(_work, record, stamp).result()
        except BrokenProcessPool:
            return f"{record.path} crashed the process that read it (a decoder crash, or out of memory)."


class Place(NamedTuple):
    """Where a prepared image lies in the cache, and its digest."""

    shard: str
    row: int
    digest: str


class _Store:
    """The cached images of one pipeline."""

    def __init__(self, folder: Path, prepare: Prepare) -> None:
        self.folder = folder
        self.shape = (prepare.channels, prepare.size, prepare.size)
        self.dtype = np.dtype(_dtype(prepare))
        self.image_bytes = int(np.prod(self.shape)) * self.dtype.itemsize

    def sound(self, keys: Sequence[str | None]) -> dict[int, Place]:
        """Number of a key -> where its image lies, if it is there as it was written."""
        known = self._index()
        there = {number: known[key] for number, key in enumerate(keys) if key is not None and key in known}
        images = {shard: self.open(shard) for shard in {place.shard for place in there.values()}}
        return {
            number: place
            for number, place in there.items()
            if place.digest == _digest(str(keys[number]), images[place.shard][place.row])
        }

    def _index(self) -> dict[str, Place]:
        """Key -> (shard, row) of everything that was written whole."""
        found: dict[str, Place] = {}
        for path in sorted(self.folder.glob("*.jsonl")):
            data = path.with_suffix(".bin")
            rows = data.stat().st_size // self.image_bytes if data.is_file() else 0
            lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last line end was cut by a kill
            for line in lines:
                try:
                    key, row, digest = json.loads(line)
                    if 0 <= row < rows:
                        found[str(key)] = Place(path.stem, int(row), str(digest))
                except (
                    ValueError,
                    TypeError,
                    RecursionError,
                ):  # damaged, as after a power cut: prepared again
                    continue
        return found

    @contextmanager
    def writer(self) -> Iterator[Callable[[str, NDArray[np.unsignedinteger]], Place]]:
        """A function that appends an image to a new shard and tells where it went."""
        try:
            make_folder(self.folder.parent)
            make_folder(self.folder)
        except OSError as error:
            raise DataError(
                f"The cache folder {self.folder} cannot be created: {error.strerror}.", "Choose another one."
            ) from None
        shard = f"{len(list(self.folder.glob('*.jsonl'))):04d}-{uuid.uuid4().hex[:8]}"
        pending: list[str] = []
        rows = 0
        with (
            (self.folder / f"{shard}.bin").open("wb") as data,
            (self.folder / f"{shard}.jsonl").open("w") as index,
        ):

            def flush() -> None:
                # The images reach the disk before the lines that vouch for them.
                data.flush()
                os.fsync(data.fileno())
                index.writelines(pending)
                index.flush()
                pending.clear()

            def add(key: str, image: NDArray[np.unsignedinteger]) -> Place:
                nonlocal rows
                data.write(image.tobytes())
                digest = _digest(key, image)
                pending.append(json.dumps([key, rows, digest]) + "\n")
                rows += 1
                if len(pending) >= FSYNC_EVERY:
                    flush()
                return Place(shard, rows - 1, digest)

            try:
                yield add
            finally:
                flush()
        if rows == 0:
            for ending in ("bin", "jsonl"):
                (self.folder / f"{shard}.{ending}").unlink()

    def open(self, shard: str) -> NDArray[np.unsignedinteger]:
        """All images of a shard [rows, C, S, S], mapped."""
        path = self.folder / f"{shard}.bin"
        rows = path.stat().st_size // self.image_bytes
        return np.memmap(path, self.dtype, "r", shape=(rows, *self.shape))


def _digest(key: str, image: NDArray[np.unsignedinteger]) -> str:
    """Of an image under its key."""
    return hashlib.sha256(key.encode() + image.tobytes()).hexdigest()[:32]


def _gather(
    store: _Store | None, places: Sequence[NDArray[np.unsignedinteger] | Place], prepare: Prepare
) -> NDArray[np.unsignedinteger]:
    """The images in order: a view of one shard where they lie there in one piece, else a copy in memory."""
    cached = [place for place in places if isinstance(place, Place)]
    shards = {place.shard for place in cached}
    mapped = {shard: store.open(shard) for shard in shards} if store is not None else {}
    if len(shards) == 1 and len(cached) == len(places):
        first, *_, last = [*cached, cached[-1]]
        if [place.row for place in cached] == list(range(first.row, last.row + 1)):
            return mapped[first.shard][first.row : last.row + 1]
    images = np.empty((len(places), prepare.channels, prepare.size, prepare.size), _dtype(prepare))
    for image, place in zip(images, places, strict=True):
        image[:] = mapped[place.shard][place.row] if isinstance(place, Place) else place
    return images


def _dtype(prepare: Prepare) -> type[np.unsignedinteger]:
    return np.uint8 if prepare.bits <= 8 else np.uint16
