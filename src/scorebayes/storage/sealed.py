"""The seal of a run directory: ``sealed.json`` holds the SHA-256 of every file that an answer depends on.

A file is checked whenever it is read. Before it is replaced, the digest of the new content is added to the seal, and the
old one is dropped afterwards: whenever a process is killed, the seal knows what lies there. Weights are not listed; the
manifest of the checkpoints, which is, holds their digests. Directories of older formats have no seal until they get one,
and are read as they are. Links within a run are never followed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from typing import Any

from scorebayes.errors import ConfigError, DataError, command
from scorebayes.storage import atomic
from scorebayes.storage.lock import locked, require_same

SEAL, MARKS = "sealed.json", ("config.toml", "source.json")
PATIENCE = 30.0  # seconds that a write waits for another process
TRIES = 4  # another process may be replacing the file that is read
READ = (".toml", ".json", ".csv", ".parquet", ".npz", ".safetensors")
OPEN = (
    SEAL,
    ".*",
    "*/.*",
    "cache/*",
    "explained/*",
    "benchmark/*",
    "timings.json",
    "report.json",
    "*checkpoints/*.safetensors",
)
"""Files that are sealed by their endings, but for those that no answer depends on or that are checked in another way."""
RESERVED = (
    SEAL, *MARKS, "lock*", "timings.json", "environment.json", "audit.json", "split.parquet", "*.jsonl",
    "quarantine.csv", "calibration*", "metrics-*", "predictions-*", "evidence*", "loglik-*", "report.*", "model-card.md",
    "thumbnails.npz", "samples.*", "*.safetensors", "cache*", "checkpoints*", "features*", "pooled*", "baselines*",
    "masks-*", "cases-*", "overlays-*", "segmenters*",
)  # fmt: skip
"""Names that outputs of users must not have within a run."""
Digests = dict[str, tuple[str, ...]]  # by the file's name within the run; two while a file is being replaced


def read(path: Path) -> bytes:
    """The content of a file, as it was sealed where it belongs to a run. ConfigError if it was changed since, or is no
    ordinary file; FileNotFoundError if there is none."""
    root = root_of(path)
    for attempt in range(TRIES):
        content = _content(root, path)
        if root is None or (seal := _digests(root)) is None:
            return content
        if hashlib.sha256(content).hexdigest() in seal.get(_name(root, path), ()):
            return content
        _parsed.cache_clear()
        time.sleep(0.01 * attempt)
    raise ConfigError(
        f"{path}: the file has changed since it was written (its SHA-256 is not the one in {SEAL}).",
        f"Restore it from a backup. If the change is meant, accept it: `{command('doctor', root, '--accept')}`.",
    )


def read_json(path: Path) -> Any:
    """The content of a JSON file, checked like ``read``. DataError if it is damaged."""
    try:
        return json.loads(read(path))
    except (ValueError, RecursionError) as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: object) -> DataError:
    """What to say of a file that cannot be understood."""
    named = f"{type(error).__name__}: {error}" if isinstance(error, Exception) else str(error)
    words = " ".join(named.split())[:200]
    return DataError(f"{path}: damaged ({words}).", "Restore it from a backup, or make it again.")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Like ``atomic.replacing``, for a file of a run: its new content is sealed."""
    root = root_of(path)
    if root is None:
        _require_folder(path)
        with atomic.replacing(path) as partial:
            yield partial
        return
    with locked(root, PATIENCE):
        _require_folder(path)
        name = _name(root, path)
        with atomic.replacing(path) as partial:
            yield partial
            old = _add(root, name, hashlib.sha256(partial.read_bytes()).hexdigest())
        if old:
            _drop(root, name, old)


def write(path: Path, content: str | bytes) -> None:
    """Write a whole file of text (UTF-8) or bytes, and seal it where it belongs to a run."""
    with replacing(path) as partial:
        partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def require_inside(path: Path) -> None:
    """ConfigError if a link leads from a run to a file that is to be written there, or the run was moved away."""
    if (root := root_of(path)) is not None:
        require_same(root)
        _name(root, path)


