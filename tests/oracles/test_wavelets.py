"""The mixtures of wavelet coefficients against the formula they stand for, and what they are asked to do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from sklearn.metrics import roc_auc_score

from scorebayes.errors import ConfigError
from scorebayes.evidence.mixtures import (
    CLUSTERS,
    NOISES,
    _basis,
    _choose,
    _components,
    _precision,
    fit_mixtures,
    parts_by_patient,
    some_of_all_classes,
)
from scorebayes.evidence.scattering import on_grid, scattering
from scorebayes.evidence.wavelets import WaveletMixtures, fit_wavelets


def textures(n: int, seed: int, n_classes: int = 2) -> tuple[torch.Tensor, np.ndarray]:
    """Scattering of noise that is smoothed a little more in every class, and the classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(n_classes, size=n)
    x = torch.from_numpy(rng.normal(size=(n, 1, 18, 18)).astype(np.float32))
    smooth = torch.nn.functional.avg_pool2d(x, 3, 1)
    share = torch.from_numpy(0.15 * labels).float()[:, None, None, None]
    return scattering((1 - share) * x[:, :, 1:-1, 1:-1] + share * 3 * smooth), labels


def held_apart(labels) -> list[str]:
    """Every image a patient of its own."""
    return [f"p{i}" for i in range(len(labels))]


def fit(coefficients, labels, mirrored=True) -> WaveletMixtures:
    return fit_wavelets(coefficients, labels, held_apart(labels), mirrored=mirrored, seed=0)


@pytest.mark.parametrize("n", [30, 200])
def test_one_cluster_of_a_class_is_a_gaussian_and_several_are_a_mixture(n):
    rng = np.random.default_rng(1)
    y = rng.integers(3, size=n)
    features = rng.normal(size=(n, 50)) * np.linspace(0.5, 2, 50) + 0.4 * y[:, None] * (
        np.arange(50) % 3 == 0
    )
    covariance = np.cov(features.T, bias=True)
    level = np.trace(covariance) / 50
    basis = _basis(features)
    new = rng.normal(size=(5, 50))
    if n < 50:  # the axes span the training images only
        new = basis.mean + (new - basis.mean) @ basis.axes @ basis.axes.T
    parts = parts_by_patient(y, np.arange(n), seed=0)
    for clusters, mixtures in zip(CLUSTERS, fit_mixtures(features, y, parts, seed=0), strict=True):
        found = mixtures(torch.from_numpy(new)).numpy()
        found -= found.mean(axis=1, keepdims=True)
        z = (features - basis.mean) @ basis.axes
        choice = _choose(basis, z, y, parts, clusters, seed=0)
        components = _components(basis, z, y, clusters, seed=0)
        means = basis.mean + components.means @ basis.axes.T
        noised = choice.noise * level * np.eye(50) + (1 - choice.noise) * covariance
        # One covariance for all, so that its determinant is in no difference of two classes.
        away = new[:, None] - means
        logs = -0.5 * choice.sharpness * np.einsum("nmf,fg,nmg->nm", away, np.linalg.inv(noised), away)
        logs += components.log_weights
        expected = np.stack([logsumexp(logs[:, components.classes == c], axis=1) for c in range(3)], axis=1)
        expected = choice.temperature * (expected - expected.mean(axis=1, keepdims=True))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_components_are_means_of_parts_of_a_class_that_weigh_as_many_images():
    rng = np.random.default_rng(0)
    features = np.concatenate([rng.normal(m, 0.1, size=(40, 3)) for m in (0, 5, 10)])
    y = np.repeat([0, 1], [100, 20])
    basis = _basis(features)
    z = (features - basis.mean) @ basis.axes
    found = _components(basis, z, y, 16, seed=0)
    for label, wanted in ((0, 16), (1, 5)):  # 20 images have no more than five clusters
        of = found.classes == label
        rounds = 16
        assert of.sum() <= wanted * rounds and np.exp(found.log_weights[of]).sum() == pytest.approx(1)
        mean = np.exp(found.log_weights[of]) @ found.means[of]
        np.testing.assert_allclose(mean, z[y == label].mean(axis=0), atol=1e-9)
    several = _components(basis, z, np.zeros(120, dtype=np.int64), 4, seed=0)
    at = basis.mean + several.means @ basis.axes.T
    assert np.abs(at[:, None] - np.array([0, 5, 10])[:, None]).max(axis=2).min(axis=1).max() < 0.2


