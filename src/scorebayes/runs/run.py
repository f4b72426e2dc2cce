"""A run directory. The stages exchange data only through it, and whoever opens it gets a trained classifier.

    config.toml  environment.json  source.json  split.parquet  audit.json  train.jsonl  checkpoints/  wavelets.safetensors
    calibration.json  evidence-<split>.parquet/  predictions-<split>.csv  metrics-<split>.json  quarantine.csv  report.html

``open_run`` checks that the directory is whole; ``Run`` offers the way of one image: ``prepare``, ``evidence``, and with
``scorebayes.bayes`` the posterior. Directories of older formats are read by ``older``.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from scorebayes.data.base import Rejected, SourceInfo
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
from scorebayes.runs.config import Config, PriorConfig, read_toml, resolve
from scorebayes.runs.device import environment, has_bf16, pick_device
from scorebayes.runs.reader import Reader
from scorebayes.storage.atomic import write_atomically
from scorebayes.storage.checkpoint import Checkpoints
from scorebayes.storage.spreadsheet import csv_text
from scorebayes.training.settings import TrainConfig

FORMAT = 4
"""Format of the run directory. Raise it when a file changes its meaning, and read older formats in ``older``."""


@dataclass(frozen=True)
class Facts:
    """What training learned of its data, stored in ``source.json``.

    ``mean`` and ``std`` are of the training pixels as shares of the full scale; ``train_counts`` per class.
    """

    info: SourceInfo
    mean: float
    std: float
    train_counts: tuple[int, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        return self.info.classes

    @property
    def log_shares(self) -> NDArray[np.float64]:
        """Log of the class shares of the training split [Y]."""
        return np.log(np.array(self.train_counts) / sum(self.train_counts))


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
        """What ``evidence`` depends on besides the images: the fingerprints of the sources in use."""
        return {name: source.fingerprint(likelihood) for name, source in self.asked(likelihood).items()}

    def asked(self, likelihood: Likelihood) -> dict[str, Evidence]:
        """The sources that an estimator uses."""
        if likelihood.kind == "class-score":
            return self.sources
        return {name: source for name, source in self.sources.items() if source.in_nats}

    @cached_property
    def sources(self) -> dict[str, Evidence]:
        """The sources of evidence that have learned something. ConfigError where one is lost that the run is calibrated
        with."""
        found, path = {}, self.calibration_path
        fitted = older.decision(json.loads(path.read_text()), self.path)["weights"] if path.exists() else {}
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
        return Decision.from_dict(older.decision(json.loads(path.read_text()), self.path))

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
        write_atomically(self.path / name, json.dumps(content, indent=1, default=str) + "\n")

    def write_calibration(self, name: str, content: Any) -> None:
        """A decision as JSON; what was read of an earlier one is forgotten."""
        self.write_json(name, content)
        self.__dict__.pop("decision", None)

    @property
    def split(self) -> pd.DataFrame:
        """image_id, patient_id, label, split, ... of every image."""
        return pd.read_parquet(self.path / "split.parquet")

    def quarantine(self, rejected: Sequence[Rejected], name: str = "quarantine.csv") -> None:
        """Record the images that could not be used, with the reasons."""
        frame = pd.DataFrame([asdict(r) for r in rejected], columns=["image_id", "path", "reason"])
        write_atomically(self.path / name, csv_text(frame))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the directory: a second process in it is refused. The lock of a dead process does not count."""
        with (self.path / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ConfigError(
                    f"{self.path}: another process is working in this run directory.",
                    "Wait until it is done, or stop it.",
                ) from error
            yield


def key_of(x: Tensor) -> str:
    """The key of the draws of a standardised image: the same for the same pixels, under any name."""
    return hashlib.blake2b(x.numpy().tobytes(), digest_size=16).hexdigest()


def create_run(run: Run) -> None:
    """Start a run directory: data facts, environment and, last, the configuration, which makes it a run."""
    config, facts = run.config, run.facts
    stored = {
        "format": FORMAT,
        "pipeline": config.prepare.fingerprint,
        **asdict(facts.info),
        "mean": facts.mean,
    }
    run.write_json("source.json", {**stored, "std": facts.std, "train_counts": list(facts.train_counts)})
    run.write_json("environment.json", environment(run.device))
    write_atomically(run.path / "config.toml", config.to_toml())


def open_run(path: str | Path, device: str = "auto") -> Run:
    """Open a run directory. ConfigError says what is missing and how to get it."""
    path = Path(path)
    for name in ("config.toml", "source.json"):
        if not (path / name).is_file():
            raise ConfigError(
                f"{path}: not a run directory ({name} is missing).", "Make one with 'scorebayes train'."
            )
    stored = json.loads((path / "source.json").read_text())
    written = stored.pop("format", 1)
    if written > FORMAT:
        raise ConfigError(
            f"{path}: this run was written by a newer version of scorebayes.", "Install that version."
        )
    given = read_toml(path / "config.toml")
    if given.get("task", "classify") != "classify":
        raise ConfigError(
            f"{path}: the task of this run is {given['task']!r}, and this is for classifiers.",
            "For masks there are train, score, evaluate, predict and report.",
        )
    config = resolve(older.configuration(given, written), preset=None)
    if stored.pop("pipeline", config.prepare.fingerprint) != config.prepare.fingerprint:
        raise ConfigError(
            f"{path}: this version of scorebayes, with this [prepare] section, would prepare images differently from "
            "the training images.",
            "Restore config.toml, use the version that trained the run, or train again.",
        )
    mean, std, counts = stored.pop("mean"), stored.pop("std"), stored.pop("train_counts")
    lists = {key: tuple(stored[key]) for key in ("classes", "modalities") if key in stored}
    info = SourceInfo(**{**stored, **lists})
    return Run(path, config, Facts(info, mean, std, tuple(counts)), pick_device(device), written)


def reconfigured(run: Run, config: Config) -> Run:
    """The run with another configuration, which is written to its ``config.toml``."""
    if run.format < FORMAT:  # the configuration names its sources now
        stored = json.loads((run.path / "source.json").read_text())
        run.write_json("source.json", {**stored, "format": FORMAT})
    write_atomically(run.path / "config.toml", config.to_toml())
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
