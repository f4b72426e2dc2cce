"""What every backbone must keep to."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scorebayes.diffusion.nets import BACKBONES

SMALL = {"channels": (8, 16), "blocks": 1, "attention": 1, "patch": 2}
VARIANTS = [(name, {**SMALL, "label_in": label_in}) for name in BACKBONES for label_in in ("all", "decoder")]


def awake(name, fields, image_channels=1):
    """A network of random weights: a new one starts at zero and would agree with anything."""
    torch.manual_seed(0)
    net = BACKBONES[name](image_channels, 3, 4, **fields).eval()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    return net


@pytest.fixture(params=VARIANTS, ids=lambda v: f"{v[0]}-{v[1]['label_in']}")
def net(request):
    return awake(*request.param)


def rows(size=12, n=4, channels=1):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, channels, size, size, generator=generator), torch.randn(n, generator=generator)


@pytest.mark.parametrize("size", [7, 12])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", BACKBONES)
def test_the_output_has_the_shape_of_the_image(name, size, channels):
    x, level = rows(size, channels=channels)
    assert awake(name, SMALL, channels)(x, level, torch.zeros(4, dtype=torch.int64)).shape == x.shape


def test_all_classes_at_once_are_the_classes_one_by_one(net):
    x, level = rows()
    code = torch.randn(4, 4)
    together = net.all_classes(x, level, code)
    for y in range(3):
        alone = net(x, level, torch.full((4,), y), code)
        torch.testing.assert_close(together[:, y], alone, rtol=1e-4, atol=1e-5)


def test_label_level_and_augmentation_matter(net):
    x, level = rows()
    y = torch.zeros(4, dtype=torch.int64)
    plain = net(x, level, y)
    for other in (
        net(x, level, y + 1),
        net(x, level, y + 3),
        net(x, level + 1, y),
        net(x, level, y, torch.ones(4, 4)),
    ):
        assert (other - plain).abs().max() > 1e-3


def test_a_row_does_not_depend_on_its_batch(net):
    x, level = rows()
    y = torch.tensor([0, 1, 2, 3])
    torch.testing.assert_close(net(x, level, y)[:1], net(x[:1], level[:1], y[:1]), rtol=1e-4, atol=1e-5)


def test_a_decoder_label_leaves_the_encoder_alone():
    """One pass of the encoder serves all classes: fewer operations, the same answer."""
    from torch.utils.flop_counter import FlopCounterMode

    x, level = rows()
    spent = {}
    for label_in in ("all", "decoder"):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            awake("unet", {**SMALL, "label_in": label_in}).all_classes(x, level)
        spent[label_in] = counter.get_total_flops()
    assert spent["decoder"] < 0.8 * spent["all"]
