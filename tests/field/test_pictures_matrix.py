"""TIFF in every combination of type, polarity, compression, byte order, layout and orientation, against the numbers
that were written: Pillow and tifffile would be wrong together where a rule is misread."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import tifffile

from scorebayes.data.pixels.images import image_bits, read_image

HEIGHT, WIDTH = 37, 21
RANDOM = np.random.default_rng(3)
LEAST_AND_SPAN = {
    "uint8": (0, 2**8 - 1),
    "uint16": (0, 2**16 - 1),
    "uint32": (0, 2**32 - 1),
    "int8": (-(2**7), 2**8 - 1),
    "int16": (-(2**15), 2**16 - 1),
    "int32": (-(2**31), 2**32 - 1),
    "float16": (0, 1),
    "float32": (0, 1),
    "float64": (0, 1),
    "bool": (0, 1),
}
COMPRESSIONS = [
    (None, None),
    ("lzw", None),
    ("lzw", True),
    ("zlib", True),
    ("zstd", None),
    ("packbits", None),
    ("lzma", None),
]
LAYOUTS = [{}, {"tile": (16, 16)}, {"rowsperstrip": 5}, {"planarconfig": "separate"}, {"bigtiff": True}]
UPRIGHT = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: np.rot90,
}


def stored(dtype: str, channels: int) -> np.ndarray:
    """Random numbers over the whole range of a type."""
    shape = (HEIGHT, WIDTH) if channels == 1 else (HEIGHT, WIDTH, channels)
    if dtype.startswith("float"):
        return RANDOM.random(shape).astype(dtype)
    if dtype == "bool":
        return RANDOM.random(shape) < 0.5
    kind = np.iinfo(dtype)
    return RANDOM.integers(kind.min, kind.max, shape, dtype, endpoint=True)


@pytest.mark.parametrize("dtype", LEAST_AND_SPAN)
@pytest.mark.parametrize(
    ("photometric", "channels", "extra"),
    [("minisblack", 1, None), ("miniswhite", 1, None), ("minisblack", 2, "unassalpha"), ("rgb", 3, None),
     ("rgb", 4, "unassalpha")],
)  # fmt: skip
def test_every_tiff_comes_out_as_it_was_written(
    tmp_path: Path, dtype: str, photometric: str, channels: int, extra: str | None
) -> None:
    """P2, P6, P10, R3: orientation, sign, polarity, depth and byte order are right in every combination."""
    if dtype == "bool" and channels > 1:
        pytest.skip("tifffile writes bilevel TIFF in grey only")
    least, span = LEAST_AND_SPAN[dtype]
    orientations, n_read = itertools.cycle(UPRIGHT), 0
    for (compression, predictor), layout, order in itertools.product(COMPRESSIONS, LAYOUTS, "<>"):
        if predictor and dtype in ("bool", "float16"):
            predictor = None
        if "planarconfig" in layout and channels == 1:
            continue
        written, orientation = stored(dtype, channels), next(orientations)
        given = np.moveaxis(written, -1, 0) if "planarconfig" in layout else written
        more = {"planarconfig": "contig"} if "planarconfig" not in layout and channels > 1 else {}
        path = tmp_path / "a.tif"
        tifffile.imwrite(
            path, given, byteorder=order, photometric=photometric, compression=compression, predictor=predictor,
            extrasamples=[extra] if extra else None, extratags=[(274, 3, 1, orientation, True)], metadata=None,
            **layout, **more,
        )  # fmt: skip
        expected = (written.astype(np.float64) - least) / span
        expected = 1 - expected if photometric == "miniswhite" else expected
        expected = expected if channels == 1 else expected[..., 0] if channels == 2 else expected[..., :3]
        expected = UPRIGHT[orientation](expected)
        found = read_image(path)
        assert found.shape == expected.shape, (compression, layout, order, orientation)
        np.testing.assert_allclose(
            found, expected, rtol=0, atol=1.2e-7, err_msg=f"{compression} {layout} {order} {orientation}"
        )
        assert image_bits(path) == (1 if dtype == "bool" else 8 if dtype in ("uint8", "int8") else 16)
        n_read += 1
    assert n_read == len(COMPRESSIONS) * 2 * (len(LAYOUTS) - (channels == 1))
