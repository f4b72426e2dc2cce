"""What every likelihood estimator must keep, whoever adds one."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from scorebayes.diffusion.draws import Draws
from scorebayes.diffusion.likelihood import LIKELIHOODS, Denoising, Kind, Likelihood
from scorebayes.diffusion.nets import BACKBONES
from scorebayes.diffusion.noise import VP, NoiseProcess
from scorebayes.diffusion.score import Denoiser, Score, ScoreModel

KEYS = ["one", "two", "three"]


class PixelScore(Score):
    """Every pixel normal, of variance 0.5 and mean y, in plain arithmetic: rows are truly independent."""

    def __init__(self, noise: NoiseProcess) -> None:
        self.noise, self.n_classes = noise, 3

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        alpha_t, sigma_t = (scale[:, None, None, None] for scale in self.noise.scales(t))
        mean = alpha_t * y[:, None, None, None]
        return ((mean - x_t) / (0.5 * alpha_t * alpha_t + sigma_t * sigma_t)).to(x_t.dtype)


X = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
PIXELS = PixelScore(VP())


def network() -> Score:
    torch.manual_seed(0)
    net = BACKBONES["unet"](1, 3, channels=(4,), blocks=1, attention=0, patch=2, dropout=0.0)
    for weights in net.parameters():
        torch.nn.init.normal_(weights, std=0.05)  # a fresh network answers zero, whatever the class
    return ScoreModel(Denoiser(net).eval(), VP())


@pytest.fixture(scope="module", params=sorted(LIKELIHOODS))
def likelihood(request: pytest.FixtureRequest) -> Likelihood:
    return LIKELIHOODS[request.param]()


@pytest.fixture(scope="module", params=[PIXELS, network()], ids=["closed form", "network"])
def score(request: pytest.FixtureRequest) -> Score:
    return request.param


def evaluate(likelihood, score, x=X, keys=KEYS, seed=0):
    with torch.no_grad():
        return likelihood(score, x, Draws(seed, keys))


@pytest.fixture(scope="module")
def found(likelihood, score):
    return evaluate(likelihood, score)


def test_the_label_reaches_the_likelihood(found):
    """With one set of draws for all classes, equal values would mean that the class was never used."""
    values = found.draws.mean(0)
    assert np.abs(values[:, 0] - values[:, 1]).min() > 1e-6
    assert np.abs(values[:, 1] - values[:, 2]).min() > 1e-6


def test_what_comes_back_has_the_stated_form(likelihood, found):
    k = len(found.draws)
    assert found.draws.shape == (k, 3, 3) and found.draws.dtype == np.float64
    assert found.log_snr.shape == (k, 3)
    assert found.level.shape == (k,)
    assert np.unique(found.level).tolist() == list(range(found.level.max() + 1))
    assert found.nfe.shape == (3,) and (found.nfe >= k).all()
    assert found.status.tolist() == ["ok"] * 3
    assert found.kind == likelihood.kind and found.kind in get_args(Kind)


def test_an_image_has_the_same_draws_alone_and_among_others(likelihood, score, found):
    """Bit by bit where the score is, up to rounding in a network."""
    for row in (0, 1) if score is PIXELS else (1,):
        alone = evaluate(likelihood, score, X[row : row + 1], KEYS[row : row + 1])
        if score is PIXELS:
            assert np.array_equal(alone.draws[:, 0], found.draws[:, row])
            assert alone.nfe[0] == found.nfe[row]
        else:
            np.testing.assert_allclose(alone.draws[:, 0], found.draws[:, row], rtol=1e-4, atol=1e-3)


def own_noise(likelihood: Likelihood) -> Likelihood:
    """The likelihood with other noise for every image, where all images may share it."""
    return replace(likelihood, common_noise=False) if isinstance(likelihood, Denoising) else likelihood


def test_draws_follow_from_the_key_of_the_image_and_the_seed(likelihood):
    """S7: equal key and seed give equal draws; another key gives others, and so does another seed."""
    # In the closed form a probe of random signs finds the exact divergence, whatever the signs: a network tells them apart.
    score = network()

    def draws(keys, seed=0):
        return evaluate(own_noise(likelihood), score, X[:1].repeat(2, 1, 1, 1), keys, seed).draws

    first = draws(["one", "one"])
    assert np.array_equal(first[:, 0], first[:, 1])
    assert np.array_equal(first, draws(["one", "one"]))
    other_key = draws(["one", "two"])
    assert np.array_equal(other_key[:, 0], first[:, 0])
    assert (other_key[:, 1] != first[:, 1]).any(axis=1).all()
    assert (draws(["one", "one"], seed=1) != first).any(axis=2).all()


def test_noise_that_all_images_share_follows_from_the_seed_alone():
    """S7: the default of the class score: the key changes nothing, another seed changes every draw."""

    def draws(keys, seed=0):
        return evaluate(Denoising(), PIXELS, X[:1].repeat(2, 1, 1, 1), keys, seed).draws

    first = draws(["one", "two"])
    assert np.array_equal(first[:, 0], first[:, 1])
    assert np.array_equal(first, draws(["three", "four"]))
    assert (draws(["one", "two"], seed=1) != first).any(axis=2).all()


def test_an_image_that_is_not_a_number_has_a_status_and_leaves_the_others_alone(likelihood):
    broken = X.clone()
    broken[1, 0, 2, 2] = torch.nan
    found, whole = evaluate(likelihood, PIXELS, broken), evaluate(likelihood, PIXELS)
    assert found.status[1] != "ok" and found.status[[0, 2]].tolist() == ["ok", "ok"]
    assert np.array_equal(found.draws[:, [0, 2]], whole.draws[:, [0, 2]])
