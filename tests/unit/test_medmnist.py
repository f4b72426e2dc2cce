"""MedMNIST files: splits, class names, and refusals in words."""

from __future__ import annotations

import urllib.request
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scorebayes.data.sources import medmnist
from scorebayes.data.sources.medmnist import FLAGS, MedMnist
from scorebayes.errors import DataError


def _write(
    path: Path, n_classes: int = 2, shape: tuple[int, ...] = (8, 8), **changes: np.ndarray | None
) -> Path:
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray | None] = {}
    for split, n in (("train", 6), ("val", 3), ("test", 4)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (n, *shape), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(n) % n_classes).astype(np.uint8)[:, None]
    np.savez(path, **{name: a for name, a in (arrays | changes).items() if a is not None})
    return path


def test_records_keep_the_official_splits_and_pixels_come_back_exactly(tmp_path: Path) -> None:
    path = _write(tmp_path / "own.npz")
    source = MedMnist(path)
    records = source.records()
    assert [r.split for r in records] == ["train"] * 6 + ["val"] * 3 + ["test"] * 4
    assert {r.patient_id for r in records} == {None}
    stored = np.load(path)["val_images"][1]
    np.testing.assert_array_equal(np.round(source.read(records[7]) * 255), stored)


def test_a_file_of_another_name_has_numbers_for_classes(tmp_path: Path) -> None:
    info = MedMnist(_write(tmp_path / "own.npz", n_classes=3)).info
    assert info.classes == ("0", "1", "2")
    assert info.channels == 1


def test_rgb_files_have_three_channels(tmp_path: Path) -> None:
    source = MedMnist(_write(tmp_path / "own_64.npz", shape=(8, 8, 3)))
    assert source.info.channels == 3
    assert source.read(source.records()[0]).shape == (8, 8, 3)


def test_breastmnist_has_malignant_first_and_as_the_positive_class(tmp_path: Path) -> None:
    info = MedMnist(_write(tmp_path / "breastmnist_64.npz")).info
    assert info.classes == ("malignant", "normal, benign")
    assert info.positive == 0


def test_another_content_under_a_published_name_is_warned_of(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="not the published file"):
        MedMnist(_write(tmp_path / "pneumoniamnist.npz"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # larger sizes are other files: their sums are not known here
        MedMnist(_write(tmp_path / "pneumoniamnist_64.npz"))


def test_the_positive_index_of_every_known_data_set_is_one_of_its_classes() -> None:
    assert len(FLAGS) == 11
    for flag in FLAGS.values():
        assert 0 <= flag.positive < len(flag.classes)
        assert len(flag.md5) == 32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val_labels": None}, "no array val_labels"),
        ({"train_labels": np.zeros((6, 14), np.uint8)}, "multi-label"),
        ({"train_images": np.zeros((6, 8, 8, 8), np.uint8)}, "three-dimensional"),
        ({"train_images": np.zeros((6, 8, 8), np.float32)}, "unknown format"),
        ({"train_labels": np.zeros((5, 1), np.uint8)}, "for 6 images"),
        ({"train_labels": np.full((6, 1), -1)}, "class number"),
        ({"train_images": np.array([None] * 6)}, "holds Python objects"),
    ],
)
def test_what_is_no_single_label_2d_file_is_refused_in_words(
    tmp_path: Path, changes: dict, message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        MedMnist(_write(tmp_path / "own.npz", **changes))
    assert "own.npz" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_labels_beyond_the_classes_of_the_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="label 4"):
        MedMnist(_write(tmp_path / "breastmnist_64.npz", n_classes=5))


@pytest.mark.parametrize("damage", [lambda b: b[:200], lambda b: b"", lambda b: b"garbage" * 99])
def test_a_damaged_file_is_one_clear_line(tmp_path: Path, damage: object) -> None:
    path = _write(tmp_path / "own.npz")
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(DataError, match=r"own\.npz is") as caught:
        MedMnist(path)
    assert "\n" not in str(caught.value)


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "opened",))

    with pytest.raises(DataError, match="holds Python objects"):
        MedMnist(_write(tmp_path / "own.npz", train_images=np.array([Bomb()] * 6)))
    assert not (tmp_path / "opened").exists()


def test_chestmnist_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="multi-label"):
        MedMnist(_write(tmp_path / "chestmnist.npz"))
    with pytest.raises(DataError, match="multi-label"):
        MedMnist("chestmnist")


def test_a_missing_file_and_an_unknown_name_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        MedMnist(tmp_path / "none.npz")
    with pytest.raises(DataError, match="neither a file nor a MedMNIST data set"):
        MedMnist("brestmnist")


@pytest.fixture
def zenodo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of the archive, and an empty cache."""
    (tmp_path / "zenodo").mkdir()
    monkeypatch.setattr(medmnist, "FOLDER", tmp_path / "cache")

    def answer(url: str, timeout: float) -> object:
        assert (
            url.startswith("https://zenodo.org/records/") and url.endswith(".npz?download=1") and timeout > 0
        )
        name = url.rpartition("/")[2].removesuffix("?download=1")
        return urlopen((tmp_path / "zenodo" / name).as_uri())

    urlopen = urllib.request.urlopen
    monkeypatch.setattr(urllib.request, "urlopen", answer)
    return tmp_path / "zenodo"


def test_a_name_is_downloaded_once(zenodo: Path, tmp_path: Path) -> None:
    served = _write(zenodo / "breastmnist_64.npz")
    assert MedMnist("breastmnist_64").path == tmp_path / "cache" / "breastmnist_64.npz"
    served.unlink()
    assert MedMnist("BreastMNIST_64").info.classes == ("malignant", "normal, benign")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["breastmnist_64.npz"]


@pytest.mark.parametrize("served", [True, False])
def test_a_failed_or_changed_download_names_the_way_by_hand_and_leaves_nothing(
    zenodo: Path, tmp_path: Path, served: bool
) -> None:
    if served:
        _write(zenodo / "breastmnist.npz")
    with pytest.raises(DataError, match="breastmnist could not be downloaded") as caught:
        MedMnist("breastmnist")
    for part in (
        medmnist.URL,
        "breastmnist.npz",
        FLAGS["breastmnist"].md5,
        str(tmp_path / "cache"),
        "by hand",
    ):
        assert part in str(caught.value)
    assert ("MD5 is" in str(caught.value)) == served
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_published_download_passes_the_check(
    zenodo: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    served = _write(zenodo / "breastmnist.npz")
    flag = replace(FLAGS["breastmnist"], md5=medmnist._md5(served))
    monkeypatch.setattr(medmnist, "FLAGS", {"breastmnist": flag})
    assert len(MedMnist("breastmnist_28").records()) == 13
    assert not len(recwarn)
