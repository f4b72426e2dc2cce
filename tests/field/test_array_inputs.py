"""Arrays as MONAI, Keras, MedMNIST and notebooks have them: the scikit-learn class, and npz files as a data set."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.picture_files import field_file
from fixtures.tiny_run import DATA, LAYER

from scorebayes.data import open_source
from scorebayes.data.pixels.numbers import as_stack
from scorebayes.errors import DataError
from scorebayes.sklearn import ScoreBayesClassifier, _training_images

SOURCE = open_source(DATA)
RECORDS = SOURCE.records()
X = np.stack([np.rint(255 * SOURCE.read(record)).astype(np.uint8) for record in RECORDS])
Y = np.array([record.label for record in RECORDS])
CONFIG = {name: LAYER[name] for name in ("net", "train", "likelihood")} | {
    "evidence": {"sources": ["pixels"]}
}

GREY = np.random.default_rng(0).integers(0, 256, (8, 12, 10), dtype=np.uint8)
RGB = np.random.default_rng(1).integers(0, 256, (8, 12, 10, 3), dtype=np.uint8)
LABELS = np.arange(8) % 2


# The scikit-learn class


@pytest.fixture(scope="module")
def model() -> ScoreBayesClassifier:
    return ScoreBayesClassifier("tiny", config=CONFIG, device="cpu", random_state=6).fit(X, Y)


@pytest.mark.parametrize(
    "form",
    [
        lambda x: x[:, None],
        lambda x: x[..., None],
        lambda x: x.astype(np.int16),
        lambda x: x.astype(">i4"),
        lambda x: x.astype(np.int64)[:, None],
        lambda x: x.astype(np.uint64),
        lambda x: x / 255,
        lambda x: (x / 255).astype(np.float32)[:, None],
        lambda x: torch.from_numpy(x)[:, None],
        lambda x: torch.from_numpy(x / 255),
        lambda x: x.tolist(),
        list,
        np.asfortranarray,
    ],
    ids=["N1HW", "NHW1", "int16", "big-endian", "int64-N1HW", "uint64", "float64", "float32-N1HW", "tensor", "float-tensor",
         "numbers", "list", "fortran"],
)  # fmt: skip
def test_the_same_numbers_in_another_array_get_the_same_answer(
    model: ScoreBayesClassifier, form: object
) -> None:
    """R6: [N, 1, H, W] and [N, H, W, 1] arrays (MONAI, Keras) and int16 were refused."""
    expected = model.predict_proba(X[:3])
    np.testing.assert_allclose(model.predict_proba(form(X[:3])), expected, atol=1e-6)  # type: ignore[operator]


@pytest.mark.parametrize(
    "form", [lambda x: x, lambda x: x[..., None], lambda x: x[None, None], lambda x: x[None]]
)
def test_one_image_gets_one_row(model: ScoreBayesClassifier, form: object) -> None:
    """R6: one image."""
    found = model.predict_proba(form(X[4]))  # type: ignore[operator]
    np.testing.assert_allclose(found, model.predict_proba(X[4:5]), atol=1e-6)
    assert len(model.answers(form(X[4]))) == 1  # type: ignore[operator]


def test_whole_numbers_have_the_depth_of_the_training_images(model: ScoreBayesClassifier) -> None:
    """R6: an image of 16 bits is not read as one of 8, whatever it holds."""
    with pytest.raises(DataError, match="X has grey value 256, which needs more than 8 bits"):
        model.predict_proba(X[:2].astype(np.int64) + (256 - X[:2].max().astype(np.int64)))
    with pytest.raises(DataError, match="X has values from -1 to"):
        model.predict_proba(X[:2].astype(np.int16) - 1)


@pytest.mark.parametrize("dtype", ["i2", "i4", "i8", "u4", "u8", ">i8"])
def test_the_training_images_tell_the_depth_once(dtype: str) -> None:
    """R6: int16 and the like in fit."""
    found = _training_images(GREY.astype(dtype))
    assert found.dtype == np.uint8 and (found == GREY).all()
    found = _training_images(GREY.astype(dtype) * 100)
    assert found.dtype == np.uint16 and (found == GREY.astype(np.uint16) * 100).all()
    strange = GREY.astype(dtype)
    strange[3, 2, 1] = -1 if dtype == "i2" else 70_000
    with pytest.raises(DataError, match="has values from -" if dtype == "i2" else "needs more than 16 bits"):
        _training_images(strange)


def test_a_model_of_floating_point_images_does_not_guess_a_depth(model: ScoreBayesClassifier) -> None:
    """R6: int64 numbers 0 to 255 for a model that has learned from [0, 1]."""
    assert model._depth == 8
    on_floats = copy.copy(model)
    on_floats._depth = (
        None  # as fit sets it for floating-point numbers; a second training would take a minute
    )
    with pytest.raises(
        DataError, match="image 0 holds int64 numbers, which do not tell how many bits white has"
    ):
        on_floats.predict_proba(X[:2].astype(np.int64))


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        ([GREY[0], GREY[1, :5]], "images of different sizes"),
        (GREY.reshape(8, 120), r"X is uint8 \(8, 120\)"),
        (GREY.astype(complex), "complex numbers"),
        (GREY.astype(np.int16) - 1000, "from -1000 to"),
        (RGB[:, None], r"X is uint8 \(8, 1, 12, 10, 3\)"),
        (np.zeros((0, 9, 9)), r"X is float64 \(0, 9, 9\)"),
        (RGB.transpose(0, 3, 1, 2)[..., :3], r"X is uint8 \(8, 3, 12, 3\)"),
        (GREY.astype(object), "Python objects"),
    ],
    ids=["sizes", "rows", "complex", "hounsfield", "five-axes", "none", "two-readings", "objects"],
)
def test_what_are_no_images_is_refused_with_the_true_reason(images: object, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        _training_images(images)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (RGB, RGB),
        (RGB.transpose(0, 3, 1, 2), RGB),
        (GREY, GREY),
        (GREY[:, None], GREY),
        (GREY[..., None], GREY),
    ],
    ids=["NHW3", "N3HW", "NHW", "N1HW", "NHW1"],
)
def test_channels_may_stand_first_or_last(given: np.ndarray, expected: np.ndarray) -> None:
    """R6: [N, 3, H, W]."""
    np.testing.assert_array_equal(as_stack(given, "X"), expected)


# npz files


def opened(folder: Path, **arrays: object):
    np.savez(folder / "own.npz", **{"images": GREY, "labels": LABELS} | arrays)  # type: ignore[arg-type]
    return open_source(f"arrays:{folder / 'own.npz'}")


def test_labels_of_one_column_from_the_field_are_read(data_root: Path) -> None:
    """T1: labels [N, 1], the shape of MedMNIST."""
    path = field_file(data_root, "42-arrays-labels-N-1.npz")
    with np.load(path) as stored:
        expected = stored["labels"][:, 0].tolist()
    assert [record.label for record in open_source(f"arrays:{path}").records()] == expected


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (LABELS[:, None], ("0", "1")),
        (LABELS.astype(float), ("0", "1")),
        (LABELS.astype(">f4")[:, None], ("0", "1")),
        (LABELS == 1, ("0", "1")),
        (LABELS.astype(np.uint8), ("0", "1")),
        (np.where(LABELS, "malignant", "benign"), ("benign", "malignant")),
        (np.where(LABELS, b"malignant", b"benign "), ("benign", "malignant")),
    ],
    ids=["N1", "float", "float-N1", "bool", "uint8", "text", "bytes"],
)
def test_labels_of_any_sensible_type(tmp_path: Path, labels: np.ndarray, classes: tuple) -> None:
    """T1: labels."""
    source = opened(tmp_path, labels=labels)
    assert source.info.classes == classes
    assert [record.label for record in source.records()] == LABELS.tolist()


def test_unknown_labels(tmp_path: Path) -> None:
    """T1: unknown labels of every type stay unknown."""
    known = [0, None, 0, 1, 0, 1, 0, 1]
    names = np.where(LABELS, "b", "a")
    for labels in (LABELS.astype(float), LABELS, names):
        unknown = {"f": np.nan, "i": -1, "U": ""}[labels.dtype.kind]
        labels = np.where(np.arange(8) == 1, unknown, labels)
        assert [record.label for record in opened(tmp_path, labels=labels).records()] == known


@pytest.mark.parametrize(
    "classes", [[["benign"], ["malignant"]], [["benign", "malignant"]], [b"benign", b"malignant"]]
)
def test_classes_of_two_axes_are_names(tmp_path: Path, classes: list) -> None:
    """T1: 2-D classes."""
    names = np.where(LABELS, "benign", "malignant")
    source = opened(tmp_path, labels=names, classes=np.array(classes))
    assert source.info.classes == ("benign", "malignant")
    assert [record.label for record in source.records()] == (1 - LABELS).tolist()


def test_patients_and_split_of_one_column(tmp_path: Path) -> None:
    """T1: [N, 1] for all arrays."""
    split = np.array(["train", "val"] * 4)
    records = opened(tmp_path, patients=np.arange(8)[:, None], split=split[:, None]).records()
    assert [record.patient_id for record in records] == list("01234567")
    assert [record.split for record in records] == split.tolist()


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"labels": np.eye(2)[LABELS]}, r"labels is \(8, 2\) for 8 images.*argmax"),
        ({"labels": np.array(["a", "b"] * 4), "classes": ["a", "c"]}, "has 'b', which is not one of a, c"),
        ({"labels": LABELS + 0.5}, "not all of it class numbers"),
        ({"labels": np.array(["a", "b"] * 4, dtype=object)}, r"labels holds Python objects.*astype\(str\)"),
        ({"classes": np.array([["a", "b"], ["c", "d"]])}, r"classes is <U1 \(2, 2\)"),
        ({"classes": np.array("a")}, "classes"),
        ({"patients": np.array(3)}, r"patients is \(\)"),
        ({"images": GREY.astype(np.int16) - 1}, "images has values from -1 to"),
        ({"images": GREY.astype(complex)}, "complex"),
        ({"labels": LABELS.astype(complex)}, "labels is complex128"),
    ],
)
def test_arrays_that_do_not_fit_are_one_clear_line(tmp_path: Path, arrays: dict, reason: str) -> None:
    """T1: or one line."""
    with pytest.raises(DataError, match=reason) as caught:
        source = opened(tmp_path, **arrays)
        source.read(source.records()[0])
    assert str(tmp_path / "own.npz") in str(caught.value)


def test_a_medmnist_file_is_pointed_to_medmnist(tmp_path: Path) -> None:
    """T1: arrays with MedMNIST's own names."""
    np.savez(tmp_path / "own.npz", train_images=GREY, train_labels=LABELS[:, None], val_images=GREY)
    with pytest.raises(DataError, match="Open it as medmnist:"):
        open_source(f"arrays:{tmp_path / 'own.npz'}")


