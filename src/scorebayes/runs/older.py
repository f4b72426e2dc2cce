"""Reads run directories of older formats like current ones.

Format 1: every image had noise of its own. Format 3 and before: the wavelets stood beside the pixels by name, in [wavelets]
of the configuration, in fields of their own of ``calibration.json``, and in a column of the tables ``loglik-*.parquet``
(which ``EvidenceTable.read`` understands). Format 4 and before: no file was sealed (``scorebayes.storage.sealed``), and a
table's maker did not name the settings.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from scorebayes.evidence.wavelets import WaveletMixtures


def configuration(layer: Mapping[str, Any], written: int) -> dict[str, Any]:
    """The content of ``config.toml`` of a run directory of format ``written``, in format 4."""
    layer = dict(layer)
    if written == 1 and layer.get("likelihood", {}).get("kind") == "denoising":
        # What its calibration was fitted on.
        layer["likelihood"] = {"common_noise": False, **layer["likelihood"]}
    if written < 4 and "evidence" not in layer:
        asked = layer.pop("wavelets", {}).get("use", True)
        layer["evidence"] = {"sources": ["pixels", "wavelets"] if asked else ["pixels"]}
    return layer


def decision(stored: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The content of ``calibration.json``; that of format 3 and before has one list of weights."""
    stored = dict(stored)
    if isinstance(stored["weights"], Mapping):
        return stored
    kind = stored.pop("kind")
    wavelets = {"wavelets": [stored.pop("wavelet_weight", 0.0)]} if _wavelets(folder).exists() else {}
    typicality = stored.get("typicality")
    return stored | {
        "weights": {"pixels": stored["weights"], **wavelets},
        "level_log_snr": {"pixels": stored["level_log_snr"], **{name: [float("nan")] for name in wavelets}},
        "kinds": {"pixels": kind, **dict.fromkeys(wavelets, "log-ratio")},
        "penalties": {"pixels": stored.get("penalty", float("nan"))},
        "shares": {},
        "draw_means": {"pixels": stored["draw_means"]} if stored.get("draw_means") else {},
        "typicality": None if typicality is None else _typicality(typicality),
    }


def made_by(
    note: Mapping[str, str], weights: str, estimator: str, asked: Collection[str], folder: Path
) -> bool:
    """Whether a table of format 3 or before was made by these weights (SHA-256), this estimator (its repr), and by the
    wavelets of the run where they are among the sources that are asked."""
    wavelets = WaveletMixtures.load(_wavelets(folder)).fingerprint if "wavelets" in asked else None
    return (note["weights"], note["estimator"], note.get("wavelets")) == (weights, estimator, wavelets)


def _typicality(stored: Mapping[str, Any]) -> dict[str, Any]:
    levels = {key: value for key, value in stored.items() if key != "appearance"}
    return {"levels": {"pixels": levels}, "appearance": stored.get("appearance")}


def _wavelets(folder: Path) -> Path:
    return folder / "wavelets.safetensors"
