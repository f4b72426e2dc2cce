"""The Gaussians of wavelet coefficients against the formula they stand for, and what they are asked to do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from scorebayes.errors import ConfigError
from scorebayes.scattering import on_grid, scattering
from scorebayes.wavelets import (
    GRIDS,
    NOISES,
    WaveletGaussians,
    _basis,
    _fit,
    _precision,
    fit_wavelets,
    some_of_all_classes,
)


def textures(n: int, seed: int, n_classes: int = 2) -> tuple[torch.Tensor, np.ndarray]:
    """Scattering of noise that is smoothed a little more in every class, and the classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(n_classes, size=n)
    x = torch.from_numpy(rng.normal(size=(n, 1, 18, 18)).astype(np.float32))
    smooth = torch.nn.functional.avg_pool2d(x, 3, 1)
    share = torch.from_numpy(0.15 * labels).float()[:, None, None, None]
    return scattering((1 - share) * x[:, :, 1:-1, 1:-1] + share * 3 * smooth), labels


@pytest.mark.parametrize("n", [30, 200])
def test_slopes_are_those_of_gaussians_with_one_covariance(n):
    rng = np.random.default_rng(1)
    y = rng.integers(3, size=n)
    features = rng.normal(size=(n, 50)) * np.linspace(0.5, 2, 50) + 0.4 * y[:, None] * (
        np.arange(50) % 3 == 0
    )
    slopes, offsets = _fit(features, y, seed=0)
    covariance = np.cov(features.T, bias=True)
    means = np.stack([features[y == c].mean(0) for c in range(3)])
    new = rng.normal(size=(5, 50))
    if n < 50:  # the axes span the training images only
        basis = _basis(features)
        new = basis.mean + (new - basis.mean) @ basis.axes @ basis.axes.T
    found = new @ slopes.T + offsets
    found -= found.mean(axis=1, keepdims=True)
    level = np.trace(covariance) / 50
    errors = []
    for noise in NOISES:
        precision = np.linalg.inv(noise * level * np.eye(50) + (1 - noise) * covariance)
        away = new[:, None] - means
        gaussian = -0.5 * np.einsum("ncf,fg,ncg->nc", away, precision, away)
        gaussian -= gaussian.mean(axis=1, keepdims=True)
        temperature = (found * gaussian).sum() / (gaussian**2).sum()
        errors.append(np.abs(found - temperature * gaussian).max() / np.abs(found).max())
    assert min(errors) < 1e-6


def test_few_images_tell_textures_apart_and_know_how_sure_they_are():
    train, y = textures(40, 0)
    test, truth = textures(400, 1)
    found = fit_wavelets(train, y, mirrored=True, seed=0)(test).numpy()
    assert roc_auc_score(truth, found[:, 1] - found[:, 0]) > 0.9
    log_prob = found - np.logaddexp.reduce(found, axis=1, keepdims=True)
    assert -log_prob[np.arange(400), truth].mean() < 0.5
    np.testing.assert_allclose(found.sum(axis=1), 0, atol=1e-9)


def test_three_classes_have_three_means():
    train, y = textures(90, 0, n_classes=3)
    test, truth = textures(300, 1, n_classes=3)
    found = fit_wavelets(train, y, mirrored=False, seed=0)(test).numpy()
    assert (found.argmax(axis=1) == truth).mean() > 0.7


def test_unlabelled_images_enter_the_covariance_and_no_mean():
    train, y = textures(200, 0)
    test, truth = textures(400, 1)
    few = np.where(np.arange(200) < 20, y, -1)
    alone = fit_wavelets(train[:20], y[:20], mirrored=True, seed=0)(test)
    with_others = fit_wavelets(train, few, mirrored=True, seed=0)(test)
    assert not torch.allclose(alone, with_others)
    flipped = fit_wavelets(train, np.where(few < 0, -1, 1 - few), mirrored=True, seed=0)(test)
    torch.testing.assert_close(with_others, flipped.flip(1))
    aucs = [roc_auc_score(truth, (f[:, 1] - f[:, 0]).numpy()) for f in (alone, with_others)]
    assert min(aucs) > 0.7


def test_a_class_of_one_image_is_taken_with_the_most_noise():
    train, y = textures(12, 3)
    y = np.array([1, *([0] * 11)])
    grid = on_grid(train, 1, True).numpy()
    slopes, _ = _fit(grid, y, seed=0)
    basis = _basis(grid)
    z = (grid - basis.mean) @ basis.axes
    expected = (z[0] - z[1:].mean(0)) * _precision(basis, NOISES[-1]) @ basis.axes.T / grid.shape[1]
    np.testing.assert_allclose(slopes[1] - slopes[0], expected)


def test_what_is_stored_is_what_was_learned(tmp_path):
    train, y = textures(30, 0)
    learned = fit_wavelets(train, y, mirrored=True, seed=0)
    learned.save(tmp_path / "w")
    again = WaveletGaussians.load(tmp_path / "w")
    assert torch.equal(learned(train), again(train)) and set(again.slopes) == set(GRIDS)
    later = WaveletGaussians(again.slopes, again.offsets, again.mirrored, seconds=9.0)
    assert later.fingerprint == learned.fingerprint
    assert learned.fingerprint != WaveletGaussians(again.slopes, again.offsets + 1, True).fingerprint
    (tmp_path / "w").write_bytes(b"no numbers")
    with pytest.raises(ConfigError, match="damaged"):
        WaveletGaussians.load(tmp_path / "w")


def test_of_many_images_as_many_of_every_class_are_taken():
    labels = np.repeat([0, 1, -1], [1000, 20, 300])
    rows = some_of_all_classes(labels, 260, seed=0)
    assert len(rows) == len(set(rows)) == 260
    counts = {label: int((labels[rows] == label).sum()) for label in (0, 1, -1)}
    assert counts == {0: 120, 1: 20, -1: 120}
    np.testing.assert_array_equal(some_of_all_classes(labels, 5000, seed=0), np.arange(len(labels)))
