"""Configuration of a segmentation run: the sections of a classifier's that it shares, and [segment]."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import tomli_w
from pydantic import Field

from scorebayes.data.masks import require_in_place
from scorebayes.data.prepare import Prepare
from scorebayes.diffusion.noise import NOISES, NoiseProcess
from scorebayes.errors import ConfigError
from scorebayes.runs.config import (
    DataConfig,
    build_kind,
    checked_fields,
    checked_seed,
    differences,
    merged,
    nearest_name,
    plain_values,
)
from scorebayes.segmentation.network import MaskNet
from scorebayes.training.settings import Fraction, Size, TrainConfig


@dataclass(frozen=True)
class SegmentConfig:
    """How masks are learned and drawn.

    truncation: signed distances are cut at so many pixels of the prepared image, and scaled to [-1, 1]. edge: how much more
    the score counts where the distance is not cut, near the boundary. contrast: images are made stronger or fainter at
    random by up to this share. score: weight of the score's loss beside the first guess's, which counts once.
    evaluations: of the score for each sample. samples: masks drawn for each image, half of them of its mirror image.
    """

    truncation: Size = 8.0
    edge: Annotated[float, Field(ge=0)] = 0.0
    contrast: Fraction = 0.2
    score: Size = 1.0
    evaluations: Annotated[int, Field(ge=1, le=64)] = 4
    samples: Annotated[int, Field(ge=2, le=1024)] = 8

    def __post_init__(self) -> None:
        if self.samples % 2:
            raise ConfigError(
                f"[segment] samples = {self.samples}: half of them are of the mirror image.",
                "Give an even number.",
            )


DEFAULTS: dict[str, dict[str, Any]] = {
    # A signed distance is smooth: its shape shows through noise that would hide a picture. So the noise goes lower
    # (log-SNR -12), and most of the training is there (docs/decisions/0028). What is above log-SNR 5 no mask shows.
    "noise": {"kind": "vp", "beta_max": 24.0, "t_min": 0.02},
    "train": {
        "batch": 16,
        "lr": 2e-3,
        "warmup": 50,
        "ema": 0.99,
        "log_snr_mean": -7.0,
        "log_snr_std": 3.0,
        "precision": "fp32",
    },
}
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "net": {"channels": [16, 32], "patch": 2, "scorer_channels": [16, 32], "scorer_patch": 4},
        "train": {"steps": 400, "warmup": 20},
        "segment": {"samples": 4},
    },
    "light": {"net": {"channels": [32, 64, 128], "patch": 4, "scorer_patch": 4}},
    "small": {"net": {"channels": [32, 64, 128], "patch": 2, "scorer_patch": 4}},
}
SECTIONS = ("data", "prepare", "noise", "net", "train", "segment")
_CONSTRUCTORS: dict[str, Any] = {
    "data": DataConfig,
    "prepare": Prepare,
    "net": MaskNet,
    "train": TrainConfig,
    "segment": SegmentConfig,
}


@dataclass(frozen=True)
class MaskConfig:
    """The resolved configuration of a segmentation run. Every section is a plain table."""

    seed: int
    sections: dict[str, dict[str, Any]]

    @property
    def data(self) -> DataConfig:
        return DataConfig(**checked_fields("data", self.sections["data"], DataConfig))

    @property
    def prepare(self) -> Prepare:
        return Prepare(**checked_fields("prepare", self.sections["prepare"], Prepare))

    @property
    def train(self) -> TrainConfig:
        return TrainConfig(**checked_fields("train", self.sections["train"], TrainConfig))

    @property
    def segment(self) -> SegmentConfig:
        return SegmentConfig(**checked_fields("segment", self.sections["segment"], SegmentConfig))

    @property
    def noise(self) -> NoiseProcess:
        table = dict(self.sections["noise"])
        return build_kind("noise", table.pop("kind"), NOISES, table)

    def net(self) -> MaskNet:
        """An untrained network."""
        return MaskNet(self.prepare.channels, **checked_fields("net", self.sections["net"], MaskNet))

    def to_toml(self) -> str:
        filled = {
            name: {k: v for k, v in table.items() if v is not None} for name, table in self.sections.items()
        }
        return tomli_w.dumps({"task": "segment", "seed": self.seed, **filled})

    def differences(self, other: MaskConfig) -> list[str]:
        """Fields in which two configurations differ, as ``section.field: mine -> other's``."""
        return differences(
            {"seed": self.seed, **self.sections}, {"seed": other.seed, **other.sections}, SECTIONS
        )


def resolve_masks(
    *layers: Mapping[str, Any], preset: str | None = "small", defaults: Mapping[str, Any] | None = None
) -> MaskConfig:
    """Merge what the data set suggests, the preset and the layers (later ones win); check every field. ConfigError names the
    section and the field."""
    if preset is not None and preset not in PRESETS:
        raise ConfigError(
            f"unknown preset {preset!r} for segmentation{nearest_name(preset, PRESETS)}.",
            f"Known: {', '.join(PRESETS)}.",
        )
    seed: Any = 0
    found: dict[str, Any] = {}
    for layer in (defaults or {}, DEFAULTS if preset else {}, PRESETS[preset] if preset else {}, *layers):
        for key, value in layer.items():
            if key in ("seed", "task"):
                seed = value if key == "seed" else seed
            elif key not in SECTIONS:
                raise ConfigError(
                    f"unknown section or key {key!r} in the configuration of a segmentation"
                    f"{nearest_name(key, SECTIONS)}.",
                    f"Known: {', '.join(SECTIONS)}.",
                )
            elif not isinstance(value, Mapping):
                raise ConfigError(f"[{key}] must be a section, got {value!r}.")
            else:
                found[key] = merged(found.get(key, {}), value)
    config = MaskConfig(checked_seed(seed), {name: _resolved(name, found.get(name, {})) for name in SECTIONS})
    require_in_place(config.prepare)
    return config


def _resolved(section: str, table: Mapping[str, Any]) -> dict[str, Any]:
    if section == "noise":
        table = dict(table)
        kind = table.pop("kind", "vp")
        build_kind("noise", kind, NOISES, table)
        return {"kind": kind, **plain_values(checked_fields("noise", table, NOISES[kind]))}
    constructor = _CONSTRUCTORS[section]
    checked = checked_fields(section, table, constructor)
    if section != "net":
        constructor(**checked)  # what fields say together
    return plain_values(checked)
