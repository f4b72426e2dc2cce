"""What every corruption and every foreign kind of image promises."""

from __future__ import annotations

import numpy as np
import pytest

from scorebayes.benchmark.trained.corruptions import CORRUPTIONS, SEVERITIES
from scorebayes.benchmark.trained.foreign import FOREIGN, PHOTOGRAPHS, pictures
from scorebayes.data import open_source
from scorebayes.errors import ConfigError

SIZES = (28, 64)


def images(size: int) -> list[np.ndarray]:
    source = open_source(f"phantom:n_patients=6,views=1,size={size}")
    found = [source.read(record) for record in source.records()]
    return [*found, np.random.default_rng(0).random((size, size + 5), dtype=np.float32)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_keeps_shape_type_and_range_and_leaves_its_input_alone(name, size):
    for image in images(size):
        before = image.copy()
        for severity in SEVERITIES:
            found = CORRUPTIONS[name](image, severity, np.random.default_rng(1))
            assert found.shape == image.shape and found.dtype == np.float32
            assert np.isfinite(found).all() and found.min() >= 0 and found.max() <= 1
        np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_is_a_function_of_image_severity_and_generator(name):
    image = images(28)[0]
    again = [CORRUPTIONS[name](image, 3, np.random.default_rng(seed)) for seed in (7, 7)]
    np.testing.assert_array_equal(*again)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_higher_severity_takes_images_further_away(name, size):
    some = images(size)[:-1]
    away = [
        np.mean(
            [
                np.square(CORRUPTIONS[name](image, severity, np.random.default_rng(row)) - image).mean()
                for row, image in enumerate(some)
            ]
        )
        for severity in SEVERITIES
    ]
    assert away[0] > 0
    assert (np.diff(away) > 0).all(), away


def test_there_are_twelve_kinds_and_no_sixth_severity():
    assert len(CORRUPTIONS) == 12
    for severity in (0, 6, 2.5):
        with pytest.raises(ConfigError, match="from 1 to 5"):
            CORRUPTIONS["speckle"](images(28)[0], severity, np.random.default_rng(0))


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_image_has_shape_type_and_range_of_the_image_and_is_another(name):
    for image in images(28):
        before = image.copy()
        found = FOREIGN[name](image, np.random.default_rng(1))
        assert found.shape == image.shape and found.dtype == np.float32
        assert found.min() >= 0 and found.max() <= 1
        assert np.abs(found - image).mean() > 0.02
        np.testing.assert_array_equal(image, before)
        np.testing.assert_array_equal(found, FOREIGN[name](image, np.random.default_rng(1)))


def test_photographs_come_with_scikit_image_and_need_no_data_root(tmp_path):
    found = pictures(tmp_path, "breastmnist", 30, np.random.default_rng(0))
    assert list(found) == [f"photographs ({len(PHOTOGRAPHS)} of scikit-image)"]
    (photographs,) = found.values()
    assert len(photographs) == 30
    for image in photographs:
        assert image.ndim == 2 and image.shape[0] == image.shape[1] and image.dtype == np.float32
        assert 0 <= image.min() <= image.max() <= 1


def test_other_medmnist_sets_are_found_and_the_own_one_is_left_out(tmp_path):
    (tmp_path / "medmnist").mkdir()
    rng = np.random.default_rng(0)
    for name in ("alpha", "beta"):
        arrays = {
            f"{split}_images": rng.integers(0, 256, (4, 28, 28), dtype=np.uint8)
            for split in ("train", "val", "test")
        }
        arrays |= {f"{split}_labels": np.array([[0], [1], [0], [1]]) for split in ("train", "val", "test")}
        np.savez(tmp_path / "medmnist" / f"{name}.npz", **arrays)
    found = pictures(tmp_path, "alpha", 5, rng)
    assert len(found) == 2 and len(found["beta (MedMNIST format)"]) == 5
