"""A segmentation run: the same kind of directory as a classifier's, with masks in place of classes.

config.toml  environment.json  source.json  split.parquet  audit.json  train.jsonl  checkpoints/
calibration.json  masks-<split>.npz  metrics-<split>.json  cases-<split>.csv  quarantine.csv  report.html
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from scorebayes.data.base import SourceInfo
from scorebayes.data.masks import Frame
from scorebayes.data.pixels.images import open_picture
from scorebayes.data.pixels.numbers import as_image, to_unit
from scorebayes.diffusion.score import Denoiser
from scorebayes.errors import ConfigError, DataError, command
from scorebayes.runs.config import parse_toml
from scorebayes.runs.device import environment, has_bf16, pick_device
from scorebayes.runs.reader import size_warning
from scorebayes.runs.run import key_of
from scorebayes.segmentation.config import MaskConfig, resolve_masks
from scorebayes.segmentation.decision import MaskDecision
from scorebayes.segmentation.drawn import Drawn
from scorebayes.segmentation.examples import MaskedSet, mask_source, read_all
from scorebayes.segmentation.posterior import Clock, draw, together
from scorebayes.storage import sealed
from scorebayes.storage.checkpoint import Checkpoints
from scorebayes.storage.frames import read_frame
from scorebayes.storage.lock import locked

FORMAT = 1
TASK = "segment"


@dataclass(frozen=True)
class MaskFacts:
    """What training learned of its data. mean, std: of the training pixels as shares of the full scale."""

    info: SourceInfo
    mean: float
    std: float


class Seen(NamedTuple):
    """An image as the run takes it: standardised [1, C, S, S], the key of its draws, where it lies, and a warning."""

    x: Tensor
    key: str
    frame: Frame
    warning: str


class MaskRun:
    """A segmentation run directory. Large files are read only when needed."""

    def __init__(self, path: Path, config: MaskConfig, facts: MaskFacts, device: torch.device) -> None:
        self.path, self.config, self.facts, self.device = path, config, facts, device

    def __repr__(self) -> str:
        prepare = self.config.prepare
        said = [
            f"masks of {self.facts.info.title}",
            f"{prepare.size} px {'grey' if prepare.channels == 1 else 'colour'}",
            *(f"step {entry['step']}" for entry in self.checkpoints.entries("state")[-1:]),
            "calibrated" if self.calibration_path.exists() else "not calibrated",
        ]
        return f"MaskRun({str(self.path)!r}: {'; '.join(said)})"

    # -- the way of one image -------------------------------------------------------------------------------------

    def read(self, image: str | Path | NDArray) -> Seen:
        """A file, or pixels [H, W] or [H, W, 3]. DataError where it cannot be read or prepared."""
        info, prepare = self.facts.info, self.config.prepare
        if isinstance(image, (str, Path)):
            name: Path | str = Path(image)
            picture = open_picture(Path(image), info.file_bits, info.modalities)
            pixels, about = picture.pixels, (picture.laterality, picture.view)
        else:
            name, about = "the image", ("", "")
            pixels = to_unit(as_image(np.asarray(image), name), name, info.file_bits)
        warning = size_warning(name, pixels, prepare.size)
        x = self.standardise(prepare(pixels, *about)[None])
        return Seen(x, key_of(x), Frame(pixels.shape[0], pixels.shape[1], prepare.size), warning)

    def standardise(self, levels: NDArray, u: Tensor | float = 0.5) -> Tensor:
        """Whole grey values in [0, 2^bits) [N, C, S, S] -> mean 0, variance 1 over the training split."""
        scale = 2.0**self.config.prepare.bits
        shares = (torch.from_numpy(np.asarray(levels, dtype=np.float32)) + u) / scale
        return ((shares - self.facts.mean) / self.facts.std).float()

    def draw(self, seen: Sequence[Seen], names: Sequence[str] = ()) -> Drawn:
        """Masks drawn for images; names [N] in place of the keys of their draws."""
        clock, found, seconds = Clock(), [], []
        for x, key, frame, _ in seen:
            x = x.to(self.device)
            found.append(
                draw(self.denoiser, self.config.noise, self.config.segment, x, key, frame, self.config.seed)
            )
            seconds.append(clock())
        return together(names or [of.key for of in seen], found, seconds)

    # -- the network ----------------------------------------------------------------------------------------------

    @property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.path / "checkpoints")

    def new_denoiser(self) -> Denoiser:
        """An untrained network as configured."""
        choice = self.config.train.precision
        half = choice == "bf16" or (choice == "auto" and has_bf16(self.device))
        return Denoiser(self.config.net(), torch.bfloat16 if half else torch.float32).to(self.device)

    @cached_property
    def denoiser(self) -> Denoiser:
        """The trained network. ConfigError where its weights are missing or damaged."""
        denoiser, best = self.new_denoiser(), self.checkpoints.best()
        try:
            denoiser.load_state_dict(self.checkpoints.load(best))
        except RuntimeError as error:
            raise ConfigError(
                f"{self.path}: the weights do not belong to the network of config.toml.",
                "Restore these files as training wrote them, or train again.",
            ) from error
        return denoiser.eval()

    # -- the images -----------------------------------------------------------------------------------------------

    @property
    def split(self) -> pd.DataFrame:
        """image_id, patient_id, split of every image."""
        return read_frame(self.path / "split.parquet")

    def examples(self, split: str) -> MaskedSet:
        """The images of a split with their masks, as ``split.parquet`` lists them. DataError if the data have changed."""
        table = self.split
        wanted = set(table.query("split == @split")["image_id"])
        if not wanted:
            raise DataError(
                f"{self.path}: the split {split!r} has no images.",
                f"Choose from {', '.join(sorted(table['split'].unique()))}.",
            )
        source = mask_source(self.config)
        records = [record for record in source.records() if record.image_id in wanted]
        found, rejected = read_all(self.path, self.config, source, records, self.config.data.options or {})
        missing = wanted - set(found.keys)
        if missing:
            reason = rejected[0].reason if rejected else "it is no longer in the data set"
            raise DataError(
                f"{len(missing)} images of the split {split!r} can no longer be read, for example {min(missing)}: "
                f"{reason}.",
                "Restore the data, or train a new run.",
            )
        return found

    def seen(self, found: MaskedSet) -> list[Seen]:
        """Images of a split as those of files."""
        each = self.standardise(found.images.images).split(1)
        return [Seen(x, key_of(x), frame, "") for x, frame in zip(each, found.frames, strict=True)]

    # -- the directory --------------------------------------------------------------------------------------------

    @property
    def calibration_path(self) -> Path:
        return self.path / "calibration.json"

    @property
    def decision(self) -> MaskDecision:
        """What validation images fixed. ConfigError where the run is not calibrated yet."""
        if not self.calibration_path.exists():
            raise ConfigError(
                f"{self.calibration_path}: the run is not calibrated.",
                f"Finish it with `{command('train', '--resume', self.path)}`.",
            )
        return MaskDecision.from_dict(sealed.read_json(self.calibration_path))

    def write_json(self, name: str, content: Any) -> None:
        sealed.write(self.path / name, json.dumps(content, indent=1, default=str) + "\n")

    def locked(self) -> AbstractContextManager[None]:
        """Lock the directory: a second process in it is refused. The lock of a dead process does not count."""
        return locked(self.path)


def is_mask_run(path: str | Path) -> bool:
    """Whether a directory holds a segmentation run."""
    try:
        return tomllib.loads((Path(path) / "config.toml").read_text(encoding="utf-8")).get("task") == TASK
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError):
        return False


def create_mask_run(run: MaskRun) -> None:
    """Start a run directory: data facts, environment and, last, the configuration, which makes it a run."""
    facts = run.facts
    pipeline = run.config.prepare.fingerprint
    stored = {"task": TASK, "format": FORMAT, "pipeline": pipeline, **asdict(facts.info)}
    run.write_json("source.json", {**stored, "mean": facts.mean, "std": facts.std})
    run.write_json("environment.json", environment(run.device))
    sealed.write(run.path / "config.toml", run.config.to_toml())


def open_mask_run(path: str | Path, device: str = "auto") -> MaskRun:
    """Open a segmentation run. ConfigError says what is missing or does not fit."""
    path = Path(path)
    if not is_mask_run(path):
        raise ConfigError(
            f"{path}: not a segmentation run.", "Make one with 'scorebayes train --task segment'."
        )
    if not sealed.is_sealed(path):
        raise ConfigError(
            f"{path}: {sealed.SEAL} is missing, so that the files of the run cannot be checked.",
            f"Restore it, or seal the files as they are: `{command('doctor', path, '--accept')}`.",
        )
    content = sealed.read(path / "config.toml")
    config = resolve_masks(parse_toml(path / "config.toml", content), preset=None)
    try:
        stored = sealed.read_json(path / "source.json")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: source.json is missing.", "Restore it, or train again.") from error
    written, pipeline = stored.pop("format"), stored.pop("pipeline")
    if written > FORMAT:
        raise ConfigError(
            f"{path}: this run was written by a newer version of scorebayes.", "Install that version."
        )
    if pipeline != config.prepare.fingerprint:
        raise ConfigError(
            f"{path}: this version of scorebayes, with this [prepare] section, would prepare images differently from "
            "the training images.",
            "Restore config.toml, use the version that trained the run, or train again.",
        )
    mean, std, _ = stored.pop("mean"), stored.pop("std"), stored.pop("task")
    lists = {key: tuple(stored[key]) for key in ("classes", "modalities") if key in stored}
    facts = MaskFacts(SourceInfo(**{**stored, **lists}), mean, std)
    return MaskRun(path, config, facts, pick_device(device))
