"""Likelihood estimators: from a score to one number per image and class.

A new estimator is one file here with a class that fits ``Likelihood`` (see ``base``) and one line in ``LIKELIHOODS``.
"""

from __future__ import annotations

from scorebayes.diffusion.likelihood.base import Kind, Likelihood, LogProb
from scorebayes.diffusion.likelihood.bound import DenoisingBound
from scorebayes.diffusion.likelihood.denoising import Denoising
from scorebayes.diffusion.likelihood.flow import Flow, PaperFlow

LIKELIHOODS: dict[str, type] = {
    "denoising": Denoising,
    "bound": DenoisingBound,
    "flow": Flow,
    "paper": PaperFlow,
}

__all__ = [
    "LIKELIHOODS",
    "Denoising",
    "DenoisingBound",
    "Flow",
    "Kind",
    "Likelihood",
    "LogProb",
    "PaperFlow",
]
