"""Bits per dimension of the discrete image, from the log-density of its dequantised, standardised values.

Grey values are integers k in [0, 2^bits). Uniform dequantisation makes them real, x = (k + u) / 2^bits with u
uniform in [0, 1), and standardisation z = (x - mean) / scale. For the density p of v = 2^bits x, Jensen's
inequality gives

    log P(k) = log integral_0^1 p(k + u) du  >=  E_u log p(k + u),

so that the mean over u of what is computed here is an upper bound of the exact discrete code length (Theis et
al. 2016, arXiv 1511.01844, eq. 4); a single u may fall on either side.
"""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Number = TypeVar("Number", float, NDArray[np.float64])


def bits_per_dim(nats: Number, n_dims: int, scale: float, bits: int) -> Number:
    """Code length in bits per dimension; smaller is better.

    nats: log-density of the standardised image z (a number or an array of any shape).
    n_dims: numbers in an image, C * H * W.
    scale: standard deviation that x in [0, 1] was divided by.
    bits: true bit depth of the grey values.
    """
    return -nats / (n_dims * math.log(2)) + math.log2(scale) + bits
