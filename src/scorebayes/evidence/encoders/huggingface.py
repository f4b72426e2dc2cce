"""Encoders of the Hugging Face library ``transformers``: from a folder, or downloaded once by their name."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from scorebayes.errors import ConfigError
from scorebayes.evidence.encoders.base import (
    IMAGENET,
    NOT_STATED,
    UNNAMED_DATA,
    EncoderNet,
    Rule,
    TorchEncoder,
    as_map,
)
from scorebayes.storage.digest import sha256_of

CONFIG, WEIGHTS, PARTS = "config.json", "model.safetensors", "model.safetensors.index.json"
RULES = ("preprocessor_config.json", "processor_config.json")
FILES = (CONFIG, WEIGHTS, PARTS, "model-*.safetensors", "README.md", *RULES)


class HuggingFace(TorchEncoder):
    """A vision model of ``transformers.AutoModel``: "hf:NAME_OR_FOLDER", or "hf:NAME_OR_FOLDER#LAYER" for the map of one of
    its hidden states (0: the embedding; -1: the last).

    Weights are safetensors only, and no code of the model's folder is run. Pixels are normalised as the model's own image
    processor says; they are not resized by it.
    """

    kind = "hf"

    def __init__(self, rest: str, side: int, device: torch.device) -> None:
        super().__init__(f"hf:{rest}", side, device)
        _transformers(self.name)
        where, mark, layer = rest.partition("#")
        if mark and not layer.removeprefix("-").isdecimal():
            raise ConfigError(
                f"encoder {self.name!r}: expected a whole number after '#', the number of a hidden state."
            )
        self.layer = int(layer) if mark else None
        self.folder = _folder(self.name, where)
        self.config = _vision_part(_read(self.folder / CONFIG))
        self.patch = _patch(self.config)
        if self.patch and side % self.patch:
            below = max(side // self.patch, 1) * self.patch
            raise ConfigError(
                f"encoder {self.name!r} cuts images into patches of {self.patch} pixels, and {side} is no multiple of it.",
                f"Set size = {below} or {below + self.patch} in the section of the source of evidence, such as "
                "[evidence.features].",
            )

    @cached_property
    def rule(self) -> Rule:
        return _rule(self.name, self.folder, int(self.config.get("num_channels", 3)))

    @cached_property
    def sha256(self) -> str:
        """Of the file, or of the digests of the files in which the weights lie."""
        whole = self.folder / WEIGHTS
        if whole.is_file():
            return _digest(whole)
        parts = sorted(set(_read(self.folder / PARTS)["weight_map"].values()))
        return hashlib.sha256("".join(_digest(self.folder / part) for part in parts).encode()).hexdigest()

    @cached_property
    def fingerprint(self) -> str:
        content = [self.sha256, repr(self.rule), self.layer, _read(self.folder / CONFIG)]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @cached_property
    def _card(self) -> Mapping[str, Any]:
        """What the model card says at its head; empty where there is none."""
        from huggingface_hub import repocard

        path = self.folder / "README.md"
        return (repocard.metadata_load(path) or {}) if path.is_file() else {}

    @property
    def licence(self) -> str:
        named = self._card.get("license")
        return str(self._card.get("license_name") or named) if named else NOT_STATED

    @property
    def pretrained_on(self) -> str:
        named = self._card.get("datasets") or []
        return ", ".join([named] if isinstance(named, str) else map(str, named)) or UNNAMED_DATA

    def network(self) -> EncoderNet:
        return _TransformersNet(self)


class _TransformersNet(EncoderNet):
    """The vision part of a model, with the rule of its input."""

    def __init__(self, encoder: HuggingFace) -> None:
        super().__init__()
        self.name, self.rule, self.side = encoder.name, encoder.rule, encoder.side
        self.patch, self.layer = encoder.patch, encoder.layer
        model, missing = _loaded(encoder.name, encoder.folder)
        self.net: Any = getattr(model, "vision_model", model)
        lost = [name for name in missing if "pooler" not in name]
        if lost:
            raise ConfigError(
                f"encoder {self.name!r}: the weights lack {', '.join(lost[:3])}"
                f"{' ...' if len(lost) > 3 else ''} of the model that config.json describes.",
                "Get the complete model.",
            )
        self.has_pooler = not missing  # a pooler without weights would say something random
        wanted = inspect.signature(self.net.forward).parameters
        self.options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in wanted else {}

    def map(self, pixels: Tensor) -> Tensor:
        if self.layer is None:
            return self._as_map(self._asked(pixels).last_hidden_state)
        states = self._asked(pixels, output_hidden_states=True).hidden_states or ()
        if not -len(states) <= self.layer < len(states):
            raise ConfigError(
                f"encoder {self.name!r}: there is no hidden state {self.layer}.",
                f"This model has {len(states)}: 0 to {len(states) - 1}, or counted from the end, -1 to -{len(states)}."
                if states
                else "This model shows none: leave '#' and the number out.",
            )
        return self._as_map(states[self.layer])

    def pooled(self, pixels: Tensor) -> Tensor:
        """Of the model's own pooler, whose weights were trained, or the mean of the patches."""
        found = self._asked(pixels)
        last, pooled = self.last(self._as_map(found.last_hidden_state)), found.get("pooler_output")
        return last.mean(dim=(2, 3)) if pooled is None or not self.has_pooler else pooled.flatten(1)

    def _asked(self, pixels: Tensor, **options: Any) -> Any:
        try:
            return self.net(pixel_values=self.rule(pixels, self.side), **self.options, **options)
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"encoder {self.name!r} does not take images of {self.side} x {self.side} pixels alone "
                f"({_first_line(error)}).",
                "Set size to the side it was trained with, or choose a vision model.",
            ) from error

    def _as_map(self, found: Tensor) -> Tensor:
        special = None
        if found.ndim == 3 and self.patch:
            patches = (self.side // self.patch) ** 2
            special = found.shape[1] - patches if found.shape[1] >= patches else None
        return as_map(self.name, found, special)


def _transformers(name: str) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            f"encoder {name!r} needs the package transformers, which is not installed.",
            "Run pip install 'scorebayes[hf]'.",
        ) from error
    return transformers


