"""Counterfactuals: the flow of one class up, of another down."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fixtures.tiny_run import trained_tiny

from scorebayes.diffusion.noise import VP
from scorebayes.diffusion.oracle import GaussianScore
from scorebayes.errors import ConfigError, NumericalError
from scorebayes.explain.counterfactual import counterfactual
from scorebayes.runs.run import open_run


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return trained_tiny(tmp_path_factory.mktemp("counterfactual") / "run").path


@pytest.fixture
def run(path):
    return open_run(path, "cpu")


@pytest.fixture
def world(run):
    """The run with two Gaussian classes in place of its network: N(mean_y, variance_y) in every pixel."""
    mean = torch.stack([torch.zeros(1, 16, 16), torch.ones(1, 16, 16)])
    variance = torch.stack([torch.full((1, 16, 16), 0.25), torch.full((1, 16, 16), 1.0)])
    run.image_score.score = GaussianScore(VP(), mean, variance)
    return run


def image(run):
    images = run.images("val")
    return run.standardise(images.images[:1]), images.keys[0]


def test_the_whole_way_maps_one_gaussian_on_the_other(world):
    generator = torch.Generator().manual_seed(0)
    x = 0.5 * torch.randn(1, 1, 16, 16, generator=generator)
    low, _ = world.score.noise.log_snr_range
    found = counterfactual(world, x, "k", 0, 1, log_snr=low, steps=40, guidance=0.0)
    # Quantiles go to quantiles: (x - 0) / 0.5 standard deviations from 0 become as many from 1.
    expected = 1 + x.numpy()[0] / 0.5 - x.numpy()[0]
    np.testing.assert_allclose(found.difference / world.facts.std, expected, atol=0.03)
    assert found.round_trip < 1e-3


def test_a_shorter_way_changes_less(world):
    x = torch.zeros(1, 1, 16, 16)
    change = [
        np.abs(counterfactual(world, x, "k", 0, 1, log_snr=level, guidance=0.0).difference).mean()
        for level in (-6.0, 0.0, 6.0)
    ]
    assert change[0] > 2 * change[1] > 4 * change[2] > 0


def test_the_counterfactual_of_a_network_is_judged_and_shown(run):
    x, key = image(run)
    found = counterfactual(run, x, key, 0, 1, steps=4)
    assert found.image.shape == (1, 16, 16)
    assert found.image.min() >= 0 and found.image.max() <= 1
    assert found.prob.sum() == pytest.approx(1)
    pixels = run.restore(x)[0] + found.difference
    np.testing.assert_allclose(np.clip(pixels, 0, 1), found.image, atol=1e-5)
    again = counterfactual(run, x, key, 0, 1, steps=4)
    np.testing.assert_array_equal(found.image, again.image)


def test_guidance_changes_more(run):
    x, key = image(run)
    without, strong = (
        np.square(counterfactual(run, x, key, 0, 1, steps=4, guidance=w).difference).mean()
        for w in (0.0, 8.0)
    )
    assert strong > without


def test_a_turning_point_outside_the_process_is_refused(run):
    x, key = image(run)
    with pytest.raises(ConfigError, match="outside the forward process"):
        counterfactual(run, x, key, 0, 1, log_snr=99.0)


def test_a_flow_that_is_not_finite_is_refused(run):
    x, key = image(run)
    with pytest.raises(NumericalError, match="not finite"):
        counterfactual(run, x * torch.inf, key, 0, 1, steps=1)
