"""The choice of the common noise: draws that say together what many more would say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fixtures.tiny_run import DATA, LAYER

from scorebayes.diffusion.draws import Draws
from scorebayes.diffusion.likelihood import Denoising
from scorebayes.diffusion.noise import VP
from scorebayes.diffusion.oracle import GaussianScore
from scorebayes.errors import ConfigError
from scorebayes.evidence.noise_choice import choose_draws
from scorebayes.runs.run import open_run
from scorebayes.stages import train as stages
from scorebayes.stages.score import read_table
from scorebayes.stages.tune import tune

LEVELS, PASSES = 4, 8


def functions_of_the_image(seed: int, n: int, n_classes: int = 2) -> np.ndarray:
    """Class scores [PASSES * LEVELS, n, Y]: what all draws share, and what each makes of the image's features."""
    image, noise = np.random.default_rng(seed), np.random.default_rng(0)
    features = image.normal(size=(n, 6))
    shared = noise.normal(size=(LEVELS, 6, n_classes))
    own = 0.7 * noise.normal(size=(PASSES, LEVELS, 6, n_classes))
    values = np.einsum("nf,plfy->plny", features, shared + own)
    return values.reshape(PASSES * LEVELS, n, n_classes)


@pytest.mark.parametrize("repeats", [1, 2])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_chosen_draws_follow_the_mean_of_all_on_other_images(repeats, n_classes):
    numbers = np.array(choose_draws(functions_of_the_image(1, 60, n_classes), LEVELS, repeats))
    assert sorted(numbers % LEVELS) == sorted(list(range(LEVELS)) * repeats)
    assert len(set(numbers)) == len(numbers) and numbers.max() < PASSES * LEVELS
    np.testing.assert_array_equal(numbers[:LEVELS] % LEVELS, np.arange(LEVELS))  # pass by pass

    others = functions_of_the_image(2, 500, n_classes)
    others = others - others.mean(axis=2, keepdims=True)

    def error(of: np.ndarray) -> float:
        return float(np.square(others[of].mean(0) - others.mean(0)).mean())

    taken_as_they_come = [
        error(np.arange(LEVELS * repeats) + p * LEVELS) for p in range(PASSES - repeats + 1)
    ]
    assert error(numbers) < 0.5 * np.mean(taken_as_they_come)


def test_what_a_draw_adds_to_all_images_alike_does_not_count():
    values = functions_of_the_image(1, 60)
    shifted = values + np.random.default_rng(3).normal(size=(len(values), 1, 2)) * 100
    assert choose_draws(values, LEVELS, 2) == choose_draws(shifted, LEVELS, 2)


def test_chosen_draws_come_first_and_the_others_follow():
    world = GaussianScore.image_like(VP(), (1, 8, 8))
    x = world.sample(3, 0, torch.Generator().manual_seed(0))
    draws = Draws(0, ["a", "b", "c"])
    plain = Denoising(levels=3, repeats=4)(world, x, draws).draws
    chosen = Denoising(levels=3, repeats=2, first=(9, 1, 5, 3, 10, 2))
    np.testing.assert_allclose(chosen(world, x, draws).draws, plain[[9, 1, 5, 3, 10, 2]], rtol=1e-12)
    last, _ = chosen.passes(world, x, draws, range(2, 4))
    np.testing.assert_allclose(last, plain[[0, 4, 8, 6, 7, 11]], rtol=1e-12)


@pytest.mark.parametrize("first", [(0, 1), (0, 3, 1), (0, 1, 2, 0, 1, 2)])
def test_a_choice_that_is_none_is_refused(first):
    with pytest.raises(ConfigError, match="the same number"):
        Denoising(levels=3, first=first)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("run") / "run")


def trained(path, **likelihood):
    layers = [LAYER, {"likelihood": {**LAYER["likelihood"], **likelihood}}]
    return stages.train(path, DATA, layers, "tiny", torch.device("cpu"), resume=path.exists())


def test_training_chooses_the_noise_and_everything_after_it_uses_it(run):
    first = open_run(run.path).likelihood.first
    assert len(first) == 4 and first != tuple(range(4))
    again = trained(run.path)
    assert again.likelihood.first == first  # and is not chosen anew
    table = read_table(run, "val")
    x = run.standardise(run.images("val").images)
    again = run.evidence(x, table.keys).blocks["pixels"]
    np.testing.assert_allclose(again.draws, table.blocks["pixels"].draws, rtol=1e-5)


def test_another_estimator_gets_a_choice_of_its_own(run, tmp_path):
    other = trained(tmp_path / "other", levels=5)
    assert sorted(number % 5 for number in other.likelihood.first) == list(range(5))
    changed = trained(tmp_path / "other", levels=3)
    assert sorted(number % 3 for number in changed.likelihood.first) == list(range(3))
    assert trained(tmp_path / "other", candidates=1).likelihood.first == ()
    assert trained(tmp_path / "other", common_noise=False).likelihood.first == ()


def test_a_tuned_density_gets_a_new_choice(run, monkeypatch):
    monkeypatch.setattr("scorebayes.stages.tune.Tuned.better", True)
    tune(run)
    tuned = open_run(run.path).likelihood
    assert tuned.mean != run.likelihood.mean and len(tuned.first) == 4
