"""Training: one straight loop from examples to checkpoints, for whatever a goal says.

Every step draws all its random numbers from (seed, step), so that a resumed training ends with the same weights as an
uninterrupted one on the same machine with the same number of threads.
"""

from __future__ import annotations

import math
import signal
import time

import torch
from torch import nn

from scorebayes.diffusion.memory import NoMemory, with_less_memory
from scorebayes.diffusion.nets.dropout import draw_from
from scorebayes.errors import ConfigError, Stopped
from scorebayes.progress import progress_bar
from scorebayes.storage import sealed
from scorebayes.training.batches import step_seed
from scorebayes.training.plan import Goal, LossOfRows, Training
from scorebayes.training.schedule import rate_share
from scorebayes.training.settings import TrainConfig
from scorebayes.training.state import State, new_state, restore, roll_back, save, write_log
from scorebayes.training.validate import steps_between


def fit(plan: Training, goal: Goal) -> None:
    """Train a network, or resume from its newest checkpoint.

    Writes checkpoints and ``train.jsonl``. The final weights are those that the goal finds best on the validation images.
    Raises NumericalError if the loss keeps being NaN or infinite. KeyboardInterrupt, from Ctrl-C or
    whatever the caller makes it of, becomes ``Stopped``, after saving.
    """
    settings = plan.settings
    goal.require()
    state = restore(plan, new_state(plan))
    every = steps_between(settings)
    start = time.monotonic() - state.seconds
    with progress_bar("train", settings.steps, state.step, limit=_seconds_left(state, settings)) as advance:
        try:
            while state.validation_due or not _finished(state, settings):
                if state.validation_due:
                    found = goal.look(state.averaged)
                    state.seconds, state.validation_due = time.monotonic() - start, False
                    if found:
                        write_log(plan.log, step=state.step, **found)
                    # Where nothing says which weights are best, of equals the newest counts.
                    save(plan, state, found.get("val_log_loss", 0.0))
                    continue
                loss = _step(plan, goal, state)
                state.seconds = time.monotonic() - start
                if not math.isfinite(loss):
                    state = roll_back(plan, state)
                    continue
                state.validation_due = state.step % every == 0 or _finished(state, settings)
                state.changing = False
                advance(state.step, f"loss {loss:.4f}")
                if state.step % 10 == 0:
                    write_log(plan.log, step=state.step, loss=loss, lr=_rate(state, settings), seconds=state.seconds,
                              images_per_second=state.step * settings.batch / state.seconds)  # fmt: skip
        except KeyboardInterrupt as stop:
            if not state.changing:
                save(plan, state, math.inf)
            where = f"at step {state.step} of {settings.steps}"
            raise Stopped(getattr(stop, "number", signal.SIGINT), where) from None
    goal.choose(state)
    if plan.log.exists():
        sealed.write(plan.log, plan.log.read_bytes())


def _step(plan: Training, goal: Goal, state: State) -> float:
    """One optimiser step on one batch; returns the loss. If memory is short, the batch is split, from then on."""
    settings, seed = plan.settings, step_seed(plan.seed, state.step)
    loss_of = goal.batch(torch.Generator().manual_seed(seed))

    def gradient(size: int) -> float:
        draw_from(state.denoiser, seed)
        return _accumulate(state.denoiser, loss_of, settings.batch, size)

    try:
        size = state.fits_in_memory or settings.micro_batch or settings.batch
        loss, state.fits_in_memory = with_less_memory(gradient, size)
    except NoMemory as error:
        raise _too_small(plan, state, goal.side) from error
    if math.isfinite(loss):
        _take(plan, state)
    return loss


def _take(plan: Training, state: State) -> None:
    """The step itself, along the gradient that is there."""
    state.changing = True  # until the loop has noted the step
    torch.nn.utils.clip_grad_norm_(state.denoiser.parameters(), plan.settings.clip)
    for group in state.optimizer.param_groups:
        group["lr"] = _rate(state, plan.settings)
    state.optimizer.step()
    state.average.update_parameters(state.denoiser)
    state.step += 1


def _too_small(plan: Training, state: State, side: int) -> ConfigError:
    """The error if not even one image fits into the memory."""
    parameters = sum(p.numel() for p in state.denoiser.parameters())
    # Weights, gradient, two moments and the average, in float32.
    fixed = 5 * 4 * parameters / 1e9
    device = plan.device
    have = (
        f" of {torch.cuda.get_device_properties(device).total_memory / 1e9:.1f} GB"
        if device.type == "cuda"
        else ""
    )
    return ConfigError(
        f"the memory{have} of {device} is too small: {parameters / 1e6:.1f} million weights take {fixed:.2f} GB, and not "
        f"even one image of {side} x {side} pixels fits in the rest.",
        "Lower [prepare] size (--size) or [net] channels, or use another --device.",
    )


def _accumulate(network: nn.Module, loss_of: LossOfRows, batch: int, size: int) -> float:
    """Gradient of the mean loss of a batch, ``size`` images at a time; returns the loss."""
    network.train()
    network.zero_grad(set_to_none=True)
    total = 0.0
    for part in torch.arange(batch).split(size):
        loss = loss_of(network, part).sum() / batch
        loss.backward()
        total += loss.item()
    return total


def _rate(state: State, settings: TrainConfig) -> float:
    """Learning rate, over whichever budget is nearer its end."""
    done = state.step / settings.steps
    if settings.minutes is not None:
        done = max(done, state.seconds / (60 * settings.minutes))
    return state.rate_factor * settings.lr * rate_share(state.step, settings.warmup, min(1.0, done))


def _seconds_left(state: State, settings: TrainConfig) -> float | None:
    """Until the limit on the training time, if there is one."""
    return None if settings.minutes is None else 60 * settings.minutes - state.seconds


def _finished(state: State, settings: TrainConfig) -> bool:
    out_of_time = settings.minutes is not None and state.seconds >= 60 * settings.minutes
    return state.step >= settings.steps or (out_of_time and state.step > 0)
