"""Worlds whose class posterior is known: what ScoreBayes answers must be that posterior.

Images are drawn from the world itself. Estimators of log p(x|y) have to give its posterior without any calibration; the
class score has to come near it after a calibration on other images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from scorebayes.decision.calibration import fit_calibration
from scorebayes.decision.posterior import bayes
from scorebayes.decision.table import EvidenceTable
from scorebayes.diffusion.likelihood import Denoising, DenoisingBound, Flow
from scorebayes.diffusion.noise import VP
from scorebayes.diffusion.oracle import GaussianScore, MixtureScore, Oracle
from scorebayes.metrics import classification_metrics
from scorebayes.training.validate import score_table


@dataclass(frozen=True)
class Sampled:
    """Images drawn from a world [N, C, H, W], their labels [N] and their exact posterior [N, Y]."""

    world: Oracle
    log_prior: NDArray
    x: torch.Tensor
    labels: NDArray
    truth: NDArray

    def table(self, estimator, n: int) -> EvidenceTable:
        keys = [f"image {i}" for i in range(n)]
        return score_table(estimator, self.world, self.x[:n], keys, 0, self.labels[:n])


def gaussian() -> Oracle:
    return GaussianScore.image_like(VP(), (1, 8, 8), separation=0.7)


def mixture() -> Oracle:
    generator = torch.Generator().manual_seed(3)
    mean = 0.55 * torch.randn((3, 2, 1, 4, 4), generator=generator, dtype=torch.float64)
    weight = torch.tensor([[0.5, 0.5], [0.3, 0.7], [0.8, 0.2]])
    return MixtureScore(VP(), mean, torch.tensor(0.6), weight)


@pytest.fixture(
    scope="module",
    params=[(gaussian, [0.7, 0.3]), (mixture, [0.5, 0.3, 0.2])],
    ids=["two Gaussians", "three mixtures"],
)
def sampled(request) -> Sampled:
    build, prior = request.param
    world, generator = build(), torch.Generator().manual_seed(1)
    labels = np.random.default_rng(0).choice(len(prior), 6000, p=prior)
    x = torch.cat([world.sample(1, int(y), generator) for y in labels])
    log_prior = np.log(prior)
    return Sampled(world, log_prior, x, labels, world.posterior(x, torch.from_numpy(log_prior)).numpy())


@pytest.fixture(scope="module")
def scored(sampled) -> EvidenceTable:
    """Class scores of all images; the first half is for calibration."""
    return sampled.table(Denoising(flips=False, images_per_call=64, rows_per_call=4096), 6000)


HALVES = np.arange(3000), np.arange(3000, 6000)


def log_odds(prob: NDArray) -> NDArray:
    return np.log(prob) - np.log1p(-prob)


def test_the_exact_flow_gives_the_exact_posterior(sampled):
    flow = Flow(solver="dopri5", steps=12, exact=True, mode="forward", images_per_call=16)
    found = bayes(sampled.table(flow, 16), sampled.log_prior)
    np.testing.assert_allclose(found.prob, sampled.truth[:16], atol=4e-3)  # of 12 steps
    np.testing.assert_array_equal(found.predict(), sampled.truth[:16].argmax(1))


@pytest.mark.parametrize("density", [{}, {"centre": 1.0, "scale": 2.0}], ids=["uniform", "importance"])
def test_the_bound_of_the_optimal_denoiser_gives_the_posterior_within_its_stated_error(sampled, density):
    n = 100
    bound = DenoisingBound(levels=64, repeats=4, images_per_call=16, rows_per_call=4096, **density)
    found = bayes(sampled.table(bound, n), sampled.log_prior)
    # Half a hundredth of a nat is what lies outside the log-SNR range of the process.
    z = (found.log_odds - log_odds(sampled.truth[:n])) / (found.log_odds_std_error + 0.005)
    assert np.abs(z).max() < 5 and 0.7 < z.std() < 1.3
    assert np.median(found.log_odds_std_error) < 0.7, "an error bar that says nothing passes every test"
    assert np.abs(found.prob - sampled.truth[:n]).mean() < 0.03


def test_the_calibrated_class_score_comes_near_the_posterior(sampled, scored):
    """Within 0.05 nats an image of the smallest log-loss that is possible, and calibrated.

    It is no log-likelihood, so that something is lost however well it is calibrated; measured when the margin was set:
    0.02 nats for the two Gaussians, 0.04 to 0.05 for the three mixtures. The margins of slope and intercept are about
    three times what the chance of the labels moves them by (0.1 for the intercept of the mixtures).
    """
    val, test = HALVES
    calibration = fit_calibration(scored.rows(val), sampled.log_prior)
    found, truth = bayes(scored.rows(test), sampled.log_prior, calibration), sampled.truth[test]
    excess = (truth * (np.log(truth) - found.log_prob)).sum(1).mean()  # expected over the labels
    assert 0 < excess < 0.05
    assert np.abs(found.prob - truth).mean() < 0.07
    m = classification_metrics(sampled.labels[test], found.prob, n_bootstrap=100)
    assert m["calibration_slope"] == pytest.approx(1, abs=0.15)
    assert m["calibration_intercept"] == pytest.approx(0, abs=0.3)
    assert m["ece"] < 0.04
    # Among images that were given nearly the same probability, the true probability is that one.
    for part in np.array_split(np.argsort(found.prob[:, 1]), 5):
        assert found.prob[part, 1].mean() == pytest.approx(truth[part, 1].mean(), abs=0.05)


def test_another_prior_after_calibration_gives_the_posterior_under_that_prior(sampled, scored):
    """Calibration is fitted once; what the world would answer elsewhere follows from the prior alone."""
    prior = np.array([0.2, 0.8]) if len(sampled.log_prior) == 2 else np.array([0.2, 0.2, 0.6])
    val, test = HALVES
    calibration = fit_calibration(scored.rows(val), sampled.log_prior)
    truth = sampled.world.posterior(sampled.x[test], torch.from_numpy(np.log(prior))).numpy()
    moved = bayes(scored.rows(test), np.log(prior), calibration).prob
    unmoved = bayes(scored.rows(test), sampled.log_prior, calibration).prob
    error, error_unmoved = (np.abs(prob - truth).mean() for prob in (moved, unmoved))
    assert error < 0.05 and error < 0.6 * error_unmoved
