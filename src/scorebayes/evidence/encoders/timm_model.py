"""Encoders of the package ``timm``, where it can be imported (it needs a torchvision that fits the installed torch)."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from scorebayes.errors import ConfigError
from scorebayes.evidence.encoders.base import (
    NOT_STATED,
    UNNAMED_DATA,
    EncoderNet,
    Rule,
    TorchEncoder,
    as_map,
)


class Timm(TorchEncoder):
    """A model of timm: "timm:NAME", with the pretrained weights that timm knows by this name, downloaded once.

    A network with a fixed input sees images of the side it was trained with.
    """

    kind = "timm"

    def __init__(self, rest: str, side: int, device: torch.device) -> None:
        super().__init__(f"timm:{rest}", side, device)
        try:
            import timm
        except (ImportError, RuntimeError) as error:  # torchvision raises both beside another torch
            raise ConfigError(
                f"encoder {self.name!r} needs the package timm, which cannot be imported ({error}).",
                "Install timm and a torchvision that fits the installed torch; or use the same network from the Hugging "
                "Face hub, hf:NAME.",
            ) from error
        try:
            self.net: Any = timm.create_model(rest, pretrained=True, num_classes=0).eval()
        except Exception as error:  # unknown names, the network and the disk, by several libraries
            raise ConfigError(
                f"encoder {self.name!r}: timm cannot make it ({str(error).splitlines()[0]}).",
                "Check the name (timm.list_models(pretrained=True)) and the network.",
            ) from error
        self.about = dict(self.net.pretrained_cfg)
        if self.about.get("fixed_input_size"):
            self.side = int(self.about["input_size"][-1])
        self.licence = str(self.about.get("license") or NOT_STATED)
        self.pretrained_on = UNNAMED_DATA

    @cached_property
    def sha256(self) -> str:
        weights = {key: of.contiguous() for key, of in self.net.state_dict().items()}
        return hashlib.sha256(safetensors.torch.save(weights)).hexdigest()

    @cached_property
    def fingerprint(self) -> str:
        content = [self.sha256, self.name, [self.about["mean"], self.about["std"]]]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def network(self) -> EncoderNet:
        return _TimmNet(self)


class _TimmNet(EncoderNet):
    def __init__(self, encoder: Timm) -> None:
        import copy

        super().__init__()
        self.name, self.side = encoder.name, encoder.side
        self.net: Any = copy.deepcopy(encoder.net)
        self.special = getattr(self.net, "num_prefix_tokens", None)
        self.rule = Rule(tuple(encoder.about["mean"]), tuple(encoder.about["std"]))

    def map(self, pixels: Tensor) -> Tensor:
        return as_map(self.name, self._features(pixels), self.special)

    def pooled(self, pixels: Tensor) -> Tensor:
        found = self._features(pixels)
        self.last(as_map(self.name, found, self.special))
        return self.net.forward_head(found, pre_logits=True)

    def _features(self, pixels: Tensor) -> Tensor:
        return self.net.forward_features(self.rule(pixels, self.side))
