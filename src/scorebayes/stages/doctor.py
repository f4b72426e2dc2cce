"""The check of a run's files against its seal, and the acceptance of what was changed by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scorebayes.errors import ConfigError
from scorebayes.storage import sealed
from scorebayes.storage.checkpoint import Checkpoints
from scorebayes.storage.lock import locked


@dataclass(frozen=True)
class Found:
    """different: what is not as it was written, by the file's name: "changed", "missing", "not sealed", "damaged" or "a
    link". sealed: whether the run had a seal at all."""

    different: dict[str, str]
    sealed: bool

    @property
    def serious(self) -> bool:
        """A missing file is made again, or asked for where it is needed; one that is not sealed is not read."""
        return any(what not in ("missing", "not sealed") for what in self.different.values())


def check_files(run: Path) -> Found:
    """Compare all files of a run directory with its seal. ConfigError where it is no run, or its seal is damaged."""
    _require_run(run)
    if not sealed.is_sealed(run):
        return Found(_changed_weights(run), sealed=False)
    return Found(sealed.differences(run) | _changed_weights(run), sealed=True)


def accept_files(run: Path) -> Found:
    """Seal a run directory as it is: what was changed by hand counts from now on. Returns what was different. ConfigError
    where it is no run, or holds links."""
    _require_run(run)
    with locked(run):
        was_sealed = sealed.is_sealed(run)
        found = sealed.accept(run)
        weights = _changed_weights(run)
        for checkpoints in _checkpoints(run):
            checkpoints.accept()
    return Found((found if was_sealed else {}) | weights, sealed=True)


def _changed_weights(run: Path) -> dict[str, str]:
    return {
        f"{checkpoints.folder.relative_to(run).as_posix()}/{name}": what
        for checkpoints in _checkpoints(run)
        for name, what in checkpoints.differences().items()
    }


def _checkpoints(run: Path) -> Iterator[Checkpoints]:
    for name in sealed.names_below(run):
        if name.endswith("checkpoints/manifest.json"):
            yield Checkpoints((run / name).parent)


def _require_run(run: Path) -> None:
    if not sealed.is_run(run):
        raise ConfigError(f"{run}: not a run directory.", "Give the folder that 'scorebayes train' wrote.")
