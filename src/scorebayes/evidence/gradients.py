"""Integrated gradients: the share of each pixel in a value that is not a sum over pixels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from scorebayes.evidence.base import Map

GRADIENT_STEPS = 16


def integrated_gradients(value: Callable[[Tensor], Tensor], x: Tensor, steps: int = GRADIENT_STEPS) -> Map:
    """What each pixel of x [1, C, S, S] adds to a value on the way from an even grey image, the mean of the training pixels.

    Gradients along the way, times the way (Sundararajan et al. 2017, arXiv 1703.01365): the sum over the pixels is the
    difference of the two values, up to the error of the midpoint rule. The steps are short at the start, where logarithms of
    moduli change most: positions follow u^2, u from 0 to 1. Returns [S, S].
    """
    total = torch.zeros_like(x)
    with torch.enable_grad():
        for u in ((np.arange(steps) + 0.5) / steps).tolist():
            image = (u**2 * x).requires_grad_(True)
            total += 2 * u * torch.autograd.grad(value(image), image)[0]
    return (x * total / steps)[0].sum(0).cpu().double().numpy()
