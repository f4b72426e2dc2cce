"""Tuning: the density of the noise levels, fitted on validation images.

Training uses a density that suits many data sets. The validation table shows what suits this one: draws are most useful
at the levels whose weighted value varies most from draw to draw, and by Neyman's rule (Cochran, Sampling Techniques,
5.5) the number of draws should be proportional to that spread. The fitted density is used only if it lowers the
cross-fitted log-loss.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scorebayes.decision.calibration import fit_calibration
from scorebayes.decision.table import Block, EvidenceTable
from scorebayes.diffusion.likelihood import Denoising
from scorebayes.errors import ConfigError
from scorebayes.runs.run import Run, reconfigured
from scorebayes.stages.calibrate import calibrate
from scorebayes.stages.score import read_table, score_split
from scorebayes.training.batches import step_seed
from scorebayes.training.validate import score_table

TRIALS = 3  # of the present and of the fitted density, on fresh draws: the best of many tries is good by luck


@dataclass(frozen=True)
class Tuned:
    """Mean and standard deviation of the log-SNR density before and as fitted, with their mean cross-fitted log-losses."""

    before: tuple[float, float]
    fitted: tuple[float, float]
    log_loss_before: float
    log_loss_fitted: float

    @property
    def better(self) -> bool:
        return self.log_loss_fitted < self.log_loss_before


def neyman_density(block: Block, weights: NDArray[np.float64]) -> tuple[float, float]:
    """Mean and standard deviation of the log-SNR density whose draws leave the log-odds the least Monte-Carlo variance.

    weights: [L], of the levels. Present draws are equally many per level, so that a level's share of the new density is its
    weight times the standard deviation of its draws within an image. ConfigError where a level has one draw only.
    """
    levels, counts = np.unique(block.level, return_counts=True)
    if counts.min() < 2:
        raise ConfigError(
            "the noise levels cannot be tuned: with one draw per level there is no spread.",
            "Set [likelihood] repeats = 2 or more.",
        )
    centred = block.draws - block.draws.mean(axis=2, keepdims=True)
    spread = [np.sqrt(centred[block.level == level].var(axis=0, ddof=1).mean()) for level in levels]
    share = weights * np.array(spread)
    if not share.sum() > 0:
        raise ConfigError("the noise levels cannot be tuned: none of them separates the classes.")
    # Every draw counts at its own noise level, so that the tails of the outer levels are felt.
    of_draws = (share / counts / share.sum())[np.searchsorted(levels, block.level)][:, None]
    weight = np.repeat(of_draws, block.log_snr.shape[1], 1)
    mean = np.average(block.log_snr, weights=weight)
    return float(mean), float(np.sqrt(np.average(np.square(block.log_snr - mean), weights=weight)))


def tune(run: Run) -> Tuned:
    """Fit the density of a run's noise levels on its validation split, and keep it if it lowers the log-loss.

    In that case ``config.toml`` gets the fitted density, and table and calibration of the validation split are redone; other
    splits must be scored again. ConfigError for an estimator that has no such density.
    """
    own: Any = run.likelihood
    if own.kind != Denoising.kind:
        raise ConfigError(
            f"{run.path}: only the class score has noise levels to tune.",
            'Set [likelihood] kind = "denoising".',
        )
    score, val = run.score, run.images("val")
    x = run.standardise(val.images)

    def table(likelihood: Denoising, seed: int) -> EvidenceTable:
        return score_table(likelihood, score, x, val.keys, seed, val.labels, val.patients).usable()

    score_split(run, "val")
    name = run.image_score.name
    stored = read_table(run, "val").usable()
    spread = stored.alone(name) if own.repeats > 1 else table(replace(own, repeats=2), run.config.seed)
    shares = spread.log_shares
    (weights,) = fit_calibration(spread, shares, seed=run.config.seed).weights.values()
    mean, std = neyman_density(spread.only, weights)

    def mean_loss(likelihood: Denoising) -> float:
        fresh = [table(likelihood, step_seed(run.config.seed, -10 - trial)) for trial in range(TRIALS)]
        return float(np.mean([fit_calibration(one, shares, seed=run.config.seed).log_loss for one in fresh]))

    fitted = replace(own, mean=mean, std=std)
    found = Tuned((own.mean, own.std), (mean, std), mean_loss(own), mean_loss(fitted))
    if found.better:
        config = run.config.changed("likelihood", mean=mean, std=std, first=[])
        changed = reconfigured(run, config)
        chosen = changed.image_score.choose_noise(val)
        if chosen:
            changed = reconfigured(changed, changed.config.changed("likelihood", first=list(chosen)))
        score_split(changed, "val")
        calibrate(changed)
    return found
