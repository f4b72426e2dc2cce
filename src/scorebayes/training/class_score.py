"""Training for classification: the score of every class, by denoising, and by what it says of the classes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from scorebayes.diffusion.score import Denoiser, hybrid_loss, training_loss
from scorebayes.training.augment import augment
from scorebayes.training.batches import draw_log_snr, draw_rows
from scorebayes.training.plan import LossOfRows, Plan, require_classes
from scorebayes.training.state import State
from scorebayes.training.validate import choose_finally, chooses, what_is_logged


class ClassScore:
    """The goal of a plan's training."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    @property
    def side(self) -> int:
        return self.plan.train.middle(np.zeros(1, dtype=np.int64)).shape[-1]

    def require(self) -> None:
        """DataError where a class has too few examples."""
        plan = self.plan
        if not plan.settings.label_free:
            require_classes(plan.train.labels, plan.classes, "training")
            require_classes(plan.val.labels, plan.classes, "validation")

    def batch(self, generator: torch.Generator) -> LossOfRows:
        plan, settings = self.plan, self.plan.settings
        rows = draw_rows(settings, len(plan.train.labels), plan.rows_of_class, generator)
        y = torch.from_numpy(plan.train.labels[rows.numpy()])
        x_0, code = augment(plan.train.batch(rows.numpy(), generator), settings, generator)
        log_snr = draw_log_snr(settings, plan.noise.log_snr_range, settings.batch, generator)
        dropped = torch.rand(settings.batch, generator=generator) < settings.null_label
        if not settings.cross_entropy:
            y = torch.where(dropped, len(plan.classes), y)
        eps = torch.randn(x_0.shape, generator=generator)

        def loss_of(denoiser: Denoiser, part: Tensor) -> Tensor:
            device = next(denoiser.parameters()).device
            rows = (x_0[part].to(device), y[part], log_snr[part], eps[part].to(device), code[part])
            if settings.cross_entropy:
                return hybrid_loss(denoiser, *rows, settings.cross_entropy)
            return training_loss(denoiser, *rows)

        return loss_of

    def look(self, denoiser: Denoiser) -> dict[str, float]:
        """Nothing where the training is too short for a choice."""
        settings = self.plan.settings
        return what_is_logged(self.plan, denoiser) if settings.label_free or chooses(settings) else {}

    def choose(self, state: State) -> None:
        """Of the weights with the lowest cross-fitted class log-loss and the last ones the better, on fresh draws."""
        if not self.plan.settings.label_free:
            choose_finally(self.plan, state)
