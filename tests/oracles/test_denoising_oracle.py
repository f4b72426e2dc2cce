"""The denoising estimators in worlds with a known answer: equal to the truth, and honest about their own error."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from scorebayes.decision.calibration import fit_calibration
from scorebayes.decision.posterior import bayes
from scorebayes.diffusion.draws import Draws
from scorebayes.diffusion.likelihood import Denoising, DenoisingBound
from scorebayes.diffusion.noise import NOISES, VP
from scorebayes.diffusion.oracle import GaussianScore
from scorebayes.errors import ConfigError
from scorebayes.training.validate import score_table

SHAPE = (1, 8, 8)


@pytest.fixture(params=list(NOISES))
def noise(request):
    return NOISES[request.param]()


def images(world, n):
    """n images of every class, and their labels."""
    generator = torch.Generator().manual_seed(1)
    x = torch.cat([world.sample(n, y, generator) for y in range(world.n_classes)])
    return x, np.repeat(np.arange(world.n_classes), n)


def table_of(estimator, world, x, seed=0):
    return whole_table(estimator, world, x, seed).only


def whole_table(estimator, world, x, seed=0, labels=None):
    return score_table(estimator, world, x, [f"image {i}" for i in range(len(x))], seed, labels)


def log_odds_and_error(values):
    """Mean over the draws of the difference between two classes [N], and its standard error by strata of two draws."""
    paired = values[..., 0] - values[..., 1]
    levels = paired.reshape(2, -1, paired.shape[1])
    return paired.mean(0), np.sqrt(levels.var(0, ddof=1).sum(0) / 2) / levels.shape[1]


@pytest.mark.parametrize("density", [{}, {"centre": 0.0, "scale": 2.0}], ids=["uniform", "importance"])
def test_the_bound_is_the_log_density_within_four_standard_errors(noise, density):
    """For the optimal denoiser the bound is an equality.

    What it leaves out is the integral of the difference to white images below the lowest and above the highest log-SNR
    of the process. For a Gaussian with variances v_i the first is at most the difference of the squared distances from
    the means and of the variances times SNR_low / 2, the second at most sum (1 / v_i + 1) / (2 SNR_high), both times
    what the image lies off: below 0.02 nats here, and added to the margin.
    """
    world = GaussianScore.image_like(noise, SHAPE)
    x, _ = images(world, 2)
    table = table_of(DenoisingBound(levels=64, repeats=2, **density), world, x)
    values = table.nats
    strata = table.draws.reshape(2, 64, *values.shape)
    std_error = np.sqrt(strata.var(0, ddof=1).sum(0) / 2) / 64
    low, high = np.exp(noise.log_snr_range)
    size = (x[:, None] - world.mean).square().flatten(2).sum(2).numpy()
    truncation = 0.5 * low * (size + float((world.variance + 1).flatten(1).sum(1).max()))
    truncation += 0.5 / high * float((1 / world.variance + 1).flatten(1).sum(1).max())
    assert truncation.max() < 0.02
    z = (values - world.clean_log_prob(x).numpy()) / (std_error + truncation)
    assert np.abs(z).max() < 4
    assert std_error.max() < 3, "an error bar that says nothing passes every test"


def test_the_importance_density_has_the_smaller_error():
    world = GaussianScore.image_like(VP(), SHAPE)
    x, _ = images(world, 8)
    truth = world.clean_log_prob(x).numpy()

    def rms(**density):
        return np.sqrt(np.square(table_of(DenoisingBound(**density), world, x).nats - truth).mean())

    assert rms(centre=2.0, scale=2.0) < 0.8 * rms()


# Every image with noise of its own: repetitions of one noise would be few, however many images share it.
SINGLE_AND_ANTITHETIC = [
    Denoising(repeats=4, antithetic=pairs, common_noise=False) for pairs in (False, True)
]


@pytest.mark.parametrize(
    "estimator",
    [DenoisingBound(levels=16, repeats=4), *SINGLE_AND_ANTITHETIC],
    ids=["bound", "independent evaluations", "antithetic"],
)
def test_the_standard_error_of_the_log_odds_is_honest(estimator):
    """Over repetitions with other seeds, (log-odds - their mean) / stated error has unit spread."""
    log_odds, std_error = repeated_log_odds(estimator)
    z = (log_odds - log_odds.mean(0)) / std_error
    assert 0.8 < z.std() < 1.25


def test_the_standard_error_of_two_draws_a_level_has_the_right_mean_square():
    """With so few draws it varies itself, as Student's t does; its square is right on average.

    (With flips it errs on the safe side: what differs between an image and its mirror image counts as chance.)
    """
    log_odds, std_error = repeated_log_odds(Denoising(repeats=2, flips=False, common_noise=False))
    assert 0.8 < np.sqrt(log_odds.var(0, ddof=1).mean() / np.square(std_error).mean()) < 1.1


def repeated_log_odds(estimator, seeds=20):
    """Log-odds and their standard errors [seeds, N]."""
    world = GaussianScore.image_like(VP(), SHAPE, separation=0.5)
    x, labels = images(world, 8)
    tables = [whole_table(estimator, world, x, seed) for seed in range(seeds)]
    calibration = fit_calibration(tables[0].with_labels(labels), np.log([0.5, 0.5]))
    # One weight for all levels, so that no luck of the fit decides what is tested.
    calibration.weights["score"][:] = 1.0
    found = [bayes(table, np.log([0.5, 0.5]), calibration) for table in tables]
    log_odds = np.stack([posterior.log_odds[:, 1] for posterior in found])
    return log_odds, np.stack([posterior.log_odds_std_error[:, 1] for posterior in found])


def test_the_calibrated_class_score_ranks_as_the_exact_posterior_does(noise):
    world = GaussianScore.image_like(noise, SHAPE, separation=1.0)
    x, labels = images(world, 150)
    estimator = Denoising(mean=1.0, flips=False)
    table = whole_table(estimator, world, x, labels=labels)
    order = np.random.default_rng(0).permutation(len(labels))
    val, test = order[:150], order[150:]
    calibration = fit_calibration(table.rows(val), np.log([0.5, 0.5]))
    log_odds = bayes(table.rows(test), np.log([0.5, 0.5]), calibration).log_odds[:, 1]
    truth = torch.logit(world.posterior(x[test], torch.log(torch.tensor([0.5, 0.5])))[:, 1])
    assert roc_auc_score(labels[test], log_odds) > roc_auc_score(labels[test], truth) - 0.03
    assert np.corrcoef(log_odds, truth)[0, 1] > 0.95


def test_a_noise_and_its_negative_leave_less_error_than_two_noises():
    """At equal evaluations, in the difference between classes that decides."""
    world = GaussianScore.image_like(VP(), SHAPE)
    x, _ = images(world, 16)

    def spread(estimator):
        tables = [table_of(estimator, world, x, seed).draws.mean(0) for seed in range(10)]
        return np.stack([t[:, 0] - t[:, 1] for t in tables]).std(0).mean()

    two = Denoising(repeats=2, antithetic=False, flips=False)
    assert spread(Denoising(repeats=1, flips=False)) < spread(two)


def test_common_noise_is_the_same_for_all_images_and_leaves_less_error_between_them():
    """What the noise does to all images alike is in no difference between two of them."""
    world = GaussianScore.image_like(VP(), SHAPE, separation=0.5)
    x, _ = images(world, 16)

    def spread(estimator):
        tables = [table_of(estimator, world, x, seed).draws.mean(0) for seed in range(20)]
        gaps = np.stack([t[:, 0] - t[:, 1] for t in tables])
        return (gaps - gaps.mean(1, keepdims=True)).std(0).mean()

    own = Denoising(common_noise=False)
    assert spread(Denoising()) < 0.8 * spread(own)
    copies = x[:1].repeat(3, 1, 1, 1)
    assert len(np.unique(table_of(Denoising(), world, copies).draws[:, :, 0].round(9), axis=1).T) == 1
    assert len(np.unique(table_of(own, world, copies).draws[:, :, 0].round(9), axis=1).T) == 3


def test_few_passes_are_the_beginning_of_many():
    world = GaussianScore.image_like(VP(), SHAPE)
    x, _ = images(world, 2)
    few, many = (table_of(Denoising(repeats=repeats), world, x).draws for repeats in (1, 3))
    np.testing.assert_allclose(few, many[: len(few)], rtol=1e-12)
    draws = Draws(0, [f"image {i}" for i in range(len(x))])
    last, _ = Denoising().passes(world, x, draws, range(2, 3), torch.tensor([1]))
    np.testing.assert_allclose(last[..., 0], many[2 * Denoising().levels :, :, 1], rtol=1e-12)


def test_the_noise_is_the_same_for_all_classes():
    """Two classes that are one get the same numbers."""
    world = GaussianScore.image_like(VP(), SHAPE, n_classes=1)
    twins = GaussianScore(VP(), world.mean.repeat(2, 1, 1, 1), world.variance.repeat(2, 1, 1, 1))
    x, _ = images(world, 3)
    for estimator in (Denoising(), Denoising(antithetic=False), DenoisingBound()):
        draws = table_of(estimator, twins, x).draws
        np.testing.assert_allclose(draws[..., 0], draws[..., 1], rtol=1e-10)


def test_the_mirrored_evaluation_sees_the_mirrored_image():
    """A class that is the mirror image of another: with both ways of looking, both classes fit equally."""
    left = torch.zeros(1, *SHAPE)
    left[..., :4] = 2.0
    world = GaussianScore(VP(), torch.cat([left, left.flip(-1)]), torch.ones(2, *SHAPE))

    def preference(flips):
        draws = table_of(Denoising(repeats=32, flips=flips, mean=-2.0, std=1.0), world, left).draws
        return (draws[..., 0] - draws[..., 1]).mean()

    assert abs(preference(True)) < 0.2 * preference(False)


@pytest.mark.parametrize("options", [{"levels": 0}, {"repeats": -1}, {"rows_per_call": 0}])
@pytest.mark.parametrize("estimator", [Denoising, DenoisingBound])
def test_impossible_options_are_refused_by_name(estimator, options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        estimator(**options)