@pytest.mark.parametrize(
    ("images", "bits", "channels"),
    [(GREY[:, None], 8, 1), (GREY[..., None].astype(np.int64), 8, 1), (GREY.astype(np.int16) * 3, 16, 1),
     (RGB.transpose(0, 3, 1, 2), 8, 3), (RGB.astype(np.uint16) * 257, 16, 3)],
    ids=["N1HW", "int64", "int16", "N3HW", "uint16-RGB"],
)  # fmt: skip
def test_images_of_any_sensible_shape_and_type(
    tmp_path: Path, images: np.ndarray, bits: int, channels: int
) -> None:
    """R6: the same arrays as a data set; P10: colour at 16 bits."""
    source = opened(tmp_path, images=images)
    assert (source.info.bits, source.info.channels) == (bits, channels)
    stored = as_stack(images, "images")[2].astype(float)
    np.testing.assert_allclose(source.read(source.records()[2]), stored / (2**bits - 1), atol=1e-7)
    guessed = images.dtype not in (np.uint8, np.uint16)
    assert source.info.file_bits == (bits if guessed else None)


def test_the_depth_can_be_given(tmp_path: Path) -> None:
    """R6: 12-bit images in int16."""
    np.savez(tmp_path / "own.npz", images=GREY.astype(np.int16) * 16, labels=LABELS)
    source = open_source(f"arrays:{tmp_path / 'own.npz'}", bits=12)
    assert source.info.bits == source.info.file_bits == 12
    np.testing.assert_allclose(source.read(source.records()[1]), GREY[1] * (16 / 4095), atol=1e-7)
    with pytest.raises(DataError, match="needs more than 10 bits"):
        open_source(f"arrays:{tmp_path / 'own.npz'}", bits=10)
