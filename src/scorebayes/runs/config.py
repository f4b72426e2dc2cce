"""Configuration: TOML sections are components, ``kind`` picks the registry entry, the rest are its fields.

The constructors are the schema: a field's type and range are those of the constructor's annotation, and an unknown key is
an error that names the nearest known one. A preset is a partial configuration; a file overrides the preset, options of
the command line override the file.
"""

from __future__ import annotations

import difflib
import inspect
import re
import stat
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import pydantic
import tomli_w
from pydantic import Field

from scorebayes.data.prepare import Prepare
from scorebayes.diffusion.likelihood import LIKELIHOODS
from scorebayes.diffusion.nets import BACKBONES
from scorebayes.diffusion.noise import NOISES
from scorebayes.errors import ConfigError
from scorebayes.evidence.base import Evidence, Home
from scorebayes.evidence.registry import EVIDENCE
from scorebayes.runs.bounds import require_bounded, short
from scorebayes.training.settings import Count, Fraction, Size, TrainConfig


@dataclass(frozen=True)
class DataConfig:
    """Which images, and how they are split by patient where the data set has no official split.

    source: KIND[:PATH], see ``scorebayes train --help``. options: of that kind, for example a label convention.
    fractions: train, validation, test.
    per_class: training patients per class (images if there are no patients), drawn with the run's seed; by default
    all. imbalance: patients of the other class per patient of the positive class, which becomes the rare one; with
    ``per_class`` the total is the same as at 1:1. label_noise: share of the training patients that get a wrong label.
    reduce_val: reduce the validation split in the same way, scaled to its size; by default it is unchanged. The test
    split never changes.
    """

    source: str
    options: dict[str, Any] | None = None
    fractions: tuple[Fraction, Fraction, Fraction] = (0.7, 0.15, 0.15)
    per_class: Count | None = None
    imbalance: Size | None = None
    label_noise: Annotated[float, Field(ge=0, le=1)] = 0.0
    reduce_val: bool = False


@dataclass(frozen=True)
class PriorConfig:
    """p(y) at prediction: the class shares of the training split, a uniform prior, or numbers that sum to one."""

    kind: Literal["train", "uniform", "given"] = "train"
    prob: tuple[Fraction, ...] = ()


@dataclass(frozen=True)
class EvidenceConfig:
    """Which sources of evidence a run uses, in this order. Each has its options in a section [evidence.NAME].

    sources: names in ``scorebayes.evidence.registry``. Estimators in nats use only the sources that can give nats.
    """

    sources: tuple[str, ...] = ("pixels", "wavelets")

    def __post_init__(self) -> None:
        for name in self.sources:
            if name not in EVIDENCE:
                raise ConfigError(
                    f"[evidence] sources: {name!r} is unknown{nearest_name(name, EVIDENCE)}.",
                    f"Known: {', '.join(EVIDENCE)}.",
                )
        if not self.sources or len(set(self.sources)) < len(self.sources):
            raise ConfigError(
                f"[evidence] sources = {list(self.sources)}: expected one or more names, without repeats."
            )


PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "tiny": {
        "net": {"channels": [32, 64], "blocks": 1, "attention": 1, "patch": 2, "dropout": 0.0},
        "train": {
            "steps": 800,
            "ema": 0.99,
            "lr": 2e-3,
            "warmup": 30,
            "log_snr_mean": 0.5,
            "log_snr_std": 2.0,
        },
        "likelihood": {"mean": 0.5, "std": 2.0},
    },
    # The label in the decoder only: all classes of a noised image share one pass of the encoder.
    "small": {
        "net": {"channels": [48, 96, 128], "blocks": 2, "attention": 2, "patch": 2, "label_in": "decoder"}
    },
    # Half the cost of "small", for many short trainings; behind it where there are steps enough (docs/decisions/0009).
    "light": {
        "net": {"channels": [32, 64, 128], "blocks": 1, "attention": 2, "patch": 2, "label_in": "decoder"}
    },
    # The paper's network and schedule (384 pixels, 32-64-128-256-512, CLAHE), with its faults mended: group norm, the
    # label passed, EMA, dequantisation. Its step rate decay is replaced by the cosine.
    "paper": {
        "prepare": {"size": 384, "steps": ["paper"]},
        "net": {"channels": [32, 64, 128, 256, 512], "blocks": 2, "attention": 1, "patch": 1},
        "train": {
            "steps": 100_000,
            "batch": 32,
            "lr": 1e-4,
            "ema": 0.9999,
            "rotate": 0.0,
            "zoom": 0.0,
            "shift": 0.0,
        },
    },
}

_SECTIONS = ("data", "prepare", "noise", "net", "train", "evidence", "likelihood", "prior")
_REGISTRIES: dict[str, Mapping[str, Callable]] = {
    "noise": NOISES,
    "net": BACKBONES,
    "likelihood": LIKELIHOODS,
}
_DEFAULT_KIND = {"noise": "vp", "net": "unet", "likelihood": "denoising"}
_PLAIN: dict[str, Callable] = {
    "data": DataConfig,
    "prepare": Prepare,
    "train": TrainConfig,
    "prior": PriorConfig,
}
_OF_ENCODER = ("encoder", "size")  # named for one source, they hold for all that say nothing else
LARGEST, DEEPEST = 1_000_000, 100  # bytes of a configuration file, and names in a row
_FILLED_BY_DATA = {"home", "image_channels", "n_classes", "n_augment", "out_channels"}


