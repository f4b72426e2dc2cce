"""Encoders in ONNX files: whatever was exported, run by onnxruntime on the CPU, in float32 and without a gradient."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scorebayes.errors import ConfigError
from scorebayes.evidence.encoders.base import (
    IMAGENET,
    NOT_STATED,
    UNNAMED_DATA,
    EncoderNet,
    Rule,
    as_map,
)
from scorebayes.storage.digest import sha256_of

ABOUT: dict[str, Any] = {
    "mean": None,
    "std": None,
    "scale": 1.0,
    "special_tokens": None,
    "licence": NOT_STATED,
    "pretrained_on": UNNAMED_DATA,
}
"""What the JSON file beside may say, and what holds where it does not."""
FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}


class OnnxFile:
    """An exported encoder: "onnx:FILE", or "onnx:FILE#OUTPUT" for another output than the last one that is a map.

    One input [N, 3 or 1, H, W]; where the graph fixes H and W, images are resized to them. An output [N, C, h, h], or
    tokens [N, T, C]. Pixels in [0, 1] are normalised with ImageNet's mean and standard deviation (grey: their mean),
    unless FILE with the ending .json says otherwise: "mean" and "std", a number for each channel; "scale", by which pixels
    are multiplied before, such as 255; "special_tokens", the number of class and register tokens, which come first;
    "licence" and "pretrained_on", which are stated with the results. ``pooled`` is the mean over the map.
    """

    kind = "onnx"

    def __init__(self, rest: str, side: int, device: torch.device) -> None:
        self.name = f"onnx:{rest}"
        file, _, self.output = rest.partition("#")
        self.path = Path(file).expanduser()
        if not self.path.is_file():
            raise ConfigError(
                f"encoder {self.name!r}: there is no such file.",
                "If it was moved, give its new place: as --encoder onnx:FILE, or in [evidence.features] of the run's "
                "config.toml. The weights are recognised by their SHA-256.",
            )
        _packages(self.name)
        self.about = _about(self.path.with_suffix(".json"))
        self.licence, self.pretrained_on = str(self.about["licence"]), str(self.about["pretrained_on"])
        self._asked_side = side

    # -- what it is -----------------------------------------------------------------------------------------------

    @cached_property
    def sha256(self) -> str:
        """Of the file; with those of the files beside in which its weights lie, where there are some."""
        own = sha256_of(self.path)
        beside = sorted(_files_of_weights(self.path))
        if not beside:
            return own
        return hashlib.sha256("".join([own, *map(sha256_of, beside)]).encode()).hexdigest()

    @cached_property
    def fingerprint(self) -> str:
        content = [self.sha256, self.output, {key: of for key, of in self.about.items() if key in ABOUT}]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def side(self) -> int:
        return self._input[1]

    @cached_property
    def cells(self) -> int:
        return self._probed.shape[-1]

    @property
    def channels(self) -> int:
        return self._probed.shape[1]

    @property
    def deepest(self) -> int:
        return self.channels

    @property
    def pooled_features(self) -> int:
        return self.channels

    @cached_property
    def _probed(self) -> Tensor:
        """What comes of one black image."""
        return self(torch.zeros(1, 1, self.side, self.side))

    # -- asking ---------------------------------------------------------------------------------------------------

    def __call__(self, pixels: Tensor) -> Tensor:
        if torch.is_grad_enabled() and pixels.requires_grad:
            raise ConfigError(
                f"encoder {self.name!r}: an ONNX file gives no gradient, which is needed here.",
                "Use an encoder of the kind hf: (or lite0) for this.",
            )
        wanted, side, dtype, at_a_time = self._input
        x = self._rule(pixels, side).numpy().astype(dtype)
        found = [self._run(wanted, x[i : i + at_a_time]) for i in range(0, len(x), at_a_time)]
        tokens = torch.from_numpy(np.concatenate(found).astype(np.float32))
        return as_map(self.name, tokens, self.about["special_tokens"])

    def pooled(self, pixels: Tensor) -> Tensor:
        return self(pixels).mean(dim=(2, 3))

    def network(self) -> EncoderNet:
        raise ConfigError(
            f"encoder {self.name!r}: an ONNX file cannot be trained further.",
            "Use an encoder of the kind hf: (or lite0) for this.",
        )

    @cached_property
    def _rule(self) -> Rule:
        channels, about = self._channels, self.about
        mean, std = (
            tuple(
                map(float, about[key] if about[key] is not None else of if channels == 3 else [sum(of) / 3])
            )
            for key, of in zip(("mean", "std"), IMAGENET, strict=True)
        )
        if len(mean) != channels or len(std) != channels:
            raise ConfigError(
                f"{self.path.with_suffix('.json')}: mean and std have {len(mean)} and {len(std)} numbers, but the encoder "
                f"takes {channels} channel(s)."
            )
        return Rule(mean, std, float(about["scale"]))

    @cached_property
    def _session(self) -> Any:
        runtime = _packages(self.name)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        try:
            return runtime.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors have no common base but this
            raise ConfigError(
                f"encoder {self.name!r}: onnxruntime cannot load it ({_last_words(error)}).",
                "Export the encoder again, with all files of its weights beside it.",
            ) from error

    @property
    def _channels(self) -> int:
        channels = self._only_input.shape[1]
        return channels if isinstance(channels, int) else 3

    @cached_property
    def _only_input(self) -> Any:
        inputs = self._session.get_inputs()
        shapes = {one.name: one.shape for one in inputs}
        first = inputs[0]
        sound = len(inputs) == 1 and len(first.shape) == 4 and first.type in FLOATS
        if sound:
            n, channels, height, width = first.shape
            fixed = [of for of in (height, width) if isinstance(of, int)]
            sound = (not isinstance(channels, int) or channels in (1, 3)) and len(set(fixed)) <= 1
            sound = sound and (not isinstance(n, int) or n == 1)
        if not sound:
            raise ConfigError(
                f"encoder {self.name!r}: its inputs are {shapes}.",
                "Expected one input of floats [N, 3 or 1, H, W], with N free or 1, and H = W where they are fixed.",
            )
        return first

    @cached_property
    def _input(self) -> tuple[str, int, Any, int]:
        """The name of the input, its side, its type, and how many images it takes at a time."""
        only = self._only_input
        fixed = [of for of in only.shape[2:] if isinstance(of, int)]
        at_a_time = only.shape[0] if isinstance(only.shape[0], int) else 64
        return only.name, fixed[0] if fixed else self._asked_side, FLOATS[only.type], at_a_time

    @cached_property
    def _wanted(self) -> str:
        """The output: the one that was named, or the last that is a map, or else the last that is tokens."""
        outputs = self._session.get_outputs()
        names = [one.name for one in outputs]
        if self.output:
            if self.output not in names:
                raise ConfigError(
                    f"encoder {self.name!r}: there is no output {self.output!r}.",
                    f"There are: {', '.join(names)}.",
                )
            return self.output
        for rank in (4, 3):
            fitting = [one.name for one in outputs if len(one.shape or ()) == rank]
            if fitting:
                return fitting[-1]
        raise ConfigError(
            f"encoder {self.name!r}: its outputs are { {one.name: one.shape for one in outputs} }.",
            "Expected a map [N, C, h, h] or tokens [N, T, C]; export the layer before pooling, or name one: "
            "onnx:FILE#OUTPUT.",
        )

    def _run(self, wanted: str, x: NDArray) -> NDArray:
        try:
            return self._session.run([self._wanted], {wanted: x})[0]
        except ConfigError:
            raise
        except Exception as error:  # onnxruntime's errors have no common base but this
            raise ConfigError(
                f"encoder {self.name!r} does not take images of {self.side} x {self.side} pixels ({_last_words(error)}).",
                "Set size to a side it takes, in the section of the source of evidence, such as [evidence.features].",
            ) from error


def _packages(name: str) -> Any:
    try:
        import onnx  # noqa: F401
        import onnxruntime
    except ImportError as error:
        raise ConfigError(
            f"encoder {name!r} needs the packages onnx and onnxruntime, which are not installed.",
            "Run pip install 'scorebayes[onnx]'.",
        ) from error
    return onnxruntime


def _about(path: Path) -> dict[str, Any]:
    """The JSON file beside, over what holds without it."""
    if not path.is_file():
        return dict(ABOUT)
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path}: not a JSON file that can be read ({error}).") from error
    if not isinstance(said, dict) or set(said) - set(ABOUT):
        raise ConfigError(
            f"{path}: expected a JSON object with some of the keys {', '.join(ABOUT)}.",
            "Remove the others, or give the file another name if it is not about the encoder.",
        )
    return {**ABOUT, **said}


def _files_of_weights(path: Path) -> set[Path]:
    """Files beside an ONNX file in which its weights lie."""
    import onnx
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except Exception as error:  # protobuf's own
        raise ConfigError(
            f"{path}: not an ONNX file ({_last_words(error)}).", "Export the encoder again."
        ) from error
    places = {ExternalDataInfo(of).location for of in graph.initializer if uses_external_data(of)}
    found = {path.parent / place for place in places}
    for lost in (of for of in found if not of.is_file()):
        raise ConfigError(
            f"{lost}: missing; {path.name} keeps its weights there.", "Put it beside the ONNX file."
        )
    return found


def _last_words(error: Exception) -> str:
    return " ".join(str(error).split())[-200:] or type(error).__name__
