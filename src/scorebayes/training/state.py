"""What changes during a training, in memory and in its checkpoints."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from scorebayes.diffusion.score import Denoiser
from scorebayes.errors import ConfigError, NumericalError
from scorebayes.storage import sealed
from scorebayes.storage.checkpoint import KEPT_STATES, pack, unpack
from scorebayes.storage.log import append_to_log, read_log, write_log_anew
from scorebayes.training.batches import step_seed
from scorebayes.training.plan import Training
from scorebayes.training.random import lent_random_numbers
from scorebayes.training.schedule import average_decay

MAX_ROLLBACKS = 3


@dataclass
class State:
    """What changes during training. A state checkpoint holds all of it but the last two.

    validation_due: whether the validation of this step is still to be made. fits_in_memory: images at a time, where that
    many were found to fit; None: not known yet. changing: whether a step is being taken, so that weights, moments and
    average do not belong together.
    """

    denoiser: Denoiser
    average: AveragedModel
    optimizer: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0
    rate_factor: float = 1.0
    rollbacks: int = 0
    validation_due: bool = False
    fits_in_memory: int | None = None
    changing: bool = False

    @property
    def averaged(self) -> Denoiser:
        return cast(Denoiser, self.average.module)

    @property
    def modules(self) -> dict[str, nn.Module]:
        """By their names in a checkpoint."""
        return {"model": self.denoiser, "average": self.average}


def new_state(plan: Training) -> State:
    """A training that has not begun."""
    settings = plan.settings
    with lent_random_numbers(step_seed(plan.seed, -1)):
        denoiser = plan.new_denoiser()
    plan.start(denoiser)

    def blend(average: Any, current: Any, n_averaged: Any) -> None:
        torch._foreach_lerp_(average, current, 1 - average_decay(settings.ema, int(n_averaged)))

    average = AveragedModel(denoiser, multi_avg_fn=blend)
    optimizer = torch.optim.AdamW(
        denoiser.parameters(), lr=settings.lr, betas=(0.9, 0.99), weight_decay=settings.weight_decay
    )
    return State(denoiser, average, optimizer)


def save(plan: Training, state: State, val_log_loss: float) -> None:
    """The averaged weights (unless training was interrupted between validations) and all that resuming needs."""
    if math.isfinite(val_log_loss):
        plan.checkpoints.save("step", state.step, state.averaged.state_dict(), val_log_loss=val_log_loss)
        plan.checkpoints.keep("step", lambda _: [plan.checkpoints.best()])
    plan.checkpoints.save(
        "state", state.step, pack(state.modules, state.optimizer),
        seconds=state.seconds, rate_factor=state.rate_factor, rollbacks=state.rollbacks,
        validation_due=state.validation_due,
    )  # fmt: skip
    plan.checkpoints.keep("state", lambda entries: sorted(entries, key=lambda e: e["step"])[-KEPT_STATES:])


def restore(plan: Training, state: State) -> State:
    """Fill a new state from the newest checkpoint, if there is one, and forget what was logged after it."""
    found = plan.checkpoints.newest_state()
    _cut_log(plan.log, found[0]["step"] if found else 0)
    if found is None:
        return state
    entry, tensors = found
    try:
        unpack(tensors, state.modules, state.optimizer)
    except RuntimeError as error:  # torch's word for names and shapes that differ
        raise ConfigError(
            f"{plan.checkpoints.folder / entry['file']}: the weights do not belong to this network.",
            "To continue from the previous one, delete the file and its entry in manifest.json. Or train again.",
        ) from error
    state.step, state.seconds = entry["step"], entry["seconds"]
    state.rate_factor, state.rollbacks = entry["rate_factor"], entry["rollbacks"]
    state.validation_due = entry.get("validation_due", False)
    return state


def roll_back(plan: Training, state: State) -> State:
    """After a loss that is not finite: the last checkpoint (or the start) at half the rate."""
    if state.rollbacks >= MAX_ROLLBACKS:
        raise NumericalError(
            f"the training loss is NaN or infinite at step {state.step}, after {MAX_ROLLBACKS} restarts at lower rates.",
            "Lower [train] lr, or look for broken images with 'scorebayes data check'.",
        )
    restored = restore(plan, new_state(plan))
    restored.rollbacks, restored.rate_factor = state.rollbacks + 1, state.rate_factor / 2
    return restored


def _cut_log(path: Path, step: int) -> None:
    if path.exists():
        sealed.remove_from_seal(path)  # until the training is done
        kept = [entry for entry in read_log(path) if entry.get("step", 0) <= step]
        write_log_anew(path, kept)


def write_log(path: Path, **fields: Any) -> None:
    """Append to the log. A failed write only warns and does not stop the training."""
    try:
        append_to_log(path, fields)
    except OSError as error:
        warnings.warn(f"the training log cannot be written ({error}); training continues.", stacklevel=2)
