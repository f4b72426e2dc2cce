"""Networks (``architectures``), trained like the score: same images, augmentation, batches, optimiser, average of the
weights and schedule, at the same cost.

The cost of a training is the multiply-adds of one step (forward and backward) times the steps. Settings are tuned by one
short training each, a sixth of the steps; six settings, so that tuning costs about as much again (more where that would be
too short to compare settings). This is recorded separately and does not count against the budget.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from scorebayes.baselines.base import Fitted, Kind, fit_temperature, raw_logits
from scorebayes.data.load import ImageSet
from scorebayes.decision.posterior import uniform_log_prior
from scorebayes.errors import ConfigError, NumericalError, command
from scorebayes.progress import progress_bar
from scorebayes.runs.run import Run
from scorebayes.storage import sealed
from scorebayes.storage.checkpoint import Checkpoints, pack, unpack
from scorebayes.training import cost
from scorebayes.training.augment import augment
from scorebayes.training.batches import draw_rows, step_seed
from scorebayes.training.random import lent_random_numbers
from scorebayes.training.schedule import average_decay, rate_share
from scorebayes.training.validate import validation_rows

LEAST_STEPS = 100
TRIAL_SHARE = 1 / 6  # of the final steps, for each setting that is tried
LEAST_TRIAL_STEPS = 50  # after 17, no setting had learned anything of synthetic mammograms
VALIDATIONS, TRIAL_VALIDATIONS = 10, 2


@dataclass(frozen=True)
class Setting:
    """What is tuned on validation: peak learning rate, weight decay and label smoothing."""

    lr: float
    weight_decay: float
    smoothing: float


class Network(Kind):
    """A network of MONAI.

    make: (side, channels, classes) -> network. feature_layer: see ``Kind``. rates: peak learning rates to try.
    """

    @property
    def least_trial_steps(self) -> int:
        """Of a training that tries a setting."""
        return LEAST_TRIAL_STEPS

    def __init__(
        self,
        title: str,
        make: Callable[[int, int, int], nn.Module],
        feature_layer: str,
        rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3),
    ) -> None:
        self.title = title
        self.make = make
        self.feature_layer = feature_layer
        self.settings = [
            Setting(rate, decay, smoothing)
            for rate, (decay, smoothing) in product(rates, ((0.01, 0.0), (0.1, 0.1)))
        ]

    def build(self, run: Run) -> nn.Module:
        prepare = run.config.prepare
        with lent_random_numbers():
            return self.make(prepare.size, prepare.channels, len(run.facts.classes))

    def fit(self, run: Run, train: ImageSet, val: ImageSet, folder: Path, steps: int | None) -> Fitted:
        """Try every setting shortly, then train with the best, choosing the checkpoint; all by validation log-loss.

        Finished trials are kept in ``folder``, and the final training goes on from its last validation.
        """
        steps, own_cost = steps or self.steps_of_budget(run), self.step_cost(run)
        trial_steps = min(steps, max(self.least_trial_steps, round(steps * TRIAL_SHARE)))
        trials = self._tune(run, train, val, folder / "trials.json", trial_steps)
        chosen = min(trials, key=lambda trial: trial["val_log_loss"])
        training = self._training(Setting(**chosen["setting"]), run, train, steps)
        checkpoints = Checkpoints(folder / "checkpoints")
        training.restore(checkpoints)
        for log_loss in training.validations(val, self.title, VALIDATIONS):
            training.save(checkpoints, log_loss)
        best = checkpoints.best()
        # In the order in which it is built again from the stored numbers.
        net = _ordered(training.averaged, torch.contiguous_format)
        net.load_state_dict(checkpoints.load(best))
        return Fitted(
            net.eval(),
            training.log_prior,
            {
                **self.said(run),
                "settings_tried": trials,
                "setting": chosen["setting"],
                "steps": steps,
                "best_step": best["step"],
                "seconds": training.seconds,
                "seconds_tuning": sum(trial["seconds"] for trial in trials),
                "multiply_adds_per_step": own_cost,
                "multiply_adds": own_cost * steps,
                "multiply_adds_tuning": own_cost * trial_steps * len(trials),
            },
        )

    def steps_of_budget(self, run: Run) -> int:
        """Of a training that costs as much as that of the run's score."""
        budget_steps = score_steps(run)
        return equal_cost_steps(budget_steps * score_step_cost(run), self.step_cost(run), budget_steps)

    def said(self, run: Run) -> dict[str, Any]:
        """What is recorded besides the training."""
        budget_steps, score_cost = score_steps(run), score_step_cost(run)
        score = {
            "steps": budget_steps,
            "multiply_adds_per_step": score_cost,
            "multiply_adds": budget_steps * score_cost,
        }
        return {"monai": importlib.metadata.version("monai"), "score": score}

    def step_cost(self, run: Run) -> int:
        """Multiply-adds of one training step of the configured batch."""
        net = self.build(run).eval()
        return cost.step_cost(lambda x: net(x), run.image_shape, run.config.train.batch)

    def _training(self, setting: Setting, run: Run, train: ImageSet, steps: int) -> _Training:
        with lent_random_numbers(step_seed(run.config.seed, -1)):
            net = _ordered(self.build(run).to(run.device), memory_order(run.device))
        return _Training(net, setting, run, train, steps)

    def _tune(self, run: Run, train: ImageSet, val: ImageSet, path: Path, steps: int) -> list[dict[str, Any]]:
        """The lowest validation log-loss of a short training with every setting."""
        trials = sealed.read_json(path) if path.exists() else []
        trials = [trial for trial in trials if trial["steps"] == steps]  # others are of another budget
        for setting in self.settings[len(trials) :]:
            training = self._training(setting, run, train, steps)
            try:
                log_loss = min(
                    training.validations(
                        val, f"{self.title} {len(trials) + 1}/{len(self.settings)}", TRIAL_VALIDATIONS
                    )
                )
            except NumericalError:
                log_loss = math.inf
            trials.append(
                {
                    "setting": asdict(setting),
                    "steps": steps,
                    "val_log_loss": log_loss,
                    "seconds": training.seconds,
                }
            )
            sealed.write(path, json.dumps(trials, indent=1))
        return trials


