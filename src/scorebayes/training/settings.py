"""How a score is fitted: the section [train] of a configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from scorebayes.errors import ConfigError

Fraction = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(gt=0)]
Size = Annotated[float, Field(gt=0)]


@dataclass(frozen=True)
class TrainConfig:
    """How the score is learned.

    steps: optimiser steps; by default a run with more than 1,000 images gets more (``inputs.suggest``).
    minutes: an optional limit; the learning rate then follows whichever budget ends first.
    batch: images in a step. lr: peak learning rate, after ``warmup`` steps, falling to zero as a cosine.
    ema: decay of the averaged weights, which are the ones used. null_label: share of labels dropped; 1 trains without
    labels, also on unlabelled images: not a classifier, but a starting point for other runs (``init``).
    log_snr_mean, log_snr_std: of the normal density from which noise levels are drawn, stratified over the batch.
    uniform: share of the noise levels drawn evenly over the whole range of the forward process, so that methods that
    integrate over this range (log-likelihoods in nats, sampling) never use a level that the network has not seen.
    flip: mirror left and right at random. augment: probability of the geometric augmentation; the network gets it as an
    input, so it does not leak; rotate [degrees], zoom [standard deviation of log], shift [share of the side]: its ranges.
    cross_entropy: weight of a discriminative term, the cross-entropy of the classes' errors on the same noise; 0 keeps the
    model purely generative, above 0 it is a hybrid, which trains without null labels.
    init: a run directory whose weights training starts from. It must have the same network. The label embedding is kept
    if that run has the same classes, and images are standardised as in that run.
    balance: draw classes equally often. clip: largest norm of the gradient. micro_batch: images at a time in one step
    (0 = all), for small memories. precision: of the network's arithmetic; "auto" takes bf16 where the processor has it.
    validate_every: steps between validations (0 = 10 times in all, at most every 20 steps); val_images: how many images it
    looks at.
    """

    steps: Count = 1000
    minutes: Size | None = None
    batch: Count = 64
    lr: Size = 3e-3
    warmup: Annotated[int, Field(ge=0)] = 100
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    ema: Fraction = 0.999
    null_label: Annotated[float, Field(ge=0, le=1)] = 0.1
    log_snr_mean: float = -1.0
    log_snr_std: Size = 2.4
    uniform: Fraction = 0.1
    flip: bool = True
    augment: Annotated[float, Field(ge=0, le=1)] = 0.8
    rotate: Annotated[float, Field(ge=0, le=180)] = 15.0
    zoom: Fraction = 0.1
    shift: Fraction = 0.1
    cross_entropy: Annotated[float, Field(ge=0)] = 0.0
    init: str = ""
    balance: bool = True
    clip: Size = 1.0
    micro_batch: Annotated[int, Field(ge=0)] = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    validate_every: Annotated[int, Field(ge=0)] = 0
    val_images: Count = 256

    def __post_init__(self) -> None:
        if self.label_free and self.cross_entropy:
            raise ConfigError(
                f"[train] cross_entropy = {self.cross_entropy:g} needs labels, but null_label = 1 trains without them.",
                "Leave one of the two out.",
            )

    @property
    def label_free(self) -> bool:
        """Whether training uses no labels: a starting point for other runs, not a classifier."""
        return self.null_label == 1
