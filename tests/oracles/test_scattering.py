"""Scattering against its definition in space, and the invariances it is for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from scorebayes.evidence.scattering import ANGLES, FINEST, FLOOR, LARGEST, n_scales, on_grid, scattering


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def morlet(scale: int, angle: int, width: int) -> np.ndarray:
    """The wavelet as a function of space, about the origin of a periodic square: Gaussian window times wave."""
    at = np.fft.fftfreq(width, 1 / width)
    y, x = np.meshgrid(at, at, indexing="ij")
    theta, size = math.pi * angle / ANGLES, 0.8 * 2**scale
    along, beside = x * math.cos(theta) + y * math.sin(theta), y * math.cos(theta) - x * math.sin(theta)
    window = np.exp(-(along**2 + beside**2 / 4) / (2 * size**2))
    window = window / window.sum()
    wave = window * np.exp(1j * 0.75 * math.pi / 2**scale * along)
    return wave - wave.sum() * window


@pytest.mark.parametrize(("scale", "angle"), [(1, 0), (1, 3), (2, 6)])
def test_first_order_is_the_mean_modulus_of_a_convolution(scale, angle):
    x, margin = noise(1, 1, 28, 28), 8
    padded = np.pad(x[0, 0].numpy(), margin, mode="reflect")
    spectrum = np.fft.fft2(morlet(scale, angle, len(padded)))
    modulus = np.abs(np.fft.ifft2(np.fft.fft2(padded) * spectrum))[margin:-margin, margin:-margin]
    expected = modulus.reshape(FINEST, 7, FINEST, 7).mean(axis=(1, 3))
    found = scattering(x)[0, 0, 1 + scale * ANGLES + angle].numpy()
    # The coarse scales are looked at every second pixel.
    np.testing.assert_allclose(found, expected, rtol=0.02 if scale < 2 else 0.05, atol=2e-4)


@pytest.mark.parametrize("side", [16, 28, 32, 50, LARGEST, 3 * LARGEST])
def test_paths_and_cells_fit_any_image(side):
    found, scales = scattering(noise(2, 2, side, side)), n_scales(side)
    paths = 1 + ANGLES * scales + ANGLES**2 * scales * (scales - 1) // 2
    assert found.shape == (2, 2, paths, FINEST, FINEST)
    assert torch.isfinite(found).all() and (found[:, :, 1:] >= 0).all()
    assert on_grid(found, 2, True).shape == (2, 2 * paths * 4)


@pytest.mark.parametrize("side", [28, 50])
def test_a_mirror_image_has_the_same_features(side):
    x = noise(3, 1, side, side)
    one, other = (on_grid(scattering(image), 2, True) for image in (x, x.flip(-1)))
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    seen = [on_grid(scattering(image), 2, False) for image in (x, x.flip(-1))]
    assert (seen[0] - seen[1]).abs().max() > 0.1


def test_a_wave_is_found_at_its_size_and_direction():
    theta, scale = math.pi * 3 / ANGLES, 2
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    wave = torch.cos(0.75 * math.pi / 2**scale * (x * math.cos(theta) + y * math.sin(theta)))
    means = scattering(wave[None, None])[0, 0, 1 : 1 + 4 * ANGLES].mean(dim=(1, 2))
    assert int(means.argmax()) == scale * ANGLES + 3


def test_an_even_image_has_no_moduli():
    found = scattering(torch.full((1, 1, 28, 28), 3.0))[0, 0]
    torch.testing.assert_close(found[0], torch.full((FINEST, FINEST), 3.0))
    assert found[1:].max() < 1e-3 * FLOOR


def test_coarse_cells_are_means_of_fine_ones_before_the_logarithm():
    x = scattering(noise(1, 1, 28, 28))
    whole = on_grid(x, 1, False)[0]
    assert float(whole[0]) == pytest.approx(float(x[0, 0, 0].double().mean()))
    assert float(whole[5]) == pytest.approx(math.log(float(x[0, 0, 5].double().mean()) + FLOOR))


def test_a_shift_changes_less_than_another_image_of_the_same_pixels():
    x = noise(1, 1, 34, 34)
    x = torch.nn.functional.avg_pool2d(x, 3, 1)  # 32 x 32, of some smoothness
    here, shifted = x[..., 2:30, 2:30], x[..., 3:31, 2:30]
    shuffled = here.flatten()[torch.randperm(28 * 28, generator=torch.Generator().manual_seed(1))].view_as(
        here
    )
    base, near, far = (on_grid(scattering(image), 1, False)[0, 1:] for image in (here, shifted, shuffled))
    assert (near - base).square().mean() < 0.05 * (far - base).square().mean()


def test_an_image_does_not_depend_on_the_others():
    x = noise(3, 1, 28, 28)
    assert torch.equal(scattering(x)[1:2], scattering(x[1:2]))


def test_the_gradient_is_that_of_the_features():
    x = noise(1, 1, 16, 16).double().requires_grad_(True)
    weights = noise(on_grid(scattering(x), 2, True).shape[1], seed=2).double()

    def value(image: torch.Tensor) -> torch.Tensor:
        return on_grid(scattering(image), 2, True)[0] @ weights

    (gradient,) = torch.autograd.grad(value(x), x)
    way = noise(1, 1, 16, 16, seed=3).double()
    with torch.no_grad():
        slope = (value(x + 1e-2 * way) - value(x - 1e-2 * way)) / 2e-2
    assert float((gradient * way).sum()) == pytest.approx(float(slope), rel=0.02)