@dataclass(frozen=True)
class Config:
    """The resolved configuration of a run. Every section is a plain table, checked against its constructor."""

    seed: int
    sections: dict[str, dict[str, Any]]

    @property
    def data(self) -> DataConfig:
        return DataConfig(**checked_fields("data", self.sections["data"]))

    @property
    def prepare(self) -> Prepare:
        return Prepare(**checked_fields("prepare", self.sections["prepare"]))

    @property
    def train(self) -> TrainConfig:
        return TrainConfig(**checked_fields("train", self.sections["train"]))

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the sources of evidence."""
        return tuple(self.sections["evidence"]["sources"])

    def open_evidence(self, name: str, home: Home) -> Evidence:
        """A source of evidence of a run, with the options of its section."""
        options = self.sections["evidence"].get(name, {})
        return EVIDENCE[name](home, **checked_fields(f"evidence.{name}", options, EVIDENCE[name]))  # type: ignore[call-arg]

    @property
    def prior(self) -> PriorConfig:
        return PriorConfig(**checked_fields("prior", self.sections["prior"]))

    def build(self, section: str, **given: Any) -> Any:
        """The component of a section with a registry ("noise", "net", "likelihood"); ``given`` are fields from data."""
        table = dict(self.sections[section])
        constructor = _REGISTRIES[section][table.pop("kind")]
        return constructor(**given, **checked_fields(section, table, constructor))

    def to_toml(self) -> str:
        filled = {
            name: {k: v for k, v in table.items() if v is not None} for name, table in self.sections.items()
        }
        return tomli_w.dumps({"seed": self.seed, **filled})

    def changed(self, section: str, **fields: Any) -> Config:
        """With other values of some fields of a section, as plain TOML values."""
        return Config(self.seed, {**self.sections, section: {**self.sections[section], **fields}})

    def differences(self, other: Config, leave_out: Collection[str] = ()) -> list[str]:
        """Fields in which two configurations differ, as ``section.field: mine -> other's``; some sections left out."""
        compared = [name for name in _SECTIONS if name not in leave_out]
        return differences(
            {"seed": self.seed, **self.sections}, {"seed": other.seed, **other.sections}, compared
        )


def differences(mine: Mapping[str, Any], theirs: Mapping[str, Any], sections: Sequence[str]) -> list[str]:
    """Seed and fields in which two resolved configurations differ, as ``section.field: mine -> theirs``."""
    found = [] if mine["seed"] == theirs["seed"] else [f"seed: {mine['seed']} -> {theirs['seed']}"]
    for name in sections:
        one, other = mine[name], theirs[name]
        found += [
            f"{name}.{key}: {one.get(key)} -> {other.get(key)}"
            for key in sorted({*one, *other})
            if one.get(key) != other.get(key)
        ]
    return found


def resolve(
    *layers: Mapping[str, Any], preset: str | None = "small", defaults: Mapping[str, Any] | None = None
) -> Config:
    """Merge what the data set suggests (``defaults``), the preset and the layers (later ones win); check every field.

    Without a preset (None) only the constructors' defaults fill what the layers leave open. Raises ConfigError naming
    section and field, with the nearest known name where one is unknown.
    """
    found: dict[str, Any] = {"seed": 0}
    for layer in (defaults or {}, {} if preset is None else preset_layer(preset), *layers):
        for key, value in layer.items():
            if key not in ("seed", *_SECTIONS):
                remedy = (
                    'To leave the wavelets out, set [evidence] sources = ["pixels"].'
                    if key == "wavelets"
                    else ""
                )
                raise ConfigError(
                    f"unknown section or key {key!r} in the configuration{nearest_name(key, _SECTIONS)}.",
                    remedy,
                )
            if key == "seed":
                found["seed"] = value
            elif not isinstance(value, Mapping):
                raise ConfigError(f"[{key}] must be a section, got {value!r}.")
            else:
                found[key] = merged(found.get(key, {}), value)
    return Config(
        checked_seed(found["seed"]), {name: _resolved(name, found.get(name, {})) for name in _SECTIONS}
    )


def checked_seed(seed: Any) -> int:
    """A seed of any size as one that all libraries take: the remainder by 2^32. ConfigError for anything but a whole number
    from 0 on."""
    if isinstance(seed, bool) or not isinstance(seed, Integral) or seed < 0:
        raise ConfigError(
            f"seed must be a whole number >= 0, got {seed!r}.", "Choose one, or leave it out for 0."
        )
    return int(seed) % 2**32


