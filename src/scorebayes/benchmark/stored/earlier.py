"""An earlier result file of a benchmark with its posteriors: what is kept from it and not measured again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scorebayes.benchmark.names import ENSEMBLE, MORE, OURS, is_alone
from scorebayes.benchmark.stored.answers import Answers
from scorebayes.benchmark.stored.posteriors import Said, class_indices, posteriors_path, read_posteriors
from scorebayes.data.base import SourceInfo
from scorebayes.errors import ConfigError, DataError

ABOUT = ("test_images", "estimator", "nfe_per_class", "majority_accuracy")
"""What the file says about the test split and our estimator."""
REMEDY = "Leave out --keep and --keep-ours."


@dataclass(frozen=True)
class Earlier:
    """The content of the file, and the posteriors by model and seed."""

    path: Path
    content: Mapping[str, Any]
    said: Said

    @staticmethod
    def read(path: Path, budget: Mapping[str, Any]) -> Earlier:
        """ConfigError if the file does not exist, or has another budget or other seeds."""
        if not path.exists():
            raise ConfigError(f"{path}: the file does not exist, so nothing can be kept.", REMEDY)
        content = json.loads(path.read_text(encoding="utf-8"))
        for key, value in budget.items():
            if content[key] != value:
                raise ConfigError(
                    f"{path}: its {key} are {content[key]}, but {value} is requested now.", REMEDY
                )
        return Earlier(path, content, read_posteriors(posteriors_path(path)))

    @property
    def about(self) -> dict[str, Any]:
        """``ABOUT``."""
        return {key: self.content[key] for key in ABOUT}

    @property
    def own(self) -> list[str]:
        """Our models: with all sources of evidence, with more evaluations, and with each source alone."""
        return [OURS, MORE, *filter(is_alone, self.content["models"])]

    def entries(self, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The entries of those of these models that it has, and of their ensembles. They say when they were measured, and by
        which command."""
        origin = {key: self.content[key] for key in ("written", "command")}
        wanted = {*names, *map(ENSEMBLE.format, names)}
        return {
            model: {**entry, "measured": entry.get("measured", origin)}
            for model, entry in self.content["models"].items()
            if model in wanted
        }

    def answered(self, names: Sequence[str], seeds: Sequence[int]) -> list[str]:
        """Those of these models whose posteriors it has for all seeds."""
        return [name for name in names if all((name, seed) in self.said for seed in seeds)]

    def own_answers(self, seed: int, info: SourceInfo) -> Answers:
        """Our answers of a seed. ConfigError if the posteriors are missing."""
        if (OURS, seed) not in self.said:
            file = posteriors_path(self.path)
            raise ConfigError(f"{file}: our posteriors of seed {seed} are missing.", "Leave out --keep-ours.")
        rows = self.said[OURS, seed]
        labels = class_indices(rows["label"], info.classes)
        bare = Answers(labels, tuple(rows.index), tuple(rows["patient_id"]), {}, info.positive)
        return self.add(bare, self.answered(self.own, [seed]), seed, info.classes)

    def add(self, answers: Answers, names: Sequence[str], seed: int, classes: Sequence[str]) -> Answers:
        """The answers together with those of these models for the same images. DataError if they saw others."""
        prob = {}
        for name in names:
            rows = self.said[name, seed].reindex(list(answers.images))[[f"prob_{y}" for y in classes]]
            if rows.isna().any(axis=None):
                raise DataError(f"the kept posteriors of {name} belong to other test images.", REMEDY)
            prob[name] = rows.to_numpy(np.float64)
        return answers.with_models(prob)
