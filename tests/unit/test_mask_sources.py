"""Data sets with masks: what is read, what is left out and why, and where a pixel comes to lie."""

from __future__ import annotations

import numpy as np
import pytest
from fixtures.tiny_masks import square, write_mask, write_picture
from PIL import Image

from scorebayes.data import open_mask_source
from scorebayes.data.masks import Frame, binary, load_masks, require_in_place
from scorebayes.data.prepare import Prepare
from scorebayes.data.sources.masked_arrays import save_masked_arrays
from scorebayes.errors import ConfigError, DataError


def test_several_masks_of_a_picture_are_united(tmp_path):
    write_picture(tmp_path / "images" / "a.png")
    write_mask(tmp_path / "masks" / "a_mask.png", square(16, 2, 5))
    write_mask(tmp_path / "masks" / "a_mask_1.tiff", square(16, 8, 11))
    source = open_mask_source(f"folder:{tmp_path}")
    (record,) = source.records()
    assert source.mask(record).sum() == 18


@pytest.mark.parametrize("inside", [1, 255])
def test_a_mask_of_ones_is_as_good_as_one_of_255(tmp_path, inside):
    write_picture(tmp_path / "images" / "a.png")
    write_mask(tmp_path / "masks" / "a.png", square(16, 2, 5), inside)
    source = open_mask_source(f"folder:{tmp_path}")
    assert source.mask(source.records()[0]).sum() == 9


def test_an_array_is_a_mask_too(tmp_path):
    write_picture(tmp_path / "images" / "a.png")
    (tmp_path / "masks").mkdir()
    np.save(tmp_path / "masks" / "a.npy", square(16, 2, 5))
    source = open_mask_source(f"folder:{tmp_path}")
    assert source.mask(source.records()[0]).sum() == 9


def test_a_picture_without_mask_is_left_out_and_an_empty_mask_is_not(tmp_path):
    for name in "ab":
        write_picture(tmp_path / "images" / f"{name}.png")
    write_mask(tmp_path / "masks" / "a.png", square(16, 0, 0))
    source = open_mask_source(f"folder:{tmp_path}")
    assert [record.image_id for record in source.records()] == ["images/a.png"]
    assert not source.mask(source.records()[0]).any()
    (left_out,) = source.rejected
    assert left_out.image_id == "images/b.png" and "no mask of it" in left_out.reason


def test_split_folders_are_kept_and_patients_found(tmp_path):
    for split in ("train", "test"):
        write_picture(tmp_path / split / "images" / "p1_a.png")
        write_mask(tmp_path / split / "masks" / "p1_a.png", square(16, 2, 5))
    records = open_mask_source(f"folder:{tmp_path}", patient_pattern="^([^_]+)_").records()
    assert {(r.split, r.patient_id) for r in records} == {("train", "p1"), ("test", "p1")}


@pytest.mark.parametrize(
    ("mask", "word"),
    [
        (square(12, 2, 5), "12 x 12 pixels, but its image is 16 x 16"),
        (np.arange(256).reshape(16, 16) % 3, "no mask: it has 3 different values"),
    ],
)
def test_a_mask_that_does_not_fit_is_left_out_with_the_reason(tmp_path, mask, word):
    write_picture(tmp_path / "images" / "a.png")
    write_mask(tmp_path / "masks" / "a.png", mask, inside=1)
    source = open_mask_source(f"folder:{tmp_path}")
    masks, _, rejected = load_masks(source, source.records(), 16)
    assert len(masks) == 0 and word in rejected[0].reason


def test_numbered_objects_are_a_mask_where_the_option_says_so(tmp_path):
    write_picture(tmp_path / "images" / "a.png")
    write_mask(tmp_path / "masks" / "a.png", np.arange(256).reshape(16, 16) % 3, inside=1)
    source = open_mask_source(f"folder:{tmp_path}", instances=True)
    assert source.mask(source.records()[0]).sum() == 170


def test_a_colour_mask_is_refused():
    with pytest.raises(DataError, match="colour"):
        binary(np.random.default_rng(0).integers(0, 2, (4, 4, 3)), "m.png")


def test_arrays_with_masks(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (3, 16, 16), dtype=np.uint8)
    masks = np.stack([square(16, 2, 5)] * 3)
    save_masked_arrays(tmp_path / "a.npz", images, masks, ["p", "p", "q"])
    source = open_mask_source(f"arrays:{tmp_path / 'a.npz'}")
    assert [r.patient_id for r in source.records()] == ["p", "p", "q"]
    assert (source.mask(source.records()[2]) == masks[2]).all()
    np.savez(tmp_path / "b.npz", images=images, masks=masks[:, :8])
    with pytest.raises(DataError, match="one mask for every image"):
        open_mask_source(f"arrays:{tmp_path / 'b.npz'}")


def test_busi_keeps_its_split_and_can_leave_out_images_without_lesion(tmp_path):
    arrays = {}
    for split in ("train", "val", "test"):
        masks = np.stack([square(8, 2, 5), square(8, 0, 0)])
        arrays |= {f"{split}_images": np.zeros((2, 8, 8), np.uint8), f"{split}_masks": masks}
        arrays[f"{split}_labels"] = np.array([[0], [1]])
    np.savez(tmp_path / "breastmnist_64.npz", **arrays)
    source = open_mask_source(f"busi:{tmp_path}")
    assert [r.split for r in source.records()] == ["train", "train", "val", "val", "test", "test"]
    assert [int(source.mask(r).sum()) for r in source.records()[:2]] == [9, 0]
    assert len(open_mask_source(f"busi:{tmp_path}", lesions=True).records()) == 3


def test_a_kind_without_masks_says_so():
    with pytest.raises(ConfigError, match=r"'medmnist' has no masks.*phantom"):
        open_mask_source("medmnist:x.npz")


def test_a_mask_lies_where_its_image_lies():
    """A bright rectangle in a wide picture is prepared as a picture, and as its own mask."""
    mask = np.zeros((40, 100), dtype=bool)
    mask[10:30, 20:60] = True
    pixels = np.where(mask, 0.8, 0.1).astype(np.float32)
    prepared = Prepare(32)(pixels)[0] > 0.45 * 255
    frame = Frame(40, 100, 32)
    assert (frame.shrink(mask) == prepared).all()
    assert frame.inside.sum() == 13 * 32
    back = frame.restore(frame.shrink(mask).astype(float))
    assert back.shape == (40, 100)
    assert ((back > 0.5) != mask).mean() < 0.05
    assert frame.shrink(mask).sum() * frame.pixels == pytest.approx(mask.sum(), rel=0.15)


def test_steps_that_move_pixels_are_refused():
    with pytest.raises(ConfigError, match="crop-breast"):
        require_in_place(Prepare(32, steps=("crop-breast",)))


def test_a_lossy_mask_is_refused(tmp_path):
    write_picture(tmp_path / "images" / "a.png", (64, 64))
    (tmp_path / "masks").mkdir()
    Image.fromarray(square(64, 10, 31).astype(np.uint8) * 255).save(tmp_path / "masks" / "a.jpg", quality=50)
    source = open_mask_source(f"folder:{tmp_path}")
    with pytest.raises(DataError, match="lossy"):
        source.mask(source.records()[0])
