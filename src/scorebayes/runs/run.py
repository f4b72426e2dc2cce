"""A run directory: the only thing that the stages exchange, and a trained classifier to whoever opens it.

    config.toml  environment.json  source.json  split.parquet  audit.json  train.jsonl  checkpoints/  wavelets.safetensors
    calibration.json  loglik-<split>.parquet/  predictions-<split>.csv  metrics-<split>.json  quarantine.csv  report.html

``open_run`` checks that the directory is whole; ``Run`` offers the way of one image: ``prepare``, ``log_lik``, and with
``scorebayes.bayes`` the posterior.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.special import expit, logit
from torch import Tensor

from scorebayes.data.base import Rejected, SourceInfo
from scorebayes.decision.calibration import Calibration
from scorebayes.decision.pooling import Pooling
from scorebayes.decision.posterior import prior_log_odds, uniform_log_prior
from scorebayes.decision.table import LogLikTable
from scorebayes.decision.typicality import Typicality
from scorebayes.diffusion.draws import Draws
from scorebayes.diffusion.likelihood import Likelihood
from scorebayes.diffusion.score import Denoiser, Score, ScoreModel
from scorebayes.errors import ConfigError
from scorebayes.evidence.mixtures import WaveletMixtures
from scorebayes.runs.config import Config, PriorConfig, read_toml, resolve
from scorebayes.storage.atomic import write_atomically
from scorebayes.storage.checkpoint import Checkpoints
from scorebayes.storage.spreadsheet import csv_text
from scorebayes.training.augment import CODE_LENGTH

WAVELETS = "wavelets.safetensors"
FORMAT = 3
"""Of the run directory. Raise it, and read the older ones, when a file changes its meaning."""

PACKAGES = (
    "scorebayes",
    "torch",
    "numpy",
    "scipy",
    "pandas",
    "scikit-learn",
    "scikit-image",
    "pydicom",
    "monai",
)


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


@dataclass(frozen=True)
class Decision:
    """What the validation split fixed.

    The calibration, the threshold on the probability of the positive class, and what is typical (None in runs of
    versions that did not judge it). ``log_prior`` [Y] is the prior under which the threshold was chosen (None in runs
    that do not say it); ``pooling``, how the evidence of images of one breast or patient is added.
    """

    calibration: Calibration
    threshold: float
    typicality: Typicality | None = None
    log_prior: NDArray[np.float64] | None = None
    pooling: Pooling = field(default_factory=Pooling)

    def under(self, log_prior: NDArray, positive: int) -> Decision:
        """The same decision under another prior [Y]: the threshold moves so that the cut on the evidence stays.

        An image is called positive where its likelihood ratio exceeds what it had to exceed on validation, whatever the
        prior. Among more than two classes this is exact where the other classes keep their shares of the rest.
        """
        if self.log_prior is None:
            return self
        moved = prior_log_odds(log_prior, positive) - prior_log_odds(self.log_prior, positive)
        threshold = float(
            expit(logit(min(self.threshold, 1 - 1e-12)) + moved)
        )  # a rule may lie above all of [0, 1]
        return replace(self, threshold=threshold, log_prior=np.asarray(log_prior, dtype=np.float64))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the calibration's fields, and the others by their names."""
        return {
            **self.calibration.to_dict(),
            "threshold": self.threshold,
            "typicality": None if self.typicality is None else self.typicality.to_dict(),
            "log_prior": None if self.log_prior is None else np.asarray(self.log_prior).tolist(),
            "pooling": self.pooling.to_dict(),
        }

    @staticmethod
    def from_dict(stored: dict[str, Any]) -> Decision:
        """The inverse of ``to_dict``; other keys are passed over."""
        typicality, log_prior = stored.get("typicality"), stored.get("log_prior")
        return Decision(
            Calibration.from_dict(stored),
            float(stored["threshold"]),
            None if typicality is None else Typicality.from_dict(typicality),
            None if log_prior is None else np.asarray(log_prior, dtype=np.float64),
            Pooling(**stored.get("pooling", {})),
        )


