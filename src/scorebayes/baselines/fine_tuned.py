"""The encoder itself, trained further on the run's images with a linear layer on top: what people do with pretrained
networks where they can pay for it.

The training is that of the other networks: same images, augmentation, balanced batches, average of the weights and
schedule; learning rate and checkpoint are chosen on validation images. At 224 pixels a step of 16 images takes Lite0 2.4 s
of one core (its last block alone .6 s), so the budget is one of steps: 240, about seven times the training images of
BreastMNIST, and 40 for each learning rate that is tried.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from scorebayes.baselines.network import Network, Setting, _Training
from scorebayes.baselines.on_features import encoder_of, said_of
from scorebayes.data.load import ImageSet
from scorebayes.errors import ConfigError
from scorebayes.evidence.encoders import Encoder
from scorebayes.evidence.encoders.base import EncoderNet, in_pixels
from scorebayes.runs.run import Run
from scorebayes.training import cost

STEPS, TRIAL_STEPS, BATCH = 240, 40, 16
RATES = (3e-5, 2e-4, 1e-3)  # transformers want the lowest, convolutional networks the higher ones
WEIGHT_DECAY = 0.01
IMAGES_AT_A_TIME = 32  # where no gradient is kept


class FineTuned(Network):
    """The run's encoder, pretrained on other images: never to be mixed with models from scratch.

    only_last_block: the layers before the last block stay as they are, with the statistics of their normalisation.
    """

    pretrained = True
    feature_layer = "net.last"

    def __init__(self, title: str, only_last_block: bool) -> None:
        self.title, self.only_last_block = title, only_last_block
        self.settings = [Setting(rate, WEIGHT_DECAY, 0.0) for rate in RATES]

    def build(self, run: Run) -> nn.Module:
        encoder = encoder_of(run, torch.device("cpu"))
        return _Tuned(encoder, run.scaling[:2], len(run.facts.classes), self.only_last_block)

    def steps_of_budget(self, run: Run) -> int:
        return STEPS

    @property
    def least_trial_steps(self) -> int:
        return TRIAL_STEPS

    def step_cost(self, run: Run) -> int:
        """Of the last block alone, the layers before cost their forward pass only, but are counted like the others: an upper
        bound."""
        net = self.build(run)
        assert isinstance(net, _Tuned)
        return cost.step_cost(net.eval().of_one_view, run.image_shape, _batch(run))

    def said(self, run: Run) -> dict[str, Any]:
        """With the cost of our own training beside, where that is done."""
        ours = sum(source.multiply_adds for source in run.sources.values())
        encoder = encoder_of(run, torch.device("cpu"))
        cost_of_ours = {"multiply_adds_of_evidence": ours} if ours else {}
        return {"encoder": said_of(encoder), "batch": _batch(run), **cost_of_ours}

    def _training(self, setting: Setting, run: Run, train: ImageSet, steps: int) -> _Training:
        config = run.config.changed("train", batch=_batch(run))
        return super()._training(setting, Run(run.path, config, run.facts, run.device), train, steps)


def _batch(run: Run) -> int:
    return min(BATCH, run.config.train.batch)


class _Tuned(nn.Module):
    """Standardised images [N, C, S, S] -> logits [N, Y]; outside training the mean of those of image and mirror image."""

    def __init__(
        self, encoder: Encoder, scaling: tuple[float, float], n_classes: int, only_last_block: bool
    ) -> None:
        super().__init__()
        self.net, self.scaling = encoder.network(), scaling
        self.head = nn.Linear(encoder.pooled_features, n_classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        if only_last_block:
            tuned = last_block(encoder.name, self.net)
            for name, parameter in self.net.named_parameters():
                parameter.requires_grad_(name in tuned)

    def train(self, mode: bool = True) -> _Tuned:
        """What is not tuned keeps its statistics, and drops nothing out."""
        super().train(mode)
        for module in self.modules():
            own = list(module.parameters())
            if own and not any(parameter.requires_grad for parameter in own):
                module.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self.of_one_view(x)
        parts = [
            (self.of_one_view(some) + self.of_one_view(some.flip(-1))) / 2
            for some in x.split(IMAGES_AT_A_TIME)
        ]
        return torch.cat(parts)

    def of_one_view(self, x: Tensor) -> Tensor:
        with torch.autocast(
            x.device.type, enabled=x.device.type != "cpu" and torch.is_autocast_enabled(x.device.type)
        ):
            # On CPUs the depthwise convolutions of many encoders are ten times as slow in bf16.
            return self.head(self.net.pooled(in_pixels(x, self.scaling)).float())


def last_block(name: str, net: EncoderNet) -> set[str]:
    """Names of the parameters of the last block of a network, and of the layers after it.

    The blocks are the longest list of modules among the outermost ones.
    """
    lists = [
        (at.count("."), -len(of), at)
        for at, of in net.named_modules()
        if isinstance(of, nn.ModuleList) and len(of) > 1
    ]
    if not lists:
        raise ConfigError(
            f"encoder {name!r}: no list of blocks is found in the network, so none is the last.",
            "Fine-tune all layers: scorebayes baseline RUN fine-tuned.",
        )
    _, length, blocks = min(lists)
    names = [at for at, _ in net.named_parameters()]
    first = next(i for i, at in enumerate(names) if at.startswith(f"{blocks}.{-length - 1}."))
    return set(names[first:])
