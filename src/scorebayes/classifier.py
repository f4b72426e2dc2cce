"""A trained run as a classifier: an image, an answer.

run = scorebayes.open_run("runs/breast")
answer = run.predict("case.dcm")
print(answer)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, overload

from numpy.typing import NDArray

from scorebayes.runs import run as runs
from scorebayes.runs.run import Run
from scorebayes.tasks.answer import Answer, answer

Image = str | Path | NDArray


class Classifier(Run):
    """A run that answers. It stands above ``Run``, which knows no task."""

    @overload
    def predict(self, images: Image) -> Answer: ...

    @overload
    def predict(self, images: list[Any] | tuple[Any, ...]) -> list[Answer]: ...

    def predict(self, images: Image | list[Any] | tuple[Any, ...]) -> Answer | list[Answer]:
        """The answer for an image, or for each of a list: files, or pixels [H, W] or [H, W, 3] as ``read_image`` gives them.

        It is the answer of ``scorebayes predict``. DataError where a file does not exist; a file that cannot be used, and an
        image unlike the training images, have an answer without a posterior that says why.
        """
        if isinstance(images, (list, tuple)):
            return [answer(self, image) for image in images]
        return answer(self, images)


def open_run(path: str | Path, device: str = "auto") -> Classifier:
    """Open a run directory. ConfigError says what is missing and how to get it."""
    run = runs.open_run(path, device)
    return Classifier(run.path, run.config, run.facts, run.device, run.format)