class Run:
    """A run directory with its configuration. Nothing heavy is read before it is asked for."""

    def __init__(self, path: Path, config: Config, facts: Facts, device: torch.device) -> None:
        self.path = path
        self.config = config
        self.facts = facts
        self.device = device
        self.checkpoints = Checkpoints(path / "checkpoints")

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

    def log_lik(self, x: Tensor, keys: Sequence[str], likelihood: Likelihood | None = None) -> LogLikTable:
        """Log-likelihood table of standardised images [N, C, S, S].

        ``keys`` name the images' random draws: the same key and image give the same numbers, alone or in a batch.
        ``likelihood``: an estimator; by default the one of the configuration.
        """
        likelihood = likelihood or self.likelihood
        table = log_lik_table(likelihood, self.score, x, keys, self.config.seed)
        if likelihood.kind != "class-score" or self.wavelets is None:
            return table
        start = time.perf_counter()
        with torch.no_grad():
            wavelets = self.wavelets.of_images(x).numpy()
        seconds = (time.perf_counter() - start) / max(1, len(x))
        return replace(table, wavelets=wavelets, seconds=table.seconds + seconds)

    def maker(self, likelihood: Likelihood) -> dict[str, str]:
        """What ``log_lik`` depends on beside the images: weights, estimator and, where they are asked, the wavelets."""
        found = {"weights": self.checkpoints.best()["sha256"], "estimator": repr(likelihood)}
        if likelihood.kind == "class-score" and self.wavelets is not None:
            found["wavelets"] = self.wavelets.fingerprint
        return found

    @cached_property
    def log_prior(self) -> NDArray[np.float64]:
        """log p(y) [Y] at prediction, by the configuration's [prior]."""
        return self.log_prior_of(self.config.prior)

    def log_prior_of(self, prior: PriorConfig) -> NDArray[np.float64]:
        """log p(y) [Y] of any prior. ConfigError where it is none for the classes of this run."""
        if prior.kind == "uniform":
            return uniform_log_prior(len(self.facts.classes))
        if prior.kind == "train":
            return self.facts.log_shares
        require_prior(prior, self.facts.classes)
        return np.log(np.array(prior.prob) / sum(prior.prob))

    @property
    def calibration_path(self) -> Path:
        """Where the decision of the run's own estimator is."""
        return self.path / "calibration.json"

    @property
    def calibration(self) -> Calibration:
        """Noise-level weights, temperature and bias, as fitted on the validation split."""
        return self.decision.calibration

    @cached_property
    def decision(self) -> Decision:
        """Calibration and threshold. ConfigError where the run is not calibrated yet."""
        path = self.calibration_path
        if not path.exists():
            raise ConfigError(
                f"{path}: the run is not calibrated.", "Finish it with 'scorebayes train --resume'."
            )
        return Decision.from_dict(json.loads(path.read_text()))

    # -- the model ------------------------------------------------------------------------------------------------

    def new_denoiser(self) -> Denoiser:
        """An untrained network as configured."""
        net = self.config.build(
            "net",
            image_channels=self.config.prepare.channels,
            n_classes=len(self.facts.classes),
            n_augment=CODE_LENGTH,
        )
        return Denoiser(net, self.precision).to(self.device)

    @cached_property
    def score(self) -> ScoreModel:
        """The trained score: the checkpoint with the best validation class log-loss.

        ConfigError where the weights are damaged, or not of the network that classes and configuration describe.
        """
        denoiser = self.new_denoiser()
        entry = self.checkpoints.best()
        try:
            denoiser.load_state_dict(self.checkpoints.load(entry))
        except RuntimeError as error:  # torch's word for names and shapes that differ
            raise ConfigError(
                f"{self.checkpoints.folder / entry['file']}: the weights are not of the network that config.toml and "
                "source.json describe (other classes, channels or widths).",
                "Restore these files as training wrote them, or train again.",
            ) from error
        return ScoreModel(denoiser.eval(), self.config.build("noise"))

    @cached_property
    def wavelets(self) -> WaveletMixtures | None:
        """What ``learn_wavelets`` found; None where the run does not ask them. ConfigError where they are lost."""
        path = self.path / WAVELETS
        if path.exists():
            return WaveletMixtures.load(path) if self.config.wavelets.use else None
        if self.calibration_path.exists() and self.calibration.wavelet_weight:
            raise ConfigError(
                f"{path}: missing, and the run is calibrated with it.",
                "Restore it, or finish the run again with 'scorebayes train --resume'.",
            )
        return None

    @property
    def start(self) -> Run | None:
        """The run whose weights training started from, on the CPU; None: from random weights. ConfigError if it is gone."""
        path = self.config.train.init
        return open_run(path, "cpu") if path else None

    @property
    def likelihood(self) -> Likelihood:
        return self.config.build("likelihood")

    @property
    def precision(self) -> torch.dtype:
        """Of the network's arithmetic. "auto": bf16 where the processor computes in it, else fp32."""
        choice = self.config.train.precision
        if choice == "auto":
            choice = "bf16" if _has_bf16(self.device) else "fp32"
        return torch.bfloat16 if choice == "bf16" else torch.float32

    # -- the directory --------------------------------------------------------------------------------------------

    def write_json(self, name: str, content: Any) -> None:
        write_atomically(self.path / name, json.dumps(content, indent=1, default=str) + "\n")

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
        """Hold the directory: a second run in it is refused; the lock of a dead process is no lock."""
        with (self.path / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ConfigError(
                    f"{self.path}: another process is working in this run directory.",
                    "Wait for it, or stop it.",
                ) from error
            yield


def log_lik_table(
    likelihood: Likelihood, score: Score, x: Tensor, keys: Sequence[str], seed: int
) -> LogLikTable:
    """Evaluate an estimator on standardised images [N, C, H, W], whose random draws are named by ``keys``.

    What claims to be nats is computed in float32, whatever the network was trained in.
    """
    if len(keys) != len(x):
        raise ConfigError(f"{len(x)} images but {len(keys)} keys.")
    if likelihood.kind != "class-score":
        score = score.in_float32()
    start = time.perf_counter()
    with torch.no_grad():
        found = likelihood(score, x, Draws(seed, keys))
    seconds = (time.perf_counter() - start) / max(1, len(x))
    return LogLikTable(
        tuple(keys), np.full(len(x), -1), found.draws, found.log_snr, found.level, found.nfe, found.status,
        np.full(len(x), seconds), found.kind,
    )  # fmt: skip


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
    """Open a run directory. ConfigError says what is missing, and how to make it."""
    path = Path(path)
    for name in ("config.toml", "source.json"):
        if not (path / name).is_file():
            raise ConfigError(
                f"{path}: no run directory ({name} is missing).", "Make one with 'scorebayes train'."
            )
    stored = json.loads((path / "source.json").read_text())
    written = stored.pop("format", 1)
    if written > FORMAT:
        raise ConfigError(f"{path}: written by a newer version of scorebayes.", "Install that version.")
    layer = read_toml(path / "config.toml")
    if written == 1 and layer.get("likelihood", {}).get("kind") == "denoising":
        layer["likelihood"].setdefault("common_noise", False)  # what its calibration was fitted on
    config = resolve(layer, preset=None)
    if stored.pop("pipeline", config.prepare.fingerprint) != config.prepare.fingerprint:
        raise ConfigError(
            f"{path}: the images were prepared otherwise than [prepare] and this version of scorebayes would.",
            "Restore config.toml, use the version that trained the run, or train again.",
        )
    mean, std, counts = stored.pop("mean"), stored.pop("std"), stored.pop("train_counts")
    lists = {key: tuple(stored[key]) for key in ("classes", "modalities") if key in stored}
    info = SourceInfo(**{**stored, **lists})
    return Run(path, config, Facts(info, mean, std, tuple(counts)), pick_device(device))


def reconfigured(run: Run, config: Config) -> Run:
    """The run under another configuration, which its ``config.toml`` holds from now on."""
    write_atomically(run.path / "config.toml", config.to_toml())
    return open_run(run.path, str(run.device))


def require_prior(prior: PriorConfig, classes: Sequence[str]) -> None:
    """ConfigError where the given prior is none for these classes."""
    prob = prior.prob
    sound = len(prob) == len(classes) and abs(sum(prob) - 1) <= 1e-6 and min(prob) > 0
    if prior.kind == "given" and not sound:
        raise ConfigError(
            f"[prior] prob = {list(prob)}: expected {len(classes)} positive numbers that sum to 1, "
            f"in the order {', '.join(classes)}."
        )


def pick_device(name: str = "auto") -> torch.device:
    """The named device, or the best there is: CUDA, MPS, CPU. ConfigError if the named one is absent."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    if not available.get(name.partition(":")[0], False):
        there = ", ".join(kind for kind, found in available.items() if found)
        raise ConfigError(f"device {name!r} is not there.", f"Available: {there}.")
    return torch.device(name)


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and hardware, for the record."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "absent"
    accelerator = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "versions": versions,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "accelerator": accelerator,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool(torch.cpu.get_capabilities().get("avx512_bf16", False))
