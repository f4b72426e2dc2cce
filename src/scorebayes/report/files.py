"""The files of a run directory, as the report reads them: only data, nothing that needs torch."""

from __future__ import annotations

import io
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scorebayes.decision.table import EvidenceTable
from scorebayes.errors import ConfigError, DataError, command
from scorebayes.plots.svg import short
from scorebayes.storage import sealed
from scorebayes.storage.arrays import read_arrays
from scorebayes.storage.digest import sha256_of
from scorebayes.storage.frames import read_frame
from scorebayes.storage.log import read_log
from scorebayes.storage.spreadsheet import plain


@dataclass(frozen=True)
class Run:
    """What is in a run directory; None or empty where a file is absent."""

    folder: Path

    def __post_init__(self) -> None:
        if not (self.folder / "config.toml").is_file():
            raise ConfigError(
                f"{self.folder} is not a run directory: it has no config.toml.",
                "Give the folder that 'scorebayes train' wrote.",
            )

    @property
    def command_name(self) -> str:
        return self.folder.resolve().name

    def command(self, verb: str, *rest: object) -> str:
        """The command line that does what is missing, to be pasted where the report was made."""
        return command(*verb.split(), self.folder, *rest)

    @cached_property
    def config(self) -> dict[str, Any]:
        path = self.folder / "config.toml"
        content = sealed.read(path)
        try:
            return tomllib.loads(content.decode("utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise DataError(f"{path}: {error}.", "Restore the file, or train again.") from error

    @property
    def has_image_score(self) -> bool:
        """Whether the run draws images."""
        return "pixels" in self.config.get("evidence", {}).get("sources", ["pixels"])

    @cached_property
    def split(self) -> str:
        """The split that is reported: the test images where they were scored, else the validation images."""
        for name in ("test", "val", "train"):
            if (self.folder / f"predictions-{name}.csv").is_file() or self._json(f"metrics-{name}.json"):
                return name
        return "test"

    @cached_property
    def source(self) -> dict[str, Any]:
        return self._json("source.json")

    @cached_property
    def environment(self) -> dict[str, Any]:
        return self._json("environment.json")

    @cached_property
    def audit(self) -> dict[str, Any]:
        return self._json("audit.json")

    @cached_property
    def calibration(self) -> dict[str, Any]:
        return self._json("calibration.json")

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """ConfigError if they were computed with another calibration than the current one."""
        found = self._json(f"metrics-{self.split}.json")
        path, under = self.folder / "calibration.json", found.get("calibration_sha256")
        if under and path.is_file() and sha256_of(path) != under:
            raise ConfigError(
                f"{self.folder}: the calibration has changed since metrics-{self.split}.json was written.",
                f"Run `{self.command('evaluate', '--split', self.split)}` again.",
            )
        return found

    @cached_property
    def curves(self) -> dict[str, Any]:
        return self._json("curves.json")

    @cached_property
    def ood(self) -> dict[str, Any]:
        return self._json("ood.json")

    @cached_property
    def robustness(self) -> dict[str, Any]:
        return self._json("robustness.json")

    @cached_property
    def adversarial(self) -> dict[str, Any]:
        return self._json("adversarial.json")

    @cached_property
    def maker(self) -> dict[str, Any]:
        """What made the evidence table: a fingerprint for each source."""
        return self._json(f"{self._table.name}/_maker.json")

    @property
    def _table(self) -> Path:
        """The folder of the evidence table; of run format 3 or before it has another name."""
        before = self.folder / f"loglik-{self.split}.parquet"
        return before if before.exists() else self.folder / f"evidence-{self.split}.parquet"

    @property
    def at_threshold(self) -> dict[str, Any]:
        """The metrics of the decision at the frozen threshold, where it was chosen."""
        return self.metrics.get("at_threshold") or self.metrics

    @cached_property
    def log(self) -> pd.DataFrame:
        """``train.jsonl``, without what an interruption left half-written."""
        path = self.folder / "train.jsonl"
        if sealed.is_listed(path):  # else training goes on
            sealed.read(path)
        rows = read_log(path)
        wanted = ("step", "loss", "seconds", "images_per_second", "val_log_loss", "val_auc")
        return pd.DataFrame(rows).reindex(columns=wanted).apply(pd.to_numeric, errors="coerce")

    @cached_property
    def split_table(self) -> pd.DataFrame | None:
        path = self.folder / "split.parquet"
        return read_frame(path) if path.is_file() else None

    @cached_property
    def pretrained(self) -> str:
        """Which weights, trained on other images, the run builds on; in words, empty where there are none."""
        found = []
        for name in ("features", "pooled"):
            about = self._json(f"{name}/about.json")
            if about:
                by = about["learned_by"]
                origin = f"{about['licence']}, SHA-256 {by['sha256'][:16]}"
                found.append(f"encoder {by['encoder']}, pretrained on {about['pretrained_on']} ({origin})")
        return "; ".join(dict.fromkeys(found))

    @cached_property
    def evidence(self) -> EvidenceTable | None:
        """The labelled images of the evidence table that have values from all sources."""
        if not self._table.exists():
            return None
        table = EvidenceTable.read(self._table).usable()
        return table.rows(table.labels >= 0)

    @cached_property
    def weights(self) -> dict[str, NDArray[np.float64]]:
        """Fitted weights of the levels by source; empty where nothing was fitted."""
        stored = self.calibration.get("weights", {})
        if not isinstance(stored, dict):  # of run format 3 or before
            stored = {"pixels": stored, "wavelets": [self.calibration.get("wavelet_weight", 0.0)]}
        return {name: np.asarray(of, dtype=np.float64) for name, of in stored.items()}

    @cached_property
    def quarantine(self) -> pd.DataFrame | None:
        return _csv(self.folder / "quarantine.csv", ("image_id", "reason"))

    @cached_property
    def predictions(self) -> pd.DataFrame | None:
        return _csv(self.folder / f"predictions-{self.split}.csv", ("image_id", "label", "status"))

    @cached_property
    def classes(self) -> tuple[str, ...]:
        if self.source.get("classes"):
            return tuple(str(name) for name in self.source["classes"])
        if self.predictions is None:
            return ("negative", "positive")
        return tuple(c.removeprefix("prob_") for c in self.predictions if c.startswith("prob_"))

    @property
    def positive(self) -> int:
        index = int(self.source.get("positive", 1))
        if not 0 <= index < len(self.classes):
            raise DataError(
                f"{self.folder / 'source.json'}: positive class {index} of {len(self.classes)} classes.",
                "Run the command that wrote it again.",
            )
        return index

    @property
    def positive_name(self) -> str:
        return short(self.classes[self.positive])

    @property
    def negative_name(self) -> str:
        others = [short(name) for index, name in enumerate(self.classes) if index != self.positive]
        return others[0] if len(others) == 1 else "other"

    @property
    def synthetic(self) -> bool:
        return bool(self.source.get("synthetic", False))

    @property
    def title(self) -> str:
        return str(self.source.get("title") or self.source.get("name") or self.command_name)

    @cached_property
    def cases(self) -> Cases | None:
        """The labelled images that have a posterior, or None where there are no predictions."""
        return None if self.predictions is None else Cases.read(self)

    def _json(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        if not path.is_file():
            return {}
        content = sealed.read_json(path)
        if not isinstance(content, dict):
            raise DataError(f"{path}: expected a JSON object.", "Run the command that wrote it again.")
        return content

    def arrays(self, name: str) -> dict[str, NDArray] | None:
        """The arrays of an .npz file; nothing in it is executed."""
        path = self.folder / name
        return read_arrays(path) if path.is_file() else None


@dataclass(frozen=True)
class Cases:
    """N images with label and posterior: prob and raw_prob are [N, Y], all else is [N]."""

    image_id: NDArray
    patient_id: NDArray
    labels: NDArray[np.int64]
    prob: NDArray[np.float64]
    raw_prob: NDArray[np.float64] | None
    log_odds: NDArray[np.float64] | None
    std_error: NDArray[np.float64]
    decided: NDArray[np.bool_]
    positive: int

    @classmethod
    def read(cls, run: Run) -> Cases:
        table, classes = run.predictions, run.classes
        assert table is not None
        path = run.folder / f"predictions-{run.split}.csv"
        missing = [f"prob_{name}" for name in classes if f"prob_{name}" not in table]
        if missing:
            raise DataError(f"{path}: no column {missing[0]!r}.", f"Run `{run.command('score')}` again.")
        table = table[table["label"].isin(classes) & (table["status"] == "ok")]
        prob = _numbers(table, [f"prob_{name}" for name in classes])
        table, prob = table[np.isfinite(prob).all(1)], prob[np.isfinite(prob).all(1)]
        raw_names = [f"raw_prob_{name}" for name in classes]
        number = {name: index for index, name in enumerate(classes)}
        empty = pd.Series("", index=table.index)
        return cls(
            image_id=table["image_id"].to_numpy(object),
            patient_id=table.get("patient_id", empty).to_numpy(object),
            labels=table["label"].map(number).to_numpy(np.int64),
            prob=prob,
            raw_prob=_numbers(table, raw_names) if set(raw_names) <= set(table) else None,
            log_odds=_numbers(table, ["log_odds"])[:, 0] if "log_odds" in table else None,
            std_error=_numbers(table, ["log_odds_std_error"])[:, 0]
            if "log_odds_std_error" in table
            else np.full(len(table), np.nan),
            decided=(table.get("decided", empty) != "no").to_numpy(bool),
            positive=run.positive,
        )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def truth(self) -> NDArray[np.bool_]:
        return self.labels == self.positive

    @property
    def score(self) -> NDArray[np.float64]:
        return self.prob[:, self.positive]

    def called(self, threshold: float | None) -> NDArray[np.int64]:
        """The class that each case is called [N]; a threshold decides between two classes only."""
        if threshold is None or self.prob.shape[1] > 2:
            return self.prob.argmax(1)
        return np.where(self.score >= threshold, self.positive, 1 - self.positive)

    @property
    def both_classes(self) -> bool:
        return bool(self.truth.any() and not self.truth.all())


def _numbers(table: pd.DataFrame, columns: Sequence[str]) -> NDArray[np.float64]:
    return table[list(columns)].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)


def _csv(path: Path, needed: Sequence[str]) -> pd.DataFrame | None:
    """A table of text, so that ids such as 007 and NA stay as they are."""
    if not path.is_file():
        return None
    content = sealed.read(path)
    try:
        table = pd.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False, encoding="utf-8")
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: damaged ({error}).", "Run the command that wrote it again.") from error
    missing = [name for name in needed if name not in table]
    if missing:
        raise DataError(f"{path}: no column {missing[0]!r}.", "Run the command that wrote it again.")
    return table.map(plain).rename(columns=plain)