def require_free(path: Path) -> None:
    """ConfigError for an output that would lie in the place of a file of a run."""
    whole = Path(os.path.realpath(path))
    root = whole if is_run(whole) else root_of(whole)
    if root is None:
        return
    name = whole.relative_to(root).as_posix()
    if name == "." or name in (_digests(root) or {}) or any(fnmatch(name, own) for own in RESERVED):
        raise ConfigError(f"{path}: this name belongs to the run {root}.", "Write it somewhere else.")


def is_run(folder: Path) -> bool:
    """Whether a folder is a run directory, also of an older format."""
    return is_sealed(folder) or all(os.path.lexists(folder / mark) for mark in MARKS)


def make_folder(path: Path) -> None:
    """A folder, with those above it where it belongs to a run. ConfigError if the run was moved away, or a link leads out
    of it."""
    root = root_of(path)
    if root is None:
        _require_folder(path)
    require_inside(path)
    for folder in reversed([path, *path.parents][: 1 if root is None else len(path.relative_to(root).parts)]):
        folder.mkdir(exist_ok=True)
        atomic.sync_folder(folder.parent)


def remove(path: Path) -> None:
    """Remove a file or a folder of a run, and what the seal says of it. Links are refused, within it they only go away."""
    require_inside(path)
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    remove_from_seal(path)


def remove_from_seal(path: Path) -> None:
    """Let the seal forget a file, or all files in a folder: one that is appended to from now on."""
    root = root_of(path)
    if root is None or _digests(root) is None:
        return
    with locked(root, PATIENCE):
        name, seal = _name(root, path), _digests(root) or {}
        kept = {of: d for of, d in seal.items() if of != name and not of.startswith(f"{name}/")}
        if kept != seal:
            _store(root, kept)


def begin(folder: Path) -> None:
    """Seal a folder that has no seal: from now on, what is written there is sealed."""
    if not (folder / SEAL).exists():
        with locked(folder, PATIENCE):
            _store(folder, {})


def root_of(path: Path) -> Path | None:
    """The run directory that a file belongs to; None outside of runs."""
    return next(filter(is_run, path.parents), None)


def is_listed(path: Path) -> bool:
    """Whether the seal of its run knows a file."""
    root = root_of(path)
    return root is not None and _name(root, path) in (_digests(root) or {})


def is_sealed(folder: Path) -> bool:
    return os.path.lexists(folder / SEAL)


# -- what has changed ---------------------------------------------------------------------------------------------------


def differences(folder: Path) -> dict[str, str]:
    """What is not as the seal says, by the file's name: "changed", "missing", "not sealed" or "a link"."""
    seal = _digests(folder) or {}
    found = {}
    for name in sorted({*seal, *_names_to_seal(folder)}):
        path = folder / name
        if _link_on_the_way(folder, path):
            found[name] = "a link"
        elif not path.is_file():
            found[name] = "missing"
        elif name not in seal:
            found[name] = "not sealed"
        elif hashlib.sha256(_content(folder, path)).hexdigest() not in seal[name]:
            found[name] = "changed"
    return found


def accept(folder: Path) -> dict[str, str]:
    """Seal a directory as it is; returns what was different. ConfigError for links, which are never accepted."""
    with locked(folder):
        before: Digests = {}
        try:
            found, before = differences(folder), _digests(folder) or {}
        except ConfigError:  # of a seal that cannot be read
            if (folder / SEAL).is_symlink():
                raise
            (folder / SEAL).unlink()
            found = differences(folder) | {SEAL: "damaged"}
        if links := [name for name, what in found.items() if what == "a link"]:
            raise ConfigError(
                f"{folder / links[0]}: links within a run directory are not followed.",
                "Put the file itself there, or remove the link.",
            )
        sealed = {
            name: (hashlib.sha256(_content(folder, folder / name)).hexdigest(),)
            for name in {*_names_to_seal(folder), *before}
            if (folder / name).is_file()
        }
        if not is_sealed(folder) or sealed != _digests(folder):
            _store(folder, sealed)
    return found


