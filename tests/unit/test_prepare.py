"""Preparation: exactness, geometry, refusals, identity of a pipeline."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scorebayes.data import prepare as module
from scorebayes.data.prepare import PIPELINES, STEPS, Prepare, breast_mask
from scorebayes.errors import ConfigError, DataError


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((height, width), dtype=np.float32)


def mammogram(laterality: str = "L", muscle: bool = False, height: int = 300, width: int = 240) -> np.ndarray:
    """A left (or mirrored) half ellipse of tissue, a label at the far top corner, air a little above 0."""
    y, x = np.mgrid[:height, :width]
    image = np.full((height, width), 0.02, np.float32)
    breast = ((x / (0.6 * width)) ** 2 + ((y - height / 2) / (0.4 * height)) ** 2) < 1
    image[breast] = 0.4 + 0.1 * np.sin(x[breast] / 9.0)
    if muscle:
        image[(x / (0.4 * width) + y / (0.6 * height)) < 1] = 0.9
    image[10:30, width - 40 : width - 10] = 1.0
    return np.ascontiguousarray(image if laterality == "L" else image[:, ::-1])


@given(bits=st.integers(1, 16), seed=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_pixels_of_the_final_size_and_depth_come_out_as_they_were(bits: int, seed: int) -> None:
    stored = np.random.default_rng(seed).integers(0, 2**bits, (16, 16))
    stored[0, :2] = 0, 2**bits - 1
    prepared = Prepare(size=16, bits=bits)((stored / (2**bits - 1)).astype(np.float32))
    assert prepared.dtype == (np.uint8 if bits <= 8 else np.uint16)
    np.testing.assert_array_equal(prepared, stored[None])


@given(height=st.integers(8, 80), width=st.integers(8, 80), size=st.integers(8, 40))
@settings(max_examples=60, deadline=None)
def test_the_result_is_a_square_of_whole_numbers_in_range(height: int, width: int, size: int) -> None:
    prepared = Prepare(size=size, bits=10)(noise(height, width))
    assert prepared.shape == (1, size, size)
    assert prepared.max() < 2**10


def test_the_aspect_is_kept_and_the_rest_is_black_on_both_sides() -> None:
    prepared = Prepare(size=20)(np.clip(noise(40, 20), 0.2, 1))[0]
    np.testing.assert_array_equal(np.flatnonzero(prepared.any(0)), np.arange(5, 15))
    assert prepared[:, 5:15].min() > 0


def test_reduction_averages_rather_than_picks() -> None:
    checkers = np.indices((256, 256)).sum(0) % 2 * np.float32(1)
    np.testing.assert_allclose(Prepare(size=16, bits=16)(checkers), 2**15, rtol=0.05)


def test_colour_keeps_its_channels_and_their_order() -> None:
    colours = np.stack([noise(16, 16, seed) for seed in range(3)], -1)
    prepared = Prepare(size=16, channels=3)(colours)
    np.testing.assert_array_equal(prepared, np.rint(colours * 255).transpose(2, 0, 1))
    assert Prepare(size=8, channels=3)(colours).shape == (3, 8, 8)


def test_equal_channels_count_as_grey() -> None:
    grey = noise(16, 16)
    expected = Prepare(size=16)(grey)
    np.testing.assert_array_equal(Prepare(size=16)(np.repeat(grey[..., None], 3, -1)), expected)


BLANKED = noise(32, 32)
BLANKED[3, 3] = np.nan
ALMOST = np.zeros((200, 200), np.float32)
ALMOST[0, 0] = 1


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (np.zeros((32, 32)), "blank: all pixels are 0"),
        (np.ones((32, 32)), "blank: all pixels are 1"),
        (ALMOST, "blank: more than 99.9% of it has one grey value"),
        (1 - ALMOST, "saturated"),
        (BLANKED, "not finite"),
        (np.full((32, 32), np.inf), "not finite"),
        (noise(32, 32) * 4095, "expected 0 to 1"),
        (noise(7, 32), "too small: 32 x 7 pixels"),
        (noise(8, 81), "more than 10 times"),
        (np.zeros((4, 32, 32, 3)), "shape"),
        (np.stack([noise(16, 16, seed) for seed in range(3)], -1), "image is in colour"),
    ],
)
def test_what_is_no_usable_image_is_refused_in_words(pixels: np.ndarray, words: str) -> None:
    with pytest.raises(DataError, match=words):
        Prepare(size=16)(pixels)


def test_grey_is_not_copied_to_three_channels() -> None:
    with pytest.raises(DataError, match="image is grey, but RGB"):
        Prepare(size=16, channels=3)(noise(16, 16))


def test_rounding_errors_at_the_ends_of_the_range_are_forgiven() -> None:
    pixels = noise(16, 16)
    pixels[0, 0], pixels[0, 1] = -5e-7, 1 + 5e-7
    prepared = Prepare(size=16)(pixels)
    assert prepared[0, 0, 0] == 0 and prepared[0, 0, 1] == 255


def test_the_breast_is_found_and_the_label_is_not() -> None:
    image = mammogram()
    mask, stride = breast_mask(image)
    assert stride == 1
    assert mask[150, 60] and not mask[20, 220] and not mask[280, 200]
    large, stride = breast_mask(np.kron(image, np.ones((8, 8), np.float32)))
    assert stride == 9 and large[150 * 8 // 9, 60 * 8 // 9] and not large[20 * 8 // 9, 220 * 8 // 9]


def test_background_removal_blackens_air_and_label_and_leaves_the_breast() -> None:
    image = mammogram()
    prepared = Prepare(size=300, bits=16, steps=("remove-background",))(image)[0, :, 30:270]
    assert prepared[20, 220] == 0 and prepared[280, 200] == 0
    np.testing.assert_array_equal(prepared[100:200, :60], np.rint(image[100:200, :60] * np.float32(65535)))


def test_the_crop_is_the_bounding_box_of_the_breast() -> None:
    image = mammogram()
    prepared = Prepare(size=64, steps=("remove-background", "crop-breast"))(image)[0]
    rows = np.flatnonzero(prepared.any(1))
    assert rows[0] <= 3 and rows[-1] >= 60


def test_a_right_breast_becomes_a_left_one_and_the_left_one_stays() -> None:
    steps = ("remove-background", "flip-right")
    left = Prepare(size=60, steps=steps)(mammogram("L"), "L")
    right = Prepare(size=60, steps=steps)(mammogram("R"), "R")
    assert left[0, :, :30].sum() > 3 * left[0, :, 30:].sum()
    assert np.abs(left.astype(int) - right).max() <= 12


def test_the_side_comes_from_the_table_and_not_from_the_pixels() -> None:
    image = mammogram("L")
    flipped = Prepare(size=60, steps=("flip-right",))(image, "R")
    np.testing.assert_array_equal(flipped, Prepare(size=60)(image)[..., ::-1])
    with pytest.raises(DataError, match="laterality ''"):
        Prepare(size=60, steps=("flip-right",))(image)


@pytest.mark.parametrize("laterality", ["L", "R"])
def test_the_pectoral_muscle_is_removed_on_either_side(laterality: str) -> None:
    image = mammogram(laterality, muscle=True)
    prepared = Prepare(size=300, steps=("remove-background", "remove-pectoral"))(image, laterality, "MLO")[0]
    content = prepared[:, 30:270] if laterality == "L" else prepared[:, 30:270][:, ::-1]
    assert content[60:100, :15].max() == 0  # inside the muscle
    assert content[180:220, 20:80].min() > 50  # below its edge


def test_a_view_without_muscle_is_left_alone() -> None:
    image = mammogram()
    step = ("remove-pectoral",)
    for view in ("CC", "MLO"):
        np.testing.assert_array_equal(Prepare(size=60, steps=step)(image, "L", view), Prepare(size=60)(image))
    with pytest.raises(DataError, match="view ''"):
        Prepare(size=60, steps=step)(image, "L")


def test_the_robust_window_uses_the_whole_range_whatever_the_scale() -> None:
    faint = Prepare(size=60, steps=("robust-window",))(mammogram() * np.float32(0.1))
    np.testing.assert_array_equal(faint, Prepare(size=60, steps=("robust-window",))(mammogram()))
    assert faint.max() == 255


def test_the_robust_window_refuses_tissue_of_one_value() -> None:
    flat = np.zeros((40, 40), np.float32)
    flat[10:30, 10:30] = 0.5
    with pytest.raises(DataError, match="the same value"):
        Prepare(size=20, steps=("robust-window",))(flat)


def test_clahe_raises_local_contrast_and_runs_at_the_final_size() -> None:
    y, x = np.mgrid[:256, :256]
    image = (0.3 + 0.3 * x / 256 + 0.02 * np.sin(y / 3)).astype(np.float32)
    plain, equal = Prepare(size=128)(image)[0], Prepare(size=128, steps=PIPELINES["paper"])(image)[0]
    assert equal[:, 64].std() > 2 * plain[:, 64].std()


def test_an_image_without_a_breast_is_refused_by_the_steps_that_look_for_one() -> None:
    speck = np.zeros((200, 200), np.float32)
    speck[20:30, 20:30] = 1
    with pytest.raises(DataError, match="No breast found"):
        Prepare(size=20, steps=("crop-breast",))(speck)


@pytest.mark.parametrize("name", PIPELINES)
def test_every_named_pipeline_works_and_survives_a_configuration(name: str) -> None:
    prepare = Prepare.from_dict({"size": 32, "steps": [name]})
    assert prepare.steps == PIPELINES[name]
    assert Prepare.from_dict(prepare.to_dict()) == prepare
    assert prepare(mammogram("R"), "R", "MLO").shape == (1, 32, 32)


def test_the_fingerprint_changes_with_every_field_and_step_version(monkeypatch) -> None:
    base = Prepare(size=32)
    others = [
        Prepare(size=33),
        Prepare(size=32, channels=3),
        Prepare(size=32, bits=12),
        Prepare(size=32, steps=("clahe",)),
    ]
    assert len({p.fingerprint for p in [base, *others]}) == 5
    stored, plain = others[-1].to_dict(), base.fingerprint
    monkeypatch.setitem(STEPS, "clahe", dataclasses.replace(STEPS["clahe"], version=2))
    with pytest.raises(ConfigError, match="fingerprint"):
        Prepare.from_dict(stored)
    monkeypatch.setattr(module, "VERSION", 2)
    assert Prepare(size=32).fingerprint != plain


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"size": 32, "bit": 8}, "Did you mean 'bits'"),
        ({"bits": 8}, "prepare.size is missing"),
        ({"size": 4}, "from 8 to 4096"),
        ({"size": 32.5}, "whole number"),
        ({"size": 32, "bits": 17}, "from 1 to 16"),
        ({"size": 32, "channels": 2}, "expected 1"),
        ({"size": 32, "steps": ["clahee"]}, "Did you mean 'clahe'"),
        ({"size": 32, "steps": ["papers"]}, "Did you mean 'paper'"),
        ({"size": 32, "channels": 3, "steps": ["clahe"]}, "are for grey images"),
        ({"size": 32, "steps": ["clahe", "crop-breast"]}, "Put 'clahe' last"),
    ],
)
def test_a_wrong_section_is_refused_with_the_remedy(section: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Prepare.from_dict(section)
