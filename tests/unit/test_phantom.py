"""The synthetic mammograms: reproducible, with a mass of known place and a class that its shape tells."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.svm import SVC

from scorebayes.data.sources.phantom import MALIGNANT, Phantom
from scorebayes.errors import ConfigError


def _pixels(phantom: Phantom) -> tuple[np.ndarray, np.ndarray]:
    records = phantom.records()
    return np.stack([phantom.read(r) for r in records]), np.array([r.label for r in records])


def test_an_image_depends_on_seed_patient_and_view_only() -> None:
    few, many = Phantom(n_patients=3), Phantom(n_patients=9)
    for record in reversed(few.records()):
        np.testing.assert_array_equal(few.read(record), many.read(record))
    other = Phantom(n_patients=3, seed=1)
    assert all((few.read(r) != other.read(r)).any() for r in few.records())


def test_changing_the_label_of_a_record_does_not_change_its_pixels() -> None:
    phantom = Phantom(n_patients=2)
    record = phantom.records()[0]
    flipped = dataclasses.replace(record, label=MALIGNANT)
    np.testing.assert_array_equal(phantom.read(record), phantom.read(flipped))


def test_both_views_belong_to_one_patient_with_one_label_and_differ() -> None:
    phantom = Phantom(n_patients=5)
    records = phantom.records()
    for cc, mlo in zip(records[::2], records[1::2], strict=True):
        assert (cc.patient_id, cc.label) == (mlo.patient_id, mlo.label)
        assert (cc.view, mlo.view) == ("CC", "MLO")
        assert (phantom.read(cc) != phantom.read(mlo)).any()


def test_the_lesion_of_a_patient_is_equally_far_from_the_chest_wall_in_both_views() -> None:
    phantom = Phantom(n_patients=20, size=64)
    columns = [ndimage.center_of_mass(phantom.mask(r))[1] for r in phantom.records()]
    assert np.abs(np.subtract(columns[::2], columns[1::2])).max() < 4


@pytest.mark.parametrize("bits", [8, 12])
def test_grey_values_lie_on_the_levels_of_the_bit_depth(bits: int) -> None:
    phantom = Phantom(n_patients=2, bits=bits)
    levels = phantom.read(phantom.records()[0]) * (2**bits - 1)
    np.testing.assert_allclose(levels, np.round(levels), atol=1e-3)
    assert len(np.unique(np.round(levels))) > 100
    assert phantom.info.bits == bits


def test_air_is_zero_and_the_chest_wall_is_at_the_left() -> None:
    images, _ = _pixels(Phantom(n_patients=10))
    assert (images[:, :, -1] == 0).all()
    assert (images[:, 14:18, 0] > 0.1).all()


def test_the_mass_is_brighter_than_the_tissue_around_it() -> None:
    phantom = Phantom(n_patients=20, difficulty=0.5)
    for record in phantom.records():
        image, mask = phantom.read(record), phantom.mask(record)
        around = ndimage.binary_dilation(mask, iterations=3) & ~mask & (image > 0)
        assert 30 < mask.sum() < 250
        assert image[mask].mean() > image[around].mean()


@pytest.mark.parametrize(("skew", "expected"), [(1, 50), (3, 25), (9, 10), (0.25, 80)])
def test_skew_is_the_ratio_of_benign_to_malignant_patients(skew: float, expected: int) -> None:
    labels = [r.label for r in Phantom(n_patients=100, views=1, skew=skew).records()]
    assert abs(sum(labels) - expected) <= 1


def test_shape_tells_the_class_and_single_pixels_hardly_do() -> None:
    images, labels = _pixels(Phantom(n_patients=300, views=1))
    # Spicules are ridges: the smaller eigenvalue of the Hessian is strongly negative there.
    ridges = np.stack([np.sort(_ridges(image).ravel())[-40:] for image in images])
    train, test = slice(0, 200), slice(200, None)
    shape = SVC(C=10).fit(ridges[train] / ridges.std(), labels[train])
    pixels = LogisticRegression(C=0.01, max_iter=200).fit(images[train].reshape(200, -1), labels[train])
    auc_shape = roc_auc_score(labels[test], shape.decision_function(ridges[test] / ridges.std()))
    auc_pixels = roc_auc_score(labels[test], pixels.decision_function(images[test].reshape(100, -1)))
    assert auc_shape > 0.85
    assert auc_pixels < 0.75


def _ridges(image: np.ndarray) -> np.ndarray:
    xx, yy, xy = (ndimage.gaussian_filter(image, 0.8, order=order) for order in ((0, 2), (2, 0), (1, 1)))
    lowest = (xx + yy) / 2 - np.sqrt(((xx - yy) / 2) ** 2 + xy**2)
    return np.where(ndimage.uniform_filter(image, 3) > 0.1, np.clip(-lowest, 0, None), 0)[3:-3, :-5]


def test_at_full_difficulty_the_brightest_point_of_the_mass_does_not_tell_the_class() -> None:
    phantom = Phantom(n_patients=200, views=1, difficulty=1.0)
    peaks: dict[int, list[float]] = {0: [], 1: []}
    for record in phantom.records():
        assert record.label is not None
        peaks[record.label].append(float(phantom.read(record)[phantom.mask(record)].max()))
    benign, malignant = (np.array(peaks[k]) for k in (0, 1))
    pooled = np.sqrt(benign.var() / len(benign) + malignant.var() / len(malignant))
    assert abs(benign.mean() - malignant.mean()) < 3.5 * pooled


def test_it_is_called_synthetic() -> None:
    info = Phantom().info
    assert info.synthetic
    assert "synthetic" in info.title.lower()


@pytest.mark.parametrize(
    "option",
    [
        {"n_patients": 0},
        {"n_patients": 2.5},
        {"views": 3},
        {"size": 8},
        {"difficulty": 1.5},
        {"difficulty": float("nan")},
        {"difficulty": "hard"},
        {"skew": 0},
        {"seed": -1},
        {"bits": 10},
    ],
)
def test_an_option_out_of_range_is_refused_by_name(option: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(option))):
        Phantom(**option)
