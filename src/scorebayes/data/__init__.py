"""Data sets: what they hold (records), their pixels, and how they are divided among training and testing.

What belongs here: one file per data set, fitting ``base.Source``, and what all of them share (decoding,
preparation, splitting). Nothing here uses scores, likelihoods or networks. A new data set is one file
and one line in ``SOURCES``.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from numpy.typing import NDArray

from scorebayes.data.base import MaskSource, Record, Rejected, Source, SourceInfo
from scorebayes.errors import ConfigError

__all__ = [
    "MASK_SOURCES",
    "SOURCES",
    "MaskSource",
    "Record",
    "Rejected",
    "Source",
    "SourceInfo",
    "open_mask_source",
    "open_source",
    "read_image",
]


@dataclass(frozen=True)
class _Lazy:
    """A source class that is imported when first used: decoders and table readers are slow to import."""

    module: str
    name: str

    def _resolve(self) -> Callable[..., Source]:
        return getattr(importlib.import_module(f"{__name__}.{self.module}"), self.name)

    def __call__(self, *args: Any, **options: Any) -> Source:
        return self._resolve()(*args, **options)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._resolve())


SOURCES: dict[str, Callable[..., Source]] = {
    "phantom": _Lazy("sources.phantom", "Phantom"),
    "medmnist": _Lazy("sources.medmnist", "MedMnist"),
    "folder": _Lazy("sources.folder", "Folder"),
    "arrays": _Lazy("sources.arrays", "Arrays"),
    "cbis-ddsm": _Lazy("sources.cbis_ddsm", "CbisDdsm"),
    "inbreast": _Lazy("sources.inbreast", "InBreast"),
    "vindr-mammo": _Lazy("sources.vindr_mammo", "VindrMammo"),
    "ddsm64": _Lazy("sources.ddsm64", "Ddsm64"),
}


MASK_SOURCES: dict[str, Callable[..., MaskSource]] = {
    "phantom": cast("Callable[..., MaskSource]", SOURCES["phantom"]),
    "folder": cast("Callable[..., MaskSource]", _Lazy("sources.masked_folder", "MaskedFolder")),
    "arrays": cast("Callable[..., MaskSource]", _Lazy("sources.masked_arrays", "MaskedArrays")),
    "busi": cast("Callable[..., MaskSource]", _Lazy("sources.busi", "Busi")),
}
"""Data sets with masks, for segmentation."""


def open_mask_source(text: str, **options: Any) -> MaskSource:
    """The same for a data set whose images have masks.

    >>> open_mask_source("phantom:n_patients=2,views=1").info.name
    'phantom'
    """
    return cast(MaskSource, _open(text, MASK_SOURCES, options))


def open_source(text: str, **options: Any) -> Source:
    """A data set from "KIND", "KIND:PATH" or, for kinds without files, "KIND:name=value,name=value".

    ``options`` go to the constructor of the kind and win over those in the text. Raises ConfigError for an
    unknown kind or option and a missing path, DataError where the data set itself cannot be opened.

    >>> open_source("phantom:n_patients=2,views=1").info.classes
    ('benign', 'malignant')
    """
    return _open(text, SOURCES, options)


def _open(text: str, kinds: Mapping[str, Callable[..., Source]], options: dict[str, Any]) -> Source:
    kind, _, rest = text.partition(":")
    if kind not in kinds:
        there = f"Known kinds{' with masks' if kind in SOURCES else ''}: {', '.join(kinds)}."
        remedy = f"Write folder:{text}" if Path(text).exists() else there
        raise ConfigError(
            f"Data kind {kind!r} {'has no masks' if kind in SOURCES else 'is unknown'}.",
            (kind not in SOURCES and _nearest(kind, kinds)) or remedy,
        )
    build = kinds[kind]
    parameters = inspect.signature(build).parameters
    known = [name for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY]
    if len(known) < len(parameters):
        if not rest:
            raise ConfigError(f"Data kind {kind!r} needs a path.", f"Write {kind}:PATH.")
        arguments: list[Any] = [rest]
    else:
        arguments = []
        options = parse_options(rest.split(",")) | options
    for name in options:
        if name not in known:
            remedy = _nearest(name, known) or f"Known options: {', '.join(known)}."
            raise ConfigError(f"Data kind {kind!r} has no option {name!r}.", remedy)
    return build(*arguments, **options)


def parse_options(texts: Sequence[str]) -> dict[str, Any]:
    """Options of a data set from "name=value", with values as in TOML or plain words. ConfigError for anything else.

    >>> parse_options(["bits=12", "task=crop"])
    {'bits': 12, 'task': 'crop'}
    """
    options: dict[str, Any] = {}
    for text in filter(None, texts):
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise ConfigError(
                f"{text!r} is no option of a data set.", "Write NAME=VALUE, for example bits=12."
            )
        try:
            options[name.strip()] = tomllib.loads(f"value = {value}")["value"]
        except (
            ValueError,
            RecursionError,
        ):  # no TOML, a number of thousands of digits, or brackets in brackets
            options[name.strip()] = value.strip()
    return options


def _nearest(name: str, known: Any) -> str:
    match = difflib.get_close_matches(name, list(known), n=1)
    return f"Did you mean {match[0]!r}?" if match else ""


def read_image(path: str | Path, modalities: Sequence[str] = ()) -> NDArray:
    """Pixels of a PNG, JPEG, TIFF, NPY or DICOM file: [H, W] or [H, W, 3] float32 in [0, 1], air dark.

    ``modalities``: those that a DICOM file may be of, for example ("MG",); empty for any.

    Raises DataError naming the file and the cause where it cannot be read.
    """
    from scorebayes.data.pixels.images import read_image as read

    return read(Path(path), modalities=modalities)
