"""Training: one straight loop from images to a calibrated run directory.

Every step draws all its random numbers from (seed, step), so that a resumed run continues to the same weights as an
undisturbed one on the same machine with the same number of threads.
"""

from __future__ import annotations

import hashlib
import json
import math
import signal
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from scorebayes.data.load import ImageSet
from scorebayes.decision.calibration import fit_calibration
from scorebayes.decision.posterior import bayes
from scorebayes.diffusion.score import Denoiser, ScoreModel, hybrid_loss, training_loss
from scorebayes.errors import ConfigError, DataError, NumericalError
from scorebayes.progress import progress_bar
from scorebayes.runs.config import TrainConfig
from scorebayes.runs.run import Run, log_lik_table
from scorebayes.storage.checkpoint import KEPT_STATES, pack, unpack
from scorebayes.training.augment import augment
from scorebayes.training.schedule import average_decay, rate_share

MAX_ROLLBACKS = 3
FINAL_IMAGES = 300  # looked at, over all validations, for the last choice between checkpoints


@dataclass
class _State:
    """What changes during training; everything of it is in a state checkpoint."""

    denoiser: Denoiser
    average: AveragedModel
    optimizer: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0
    rate_factor: float = 1.0
    rollbacks: int = 0

    @property
    def averaged(self) -> Denoiser:
        return cast(Denoiser, self.average.module)

    @property
    def modules(self) -> dict[str, nn.Module]:
        """By their names in a checkpoint."""
        return {"model": self.denoiser, "average": self.average}


def fit(run: Run, train: ImageSet, val: ImageSet) -> None:
    """Train the score of a run, or go on where its newest checkpoint stands.

    Writes checkpoints and ``train.jsonl``; the weights that count are those with the lowest cross-fitted class log-loss
    on the validation images. Raises NumericalError if the loss is not finite again and again, and KeyboardInterrupt
    after saving where SIGTERM asks to stop.
    """
    config = run.config.train
    if not config.label_free:
        require_classes(train, run.facts.classes, "training")
        require_classes(val, run.facts.classes, "validation")
    state = _restore(run, _new_state(run))
    every = config.validate_every or max(1, math.ceil(config.steps / 10))
    rows_of_class = [np.flatnonzero(train.labels == y) for y in range(len(run.facts.classes))]
    log_snr_range = run.config.build("noise").log_snr_range
    start = time.monotonic() - state.seconds
    log = run.path / "train.jsonl"
    with (
        _stop_on_sigterm() as stop,
        progress_bar("train", config.steps, state.step) as advance,
    ):
        while not _finished(state, config):
            loss = _step(run, state, train, rows_of_class, log_snr_range)
            state.seconds = time.monotonic() - start
            if not math.isfinite(loss):
                state = _roll_back(run, state)
                continue
            state.step += 1
            advance(state.step, f"loss {loss:.4f}")
            if state.step % 10 == 0:
                _log(log, step=state.step, loss=loss, lr=_rate(state, config), seconds=state.seconds,
                     images_per_second=state.step * config.batch / state.seconds)  # fmt: skip
            if state.step % every == 0 or _finished(state, config):
                found = _validate(run, state.averaged, val)
                state.seconds = time.monotonic() - start
                _log(log, step=state.step, **found)
                # Without labels nothing says which weights decide best: of equals the newest counts.
                _save(run, state, found.get("val_log_loss", 0.0))
            if stop:
                _save(run, state, math.inf)
                raise KeyboardInterrupt
    if not config.label_free:
        _choose_finally(run, state, val)


def _validate(run: Run, denoiser: Denoiser, val: ImageSet) -> dict[str, float]:
    """What is logged of the validation images: the classifier's figures, or the denoising loss where no label is used."""
    if run.config.train.label_free:
        return {"val_loss": _denoising_loss(run, denoiser, val)}
    val_log_loss, val_auc = validate(run, denoiser, val)
    return {"val_log_loss": val_log_loss, "val_auc": val_auc}


def _denoising_loss(run: Run, denoiser: Denoiser, val: ImageSet) -> float:
    """The mean training loss of validation images under the null label, on the same noise at every step."""
    config, denoiser = run.config.train, denoiser.eval()
    rows = np.random.default_rng(run.config.seed).permutation(len(val))[: config.val_images]
    images = val.images[np.sort(rows)]
    generator = torch.Generator().manual_seed(step_seed(run.config.seed, -1))
    level_range = run.config.build("noise").log_snr_range
    log_snr = draw_log_snr(config, level_range, len(images), generator)
    x_0, null = run.standardise(images).to(run.device), torch.full((len(images),), len(run.facts.classes))
    eps = torch.randn(x_0.shape, generator=generator).to(run.device)
    with torch.no_grad():
        return float(training_loss(denoiser, x_0, null, log_snr, eps, None).mean())


