"""What every likelihood estimator must keep, whoever adds one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from scorebayes.draws import Draws
from scorebayes.likelihood import LIKELIHOODS, Likelihood
from scorebayes.nets import BACKBONES
from scorebayes.noise import VP, NoiseProcess
from scorebayes.score import Denoiser, Score, ScoreModel

KEYS = ["one", "two", "three"]


class PixelScore(Score):
    """Every pixel normal, of variance 0.5 and mean y, in plain arithmetic: rows are truly independent."""

    def __init__(self, noise: NoiseProcess) -> None:
        self.noise, self.n_classes = noise, 3

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        alpha_t, sigma_t = (scale[:, None, None, None] for scale in self.noise.scales(t))
        mean = alpha_t * y[:, None, None, None]
        return ((mean - x_t) / (0.5 * alpha_t * alpha_t + sigma_t * sigma_t)).to(x_t.dtype)


@pytest.fixture(params=sorted(LIKELIHOODS))
def likelihood(request: pytest.FixtureRequest) -> Likelihood:
    return LIKELIHOODS[request.param]()


@pytest.fixture(params=["closed form", "network"])
def score(request: pytest.FixtureRequest) -> Score:
    if request.param == "closed form":
        return PixelScore(VP())
    torch.manual_seed(0)
    net = BACKBONES["unet"](1, 3, channels=(8,), blocks=1, attention=0, patch=2, dropout=0.0)
    for weights in net.parameters():
        torch.nn.init.normal_(weights, std=0.05)  # a fresh network answers zero, whatever the class
    return ScoreModel(Denoiser(net).eval(), VP())


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def evaluate(likelihood, score, x, keys=KEYS, seed=0):
    with torch.no_grad():
        return likelihood(score, x, Draws(seed, keys))


def test_the_label_reaches_the_likelihood(likelihood, score, x):
    """With one set of draws for all classes, equal values would mean that the class was never used."""
    values = evaluate(likelihood, score, x).draws.mean(0)
    assert np.abs(values[:, 0] - values[:, 1]).min() > 1e-6
    assert np.abs(values[:, 1] - values[:, 2]).min() > 1e-6


def test_what_comes_back_has_the_stated_form(likelihood, score, x):
    found = evaluate(likelihood, score, x)
    k = len(found.draws)
    assert found.draws.shape == (k, 3, 3) and found.draws.dtype == np.float64
    assert found.log_snr.shape == (k, 3)
    assert found.level.shape == (k,) and found.level.min() == 0
    assert np.unique(found.level).tolist() == list(range(found.level.max() + 1))
    assert found.nfe.shape == (3,) and (found.nfe >= k).all()
    assert found.status.tolist() == ["ok"] * 3
    assert found.kind == likelihood.kind in ("density", "lower-bound", "class-score")


def test_an_image_has_the_same_draws_alone_and_among_others(likelihood, x):
    """Bit by bit, where the score is."""
    score = PixelScore(VP())
    together = evaluate(likelihood, score, x)
    for row, key in enumerate(KEYS):
        alone = evaluate(likelihood, score, x[row : row + 1], [key])
        assert np.array_equal(alone.draws[:, 0], together.draws[:, row])
        assert alone.nfe[0] == together.nfe[row]


def test_batch_mates_do_not_matter_to_a_network(likelihood, score, x):
    together = evaluate(likelihood, score, x).draws
    others = evaluate(likelihood, score, x.flip(0) * torch.tensor([9.0, 1.0, 9.0])[:, None, None, None],
                      ["six", "two", "seven"]).draws  # fmt: skip
    np.testing.assert_allclose(others[:, 1], together[:, 1], rtol=1e-4, atol=1e-3)


def test_draws_follow_from_the_seed_and_the_key(likelihood, score, x):
    same = evaluate(likelihood, score, x).draws
    assert np.array_equal(same, evaluate(likelihood, score, x).draws)
    twins = x[:1].repeat(3, 1, 1, 1)
    assert np.ptp(evaluate(likelihood, score, twins, ["one"] * 3).draws, axis=1).max() < 1e-3
    if likelihood != LIKELIHOODS["flow"]() or not isinstance(score, PixelScore):
        assert (np.ptp(evaluate(likelihood, score, twins).draws, axis=1) > 0).any()


def test_an_image_that_is_not_a_number_has_a_status_and_leaves_the_others_alone(likelihood, x):
    score = PixelScore(VP())
    broken = x.clone()
    broken[1, 0, 2, 2] = torch.nan
    found, whole = evaluate(likelihood, score, broken), evaluate(likelihood, score, x)
    assert found.status[1] != "ok" and found.status[[0, 2]].tolist() == ["ok", "ok"]
    assert np.array_equal(found.draws[:, [0, 2]], whole.draws[:, [0, 2]])