def memory_order(device: torch.device) -> torch.memory_format:
    """Channels last, a fifth faster than the other order on CPUs and the usual one on GPUs; not on MPS, where pooling and
    batch norm do not survive their derivatives in it (pytorch issue 175190, pull request 188371)."""
    return torch.contiguous_format if device.type == "mps" else torch.channels_last


def _ordered(net: nn.Module, order: torch.memory_format) -> nn.Module:
    """The network with its weights in another order of memory."""
    return net.to(memory_format=order)  # type: ignore[call-overload]  # torch's stubs lack it


def score_step_cost(run: Run) -> int:
    """Multiply-adds of one training step of the score of the run's images."""
    return cost.score_step_cost(run.new_denoiser(), run.image_shape, run.config.train)


def equal_cost_steps(budget: int, cost: int, at_most: int) -> int:
    """Steps of ``cost`` multiply-adds that come to ``budget``: at least 100, and no more than ``at_most`` above that.

    The bound is the number of steps of the score: a network of few multiply-adds but little speed (depthwise
    convolutions) would train for hours, and see more batches than the score did.
    """
    return max(LEAST_STEPS, min(round(budget / cost), at_most))


def score_steps(run: Run) -> int:
    """Steps of the training of the run's score; those of the run that it started from count, too.

    ConfigError where a cap on the minutes may cut them, and it is not trained yet.
    """
    steps = run.config.train.steps
    if run.config.train.minutes is not None:
        states = run.checkpoints.entries("state")
        if not states:
            raise ConfigError(
                f"{run.path}: the score is not trained yet, but the baseline needs its training budget.",
                f"Run `{command('train', '--resume', run.path)}` first.",
            )
        steps = max(entry["step"] for entry in states)
    start = run.start
    before = score_steps(start) if start else 0
    return before + steps


