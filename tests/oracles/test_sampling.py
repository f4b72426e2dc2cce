"""Samples against worlds whose distribution is known."""

from __future__ import annotations

import pytest
import torch

from scorebayes.diffusion.noise import NOISES, VP
from scorebayes.diffusion.oracle import GaussianScore
from scorebayes.diffusion.sample import SAMPLERS, ProbabilityFlow, SecondOrder, guide, nearest, noise_levels
from scorebayes.diffusion.score import Score
from scorebayes.errors import ConfigError

SHAPE = (1, 6, 6)


def draw(sampler, world, n=500, y=1) -> torch.Tensor:
    labels = torch.full((n,), y)
    return sampler(world, labels, SHAPE, torch.Generator().manual_seed(0))


class Counted(Score):
    """A score that counts its evaluations."""

    def __init__(self, score: Score) -> None:
        self.score, self.noise, self.n_classes, self.calls = score, score.noise, score.n_classes, 0

    def __call__(self, x_t: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.score(x_t, t, y)


@pytest.mark.parametrize("name", sorted(SAMPLERS))
@pytest.mark.parametrize("process", ["vp", "ve"])
def test_samples_have_the_mean_and_spectrum_of_their_class(name, process):
    world = GaussianScore.image_like(NOISES[process](), SHAPE)
    samples = draw(SAMPLERS[name](), world)
    assert samples.dtype == torch.float32 and samples.shape == (500, *SHAPE)
    white = world._to_cosines(samples.double() - world.mean[1]) / world.variance[1].sqrt()
    # Standard errors over 500 samples: 0.045 of a mean, 0.063 of a variance; 36 of each are looked at.
    # Langevin steps of finite size are known to widen the finest details.
    assert white.mean(0).abs().max() < 0.2
    assert (white.var(0) - 1).abs().max() < (0.5 if name == "predictor-corrector" else 0.3)
    assert abs(white.var(0).mean() - 1) < (0.2 if name == "predictor-corrector" else 0.08)


def test_default_takes_at_most_forty_evaluations():
    score = Counted(GaussianScore.image_like(VP(), SHAPE))
    draw(SecondOrder(), score, n=2)
    assert score.calls == SecondOrder().steps <= 40


def test_second_order_error_falls_fourfold_when_steps_double():
    world = GaussianScore.image_like(VP(), SHAPE)
    truth = draw(ProbabilityFlow(200), world, n=50)
    errors = [float((draw(SecondOrder(n), world, n=50) - truth).square().mean().sqrt()) for n in (40, 80)]
    assert errors[0] < 0.02
    assert 3 < errors[0] / errors[1] < 6


def test_samples_come_from_the_generator_alone():
    world = GaussianScore.image_like(VP(), SHAPE)
    for sampler in SAMPLERS.values():
        assert torch.equal(draw(sampler(), world, n=2), draw(sampler(), world, n=2))


def test_noise_levels_fall_from_the_first_to_the_last_of_the_process():
    noise = VP()
    levels, (low, high) = noise_levels(noise, 20), noise.log_snr_range
    assert (levels.diff() < 0).all()
    torch.testing.assert_close(-2 * levels[[0, -1]].log(), torch.tensor([low, high], dtype=torch.float64))


class WithNull(GaussianScore):
    """Two classes and, as label 2, no label: their common Gaussian."""

    null_class = 2


def test_guidance_moves_samples_away_from_the_unlabelled_mean():
    mean = torch.zeros(3, *SHAPE)
    mean[0], mean[1] = -1.0, 1.0
    world = WithNull(VP(), mean, torch.full((3, *SHAPE), 0.5))
    assert guide(world, 0.0) is world
    x_t, t, y = torch.randn(4, *SHAPE), torch.full((4,), 0.5), torch.tensor([0, 1, 0, 1])
    expected = 3 * world(x_t, t, y) - 2 * world(x_t, t, torch.full((4,), 2))
    torch.testing.assert_close(guide(world, 2.0)(x_t, t, y), expected)
    plain, guided = (float(draw(SecondOrder(), guide(world, w), n=200).mean()) for w in (0.0, 1.0))
    assert plain == pytest.approx(1.0, abs=0.05)
    # Equal covariances: the guided score is that of a Gaussian at (1 + w) mean.
    assert guided == pytest.approx(2.0, abs=0.05)


def test_guidance_without_a_null_label_is_refused():
    with pytest.raises(ConfigError, match="null label"):
        guide(GaussianScore.image_like(VP(), SHAPE), 1.0)


def test_nearest_finds_the_image_recited_whatever_the_chunk():
    generator = torch.Generator().manual_seed(0)
    training = torch.randn(50, *SHAPE, generator=generator)
    samples = torch.cat([training[[7, 49]], torch.randn(1, *SHAPE, generator=generator)])
    for chunk in (8, 1024):
        index, distance = nearest(samples, training, chunk)
        assert index[:2].tolist() == [7, 49]
        assert distance[:2].max() < 1e-6
        brute = (samples[2] - training).square().mean((1, 2, 3)).sqrt()
        assert index[2] == brute.argmin()
        assert float(distance[2]) == pytest.approx(float(brute.min()), rel=1e-5)
