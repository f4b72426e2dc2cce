"""The closed-form worlds themselves: score, density, posterior and samples agree with each other."""

from __future__ import annotations

import pytest
import torch

from scorebayes.diffusion.noise import NOISES
from scorebayes.diffusion.oracle import GaussianScore, MixtureScore, Oracle, dct_matrix


def mixture(noise, shape=(1, 2, 3), n_classes=3, components=4) -> MixtureScore:
    generator = torch.Generator().manual_seed(3)
    mean = torch.randn(n_classes, components, *shape, generator=generator, dtype=torch.float64)
    variance = torch.rand(n_classes, components, 1, 1, 1, generator=generator, dtype=torch.float64) + 0.1
    weight = torch.rand(n_classes, components, generator=generator, dtype=torch.float64)
    return MixtureScore(noise, mean, variance, weight)


@pytest.fixture(params=["gaussian", "mixture"])
def world(request: pytest.FixtureRequest) -> Oracle:
    noise = NOISES["vp"]()
    if request.param == "mixture":
        return mixture(noise)
    return GaussianScore.image_like(noise, (2, 4, 6), n_classes=3)


def test_dct_basis_is_orthonormal():
    basis = dct_matrix(17)
    torch.testing.assert_close(basis @ basis.T, torch.eye(17, dtype=torch.float64))


@pytest.mark.parametrize("time", [1e-3, 0.1, 0.5, 1.0])
def test_score_is_the_gradient_of_the_log_density(world, time):
    x_t = torch.randn(6, *world.shape, dtype=torch.float64, requires_grad=True)
    t, y = torch.full((6,), time, dtype=torch.float64), torch.arange(6) % 3
    (gradient,) = torch.autograd.grad(world.log_prob(x_t, t, y).sum(), x_t)
    torch.testing.assert_close(world(x_t, t, y), gradient)


def test_gaussian_density_is_that_of_the_full_covariance():
    world = GaussianScore.image_like(NOISES["ve"](), (1, 4, 3))
    x = torch.randn(5, *world.shape, dtype=torch.float64)
    basis = torch.kron(dct_matrix(4), dct_matrix(3))
    truth = []
    for y in range(2):
        covariance = basis.T @ torch.diag(world.variance[y].flatten()) @ basis
        normal = torch.distributions.MultivariateNormal(world.mean[y].flatten(), covariance)
        truth.append(normal.log_prob(x.flatten(1)))
    torch.testing.assert_close(world.clean_log_prob(x), torch.stack(truth, 1))


def test_image_like_spectrum_falls_with_frequency_and_gives_unit_variance():
    world = GaussianScore.image_like(NOISES["vp"](), (1, 64, 64), n_classes=1, separation=0.0)
    assert world.variance[0, 0, 0, 0] > 1000 * world.variance[0, 0, -1, -1]
    images = world.sample(200, 0, torch.Generator().manual_seed(0))
    assert float(images.var()) == pytest.approx(1.0, rel=0.2)


def test_noised_samples_have_the_stated_density(world):
    """Over samples, any other density has a mean ratio of 1 to their own, and a log ratio below 0."""
    generator = torch.Generator().manual_seed(1)
    n = 4000
    x = world.sample(n, 0, generator)
    t = torch.full((n,), 0.2, dtype=torch.float64)
    alpha_t, sigma_t = (scale[:, None, None, None] for scale in world.noise.scales(t))
    x_t = alpha_t * x + sigma_t * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    own = world.log_prob(x_t, t, torch.zeros(n, dtype=torch.int64))
    for y in (1, 2):
        ratio = (world.log_prob(x_t, t, torch.full((n,), y)) - own).exp()
        # The expected density ratio is 1 exactly.
        assert abs(ratio.mean() - 1) < 5 * ratio.std() / n**0.5
        assert ratio.log().mean() < 0


def test_posterior_is_calibrated(world):
    generator = torch.Generator().manual_seed(2)
    prior = torch.tensor([0.5, 0.3, 0.2])
    x = torch.cat([world.sample(int(6000 * p), y, generator) for y, p in enumerate(prior)])
    posterior = world.posterior(x, prior.log())
    torch.testing.assert_close(posterior.sum(1), torch.ones(len(x), dtype=torch.float64))
    torch.testing.assert_close(posterior.mean(0), prior.double(), rtol=0, atol=0.02)


def test_answers_have_the_dtype_of_the_image(world):
    t, y = torch.ones(2), torch.zeros(2, dtype=torch.int64)
    assert world(torch.zeros(2, *world.shape), t, y).dtype == torch.float32
    assert world(torch.zeros(2, *world.shape, dtype=torch.float64), t, y).dtype == torch.float64


def test_all_classes_are_the_classes_one_by_one(world):
    x_t, t = torch.randn(4, *world.shape, dtype=torch.float64), torch.full((4,), 0.3)
    together = world.all_classes(x_t, t)
    for y in range(3):
        torch.testing.assert_close(together[:, y], world(x_t, t, torch.full((4,), y)))
