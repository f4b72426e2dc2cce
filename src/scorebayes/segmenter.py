"""A trained segmentation run: an image, a mask.

run = scorebayes.open_run("runs/lesions")
answer = run.predict("case.png")
print(answer)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, overload

from scorebayes.segmentation.answer import Image, MaskAnswer, mask_answer
from scorebayes.segmentation.run import MaskRun, open_mask_run


class Segmenter(MaskRun):
    """A run that answers."""

    @overload
    def predict(self, images: Image) -> MaskAnswer: ...

    @overload
    def predict(self, images: list[Any] | tuple[Any, ...]) -> list[MaskAnswer]: ...

    def predict(self, images: Image | list[Any] | tuple[Any, ...]) -> MaskAnswer | list[MaskAnswer]:
        """The answer for an image, or for each of a list: files, or pixels [H, W] or [H, W, 3].

        DataError where a file does not exist; a file that cannot be used has an answer without a mask that says why.
        """
        if isinstance(images, (list, tuple)):
            return [mask_answer(self, image) for image in images]
        return mask_answer(self, images)


def open_segmenter(path: str | Path, device: str = "auto") -> Segmenter:
    """Open a segmentation run. ConfigError says what is missing and how to get it."""
    run = open_mask_run(path, device)
    return Segmenter(run.path, run.config, run.facts, run.device)
