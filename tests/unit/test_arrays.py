"""Images as arrays in one npz file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scorebayes.data import open_source
from scorebayes.data.split import split_patients
from scorebayes.errors import ConfigError, DataError

IMAGES = np.random.default_rng(0).integers(0, 256, (8, 6, 5), dtype=np.uint8)
LABELS = np.arange(8) % 2


def kept(folder: Path, **arrays: object) -> str:
    np.savez(folder / "own.npz", **{"images": IMAGES, "labels": LABELS} | arrays)
    return f"arrays:{folder / 'own.npz'}"


def test_what_may_be_left_out_is_made_up(tmp_path):
    source = open_source(kept(tmp_path))
    assert source.info.classes == ("0", "1") and source.info.positive == 1 and source.info.bits == 8
    assert {(r.patient_id, r.split) for r in source.records()} == {(None, None)}
    np.testing.assert_allclose(source.read(source.records()[3]), IMAGES[3] / 255, rtol=1e-6)


def test_patients_and_splits_are_kept_and_unknown_labels_too(tmp_path):
    labels, patients = np.where(np.arange(8) == 5, -1, LABELS), np.arange(8) // 2
    split = np.repeat(["train", "val", "test", "train"], 2)
    records = open_source(kept(tmp_path, labels=labels, patients=patients, split=split)).records()
    assert [r.patient_id for r in records] == list("00112233")
    assert [r.label for r in records] == [0, 1, 0, 1, 0, None, 0, 1]
    assert list(split_patients(records).values()) == split.tolist()


@pytest.mark.parametrize("name", ["patient", "patient_id", "subject"])
def test_patients_go_by_the_names_that_tables_give_them(tmp_path, name):
    """Passed over in silence, one person's images would lie in two splits."""
    records = open_source(kept(tmp_path, **{name: np.arange(8) // 2})).records()
    assert [r.patient_id for r in records] == list("00112233")


def test_the_positive_class_goes_by_its_name_or_as_asked(tmp_path):
    text = kept(tmp_path, classes=["malignant", "benign"])
    assert open_source(text).info.positive == 0
    assert open_source(text, positive="benign").info.positive == 1
    with pytest.raises(ConfigError, match="positive is 'cyst', but the classes are malignant, benign"):
        open_source(text, positive="cyst")


@pytest.mark.parametrize(
    ("images", "bits", "channels", "first"),
    [
        (IMAGES.astype(np.uint16) * 256, 16, 1, IMAGES[0] * (256 / 65535)),
        (IMAGES / 255, 16, 1, IMAGES[0] / 255),
        (IMAGES[..., None].repeat(3, axis=3), 8, 3, IMAGES[0, ..., None].repeat(3, axis=2) / 255),
    ],
    ids=["uint16", "float", "RGB"],
)
def test_other_numbers_and_colours(tmp_path, images, bits, channels, first):
    source = open_source(kept(tmp_path, images=images))
    assert (source.info.bits, source.info.channels) == (bits, channels)
    np.testing.assert_allclose(source.read(source.records()[0]), first, rtol=1e-5)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": IMAGES.reshape(8, 30)}, r"images is uint8 \(8, 30\)"),
        ({"images": IMAGES[:, None, :, :, None]}, r"Expected images, \(N, H, W\) or"),
        ({"labels": LABELS[:7]}, r"labels is \(7,\) for 8 images"),
        ({"labels": LABELS / 2}, "labels is float64"),
        ({"labels": LABELS - 2}, "-1 for unknown"),
        ({"classes": ["benign"]}, "labels go up to 1"),
        ({"classes": ["benign", "benign"]}, "every class a different name"),
        ({"patients": np.arange(3)}, r"patients is \(3,\)"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, arrays, message):
    with pytest.raises(DataError, match=message):
        open_source(kept(tmp_path, **arrays))


def test_a_number_that_is_no_grey_value_is_named_with_its_image(tmp_path):
    source = open_source(kept(tmp_path, images=np.where(np.arange(8)[:, None, None] == 2, 7.0, IMAGES / 255)))
    with pytest.raises(DataError, match="image-000002 has values from 7 to 7"):
        source.read(source.records()[2])


def test_a_missing_file_is_said_plainly(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        open_source(f"arrays:{tmp_path / 'none.npz'}")