def validate(run: Run, denoiser: Denoiser, val: ImageSet, seed: int | None = None) -> tuple[float, float]:
    """Cross-fitted class log-loss (nats) and AUC of the calibrated posterior on validation images.

    ``seed``: of the random draws; the run's own by default.
    """
    some = validation_images(run, val)
    score = ScoreModel(denoiser.eval(), run.config.build("noise"))
    seed = run.config.seed if seed is None else seed
    table = log_lik_table(run.likelihood, score, run.standardise(some.images), some.keys, seed)
    table = table.with_labels(some.labels)
    log_prior = np.log(np.bincount(some.labels) / len(some))
    calibration = fit_calibration(table, log_prior)
    prob = bayes(table, log_prior, calibration).prob
    if prob.shape[1] == 2:
        return calibration.log_loss, float(roc_auc_score(some.labels, prob[:, 1]))
    return calibration.log_loss, float(roc_auc_score(some.labels, prob, multi_class="ovr"))


def _choose_finally(run: Run, state: _State, val: ImageSet) -> None:
    """The best checkpoint against the last one, on fresh draws.

    The lowest of many noisy losses is low by luck too, the more so the fewer the validation images. Both finalists are
    validated again with draws that chose neither, and the lower mean loss stays.
    """
    best = run.checkpoints.best()
    if best.get("final"):
        return
    step, chosen, loss = state.step, state.averaged, best["val_log_loss"]
    if best["step"] != state.step:  # two finalists
        passes = math.ceil(FINAL_IMAGES / min(len(val), run.config.train.val_images))
        losses = []
        contender = run.new_denoiser()
        contender.load_state_dict(run.checkpoints.load(best))
        for denoiser in (contender, state.averaged):
            seeds = [step_seed(run.config.seed, -2 - i) for i in range(passes)]
            losses.append(float(np.mean([validate(run, denoiser, val, seed)[0] for seed in seeds])))
        loss = min(losses)
        if losses[0] <= losses[1]:
            step, chosen = best["step"], contender
    run.checkpoints.save("step", step, chosen.state_dict(), val_log_loss=loss, final=True)
    run.checkpoints.keep("step", lambda entries: [entry for entry in entries if entry.get("final")])


def validation_images(run: Run, val: ImageSet) -> ImageSet:
    """What is looked at during training: ``val_images`` of them, every class by its share, at least 2.

    They are drawn at random, the same for all models of a seed: the first ones would be those of one site.
    """
    rng, rows = np.random.default_rng(run.config.seed), []
    for y in range(len(run.facts.classes)):
        of_class = np.flatnonzero(val.labels == y)
        n = max(2, round(run.config.train.val_images * len(of_class) / len(val)))
        rows.append(np.sort(rng.permutation(of_class)[:n]))
    return val.subset(np.concatenate(rows))