def _folder(name: str, where: str) -> Path:
    """The folder with the files of the model: as given, or that of the download. ConfigError where there is none."""
    path = Path(where).expanduser()
    if path.is_dir():
        _require_files(name, path)
        return path
    if not where or where[0] in "./~" or where.count("/") > 1:
        raise ConfigError(
            f"encoder {name!r}: there is no such folder.",
            "If it was moved, give its new place: as --encoder hf:FOLDER, or in [evidence.features] of the run's "
            "config.toml. The weights are recognised by their SHA-256.",
        )
    from huggingface_hub import snapshot_download

    for only_local in (True, False):  # what was downloaded once is not asked for again
        try:
            found = Path(snapshot_download(where, allow_patterns=list(FILES), local_files_only=only_local))
            _require_files(name, found)
            return found
        except (
            Exception
        ) as error:  # of the network, the name, the licence's gate or the disk, by several libraries
            if not only_local:
                if isinstance(error, ConfigError):
                    raise
                raise ConfigError(
                    f"encoder {name!r}: it is no folder here, and could not be fetched from Hugging Face "
                    f"({_first_line(error)}).",
                    "Check the name and the network; or fetch it elsewhere, and give its folder: --encoder hf:FOLDER.",
                ) from error
    raise AssertionError("unreachable")


