"""What is told of one image: ``print(answer)`` for people, its fields for programs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from scorebayes.errors import DataError
from scorebayes.segmentation.run import MaskRun, Seen

Image = str | Path | NDArray


@dataclass(frozen=True, eq=False)
class MaskAnswer:
    """The mask of one image, or the reason why there is none.

    image: its file. mask [H, W]: bool, as the pixels of the image. probability, std_dev [H, W]: of being inside, and its
    standard deviation over the samples. area, area_low, area_high: in pixels of the image, with the calibrated interval of
    95 %. objects: pieces of the mask that do not touch. threshold: of the probability. Where there is no answer these are
    None, and ``reason`` says why. warning: what is unusual about the file.
    """

    image: str
    mask: NDArray[np.bool_] | None = field(default=None, repr=False)
    probability: NDArray[np.float32] | None = field(default=None, repr=False)
    std_dev: NDArray[np.float32] | None = field(default=None, repr=False)
    area: float | None = None
    area_low: float | None = None
    area_high: float | None = None
    objects: int | None = None
    threshold: float | None = None
    warning: str = ""
    reason: str = ""

    def __str__(self) -> str:
        if self.reason:
            lines = [f"{self.image}: no answer", f"  {self.reason}"]
        else:
            assert self.objects is not None and self.area is not None
            number = f"{self.objects} object{'s' * (self.objects != 1)}"
            lines = [
                f"{self.image}: {number}",
                f"  area {self.area:.0f} pixels, 95 % interval {self.area_low:.0f} to {self.area_high:.0f}",
            ]
        return "\n".join([*lines, *([f"  warning: {self.warning}"] if self.warning else [])])


def mask_answer(run: MaskRun, image: Image) -> MaskAnswer:
    """The answer of a run for a file, or for pixels [H, W] or [H, W, 3]. A file that cannot be used has no answer. DataError
    where there is no such file."""
    name = _name(image)
    try:
        seen = run.read(image)
    except DataError as error:
        return MaskAnswer(name, reason=f"quarantined: {error}")
    return answer_of(run, name, seen)


def answer_of(run: MaskRun, name: str, seen: Seen) -> MaskAnswer:
    """The same for an image that has been read."""
    decision, frame, drawn = run.decision, seen.frame, run.draw([seen])
    prob, inside = decision.prob(drawn), frame.inside[None]
    area, low, high = (decision.area(drawn, prob, inside)[0] * frame.pixels).tolist()
    probability = frame.restore(prob[0])
    mask = probability > decision.threshold
    return MaskAnswer(
        name,
        mask,
        probability,
        frame.restore(drawn.std[0]),
        area,
        low,
        high,
        objects=int(ndimage.label(mask)[1]),
        threshold=decision.threshold,
        warning=seen.warning,
    )


def _name(image: Image) -> str:
    if not isinstance(image, (str, Path)):
        return f"image of {' x '.join(map(str, image.shape))} pixels"
    if not Path(image).exists():
        raise DataError(f"{image}: no such file.", "Look at the spelling of its path.")
    return str(image)
