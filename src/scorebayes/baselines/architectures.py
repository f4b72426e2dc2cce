"""The networks of the baselines: MONAI's, with stems that leave small images their resolution.

Each is a function (side, channels, classes) -> network. MONAI takes seconds to import: only when a network is built.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SMALL, MIDDLE = 32, 96  # largest sides with a stem of stride 1, and of stride 2 without pooling


def _stride(side: int) -> int:
    return 1 if side <= SMALL else 2


def resnet(block: str, layers: tuple[int, ...]) -> Callable[[int, int, int], nn.Module]:
    """He et al. 2016 (arXiv 1512.03385); for small images with a 3 x 3 stem and no pooling, as they did on CIFAR-10."""

    def make(side: int, channels: int, n_classes: int) -> nn.Module:
        from monai.networks.nets.resnet import ResNet

        large = side > MIDDLE
        return ResNet(
            block, list(layers), [64, 128, 256, 512], spatial_dims=2, n_input_channels=channels,
            num_classes=n_classes, conv1_t_size=7 if large else 3, conv1_t_stride=_stride(side),
            no_max_pool=not large, bias_downsample=False,
        )  # fmt: skip

    return make


def densenet121(side: int, channels: int, n_classes: int) -> nn.Module:
    """Huang et al. 2017 (arXiv 1608.06993); for small images with a 3 x 3 stem and no pooling."""
    from monai.networks.nets.densenet import DenseNet

    net = DenseNet(2, channels, n_classes, block_config=(6, 12, 24, 16))
    if side <= MIDDLE:
        stem = nn.Conv2d(channels, 64, 3, _stride(side), padding=1, bias=False)
        nn.init.kaiming_normal_(stem.weight)
        net.features.conv0, net.features.pool0 = stem, nn.Identity()
    return net


def efficientnet_b0(side: int, channels: int, n_classes: int) -> nn.Module:
    """Tan & Le 2019 (arXiv 1905.11946); for small images the stem and the first stage keep the resolution."""
    from monai.networks.nets.efficientnet import EfficientNet

    first = 1 if side <= MIDDLE else 2
    blocks = [
        "r1_k3_s11_e1_i32_o16_se0.25", f"r2_k3_s{first}{first}_e6_i16_o24_se0.25",
        "r2_k5_s22_e6_i24_o40_se0.25", "r3_k3_s22_e6_i40_o80_se0.25", "r3_k5_s11_e6_i80_o112_se0.25",
        "r4_k5_s22_e6_i112_o192_se0.25", "r1_k3_s11_e6_i192_o320_se0.25",
    ]  # fmt: skip
    # The padding is worked out from the size; the stem halves it there, and is replaced below where it must not.
    net = EfficientNet(
        blocks, 2, channels, n_classes, image_size=side * 2 // _stride(side),
        # The usual momentum of 0.01 needs more steps than a small data set gets.
        norm=("batch", {"eps": 1e-3, "momentum": 0.1}),
    )  # fmt: skip
    if _stride(side) == 1:
        stem = nn.Conv2d(channels, 32, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(stem.weight, mode="fan_out")
        net._conv_stem, net._conv_stem_padding = stem, nn.Identity()
    _pad_in_convolution(net)
    _replace_slow_in_half(net)
    return net


def _pad_in_convolution(net: nn.Module) -> None:
    """The same network with its even zero padding done by the convolutions: no copy of the image, a sixth faster."""
    for block in net.modules():
        for name, padding in list(block.named_children()):
            if isinstance(padding, nn.ConstantPad2d) and len(set(padding.padding)) == 1:
                convolution = cast(nn.Conv2d, getattr(block, name.removesuffix("_padding")))
                convolution.padding = padding.padding[:2]
                setattr(block, name, nn.Identity())


class _SlowInHalf(nn.Conv2d):
    """A depthwise convolution with a kernel or stride that takes its derivatives in bf16 up to ten times as long as in
    float32 on a CPU, where it is therefore computed in float32."""

    def forward(self, input: Tensor) -> Tensor:
        if input.device.type != "cpu":
            return super().forward(input)
        with torch.autocast("cpu", enabled=False):
            return super().forward(input.float()).to(input.dtype)


def _replace_slow_in_half(net: nn.Module) -> None:
    """The same network with its depthwise convolutions other than 3 x 3 of stride 1 as ``_SlowInHalf``."""
    for layer in net.modules():
        depthwise = isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1
        if depthwise and (layer.kernel_size, layer.stride) != ((3, 3), (1, 1)):
            layer.__class__ = _SlowInHalf  # which differs in nothing but ``forward``


class _VisionTransformer(nn.Module):
    """Dosovitskiy et al. 2021 (arXiv 2010.11929), of the smallest size, with the mean of the patches for a class token
    (Beyer et al. 2022, arXiv 2205.01580): better on small data, and its last layer is a map."""

    WIDTH = 192

    def __init__(self, side: int, channels: int, n_classes: int) -> None:
        from monai.networks.nets.vit import ViT

        super().__init__()
        self.patch = 4 if side <= SMALL else 8 if side <= MIDDLE else 16
        self.padding = -side % self.patch
        self.vit = ViT(
            channels, side + self.padding, self.patch, self.WIDTH, 4 * self.WIDTH, num_layers=12, num_heads=3,
            dropout_rate=0.1, spatial_dims=2, qkv_bias=True,
        )  # fmt: skip
        self.map = nn.Identity()
        self.head = nn.Linear(self.WIDTH, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, self.padding, 0, self.padding), mode="replicate")
        tokens, _ = self.vit(x)
        h = self.map(tokens.transpose(1, 2).unflatten(2, (x.shape[2] // self.patch, -1)))
        return self.head(h.flatten(2).mean(2))


vit = _VisionTransformer
