"""What a training costs, in multiply-adds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from scorebayes.diffusion.score import Denoiser
from scorebayes.training.augment import CODE_LENGTH
from scorebayes.training.settings import TrainConfig


def step_cost(forward: Callable[[Tensor], object], shape: Sequence[int], batch: int) -> int:
    """Multiply-adds of a training step on a batch of inputs [C, H, W]: three times those of the forward pass.

    The derivatives by inputs and by weights cost one forward pass each. They are not counted themselves, because the
    counter takes the weights' derivative of a depthwise convolution for that of a dense one.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward(torch.zeros(1, *shape))
    return 3 * batch * counter.get_total_flops() // 2  # the counter takes a multiply-add for two


def score_step_cost(denoiser: Denoiser, shape: Sequence[int], settings: TrainConfig) -> int:
    """The same of a score's own training; shape: of what it is learned on."""
    denoiser, log_snr = Denoiser(denoiser.net.cpu()), torch.zeros(1)
    if settings.cross_entropy:  # which compares the errors of all classes
        return step_cost(lambda x: denoiser.all_classes(x, log_snr), shape, settings.batch)
    y, code = torch.zeros(1, dtype=torch.long), torch.zeros(1, CODE_LENGTH)
    return step_cost(lambda x: denoiser(x, log_snr, y, code), shape, settings.batch)