def _step(
    run: Run,
    state: _State,
    train: ImageSet,
    rows_of_class: list[NDArray[np.int64]],
    log_snr_range: tuple[float, float],
) -> float:
    """One optimiser step on one batch; returns the loss. Where memory does not suffice, the batch goes in parts."""
    config = run.config.train
    seed = step_seed(run.config.seed, state.step)
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # dropout has no generator of its own
    rows = draw_rows(config, len(train), rows_of_class, generator)
    images = train.images[rows.numpy()]
    y = torch.from_numpy(train.labels[rows.numpy()])
    u = torch.rand(images.shape, generator=generator)
    x_0, code = augment(run.standardise(images, u), config, generator)
    log_snr = draw_log_snr(config, log_snr_range, config.batch, generator)
    dropped = torch.rand(config.batch, generator=generator) < config.null_label
    if not config.cross_entropy:
        y = torch.where(dropped, len(rows_of_class), y)
    eps = torch.randn(x_0.shape, generator=generator)

    size = config.micro_batch or config.batch
    while True:
        try:
            loss = _accumulate(state.denoiser, x_0, y, log_snr, eps, code, size, config.cross_entropy)
            break
        except torch.OutOfMemoryError as error:
            if size == 1:
                raise _too_small(run, state) from error
            size = max(1, size // 2)
    if not math.isfinite(loss):
        return loss
    torch.nn.utils.clip_grad_norm_(state.denoiser.parameters(), config.clip)
    for group in state.optimizer.param_groups:
        group["lr"] = _rate(state, config)
    state.optimizer.step()
    state.average.update_parameters(state.denoiser)
    return loss


def _too_small(run: Run, state: _State) -> ConfigError:
    """What to say where not even one image fits into the memory."""
    parameters = sum(p.numel() for p in state.denoiser.parameters())
    # Weights, gradient, two moments and the average, in float32.
    fixed = 5 * 4 * parameters / 1e9
    device, side = run.device, run.config.prepare.size
    have = (
        f" of {torch.cuda.get_device_properties(device).total_memory / 1e9:.1f} GB"
        if device.type == "cuda"
        else ""
    )
    return ConfigError(
        f"the memory{have} of {device} is too small: {parameters / 1e6:.1f} million weights take {fixed:.2f} GB, and one "
        f"image of {side} x {side} pixels does not fit beside them.",
        "Lower [prepare] size (--size) or [net] channels, or use another --device.",
    )


def _accumulate(
    denoiser: Denoiser,
    x_0: Tensor,
    y: Tensor,
    log_snr: Tensor,
    eps: Tensor,
    code: Tensor,
    size: int,
    cross_entropy: float,
) -> float:
    """Gradient of the mean loss, ``size`` images at a time; returns the loss."""
    denoiser.train()
    denoiser.zero_grad(set_to_none=True)
    device = next(denoiser.parameters()).device
    total = 0.0
    for part in torch.arange(len(x_0)).split(size):
        batch = (x_0[part].to(device), y[part], log_snr[part], eps[part].to(device), code[part])
        each = (
            hybrid_loss(denoiser, *batch, cross_entropy) if cross_entropy else training_loss(denoiser, *batch)
        )
        loss = each.sum() / len(x_0)
        loss.backward()
        total += loss.item()
    return total


def draw_rows(
    config: TrainConfig, n: int, rows_of_class: list[NDArray], generator: torch.Generator
) -> Tensor:
    """Row numbers of a batch [B]: classes equally often, or as they come."""
    if not config.balance or config.label_free:
        return torch.randint(n, (config.batch,), generator=generator)
    turn = torch.randperm(len(rows_of_class), generator=generator)
    classes = turn[torch.arange(config.batch) % len(rows_of_class)]
    place = torch.rand(config.batch, generator=generator, dtype=torch.float64)
    return torch.tensor(
        [rows_of_class[y][int(p * len(rows_of_class[y]))] for y, p in zip(classes, place, strict=True)]
    )


def draw_log_snr(
    config: TrainConfig, log_snr_range: tuple[float, float], n: int, generator: torch.Generator
) -> Tensor:
    """Noise levels [n] float64, stratified over the batch in random order: a share of them uniform over the range, the
    others normal, cut at three standard deviations."""
    order = torch.randperm(n, generator=generator)
    u = (order + torch.rand(n, generator=generator, dtype=torch.float64)) / n
    (low, high), share = log_snr_range, config.uniform
    # Not a number for u < share, where it is not taken.
    normal = torch.special.ndtri((u - share) / (1 - share)).clamp(-3, 3)
    return torch.where(
        u < share, low + (high - low) * u / share, config.log_snr_mean + config.log_snr_std * normal
    )


def _rate(state: _State, config: TrainConfig) -> float:
    """Learning rate, over whichever budget is nearer its end."""
    done = state.step / config.steps
    if config.minutes is not None:
        done = max(done, state.seconds / (60 * config.minutes))
    return state.rate_factor * config.lr * rate_share(state.step, config.warmup, min(1.0, done))


def _finished(state: _State, config: TrainConfig) -> bool:
    out_of_time = config.minutes is not None and state.seconds >= 60 * config.minutes
    return state.step >= config.steps or (out_of_time and state.step > 0)


def step_seed(seed: int, step: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"train/{seed}/{step}".encode(), digest_size=7).digest(), "little")


# -- state ----------------------------------------------------------------------------------------------------------


