"""Checkpoints: safetensors files under a SHA-256 manifest, written whole or not at all.

``step-*.safetensors`` holds the averaged weights used for inference, ``state-*.safetensors`` what is needed to resume
(weights, average, optimiser). Pickled files are never read.
"""

from __future__ import annotations

import json
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from scorebayes.errors import ConfigError
from scorebayes.storage import sealed
from scorebayes.storage.atomic import replacing
from scorebayes.storage.digest import sha256_of

KEPT_STATES = 2
_NAME = re.compile(r"(?P<prefix>step|state)-\d{7,}\.safetensors")


class Checkpoints:
    """The checkpoints of one run. Every entry of the manifest has ``file``, ``sha256``, ``step`` and its metadata."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._manifest = folder / "manifest.json"

    def entries(self, prefix: str) -> list[dict[str, Any]]:
        """Manifest entries of files named ``prefix``-..., by step. DataError if the manifest is damaged."""
        return [entry for entry in self._entries() if entry["file"].startswith(prefix + "-")]

    def save(self, prefix: str, step: int, tensors: dict[str, Tensor], **meta: Any) -> None:
        """Write ``prefix``-``step``.safetensors, then enter it into the manifest.

        ConfigError if the disk cannot be written; existing checkpoints stay.
        """
        path = self.folder / f"{prefix}-{step:07d}.safetensors"
        content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        try:
            sealed.make_folder(self.folder)
            with replacing(path) as partial:
                save_file(content, partial)
            entry = {"file": path.name, "sha256": sha256_of(path), "step": step, **meta}
            self._rewrite(lambda entries: [e for e in entries if e["file"] != path.name] + [entry])
        except (OSError, SafetensorError) as error:
            raise ConfigError(
                f"{path}: the checkpoint cannot be written ({error}).",
                "The previous checkpoint is kept. Free some disk space, then go on with 'scorebayes train --resume RUN'.",
            ) from error

    def keep(self, prefix: str, wanted: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
        """Delete the files of a prefix that ``wanted`` does not return."""
        kept = {entry["file"] for entry in wanted(self.entries(prefix))}
        dropped = [entry["file"] for entry in self.entries(prefix) if entry["file"] not in kept]
        self._rewrite(lambda entries: [e for e in entries if e["file"] not in dropped])
        for name in dropped:
            (self.folder / name).unlink(missing_ok=True)

    def accept(self) -> None:
        """Take changed files as they are."""
        now = {
            name: sha256_of(self.folder / name)
            for name, what in self.differences().items()
            if what == "changed"
        }
        self._rewrite(lambda entries: [{**e, "sha256": now.get(e["file"], e["sha256"])} for e in entries])

    def differences(self) -> dict[str, str]:
        """Files that are not as they were written: "changed" or "missing"."""
        found = {}
        for entry in self._entries():
            path = self.folder / entry["file"]
            if path.is_symlink():
                found[entry["file"]] = "a link"
            elif not path.is_file():
                if entry["file"].startswith("step"):  # recalibrated runs do not take the states with them
                    found[entry["file"]] = "missing"
            elif sha256_of(path) != entry["sha256"]:
                found[entry["file"]] = "changed"
        return found

    def load(self, entry: dict[str, Any]) -> dict[str, Tensor]:
        """The tensors of an entry. ConfigError if the file is missing, was changed, or is damaged."""
        path = self.folder / entry["file"]
        sealed.require_inside(path)
        if not path.is_file():
            raise ConfigError(f"{path}: the checkpoint is missing.", "Restore it, or train again.")
        if sha256_of(path) != entry["sha256"]:
            raise ConfigError(
                f"{path}: the checkpoint has changed since it was written (its SHA-256 differs from manifest.json).",
                "Restore it from a backup, or train again.",
            )
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"{path}: the checkpoint is damaged ({error}).", "Train again.") from error
        for name, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise ConfigError(f"{path}: {name} contains NaN or infinite values.", "Train again.")
        return tensors

    def newest_state(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """The newest readable state. Damaged ones are skipped with a warning."""
        for entry in sorted(self.entries("state"), key=lambda entry: -entry["step"]):
            try:
                return entry, self.load(entry)
            except ConfigError as error:
                warnings.warn(f"{error} Continuing from the previous state.", stacklevel=2)
        return None

    def best(self) -> dict[str, Any]:
        """The entry of the weights with the lowest validation class log-loss (the latest, if there is none)."""
        entries = self.entries("step")
        if not entries:
            raise ConfigError(
                f"{self.folder}: there are no trained weights.", "Run 'scorebayes train' first."
            )
        return min(entries, key=lambda entry: (entry["val_log_loss"], -entry["step"]))

    def _entries(self) -> list[dict[str, Any]]:
        """Checked: a name that leads elsewhere must not be read, and even less be removed."""
        if not self._manifest.exists():
            return []
        entries = sealed.read_json(self._manifest)
        try:
            for entry in entries:
                prefix = _NAME.fullmatch(entry["file"])["prefix"]  # type: ignore[index]
                numbers = entry["step"], entry["val_log_loss" if prefix == "step" else "seconds"]
                if not (
                    all(isinstance(of, (int, float)) for of in numbers)
                    and re.fullmatch("[0-9a-f]{64}", entry["sha256"])
                ):
                    raise ValueError(f"the entry of {entry['file']}")
        except (LookupError, TypeError, ValueError) as error:
            raise sealed.damaged(self._manifest, error) from error
        return entries

    def _rewrite(self, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
        before = self._entries()
        if (entries := change(before)) != before or not self._manifest.exists():
            sealed.write(self._manifest, json.dumps(entries, indent=1))


def pack(modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What is needed to resume training: tensors named ``<module>.<weight>`` and ``optimizer.<parameter>.<moment>``."""
    tensors = {
        f"{name}.{key}": of for name, module in modules.items() for key, of in module.state_dict().items()
    }
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{moment}": of for moment, of in moments.items()}
    return tensors


def unpack(
    tensors: Mapping[str, Tensor], modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer
) -> None:
    """Give modules and optimiser what ``pack`` took of them. RuntimeError where it was of other modules."""
    parts: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, value in tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = value
    for name, module in modules.items():
        module.load_state_dict(parts[name])
    state: defaultdict[int, dict[str, Tensor]] = defaultdict(dict)
    for name, value in parts["optimizer"].items():
        index, _, moment = name.partition(".")
        state[int(index)][moment] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": dict(state)})
