"""Discriminative peers in the same harness: trained on the same split, tuned on the same validation images."""

from __future__ import annotations

from scorebayes.baselines.logistic import fit_logistic

__all__ = ["fit_logistic"]