class _Training:
    """One training of a network, as ``scorebayes.training.loop`` trains the score: random numbers from (seed, step)
    alone."""

    def __init__(self, net: nn.Module, setting: Setting, run: Run, train: ImageSet, steps: int) -> None:
        self.net, self.setting, self.run, self.steps = net, setting, run, steps
        self.images, self.labels = train.images, train.labels
        self.rows_of_class = [np.flatnonzero(self.labels == y) for y in range(len(run.facts.classes))]
        self.average = AveragedModel(net, multi_avg_fn=self._blend, use_buffers=True)
        self.optimizer = torch.optim.AdamW(
            net.parameters(), lr=setting.lr, betas=(0.9, 0.99), weight_decay=setting.weight_decay
        )
        self.step = 0
        self.seconds = 0.0

    @property
    def averaged(self) -> nn.Module:
        return cast(nn.Module, self.average.module)

    @property
    def modules(self) -> dict[str, nn.Module]:
        """By their names in a checkpoint."""
        return {"net": self.net, "average": self.average}

    @property
    def log_prior(self) -> np.ndarray:
        """Of the classes in the batches [Y]."""
        n = len(self.rows_of_class)
        return uniform_log_prior(n) if self.run.config.train.balance else self.run.facts.log_shares

    def validations(self, val: ImageSet, title: str, times: int) -> Iterator[float]:
        """Train to the end; yields the cross-fitted validation log-loss, in nats, so many times, on as many images as the
        score is validated on."""
        config = self.run.config
        every = math.ceil(self.steps / times)
        val = val.subset(
            validation_rows(val.labels, len(self.rows_of_class), config.train.val_images, config.seed)
        )
        start = time.monotonic() - self.seconds
        with progress_bar(title, self.steps, self.step) as advance:
            while self.step < self.steps:
                loss = self._one_step()
                self.step += 1
                self.seconds = time.monotonic() - start
                advance(self.step, f"loss {loss:.4f}")
                if self.step % every == 0 or self.step == self.steps:
                    logits = raw_logits(self.run, self.averaged.eval(), val)
                    log_loss = fit_temperature(
                        logits, self.log_prior, val.labels, val.patients, self.run.config.seed
                    ).log_loss
                    self.seconds = time.monotonic() - start
                    yield log_loss

    def _one_step(self) -> float:
        config, device = self.run.config.train, self.run.device
        seed = step_seed(self.run.config.seed, self.step)
        generator = torch.Generator().manual_seed(seed)
        rows = draw_rows(config, len(self.labels), self.rows_of_class, generator).numpy()
        u = torch.rand((len(rows), *self.images.shape[1:]), generator=generator)
        x, _ = augment(self.run.standardise(self.images[rows], u), config, generator)
        y = torch.from_numpy(self.labels[rows])
        self.net.train()
        half = self.run.precision != torch.float32
        with (
            lent_random_numbers(seed, device),  # dropout of others takes no generator
            torch.autocast(device.type, self.run.precision, enabled=half),
        ):
            logits = self.net(x.to(device, memory_format=memory_order(device)))
        loss = F.cross_entropy(logits.float(), y.to(device), label_smoothing=self.setting.smoothing)
        if not math.isfinite(loss.item()):
            raise NumericalError(
                f"the training loss is NaN or infinite at step {self.step} with {self.setting}.",
                "Look for broken images with 'scorebayes data check'.",
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), config.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        self.optimizer.step()
        self.average.update_parameters(self.net)
        return loss.item()

    def _rate(self) -> float:
        warmup = min(self.run.config.train.warmup, self.steps // 10)
        return self.setting.lr * rate_share(self.step, warmup, self.step / self.steps)

    def _blend(self, average: Any, current: Any, n_averaged: Any) -> None:
        decay = average_decay(self.run.config.train.ema, int(n_averaged))
        for mean, value in zip(average, current, strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - decay)
            else:  # the counter of a batch norm
                mean.copy_(value)

    def save(self, checkpoints: Checkpoints, val_log_loss: float) -> None:
        """The averaged weights, where they are the best so far, and all that resuming needs."""
        averaged = self.averaged.state_dict()
        checkpoints.save("step", self.step, averaged, val_log_loss=val_log_loss)
        checkpoints.keep("step", lambda _: [checkpoints.best()])
        checkpoints.save(
            "state", self.step, pack(self.modules, self.optimizer),
            seconds=self.seconds, setting=asdict(self.setting), steps=self.steps,
        )  # fmt: skip
        checkpoints.keep("state", lambda entries: [max(entries, key=lambda e: e["step"])])

    def restore(self, checkpoints: Checkpoints) -> None:
        """Go on from the newest state, if there is one of this setting and budget; else forget what is there."""
        found = checkpoints.newest_state()
        if found is None or (found[0]["setting"], found[0]["steps"]) != (asdict(self.setting), self.steps):
            if checkpoints.folder.exists():
                sealed.remove(checkpoints.folder)
            return
        entry, tensors = found
        unpack(tensors, self.modules, self.optimizer)
        self.step, self.seconds = entry["step"], entry["seconds"]
