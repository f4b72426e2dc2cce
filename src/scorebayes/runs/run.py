"""A run directory. The stages exchange data only through it, and whoever opens it gets a trained classifier.

    config.toml  environment.json  source.json  split.parquet  audit.json  train.jsonl  checkpoints/  wavelets.safetensors
    sealed.json  timings.json  lock
    calibration.json  evidence-<split>.parquet/  predictions-<split>.csv  metrics-<split>.json  quarantine.csv  report.html

``sealed.json`` knows the digests of all files that an answer depends on; they are checked when they are read
(``scorebayes.storage.sealed``). ``open_run`` checks that the directory is whole; ``Run`` offers the way of one image:
``prepare``, ``evidence``, and with
``scorebayes.bayes`` the posterior. Directories of older formats are read by ``older``.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from scorebayes.data.base import Rejected
from scorebayes.data.load import ImageSet
from scorebayes.decision.calibration import Calibration
from scorebayes.decision.decision import Decision
from scorebayes.decision.posterior import uniform_log_prior
from scorebayes.decision.table import EvidenceTable
from scorebayes.diffusion.likelihood import Likelihood
from scorebayes.diffusion.score import Denoiser, ScoreModel
from scorebayes.errors import ConfigError, command
from scorebayes.evidence.base import Evidence
from scorebayes.evidence.pixels import Pixels
from scorebayes.runs import older
from scorebayes.runs.config import Config, PriorConfig, parse_toml, resolve
from scorebayes.runs.device import environment, has_bf16, pick_device
from scorebayes.runs.facts import FORMAT, Facts, read_facts, to_dict
from scorebayes.runs.reader import Reader
from scorebayes.storage import sealed
from scorebayes.storage.checkpoint import Checkpoints
from scorebayes.storage.frames import read_frame
from scorebayes.storage.lock import locked
from scorebayes.storage.spreadsheet import csv_text
from scorebayes.training.settings import TrainConfig

SEALED_FROM = 5  # this format on, a run has a seal
SETTINGS = "settings"  # of a maker, beside the names of the sources
SPLIT = ("image_id", "patient_id", "label", "split")


class Run:
    """A run directory with its configuration. Large files are read only when needed."""

    def __init__(
        self, path: Path, config: Config, facts: Facts, device: torch.device, written: int = FORMAT
    ) -> None:
        self.path = path
        self.config = config
        self.facts = facts
        self.device = device
        self.format = written
        self.reader = Reader(path, config, facts.info)

    def __repr__(self) -> str:
        shape, entries = self.image_shape, Checkpoints(self.path / "checkpoints").entries("state")
        said = [
            f"{len(self.classes)} classes {', '.join(self.classes)}",
            f"{shape[1]} px {'grey' if shape[0] == 1 else 'colour'}",
            f"sources {', '.join(self.config.sources)}",
            *(f"step {entry['step']}" for entry in entries[-1:]),
            "calibrated" if self.calibration_path.exists() else "not calibrated",
        ]
        return f"Run({str(self.path)!r}: {'; '.join(said)})"

    # -- the way of one image -------------------------------------------------------------------------------------

    def prepare(self, image: NDArray, laterality: str = "", view: str = "") -> Tensor:
        """Pixels [H, W] or [H, W, 3] float32 in [0, 1] -> standardised [1, C, S, S]. DataError if unusable."""
        return self.standardise(self.config.prepare(image, laterality, view)[None])

    def standardise(self, levels: NDArray, u: Tensor | float = 0.5) -> Tensor:
        """Whole grey values in [0, 2^bits) [N, C, S, S] -> mean 0, variance 1 over the training split.

        ``u`` in [0, 1) dequantises: uniform noise for a density, the middle of the step for a decision.
        """
        scale = 2.0**self.config.prepare.bits
        shares = (torch.from_numpy(np.asarray(levels, dtype=np.float32)) + u) / scale
        return ((shares - self.facts.mean) / self.facts.std).float()

    def restore(self, z: Tensor) -> NDArray[np.float32]:
        """Standardised images -> pixels in [0, 1]."""
        return (z.detach().cpu().float() * self.facts.std + self.facts.mean).clamp(0, 1).numpy()

    def evidence(self, x: Tensor, keys: Sequence[str], likelihood: Likelihood | None = None) -> EvidenceTable:
        """The evidence of every source for standardised images [N, C, S, S].

        ``keys`` name the images' random draws: the same key and image give the same numbers, alone or in a batch.
        ``likelihood``: an estimator; by default the one of the configuration. Values in nats stand alone: then those sources
        are asked that can give them.
        """
        likelihood = likelihood or self.likelihood
        start = time.perf_counter()
        blocks = {
            name: source.log_lik(x, keys, likelihood) for name, source in self.asked(likelihood).items()
        }
        seconds = np.full(len(x), (time.perf_counter() - start) / max(1, len(x)))
        return EvidenceTable(tuple(keys), np.full(len(x), -1), blocks, seconds)

    def maker(self, likelihood: Likelihood) -> dict[str, str]:
        """What ``evidence`` depends on besides the images: the fingerprints of the sources in use, and that of the
        settings that all of them see."""
        found = {name: source.fingerprint(likelihood) for name, source in self.asked(likelihood).items()}
        return found | {SETTINGS: self.settings}

    @property
    def settings(self) -> str:
        """A digest of what all sources see: preparation, network, precision, seed, classes and scaling."""
        config = self.config
        content = [
            config.prepare.fingerprint, config.sections["net"], config.train.precision, self.seed, self.classes,
            *map(repr, self.scaling),
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def asked(self, likelihood: Likelihood) -> dict[str, Evidence]:
        """The sources that an estimator uses."""
        if likelihood.kind == "class-score":
            return self.sources
        return {name: source for name, source in self.sources.items() if source.in_nats}

    @cached_property
    def sources(self) -> dict[str, Evidence]:
        """The sources of evidence that have learned something. ConfigError where one is lost that the run is calibrated
        with."""
        found: dict[str, Evidence] = {}
        fitted = self.decision.calibration.weights if self.calibration_path.exists() else {}
        for name, source in self.configured.items():
            if source.learned:
                found[name] = source
            elif name in fitted:
                raise ConfigError(
                    f"{self.path}: the trained model of {source.title} is missing, but the calibration of the run needs it.",
                    f"Restore it, or train it again with `{command('train', '--resume', self.path)}`.",
                )
        return found

    @cached_property
    def configured(self) -> dict[str, Evidence]:
        """The sources of evidence in the configuration, trained or not."""
        return {name: self.config.open_evidence(name, self) for name in self.config.sources}

    @property
    def likelihood(self) -> Likelihood:
        return self.config.build("likelihood")

    @cached_property
    def log_prior(self) -> NDArray[np.float64]:
        """log p(y) [Y] at prediction, by the configuration's [prior]."""
        return self.log_prior_of(self.config.prior)

    def log_prior_of(self, prior: PriorConfig) -> NDArray[np.float64]:
        """log p(y) [Y] of any prior. ConfigError if it does not fit the classes of this run."""
        if prior.kind == "uniform":
            return uniform_log_prior(len(self.facts.classes))
        if prior.kind == "train":
            return self.facts.log_shares
        require_prior(prior, self.facts.classes)
        return np.log(np.array(prior.prob) / sum(prior.prob))

    @property
    def calibration_path(self) -> Path:
        """The decision file of the run's configured estimator."""
        return self.path / "calibration.json"

    @property
    def calibration(self) -> Calibration:
        """Weights, temperature and bias, as fitted on the validation split."""
        return self.decision.calibration

    @cached_property
    def decision(self) -> Decision:
        """Calibration and threshold. ConfigError where the run is not calibrated yet."""
        path = self.calibration_path
        if not path.exists():
            raise ConfigError(
                f"{path}: the run is not calibrated.",
                f"Finish it with `{command('train', '--resume', self.path)}`.",
            )
        stored = sealed.read_json(path)
        try:
            return Decision.from_dict(older.decision(stored, self.path))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise sealed.damaged(path, error) from error

    # -- the score of the images themselves: for samples, counterfactuals, and values in nats -----------------------

    @cached_property
    def image_score(self) -> Pixels:
        """The source that learns the score of the prepared images."""
        return cast(Pixels, self.configured.get(Pixels.name) or Pixels(self))

    @property
    def has_image_score(self) -> bool:
        """Whether a score of the prepared images is learned at all."""
        return Pixels.name in self.configured or self.config.train.label_free

    @property
    def score(self) -> ScoreModel:
        """The trained score of the prepared images. ConfigError where there is none, or its weights are damaged."""
        if not self.has_image_score:
            raise ConfigError(
                f"{self.path}: this run has no score of the pixels; its evidence comes from {', '.join(self.configured)}.",
                "Train with 'pixels' in [evidence] sources for samples, counterfactuals and values in nats.",
            )
        return self.image_score.score

    @property
    def checkpoints(self) -> Checkpoints:
        return self.image_score.checkpoints

    def new_denoiser(self) -> Denoiser:
        """An untrained network as configured."""
        return self.image_score.new_denoiser()

    # -- the images -----------------------------------------------------------------------------------------------

    def images(self, split: str) -> ImageSet:
        """The prepared images of a split with their labels, as ``split.parquet`` lists them. DataError if the data have
        changed since."""
        return self.reader.split(self.split, split)

    def pixels(self, images: ImageSet) -> NDArray[np.float32]:
        """What the network is shown, in [0, 1]: [N, C, S, S], the middle of every grey level."""
        return self.restore(self.standardise(images.images))

    def read(self, image: str | Path | NDArray) -> tuple[Tensor, str, str]:
        """A file, or pixels [H, W] or [H, W, 3], as the run takes them: standardised image [1, C, S, S], the key of its
        draws, and what is unusual about it, if anything. DataError where it cannot be read or prepared."""
        if isinstance(image, (str, Path)):
            levels, warning = self.reader.file(Path(image))
        else:
            levels, warning = self.reader.array(np.asarray(image))
        x = self.standardise(levels[None])
        return x, key_of(x), warning

    # -- what sources of evidence may know (``evidence.base.Home``) --------------------------------------------------

    @property
    def seed(self) -> int:
        return self.config.seed

    @property
    def classes(self) -> tuple[str, ...]:
        return self.facts.classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        prepare = self.config.prepare
        return prepare.channels, prepare.size, prepare.size

    @property
    def train_settings(self) -> TrainConfig:
        return self.config.train

    @property
    def scaling(self) -> tuple[float, float, int]:
        return self.facts.mean, self.facts.std, self.config.prepare.bits

    def build(self, section: str, **given: Any) -> Any:
        return self.config.build(section, **given)

    @property
    def start(self) -> Run | None:
        """The run whose weights training started from, on the CPU; None: random weights. ConfigError if it is missing."""
        path = self.config.train.init
        return open_run(path, "cpu") if path else None

    @property
    def precision(self) -> torch.dtype:
        """Of the network's arithmetic. "auto": bf16 where the processor computes in it, else fp32."""
        choice = self.config.train.precision
        if choice == "auto":
            choice = "bf16" if has_bf16(self.device) else "fp32"
        return torch.bfloat16 if choice == "bf16" else torch.float32

    # -- the directory --------------------------------------------------------------------------------------------

    def write_json(self, name: str, content: Any) -> None:
        sealed.write(self.path / name, json.dumps(content, indent=1, default=str) + "\n")

    def write_calibration(self, name: str, content: Any) -> None:
        """A decision as JSON; what was read of an earlier one is forgotten."""
        self.write_json(name, content)
        self.__dict__.pop("decision", None)

    @property
    def split(self) -> pd.DataFrame:
        """image_id, patient_id, label, split, ... of every image."""
        path = self.path / "split.parquet"
        table = read_frame(path)
        if missing := {*SPLIT} - {*table}:
            raise sealed.damaged(path, f"no column {min(missing)!r}")
        return table

    def quarantine(self, rejected: Sequence[Rejected], name: str = "quarantine.csv") -> None:
        """Record the images that could not be used, with the reasons."""
        write_quarantine(self.path / name, rejected)

    def locked(self) -> AbstractContextManager[None]:
        """Lock the directory: a second process in it is refused. The lock of a dead process does not count."""
        return locked(self.path)