def test_a_class_of_several_kinds_is_told_apart_by_its_components():
    rng = np.random.default_rng(0)

    def draw(n):
        y = rng.integers(2, size=n)
        side = rng.choice([-1, 1], size=(n, 1))
        return np.where(y[:, None] == 1, 3 * side, 0) + rng.normal(size=(n, 4)), y

    (train, y), (test, truth) = draw(300), draw(300)
    one, *more = (
        of(torch.from_numpy(test))
        for of in fit_mixtures(train, y, parts_by_patient(y, np.arange(300), seed=0), seed=0)
    )
    assert roc_auc_score(truth, (one[:, 1] - one[:, 0]).numpy()) < 0.65  # both classes have the same mean
    for found in more:
        assert roc_auc_score(truth, (found[:, 1] - found[:, 0]).numpy()) > 0.95


def test_images_of_a_patient_are_held_out_together():
    """Two images of each patient are alike, and tell nothing of the class: whoever compares them believes otherwise."""
    rng = np.random.default_rng(0)
    features = np.repeat(rng.normal(size=(100, 20)), 2, axis=0) + 0.05 * rng.normal(size=(200, 20))
    y = np.repeat(rng.integers(2, size=100), 2)
    basis = _basis(features)
    z = (features - basis.mean) @ basis.axes

    def sureness(whose) -> float:
        choice = _choose(basis, z, y, parts_by_patient(y, whose, seed=0), 16, seed=0)
        return choice.temperature * choice.sharpness

    assert sureness(np.repeat(np.arange(100), 2)) < 0.1 * sureness(np.arange(200))


def test_few_images_tell_textures_apart_and_know_how_sure_they_are():
    train, y = textures(40, 0)
    test, truth = textures(400, 1)
    found = fit(train, y)(test).numpy()
    assert roc_auc_score(truth, found[:, 1] - found[:, 0]) > 0.9
    log_prob = found - np.logaddexp.reduce(found, axis=1, keepdims=True)
    assert -log_prob[np.arange(400), truth].mean() < 0.5
    np.testing.assert_allclose(found.sum(axis=1), 0, atol=1e-9)


def test_three_classes_have_three_means():
    train, y = textures(90, 0, n_classes=3)
    test, truth = textures(300, 1, n_classes=3)
    found = fit(train, y, mirrored=False)(test).numpy()
    assert (found.argmax(axis=1) == truth).mean() > 0.7


def test_unlabelled_images_enter_the_covariance_and_no_mean():
    train, y = textures(200, 0)
    test, truth = textures(400, 1)
    few = np.where(np.arange(200) < 20, y, -1)
    alone = fit(train[:20], y[:20])(test)
    with_others = fit(train, few)(test)
    assert not torch.allclose(alone, with_others)
    flipped = fit(train, np.where(few < 0, -1, 1 - few))(test)
    torch.testing.assert_close(with_others, flipped.flip(1))
    aucs = [roc_auc_score(truth, (f[:, 1] - f[:, 0]).numpy()) for f in (alone, with_others)]
    assert min(aucs) > 0.7


def test_a_class_of_one_image_is_taken_with_the_most_noise():
    train, y = textures(12, 3)
    y = np.array([1, *([0] * 11)])
    grid = on_grid(train, 1, True).numpy()
    for mixtures in fit_mixtures(grid, y, parts_by_patient(y, np.arange(12), seed=0), seed=0):
        if len(mixtures.classes) > 2:
            continue  # the other class has clusters
        basis = _basis(grid)
        z = (grid - basis.mean) @ basis.axes
        expected = (z[0] - z[1:].mean(0)) * _precision(basis, NOISES[-1]) @ basis.axes.T
        found = mixtures.temperature * (mixtures.slopes[1] - mixtures.slopes[0])
        np.testing.assert_allclose(
            found, expected / grid.shape[1], rtol=1e-4, atol=1e-6 * np.abs(expected).max()
        )


def test_what_is_stored_is_what_was_learned(tmp_path):
    train, y = textures(30, 0)
    learned = fit(train, y)
    learned.save(tmp_path / "w")
    again = WaveletMixtures.load(tmp_path / "w")
    assert torch.equal(learned(train), again(train))
    again.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "w").read_bytes()  # H15: no time is in them
    assert learned.fingerprint != WaveletMixtures(again.mixtures, not again.mirrored).fingerprint
    (tmp_path / "w").write_bytes(b"no numbers")
    with pytest.raises(ConfigError, match="damaged"):
        WaveletMixtures.load(tmp_path / "w")


def test_of_many_images_as_many_of_every_class_are_taken():
    labels = np.repeat([0, 1, -1], [1000, 20, 300])
    rows = some_of_all_classes(labels, 260, seed=0)
    assert len(rows) == len(set(rows)) == 260
    counts = {label: int((labels[rows] == label).sum()) for label in (0, 1, -1)}
    assert counts == {0: 120, 1: 20, -1: 120}
    np.testing.assert_array_equal(some_of_all_classes(labels, 5000, seed=0), np.arange(len(labels)))
