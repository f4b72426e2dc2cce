"""Opening a run directory of any task."""

from __future__ import annotations

from pathlib import Path

from scorebayes import classifier
from scorebayes.classifier import Classifier
from scorebayes.segmentation.run import is_mask_run
from scorebayes.segmenter import Segmenter, open_segmenter


def open_run(path: str | Path, device: str = "auto") -> Classifier | Segmenter:
    """Open a run directory: a ``Classifier``, or a ``Segmenter`` where masks were learned. ConfigError says what is missing
    and how to get it."""
    if is_mask_run(path):
        return open_segmenter(path, device)
    return classifier.open_run(path, device)
