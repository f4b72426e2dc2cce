"""Sequential decisions keep their stated error rate, and spend less where the answer is clear."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from fixtures.tables import NAME, one_calibration

from scorebayes.decision.posterior import bayes
from scorebayes.diffusion.draws import Draws
from scorebayes.diffusion.likelihood import Denoising
from scorebayes.diffusion.noise import VP
from scorebayes.diffusion.oracle import GaussianScore
from scorebayes.diffusion.score import Score
from scorebayes.errors import ConfigError
from scorebayes.stages.sequential import Sequential
from scorebayes.training.validate import score_table

LEVELS = 4
ESTIMATOR = Denoising(levels=LEVELS, flips=False, antithetic=False, common_noise=False)


@dataclass(frozen=True)
class Asked:
    """A score as a source of evidence, asked by ``ESTIMATOR``."""

    score: Score
    seed: int = 0
    name: str = NAME
    levels: int = LEVELS
    evaluations: int = 1

    def passes(self, x, keys, numbers, classes=None):
        some = None if classes is None else torch.from_numpy(classes)
        values, log_snr = ESTIMATOR.passes(self.score, x, Draws(self.seed, keys), numbers, some)
        return values, log_snr.T.numpy()


def world_of(n_classes, separation=1.0):
    return GaussianScore.image_like(VP(), (1, 6, 6), n_classes=n_classes, separation=separation)


def images(world, n, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.cat([world.sample(n, y, generator) for y in range(world.n_classes)])
    return x, [f"image {i}" for i in range(len(x))]


def rule_of(world, seed=0, **options):
    n_classes = world.n_classes
    weights, bias = np.full(LEVELS, 0.5), np.linspace(0.0, 0.3, n_classes)
    calibration = one_calibration(weights, bias, np.zeros(LEVELS))
    log_prior = np.full(n_classes, -np.log(n_classes))
    return Sequential(calibration, log_prior, [Asked(world, seed)], **options)


def fixed(rule, world, x, keys, passes, seed=0):
    return bayes(
        score_table(replace(ESTIMATOR, repeats=passes), world, x, keys, seed),
        rule.log_prior,
        rule.calibration,
    )


def test_an_early_decision_is_seldom_another_than_that_of_many_draws():
    world = world_of(2)
    rule = rule_of(world, budget=6, target_error=0.1)
    x, keys = images(world, 40)
    result = rule(x, keys)
    truth = fixed(rule, world, x, keys, 60, seed=1)
    early = result.decided
    assert 0.3 < early.mean() < 1.0
    wrong = result.posterior.predict()[early] != truth.predict()[early]
    assert wrong.sum() <= 0.1 * len(x)


def test_clear_images_cost_less_than_open_ones():
    world = world_of(2)
    rule = rule_of(world, budget=6, target_error=0.1)
    x, keys = images(world, 40)
    result = rule(x, keys)
    assert result.passes.max() == 6 and result.passes.min() < 6
    size = np.abs(fixed(rule, world, x, keys, 50).log_odds[:, 0])
    assert size[result.decided].mean() > 2 * size[~result.decided].mean()
    assert np.array_equal(result.evaluations, 2 * LEVELS * result.passes)


@pytest.mark.parametrize("n_classes", [2, 4])
def test_the_table_gives_the_posterior_by_bayes_rule(n_classes):
    world = world_of(n_classes)
    rule = rule_of(world)
    x, keys = images(world, 4)
    result = rule(x, keys)
    again = bayes(result.table, rule.log_prior, rule.calibration)
    np.testing.assert_allclose(again.log_prob, result.posterior.log_prob, rtol=1e-12)


def test_a_spent_budget_is_the_fixed_number_of_draws():
    """Undecided to the end, nothing but the fixed estimator is left: its posterior and standard error."""
    world = world_of(3)
    rule = rule_of(world, budget=3, target_error=1e-9)
    x, keys = images(world, 3)
    result = rule(x, keys)
    same = fixed(rule, world, x, keys, 3)
    assert not result.decided.any() and (result.evaluations == 3 * 3 * LEVELS).all()
    np.testing.assert_allclose(result.posterior.log_prob, same.log_prob, rtol=1e-9)
    np.testing.assert_allclose(result.posterior.log_odds_std_error, same.log_odds_std_error, rtol=1e-6)


def test_classes_are_dropped_one_by_one_and_keep_their_paired_difference():
    world = world_of(4, separation=3.0)
    rule = rule_of(world, budget=6, target_error=0.3)
    x, keys = images(world, 8)
    result = rule(x, keys)
    assert (result.evaluations < 4 * LEVELS * result.passes).any(), "no class was dropped before the last"
    assert (result.evaluations % LEVELS == 0).all()
    truth = fixed(rule, world, x, keys, 60, seed=1)
    z = (result.posterior.log_odds - truth.log_odds) / result.posterior.log_odds_std_error
    assert np.median(np.abs(z)) < 2


def test_the_standard_error_is_honest_where_nothing_is_stopped():
    world = world_of(2, separation=0.5)
    rule = rule_of(world, budget=4, target_error=1e-9)
    x, keys = images(world, 4)
    found = [replace(rule, sources=[Asked(world, seed)])(x, keys).posterior for seed in range(40)]
    log_odds = np.stack([posterior.log_odds[:, 1] for posterior in found])
    std_error = np.stack([posterior.log_odds_std_error[:, 1] for posterior in found])
    assert 0.8 < ((log_odds - log_odds.mean(0)) / std_error).std() < 1.25


def test_an_image_is_decided_alike_alone_and_among_others():
    world = world_of(3)
    rule = rule_of(world)
    x, keys = images(world, 3)
    together, alone = rule(x, keys), rule(x[4:5], keys[4:5])
    assert np.array_equal(alone.posterior.log_prob[0], together.posterior.log_prob[4])
    assert alone.evaluations[0] == together.evaluations[4]


def test_a_broken_image_has_a_status_and_no_posterior():
    world = world_of(2)
    rule = rule_of(world)
    x, keys = images(world, 2)
    x[1, 0, 2, 2] = torch.nan
    result = rule(x, keys)
    assert result.table.status.tolist() == ["ok", "not finite", "ok", "ok"]
    assert (
        np.isnan(result.posterior.log_prob[1]).all()
        and np.isfinite(result.posterior.log_prob[[0, 2, 3]]).all()
    )
    assert result.passes[1] == 1, "a broken image is not worth a second pass"


def test_equal_classes_are_never_decided():
    one = world_of(1)
    twins = GaussianScore(VP(), one.mean.repeat(2, 1, 1, 1), one.variance.repeat(2, 1, 1, 1))
    rule = rule_of(twins, budget=2)
    rule.calibration.bias[:] = 0.0
    x, keys = images(one, 2)
    result = rule(x, keys)
    assert not result.decided.any()
    np.testing.assert_allclose(result.posterior.prob, 0.5, atol=1e-6)


@pytest.mark.parametrize(("option", "value"), [("budget", 1), ("target_error", 0.0), ("target_error", 1.0)])
def test_impossible_options_are_refused_by_name(option, value):
    with pytest.raises(ConfigError, match=option):
        rule_of(world_of(2), **{option: value})


def test_another_estimators_calibration_is_refused():
    calibration = one_calibration(np.ones(3), np.zeros(2), np.zeros(3))
    with pytest.raises(ConfigError, match="3 levels"):
        Sequential(calibration, np.log([0.5, 0.5]), [Asked(world_of(2))])
