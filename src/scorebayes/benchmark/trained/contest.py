"""Estimators that take turns on the same images, so that a machine that slows down slows all of them.

Results are kept in small parts in the run directory (``benchmark/``), so a stopped benchmark resumes where it left off.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scorebayes.data.load import ImageSet
from scorebayes.decision.posterior import Posterior, bayes, uniform_log_prior
from scorebayes.decision.table import EvidenceTable
from scorebayes.diffusion.likelihood import Likelihood, PaperFlow
from scorebayes.diffusion.score import Denoiser, ScoreModel
from scorebayes.progress import progress_bar
from scorebayes.runs.run import Run
from scorebayes.storage.atomic import write_atomically
from scorebayes.training.validate import score_table

IMAGES_PER_PART = 4
PAPER = "paper"


@dataclass(frozen=True)
class Contestant:
    """An estimator, how many of the images it is given, and the highest log-SNR it uses (None: that of the process).

    whole: with all sources of evidence of the run's decision; else the score of the images alone.
    """

    name: str
    likelihood: Likelihood
    images: int
    log_snr_max: float | None = None
    whole: bool = False


def trained_log_snr_max(run: Run) -> float:
    """The log-SNR below which all but 2 % of the training images were: mean + 2 standard deviations."""
    config = run.config.train
    return min(config.log_snr_mean + 2 * config.log_snr_std, run.score.noise.log_snr_range[1])


def paper_at_best(run: Run, images: int) -> Contestant:
    """The paper's computation at its best: one probe for all classes, and the noise levels the network was trained on."""
    return Contestant(PAPER, PaperFlow(shared_probe=True), images, trained_log_snr_max(run))


def take_turns(
    run: Run, images: ImageSet, contestants: Sequence[Contestant], title: str = "measure"
) -> tuple[dict[str, EvidenceTable], dict[str, dict[str, float]]]:
    """Tables, and seconds per image (wall and CPU), of every contestant; existing parts are kept."""
    folders = {c.name: parts_folder(run, images, c) for c in contestants}
    scores = {c.name: score_for(run, c.likelihood.kind, c.log_snr_max) for c in contestants}
    # Warm up: libraries choose their kernels at the first call.
    run.evidence(run.standardise(images.subset([0]).images), images.keys[:1])
    with progress_bar(title, len(images)) as advance:
        for part, start in enumerate(range(0, len(images), IMAGES_PER_PART)):
            rows = np.arange(start, min(start + IMAGES_PER_PART, len(images)))
            for c in contestants:
                path = folders[c.name] / f"part-{part:06d}.parquet"
                own = rows[rows < c.images]
                if path.exists() or not len(own):
                    continue
                some = images.subset(own)
                x = run.standardise(some.images)
                wall, cpu = time.perf_counter(), time.process_time()
                if c.whole:
                    table = run.evidence(x, some.keys, c.likelihood)
                else:
                    table = score_table(c.likelihood, scores[c.name], x, some.keys, run.config.seed)
                spent = {
                    "wall": time.perf_counter() - wall,
                    "cpu": time.process_time() - cpu,
                    "images": len(own),
                }
                write_atomically(path.with_suffix(".json"), json.dumps(spent))
                table.with_labels(some.labels, some.patients).write_part(path)
            advance(int(rows[-1]) + 1, "")
    return (
        {c.name: EvidenceTable.read(folders[c.name]) for c in contestants},
        {c.name: _seconds(folders[c.name]) for c in contestants},
    )


def parts_folder(run: Run, images: ImageSet, contestant: Contestant) -> Path:
    """Where the parts of a contestant are kept: another network, estimator or choice of images has another folder."""
    identity = (
        run.maker(contestant.likelihood),
        images.keys[: contestant.images],
        contestant.log_snr_max,
        contestant.whole,
    )
    digest = hashlib.blake2b(repr(identity).encode(), digest_size=6).hexdigest()
    folder = run.path / "benchmark" / f"{contestant.name.replace(',', '').replace(' ', '-')}-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _seconds(folder: Path) -> dict[str, float]:
    """Mean wall and CPU seconds per image."""
    spent = [json.loads(path.read_text()) for path in sorted(folder.glob("part-*.json"))]
    images = sum(part["images"] for part in spent)
    return {key: sum(part[key] for part in spent) / images for key in ("wall", "cpu")}


def score_for(run: Run, kind: str, log_snr_max: float | None = None) -> ScoreModel:
    """The run's score; for values in nats in single precision, as rounding to bf16 would spoil them."""
    if kind == "class-score":
        return run.score
    noise: Any = run.score.noise
    if log_snr_max is not None:
        noise = replace(noise, t_min=float(noise.time(torch.tensor(log_snr_max, dtype=torch.float64))))
    return ScoreModel(Denoiser(run.score.denoiser.net).eval(), noise)


def at_its_word(table: EvidenceTable) -> Posterior:
    """The posterior of uncalibrated log-likelihoods at a uniform prior. A calibration with one weight keeps its ranking."""
    return bayes(table, uniform_log_prior(table.n_classes))


def some_images(images: ImageSet, n: int, seed: int) -> ImageSet:
    """n images in random order, with the class shares of all."""
    if len(images) <= n:
        return images.subset(np.random.default_rng(seed).permutation(len(images)))
    rng = np.random.default_rng(seed)
    classes, counts = np.unique(images.labels, return_counts=True)
    shares = np.round(n * counts / len(images)).astype(int)
    shares[counts.argmax()] += n - shares.sum()
    rows = [
        rng.permutation(np.flatnonzero(images.labels == y))[:share]
        for y, share in zip(classes, shares, strict=True)
    ]
    return images.subset(rng.permutation(np.concatenate(rows)))