def names_below(folder: Path) -> list[str]:
    """Files and links below a folder, by name with forward slashes; links to folders are not entered."""
    return sorted(
        (Path(at) / name).relative_to(folder).as_posix()
        for at, folders, files in os.walk(folder)
        for name in [*files, *(inner for inner in folders if (Path(at) / inner).is_symlink())]
    )


def _names_to_seal(folder: Path) -> list[str]:
    """And all links, which must not be there."""
    return [name for name in names_below(folder) if (folder / name).is_symlink() or belongs(name)]


def belongs(name: str) -> bool:
    """Whether a file with this name within a run is to be sealed."""
    return name.endswith(READ) and not any(fnmatch(name, pattern) for pattern in OPEN)


# -- the seal itself ----------------------------------------------------------------------------------------------------


def _digests(root: Path) -> Digests | None:
    """What the seal says; None where there is none. ConfigError where it is damaged."""
    path = root / SEAL
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return _parsed(path, status.st_ino, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=8)
def _parsed(path: Path, *_version: int) -> Digests:
    try:
        stored = json.loads(_content(path.parent, path))
        files = {str(name): tuple(of) for name, of in stored["files"].items()}
        sound = stored["sha256"] == _digest_of(files) and all(map(_stays_inside, files))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise ConfigError(
            f"{path}: damaged, so that the files of this run cannot be checked.",
            f"Restore it from a backup, or seal the files as they are: `{command('doctor', path.parent, '--accept')}`.",
        )
    return files


def _store(root: Path, files: Mapping[str, tuple[str, ...]]) -> None:
    require_same(root)
    ordered = {name: list(files[name]) for name in sorted(files)}
    text = json.dumps({"sha256": _digest_of(files), "files": ordered}, indent=1)
    atomic.write_atomically(root / SEAL, text + "\n")


def _digest_of(files: Mapping[str, tuple[str, ...]]) -> str:
    """Of the seal's own content."""
    return hashlib.sha256(json.dumps(sorted(files.items())).encode()).hexdigest()


def _add(root: Path, name: str, digest: str) -> tuple[str, ...]:
    """Let the seal know the new content of a file; returns what it knew before, to be dropped."""
    _parsed.cache_clear()
    seal = _digests(root)
    if seal is None:  # of an older format
        return ()
    old = tuple(of for of in seal.get(name, ()) if of != digest)
    if seal.get(name) != (*old, digest):
        _store(root, {**seal, name: (*old, digest)})
    return old


def _drop(root: Path, name: str, old: tuple[str, ...]) -> None:
    seal = _digests(root) or {}
    _store(root, {**seal, name: tuple(of for of in seal[name] if of not in old)})


def _name(root: Path, path: Path) -> str:
    """The name of a file within its run. ConfigError where a link is on the way, or the name leads out of it."""
    name = path.relative_to(root).as_posix()
    if not _stays_inside(name):
        raise ConfigError(f"{path}: the name leads out of the run directory.", "Name a file within it.")
    if link := _link_on_the_way(root, path):
        raise ConfigError(
            f"{link}: links within a run directory are not followed.",
            "Put the file or folder itself there, or remove the link.",
        )
    return name


def _stays_inside(name: str) -> bool:
    return bool(name) and not name.startswith("/") and not {"..", ""} & {*re.split(r"[/\\]", name)}


def _link_on_the_way(root: Path, path: Path) -> Path | None:
    """The first link between a run and one of its files, if there is one."""
    steps = [path, *path.parents][: len(path.relative_to(root).parts)]
    return next((step for step in reversed(steps) if step.is_symlink()), None)


def _content(root: Path | None, path: Path) -> bytes:
    """A file, read whole. ConfigError for links within a run, pipes and devices."""
    if root is not None:
        _name(root, path)
    if not stat.S_ISREG(path.stat().st_mode):
        raise ConfigError(f"{path}: expected an ordinary file, not a folder, pipe or device.", "Remove it.")
    return path.read_bytes()


def _require_folder(path: Path) -> None:
    if not path.parent.is_dir():
        raise ConfigError(
            f"{path.parent}: the folder is not there; was the run directory moved or removed meanwhile?",
            "Move it back to where it was, and resume.",
        )
