"""How good the score is on validation examples, and which checkpoint is kept at the end."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor

from scorebayes.decision.calibration import fit_calibration
from scorebayes.decision.posterior import bayes
from scorebayes.decision.table import Block, EvidenceTable
from scorebayes.diffusion.draws import Draws
from scorebayes.diffusion.likelihood import Likelihood
from scorebayes.diffusion.score import Denoiser, Score, ScoreModel, training_loss
from scorebayes.errors import ConfigError
from scorebayes.training.batches import draw_log_snr, step_seed
from scorebayes.training.plan import Plan
from scorebayes.training.settings import TrainConfig
from scorebayes.training.state import State

VALIDATIONS = 10
LEAST_STEPS_BETWEEN = 20  # two validations; one costs as much as several steps, and few steps change little
FINAL_IMAGES = 300  # looked at, over all validations, for the last choice between checkpoints
PRICE = 10  # of a look at a validation image, in images of training steps; one may not cost more than all the steps do


def score_block(
    likelihood: Likelihood, score: Score, x: Tensor, keys: Sequence[str], seed: int
) -> tuple[Block, NDArray[np.float64]]:
    """The values of an estimator for standardised examples [N, C, H, W], whose random draws are named by ``keys``; with the
    seconds spent on each [N].

    Values in nats are computed in float32, whatever precision the network was trained in.
    """
    if len(keys) != len(x):
        raise ConfigError(f"{len(x)} images, but {len(keys)} keys.")
    if likelihood.kind != "class-score":
        score = score.in_float32()
    start = time.perf_counter()
    with torch.no_grad():
        found = likelihood(score, x, Draws(seed, keys))
    seconds = (time.perf_counter() - start) / max(1, len(x))
    return Block(**vars(found)), np.full(len(x), seconds)


def score_table(
    likelihood: Likelihood,
    score: Score,
    x: Tensor,
    keys: Sequence[str],
    seed: int,
    labels: NDArray[np.int64] | None = None,
    patients: Sequence[str] = (),
) -> EvidenceTable:
    """The same as a table of one source, "score". labels [N]: unknown by default. patients [N]: by default one an image."""
    block, seconds = score_block(likelihood, score, x, keys, seed)
    labels = np.full(len(x), -1) if labels is None else labels
    return EvidenceTable(tuple(keys), labels, {"score": block}, seconds, tuple(patients))


def validate(plan: Plan, denoiser: Denoiser, seed: int | None = None) -> tuple[float, float]:
    """Cross-fitted class log-loss (nats) and AUC of the calibrated posterior on validation examples.

    ``seed``: of the random draws; the plan's own by default.
    """
    rows = validation_rows(plan.val.labels, len(plan.classes), plan.settings.val_images, plan.seed)
    labels = plan.val.labels[rows]
    keys, patients = ([of[row] for row in rows] for of in (plan.val.keys, plan.val.patients))
    score = ScoreModel(denoiser.eval(), plan.noise)
    seed = plan.seed if seed is None else seed
    table = score_table(plan.likelihood, score, plan.val.middle(rows), keys, seed, labels, patients)
    log_prior = np.log(np.bincount(labels) / len(labels))
    calibration = fit_calibration(table, log_prior)
    prob = bayes(table, log_prior, calibration).prob
    if prob.shape[1] == 2:
        return calibration.log_loss, float(roc_auc_score(labels, prob[:, 1]))
    return calibration.log_loss, float(roc_auc_score(labels, prob, multi_class="ovr"))


def denoising_loss(plan: Plan, denoiser: Denoiser) -> float:
    """The mean training loss of validation examples under the null label, on the same noise at every step."""
    settings, denoiser = plan.settings, denoiser.eval()
    rows = np.random.default_rng(plan.seed).permutation(len(plan.val.labels))[: settings.val_images]
    x_0 = plan.val.middle(np.sort(rows)).to(plan.device)
    generator = torch.Generator().manual_seed(step_seed(plan.seed, -1))
    log_snr = draw_log_snr(settings, plan.noise.log_snr_range, len(x_0), generator)
    null = torch.full((len(x_0),), len(plan.classes))
    eps = torch.randn(x_0.shape, generator=generator).to(plan.device)
    with torch.no_grad():
        return float(training_loss(denoiser, x_0, null, log_snr, eps, None).mean())


def what_is_logged(plan: Plan, denoiser: Denoiser) -> dict[str, float]:
    """Of the validation examples: the classifier's figures, or the denoising loss where no label is used."""
    if plan.settings.label_free:
        return {"val_loss": denoising_loss(plan, denoiser)}
    val_log_loss, val_auc = validate(plan, denoiser)
    return {"val_log_loss": val_log_loss, "val_auc": val_auc}


def choose_finally(plan: Plan, state: State) -> None:
    """Choose between the best checkpoint and the last one, on fresh draws.

    The lowest of many noisy losses is partly luck, all the more with few validation images. Both finalists are therefore
    validated again with new draws, and the one with the lower mean loss stays.
    """
    best = plan.checkpoints.best()
    if best.get("final"):
        return
    step, chosen, loss = state.step, state.averaged, best["val_log_loss"]
    if best["step"] != state.step:  # two finalists
        images = min(FINAL_IMAGES, affordable_looks(plan.settings) // 2)
        passes = max(1, math.ceil(images / min(len(plan.val.labels), plan.settings.val_images)))
        losses = []
        contender = plan.new_denoiser()
        contender.load_state_dict(plan.checkpoints.load(best))
        for denoiser in (contender, state.averaged):
            seeds = [step_seed(plan.seed, -2 - i) for i in range(passes)]
            losses.append(float(np.mean([validate(plan, denoiser, seed)[0] for seed in seeds])))
        loss = min(losses)
        if losses[0] <= losses[1]:
            step, chosen = best["step"], contender
    plan.checkpoints.save("step", step, chosen.state_dict(), val_log_loss=loss, final=True)
    plan.checkpoints.keep("step", lambda entries: [entry for entry in entries if entry.get("final")])


def steps_between(settings: TrainConfig) -> int:
    """From one validation to the next."""
    return settings.validate_every or max(LEAST_STEPS_BETWEEN, math.ceil(settings.steps / VALIDATIONS))


def chooses(settings: TrainConfig) -> bool:
    """Whether a training is long enough to choose its weights and its noise by validation images. A shorter one ends with
    the weights that it comes to, and looks at these images once, to calibrate."""
    return settings.steps > min(steps_between(settings), LEAST_STEPS_BETWEEN)


def affordable_looks(settings: TrainConfig) -> int:
    """How many looks at validation images a choice is worth: together they cost no more than the training. Only short
    trainings cannot afford all that they would like to look at."""
    return settings.steps * settings.batch // PRICE


def validation_rows(labels: NDArray[np.int64], n_classes: int, most: int, seed: int) -> NDArray[np.int64]:
    """Rows of the validation examples that are used during training: ``most`` of them, every class by its share, at
    least 2.

    They are drawn at random, the same for all models of a seed, because the first images may all be from one site.
    """
    rng, rows = np.random.default_rng(seed), []
    for y in range(n_classes):
        of_class = np.flatnonzero(labels == y)
        n = max(2, round(most * len(of_class) / len(labels)))
        rows.append(np.sort(rng.permutation(of_class)[:n]))
    return np.concatenate(rows)
