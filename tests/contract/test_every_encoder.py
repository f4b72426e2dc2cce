"""What every encoder must keep, of whatever kind: shapes, the same answer always, alone and among others, and for grey."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fixtures.tiny_encoders import ONNX, TRANSFORMERS, encoder_text

from scorebayes.errors import ConfigError
from scorebayes.evidence.encoders import ENCODERS, open_encoder

CPU = torch.device("cpu")
SIDE = 56  # four patches of 14 along a side
LITTLE = [*(f"hf-{name}" for name in TRANSFORMERS), *(f"onnx-{name}" for name in ONNX), "lite0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("encoders")


@pytest.fixture(params=LITTLE)
def encoder(request, folder):
    return open_encoder(encoder_text(request.param, folder), SIDE, CPU)


@pytest.fixture
def pixels():
    return torch.rand(5, 3, 40, 40, generator=torch.Generator().manual_seed(0))


def test_every_kind_is_tried_here_or_says_what_it_lacks():
    tried = {name.split("-")[0] for name in LITTLE}
    assert set(ENCODERS) - tried == {"timm"}
    try:
        import timm  # noqa: F401
    except (ImportError, RuntimeError):
        with pytest.raises(ConfigError, match="timm, which cannot be imported"):
            open_encoder("timm:resnet18", SIDE, CPU)


def test_maps_are_square_and_as_large_as_it_says(encoder, pixels):
    maps, pooled = encoder(pixels), encoder.pooled(pixels)
    assert maps.shape == (5, maps.shape[1], encoder.cells, encoder.cells) and encoder.cells > 1
    assert pooled.shape == (5, encoder.pooled_features)
    assert maps.dtype == pooled.dtype == torch.float32 and maps.device == pooled.device == CPU
    assert torch.isfinite(maps).all() and maps.std() > 0


def test_it_says_what_it_is(encoder):
    assert encoder.name.startswith(encoder.kind) and encoder.kind in ENCODERS
    assert len(encoder.sha256) == 64 and encoder.fingerprint and encoder.licence and encoder.pretrained_on


def test_the_same_image_gives_the_same_features_in_another_process_too(encoder, pixels):
    """As far as that can be seen in one: the files are read again."""
    again = open_encoder(encoder.name, SIDE, CPU)
    if hasattr(again, "frozen"):
        again.__dict__["frozen"] = again.network().eval()
    torch.testing.assert_close(again(pixels), encoder(pixels), rtol=0, atol=0)
    torch.testing.assert_close(again.pooled(pixels), encoder.pooled(pixels), rtol=0, atol=0)
    assert again.fingerprint == encoder.fingerprint


def test_an_image_has_the_same_features_alone_and_among_others(encoder, pixels):
    for ask in (encoder, encoder.pooled):
        together, alone = ask(pixels), ask(pixels[2:3])
        size = float(together.abs().max())
        torch.testing.assert_close(alone[0], together[2], rtol=1e-5, atol=1e-5 * size)


def test_images_differ_in_their_features(encoder, pixels):
    for ask in (encoder, encoder.pooled):
        found = ask(pixels)
        assert (found[0] - found[1]).abs().max() > 1e-6


def test_grey_is_the_same_picture_in_all_channels(encoder, pixels):
    grey = pixels[:, :1]
    torch.testing.assert_close(encoder(grey), encoder(grey.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize(
    "name", ["hf-dinov2", "hf-registers", "hf-vit", "hf-clip", "onnx-tokens", "onnx-fixed"]
)
def test_the_map_lies_as_the_image_does(name, folder):
    """Where two images differ, their cells do most: rows are rows, columns are columns, and no special token is among
    them."""
    encoder = open_encoder(encoder_text(name, folder), SIDE, CPU)
    one, other = torch.full((2, 1, 3, SIDE, SIDE), 0.5)
    other[..., : SIDE // 3, 2 * SIDE // 3 :] = 1.0  # at the top right
    changed = (encoder(other) - encoder(one)).abs().sum(1)[0]
    row, column = divmod(int(changed.argmax()), encoder.cells)
    assert row < encoder.cells / 2 <= column


def test_the_gradient_passes_through_or_is_refused_in_words(encoder, pixels):
    x = pixels[:1].clone().requires_grad_(True)
    if encoder.kind == "onnx":
        with pytest.raises(ConfigError, match="gives no gradient"):
            encoder(x)
        with pytest.raises(ConfigError, match="cannot be trained further"):
            encoder.network()
    else:
        (slope,) = torch.autograd.grad(encoder(x).square().sum(), x)
        assert torch.isfinite(slope).all() and slope.abs().sum() > 0


def test_files_lie_where_the_test_has_put_them(folder):
    assert Path(encoder_text("hf-vit", folder).removeprefix("hf:")).is_dir()