def _new_state(run: Run) -> _State:
    config = run.config.train
    torch.manual_seed(step_seed(run.config.seed, -1))
    denoiser = run.new_denoiser()
    start = run.start
    if start:
        _start_from(denoiser, start, run.facts.classes)

    def blend(average: Any, current: Any, n_averaged: Any) -> None:
        torch._foreach_lerp_(average, current, 1 - average_decay(config.ema, int(n_averaged)))

    average = AveragedModel(denoiser, multi_avg_fn=blend)
    optimizer = torch.optim.AdamW(
        denoiser.parameters(), lr=config.lr, betas=(0.9, 0.99), weight_decay=config.weight_decay
    )
    return _State(denoiser, average, optimizer)


def _start_from(denoiser: Denoiser, other: Run, classes: tuple[str, ...]) -> None:
    """Take the weights of another run, and those of the labels where it learned the same classes. ConfigError where it has
    another network."""
    taken = other.checkpoints.load(other.checkpoints.best())
    label = "net.embed_label.weight"
    try:
        if label in taken and (other.config.train.label_free or other.facts.classes != classes):
            # Apart from each other, not at the null label: classes that begin alike part too slowly for few images.
            taken[label] = torch.cat([denoiser.state_dict()[label][:-1], taken[label][-1:]])
        denoiser.load_state_dict(taken)
    except RuntimeError as error:  # torch's word for names and shapes that differ
        raise ConfigError(
            f"[train] init = '{other.path}': the weights are of another network.",
            "Give both runs the same [net] section and image channels.",
        ) from error


def _save(run: Run, state: _State, val_log_loss: float) -> None:
    """The averaged weights (unless training was interrupted between validations) and all that resuming needs."""
    if math.isfinite(val_log_loss):
        run.checkpoints.save("step", state.step, state.averaged.state_dict(), val_log_loss=val_log_loss)
        run.checkpoints.keep("step", lambda _: [run.checkpoints.best()])
    run.checkpoints.save(
        "state", state.step, pack(state.modules, state.optimizer),
        seconds=state.seconds, rate_factor=state.rate_factor, rollbacks=state.rollbacks,
    )  # fmt: skip
    run.checkpoints.keep("state", lambda entries: sorted(entries, key=lambda e: e["step"])[-KEPT_STATES:])


def _restore(run: Run, state: _State) -> _State:
    """Fill a new state from the newest checkpoint, if there is one, and forget what was logged after it."""
    found = run.checkpoints.newest_state()
    _cut_log(run.path / "train.jsonl", found[0]["step"] if found else 0)
    if found is None:
        return state
    entry, tensors = found
    try:
        unpack(tensors, state.modules, state.optimizer)
    except RuntimeError as error:  # torch's word for names and shapes that differ
        raise ConfigError(
            f"{run.checkpoints.folder / entry['file']}: not the weights and averaged weights of this network.",
            "Delete the file and its entry in manifest.json to go on from the one before, or train again.",
        ) from error
    state.step, state.seconds = entry["step"], entry["seconds"]
    state.rate_factor, state.rollbacks = entry["rate_factor"], entry["rollbacks"]
    return state


def _roll_back(run: Run, state: _State) -> _State:
    """After a loss that is not finite: the last checkpoint (or the start) at half the rate."""
    if state.rollbacks >= MAX_ROLLBACKS:
        raise NumericalError(
            f"the training loss is not finite at step {state.step}, after {MAX_ROLLBACKS} restarts at lower rates.",
            "Lower [train] lr, or look for broken images with 'scorebayes data check'.",
        )
    restored = _restore(run, _new_state(run))
    restored.rollbacks, restored.rate_factor = state.rollbacks + 1, state.rate_factor / 2
    return restored


def _cut_log(path: Path, step: int) -> None:
    if path.exists():
        lines = [
            line for line in path.read_text(encoding="utf-8").splitlines() if json.loads(line)["step"] <= step
        ]
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def _log(path: Path, **fields: Any) -> None:
    """A lost line of the log is no reason to lose the training."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(fields) + "\n")
    except OSError as error:
        warnings.warn(f"the training log cannot be written ({error}); training goes on.", stacklevel=2)


@contextmanager
def _stop_on_sigterm() -> Iterator[list[int]]:
    """Yields a list that is filled when SIGTERM arrives."""
    stop: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: stop.append(number))
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)


def require_classes(images: ImageSet, classes: tuple[str, ...], what: str) -> None:
    counts = np.bincount(images.labels[images.labels >= 0], minlength=len(classes))
    if counts.min() < 2:
        have = ", ".join(f"{name}: {count}" for name, count in zip(classes, counts, strict=True))
        raise DataError(
            f"the {what} split needs at least two images of every class, it has {have}.", "Give more images."
        )