def _require_files(name: str, folder: Path) -> None:
    if not (folder / CONFIG).is_file():
        raise ConfigError(
            f"encoder {name!r}: {folder} has no {CONFIG}.",
            "Expected the folder of a model of transformers, as its save_pretrained writes it.",
        )
    if not (folder / WEIGHTS).is_file() and not (folder / PARTS).is_file():
        raise ConfigError(
            f"encoder {name!r}: {folder} has no {WEIGHTS}.",
            "Weights in other formats can run code when they are loaded, and are not read: convert them with "
            "save_pretrained of transformers.",
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a JSON file that can be read ({_first_line(error)}).") from error


def _vision_part(config: dict[str, Any]) -> dict[str, Any]:
    """Of a model of images and text, that of the images."""
    return config.get("vision_config") or config


def _patch(config: Mapping[str, Any]) -> int:
    """The side of a patch in pixels; 0 for a network without."""
    patch = config.get("patch_size", 0)
    return int(patch[0] if isinstance(patch, list) else patch or 0)


def _rule(name: str, folder: Path, channels: int) -> Rule:
    """How the model's image processor normalises. ConfigError where it does not say, or does more than that."""
    path = next((folder / of for of in RULES if (folder / of).is_file()), None)
    if path is None:
        raise ConfigError(
            f"encoder {name!r}: {folder} has no {RULES[0]}, which says how pixels are normalised.",
            f'Copy that of the model, or write one, such as {{"image_mean": {list(IMAGENET[0])}, "image_std": '
            f"{list(IMAGENET[1])}}}.",
        )
    said = _read(path)
    said = said.get("image_processor", said)
    odd = [key for key in ("rescale_offset", "include_top") if said.get(key)]
    if odd:
        raise ConfigError(
            f"{path}: {odd[0]} is set, a way of normalising that is not known here.",
            "Choose another encoder.",
        )
    scale = 255 * said.get("rescale_factor", 1 / 255) if said.get("do_rescale", True) else 255.0
    mean: tuple[float, ...]
    std: tuple[float, ...]
    if not said.get("do_normalize", True):
        mean, std = (0.0,), (1.0,)
    elif said.get("image_mean") is None or said.get("image_std") is None:
        raise ConfigError(f"{path}: image_mean or image_std is missing.", "Copy the file of the model.")
    else:
        mean, std = (
            tuple(map(float, of if isinstance(of, list) else [of]))
            for of in (said["image_mean"], said["image_std"])
        )
    mean, std = (of * channels if len(of) == 1 else of for of in (mean, std))
    if len(mean) != channels or len(std) != channels:
        raise ConfigError(
            f"{path}: image_mean and image_std have {len(mean)} and {len(std)} numbers, but the model takes "
            f"{channels} channel(s)."
        )
    return Rule(mean, std, scale, bool(said.get("do_flip_channel_order", False)))


def _loaded(name: str, folder: Path) -> tuple[Any, list[str]]:
    """The model in float32 on the CPU, and the names of weights that its files lack."""
    transformers = _transformers(name)
    try:
        with _quietly(transformers):
            model, about = transformers.AutoModel.from_pretrained(
                folder, use_safetensors=True, trust_remote_code=False, local_files_only=True, dtype=torch.float32,
                output_loading_info=True,
            )  # fmt: skip
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, safetensors.SafetensorError) as error:
        raise ConfigError(
            f"encoder {name!r}: transformers cannot load it ({_first_line(error)}).",
            "Check that the folder is complete, and that this version of transformers knows the model.",
        ) from error
    return model, sorted(about["missing_keys"])


@contextmanager
def _quietly(transformers: Any) -> Iterator[None]:
    """Without its progress bars and its report of weights that are not used here."""
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


_DIGESTS: dict[tuple[Path, int, int], str] = {}


def _digest(path: Path) -> str:
    """SHA-256, computed once as long as the file stays as it is."""
    try:
        about = path.stat()
        key = path.resolve(), about.st_size, about.st_mtime_ns
        if key not in _DIGESTS:
            _DIGESTS[key] = sha256_of(path)
        return _DIGESTS[key]
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: missing.", "Get the complete model.") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
