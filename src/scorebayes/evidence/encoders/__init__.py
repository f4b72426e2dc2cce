"""Frozen encoders: networks that others trained, which turn an image into a map of features.

An encoder is one file here with a class that fits ``Encoder`` (see ``base``), and one line in ``ENCODERS``. Every run states
its name, licence and the SHA-256 of its weights: results with pretrained weights are never mixed with results from random
ones.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
from pydantic import AfterValidator

from scorebayes.errors import ConfigError
from scorebayes.evidence.encoders.base import Encoder, EncoderNet, of_both_views
from scorebayes.evidence.encoders.huggingface import HuggingFace
from scorebayes.evidence.encoders.lite0 import Lite0
from scorebayes.evidence.encoders.onnx_file import OnnxFile
from scorebayes.evidence.encoders.timm_model import Timm

ENCODERS: dict[str, Callable[[str, int, torch.device], Encoder]] = {
    "lite0": Lite0,
    "hf": HuggingFace,
    "onnx": OnnxFile,
    "timm": Timm,
}
KNOWN = "lite0, hf:NAME_OR_FOLDER, onnx:FILE, timm:NAME"
DEFAULT_ENCODER, DEFAULT_SIDE = "lite0", 224

__all__ = [
    "DEFAULT_ENCODER",
    "DEFAULT_SIDE",
    "ENCODERS",
    "Encoder",
    "EncoderName",
    "EncoderNet",
    "of_both_views",
    "open_encoder",
]


def open_encoder(text: str, side: int, device: torch.device) -> Encoder:
    """An encoder by "NAME" or "NAME:REST", for images resized to ``side`` pixels. ConfigError for an unknown one, or one
    whose weights or packages are not there."""
    kind, _, rest = text.partition(":")
    if kind not in ENCODERS:
        raise ConfigError(f"encoder {text!r} is unknown.", f"Known: {KNOWN}.")
    return ENCODERS[kind](rest, side, device)


def with_absolute_path(text: str) -> str:
    """The name of an encoder with its file or folder, if it names one, by an absolute path, so that it is found from
    anywhere."""
    kind, _, rest = text.partition(":")
    path, mark, part = rest.partition("#")
    is_path = path and (kind == "onnx" or (kind == "hf" and (path[0] in "./~" or Path(path).exists())))
    return f"{kind}:{Path(path).expanduser().resolve()}{mark}{part}" if is_path else text


EncoderName = Annotated[str, AfterValidator(with_absolute_path)]
"""The type of an option that names an encoder."""