def merged(table: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """A section and one that overrides it. Tables within a section (options of the data, of a source) are merged too."""
    tables = {
        name: merged(table[name], value)
        for name, value in over.items()
        if isinstance(value, Mapping) and isinstance(table.get(name), Mapping)
    }
    return {**table, **over, **tables}


def preset_layer(name: str) -> Mapping[str, Any]:
    """A preset as a layer for ``resolve``. ConfigError for an unknown one."""
    if name not in PRESETS:
        raise ConfigError(
            f"unknown preset {name!r}{nearest_name(name, PRESETS)}.", f"Known: {', '.join(PRESETS)}."
        )
    return PRESETS[name]


def read_toml(path: Path) -> dict[str, Any]:
    """A configuration file as a layer for ``resolve``. ConfigError where it is none."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST:
            raise ConfigError(
                f"{path}: no configuration file, but a folder, a pipe or too large.", "Name a TOML file."
            )
        return parse_toml(path, path.read_bytes())
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such configuration file.") from error


def parse_toml(path: Path, content: bytes) -> dict[str, Any]:
    """The same of the content of a file."""
    try:
        if max(piece.count(b".") for piece in re.split(rb"[=\n,\[\]{}]", content)) > DEEPEST:
            raise RecursionError  # takes the square of its depth to read
        return tomllib.loads(content.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file ({error}).") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: its tables or lists are nested too deeply.") from error


def _resolved(section: str, table: Mapping[str, Any]) -> dict[str, Any]:
    """A section with its defaults filled in and its values checked, as plain TOML values."""
    if section == "evidence":
        return _resolved_evidence(table)
    if section not in _REGISTRIES:
        checked = checked_fields(section, table)
        _PLAIN[section](**checked)  # what fields say together
        return plain_values(checked)
    registry, table = _REGISTRIES[section], dict(table)
    kind = table.pop("kind", _DEFAULT_KIND[section])
    return {"kind": kind, **plain_values(checked_fields(section, table, _known(section, kind, registry)))}


def _resolved_evidence(table: Mapping[str, Any]) -> dict[str, Any]:
    """The sources, and the options of every source that has some."""
    options = {name: of for name, of in table.items() if name in EVIDENCE}
    checked = checked_fields(
        "evidence", {key: of for key, of in table.items() if key not in options}, EvidenceConfig
    )
    EvidenceConfig(**checked)
    named = [name for name in EVIDENCE if name in options or name in checked["sources"]]
    shared = {key: of[key] for key in _OF_ENCODER for of in options.values() if key in of}
    for name in named:
        takes = inspect.signature(EVIDENCE[name]).parameters
        options[name] = {key: shared[key] for key in shared if key in takes} | dict(options.get(name, {}))
    of_sources = {name: checked_fields(f"evidence.{name}", options[name], EVIDENCE[name]) for name in named}
    return plain_values(checked) | {name: plain_values(of) for name, of in of_sources.items() if of}


def build_kind(what: str, kind: str, registry: Mapping[str, Callable], fields: Mapping[str, Any]) -> Any:
    """The entry ``kind`` of any registry, built from checked fields. ConfigError as in ``resolve``."""
    constructor = _known(what, kind, registry)
    return constructor(**checked_fields(what, fields, constructor))


def _known(what: str, kind: Any, registry: Mapping[str, Callable]) -> Callable:
    if kind not in registry:
        raise ConfigError(
            f"[{what}] kind = {kind!r} is unknown{nearest_name(str(kind), registry)}.",
            f"Known: {', '.join(registry)}.",
        )
    return registry[kind]


def checked_fields(
    section: str, table: Mapping[str, Any], constructor: Callable | None = None
) -> dict[str, Any]:
    """All fields of a constructor: those given, checked against their annotations, and the defaults of the others."""
    constructor = constructor or _PLAIN[section]
    target = constructor.__init__ if inspect.isclass(constructor) else constructor
    hints = get_type_hints(target, include_extras=True)
    fields = {
        name: (hints.get(name, Any), ... if parameter.default is parameter.empty else parameter.default)
        for name, parameter in inspect.signature(constructor).parameters.items()
        if name not in _FILLED_BY_DATA
    }
    for key in table:
        if key not in fields:
            raise ConfigError(
                f"unknown key {key!r} in [{section}]{nearest_name(key, fields)}.",
                f"Known: {', '.join(fields)}." if fields else "It has no options.",
            )
    strict = pydantic.ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
    model = pydantic.create_model(section, __config__=strict, **fields)  # type: ignore[call-overload]
    try:
        checked = model(**{key: _as_typed(value) for key, value in table.items()})
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"[{section}] {where} = {short(first['input'])}: {first['msg'].replace('tuple', 'list')}."
        ) from error
    found = {name: getattr(checked, name) for name in fields}
    for name, value in found.items():
        require_bounded(section, name, value)
    return found


def _as_typed(value: Any) -> Any:
    """TOML's lists as tuples, and NumPy's numbers as Python's."""
    if isinstance(value, (list, tuple)):
        return tuple(map(_as_typed, value))
    if isinstance(value, (bool, int, float, str)) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def plain_values(fields: Mapping[str, Any]) -> dict[str, Any]:
    """As TOML has them."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()}


def nearest_name(name: str, known: Any) -> str:
    """A hint at the known name that was probably meant."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
