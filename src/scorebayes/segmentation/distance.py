"""Signed distances: what the score model learns in place of masks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

FAR = 1e4  # pixels; everywhere, where there is no object


def signed_distance(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Mask [H, W] -> distance to its boundary in pixels [H, W], negative inside; FAR where nothing is inside, -FAR where
    everything is.

    The exact Euclidean transform between centres of pixels (Maurer et al. 2003, as in SciPy). The boundary runs between the
    pixels, half a pixel from the nearest centres on either side.
    """
    if not mask.any():
        return np.full(mask.shape, FAR, np.float32)
    if mask.all():
        return np.full(mask.shape, -FAR, np.float32)
    outside, inside = ndimage.distance_transform_edt(~mask), ndimage.distance_transform_edt(mask)
    return np.where(mask, 0.5 - inside, outside - 0.5).astype(np.float32)


def covered(distance: NDArray) -> NDArray:
    """Share of each pixel that lies inside, [...] in [0, 1], from signed distances in pixels: half where the boundary runs
    through its centre. Exact for boundaries along the pixels."""
    return np.clip(0.5 - distance, 0, 1)