def write_quarantine(path: Path, rejected: Sequence[Rejected]) -> None:
    """A table of images that could not be used, with the reasons."""
    frame = pd.DataFrame([asdict(r) for r in rejected], columns=["image_id", "path", "reason"])
    sealed.write(path, csv_text(frame))


def key_of(x: Tensor) -> str:
    """The key of the draws of a standardised image: the same for the same pixels, under any name."""
    return hashlib.blake2b(x.numpy().tobytes(), digest_size=16).hexdigest()


def create_run(run: Run) -> None:
    """Start a run directory: data facts, environment and, last, the configuration, which makes it a run."""
    run.write_json("source.json", to_dict(run.facts, run.config.prepare.fingerprint))
    run.write_json("environment.json", environment(run.device))
    sealed.write(run.path / "config.toml", run.config.to_toml())


def open_run(path: str | Path, device: str = "auto") -> Run:
    """Open a run directory. ConfigError says what is missing and how to get it."""
    path = Path(path)
    for name in ("config.toml", "source.json"):
        if not (path / name).is_file():
            raise ConfigError(
                f"{path}: not a run directory ({name} is missing).", "Make one with 'scorebayes train'."
            )
    layer = parse_toml(path / "config.toml", sealed.read(path / "config.toml"))
    if layer.get("task", "classify") != "classify":
        raise ConfigError(
            f"{path}: the task of this run is {layer['task']!r}, and this is for classifiers.",
            "For masks there are train, score, evaluate, predict and report.",
        )
    facts, written, pipeline = read_facts(path)
    if written >= SEALED_FROM and not sealed.is_sealed(path):
        raise ConfigError(
            f"{path}: {sealed.SEAL} is missing, so that the files of the run cannot be checked.",
            f"Restore it, or seal the files as they are: `{command('doctor', path, '--accept')}`.",
        )
    config = resolve(older.configuration(layer, written), preset=None)
    if pipeline not in ("", config.prepare.fingerprint):
        raise ConfigError(
            f"{path}: this version of scorebayes, with this [prepare] section, would prepare images differently from "
            "the training images.",
            "Restore config.toml, use the version that trained the run, or train again.",
        )
    return Run(path, config, facts, pick_device(device), written)


def reconfigured(run: Run, config: Config) -> Run:
    """The run with another configuration, which is written to its ``config.toml``."""
    with run.locked():
        if (
            run.format < FORMAT
        ):  # the configuration names its sources now, and what is there is sealed as it is
            if not sealed.is_sealed(run.path):
                sealed.accept(run.path)
            stored = sealed.read_json(run.path / "source.json")
            run.write_json("source.json", {**stored, "format": FORMAT})
        sealed.write(run.path / "config.toml", config.to_toml())
    return open_run(run.path, str(run.device))


def require_prior(prior: PriorConfig, classes: Sequence[str]) -> None:
    """ConfigError if the given prior does not fit these classes."""
    prob = prior.prob
    sound = len(prob) == len(classes) and abs(sum(prob) - 1) <= 1e-6 and min(prob) > 0
    if prior.kind == "given" and not sound:
        raise ConfigError(
            f"[prior] prob = {list(prob)}: expected {len(classes)} positive numbers that sum to 1, "
            f"in the order {', '.join(classes)}."
        )
