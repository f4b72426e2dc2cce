"""The evidence table: the waist between the sources of evidence (costly, torch) and the decision (cheap, NumPy).

A table holds one block for each source. Priors, calibration, weights, thresholds and reports are redone from it in seconds,
without a network. Stored as Parquet in long form, one row per (image, source, class, draw): a folder of parts, so that
scoring streams and resumes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from scorebayes.errors import ConfigError, DataError, NumericalError
from scorebayes.storage import sealed
from scorebayes.storage.frames import read_frame

OK = "ok"


@dataclass(frozen=True)
class Block:
    """What one source says of N images under Y classes, in K draws that the classes share.

    draws: [K, N, Y] float64. log_snr: [K, N], noise level of each draw; NaN where a draw has none. level: [K], stratum of
    each draw. nfe: [N], network evaluations per image and class. status: [N], "ok" or why there is no number.
    kind: what a number is: "density" (log p(x|y), nats), "lower-bound" (of it), "class-score" (a scaled log of a denoising
    error) or "log-ratio" (log-likelihoods less their mean over the classes). exact: draws have no Monte-Carlo error.
    """

    draws: NDArray[np.float64]
    log_snr: NDArray[np.float64]
    level: NDArray[np.int64]
    nfe: NDArray[np.int64]
    status: NDArray[np.str_]
    kind: str
    exact: bool = False

    @property
    def nats(self) -> NDArray[np.float64]:
        """log p(x|y), or its bound, in nats [N, Y]. NumericalError for numbers that are no log-likelihoods."""
        if self.kind not in ("density", "lower-bound"):
            raise NumericalError(
                f"the table holds numbers of the kind {self.kind!r}, which are no log-likelihoods of the images.",
                "Use the posterior, or score with the estimator 'flow' or 'bound' for nats.",
            )
        return self.draws.mean(axis=0)

    @property
    def n_levels(self) -> int:
        return len(np.unique(self.level))

    @property
    def level_means(self) -> NDArray[np.float64]:
        """Mean over the draws of each level [N, L, Y]."""
        return self.by_level(self.draws)

    @property
    def level_log_snr(self) -> NDArray[np.float64]:
        """Mean log-SNR of each level [L]; NaN where there is none."""
        return np.array([self.log_snr[self.level == level].mean() for level in np.unique(self.level)])

    def by_level(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Values of the draws [K, N, ...] -> their means by level [N, L, ...]."""
        levels = np.unique(self.level)
        return np.stack([values[self.level == level].mean(axis=0) for level in levels], axis=1)

    def variance_of_mean(
        self, weights: NDArray[np.float64], values: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Monte-Carlo variance of the weighted sum of level means of per-draw values [K, N] -> [N]; weights [L].

        Levels with one draw are paired with a neighbour and their difference taken as spread (collapsed strata, Cochran,
        Sampling Techniques, 5A.12), which errs on the safe side. NaN where all is one draw, zero where it is exact.
        """
        variance = np.zeros(values.shape[1])
        if self.exact:
            return variance
        if len(values) == 1:
            return np.full(values.shape[1], np.nan)
        levels, counts = np.unique(self.level, return_counts=True)
        if counts.min() > 1:
            for weight, level, count in zip(weights, levels, counts, strict=True):
                variance += weight**2 * values[self.level == level].var(axis=0, ddof=1) / count
            return variance
        terms = np.stack(
            [w * values[self.level == level].mean(0) for w, level in zip(weights, levels, strict=True)]
        )
        for group in np.array_split(terms, len(terms) // 2):
            variance += len(group) * group.var(axis=0, ddof=1)
        return variance

    def rows(self, index: NDArray | slice) -> Block:
        """The block of some images: an index array, a mask or a slice over N."""
        return replace(
            self, draws=self.draws[:, index], log_snr=self.log_snr[:, index], nfe=self.nfe[index],
            status=self.status[index],
        )  # fmt: skip

    @staticmethod
    def exactly(values: NDArray[np.float64], kind: str = "log-ratio") -> Block:
        """A block without noise: one level of one draw, which no network was asked for; values [N, Y]."""
        n, finite = len(values), np.isfinite(values).all(axis=1)
        return Block(
            values[None].astype(np.float64), np.full((1, n), np.nan), np.zeros(1, dtype=np.int64),
            np.zeros(n, dtype=np.int64), np.where(finite, OK, "not finite"), kind, exact=True,
        )  # fmt: skip

    @staticmethod
    def concatenate(blocks: Sequence[Block]) -> Block:
        """Blocks of different images by the same source, one after the other."""
        return replace(
            blocks[0],
            draws=np.concatenate([b.draws for b in blocks], axis=1),
            log_snr=np.concatenate([b.log_snr for b in blocks], axis=1),
            nfe=np.concatenate([b.nfe for b in blocks]),
            status=np.concatenate([b.status for b in blocks]),
        )


@dataclass(frozen=True)
class EvidenceTable:
    """N images, Y classes, one block for each source.

    keys: image ids [N]. labels: [N], -1 where unknown. blocks: by the names of the sources. seconds: [N], time spent on the
    image. patients: ids [N], by default the image's own: folds never divide a patient.
    """

    keys: tuple[str, ...]
    labels: NDArray[np.int64]
    blocks: Mapping[str, Block]
    seconds: NDArray[np.float64]
    patients: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if not self.blocks:
            raise ConfigError("no source of evidence was asked.", "Name one in [evidence] sources.")
        if not self.patients:
            object.__setattr__(self, "patients", self.keys)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def n_classes(self) -> int:
        return next(iter(self.blocks.values())).draws.shape[2]

    @property
    def status(self) -> NDArray[np.str_]:
        """ "ok", or why a source has no number [N]."""
        each = [block.status for block in self.blocks.values()]
        return reduce(lambda so_far, own: np.where(so_far == OK, own, so_far), each)

    @property
    def nfe(self) -> NDArray[np.int64]:
        """Network evaluations per image and class, of all sources [N]."""
        return np.sum([block.nfe for block in self.blocks.values()], axis=0)

    @property
    def only(self) -> Block:
        """The block of a table that has one. ConfigError where there are several."""
        if len(self.blocks) > 1:
            raise ConfigError(
                f"the table has {len(self.blocks)} sources of evidence ({', '.join(self.blocks)}), expected one."
            )
        return next(iter(self.blocks.values()))

    @property
    def log_shares(self) -> NDArray[np.float64]:
        """Log of the class shares of its images, which all have labels [Y]."""
        return np.log(np.bincount(self.labels, minlength=self.n_classes) / len(self))

    def alone(self, name: str) -> EvidenceTable:
        """The table of one source."""
        return replace(self, blocks={name: self.blocks[name]})

    def rows(self, index: NDArray | slice) -> EvidenceTable:
        """The table of some images: an index array, a mask or a slice over N."""
        return EvidenceTable(
            tuple(np.asarray(self.keys, dtype=object)[index]),
            self.labels[index],
            {name: block.rows(index) for name, block in self.blocks.items()},
            self.seconds[index],
            tuple(np.asarray(self.patients, dtype=object)[index]),
        )

    def usable(self) -> EvidenceTable:
        """The images whose status is "ok"."""
        return self.rows(self.status == OK)

    def with_labels(self, labels: NDArray[np.int64], patients: Sequence[str] = ()) -> EvidenceTable:
        """The same table with labels [N], and with patients [N] where they are given."""
        own = tuple(patients) or self.patients
        return replace(self, labels=np.asarray(labels, dtype=np.int64), patients=own)

    @staticmethod
    def concatenate(tables: Sequence[EvidenceTable]) -> EvidenceTable:
        """Tables of different images by the same sources, one after the other."""
        return EvidenceTable(
            tuple(key for table in tables for key in table.keys),
            np.concatenate([t.labels for t in tables]),
            {name: Block.concatenate([t.blocks[name] for t in tables]) for name in tables[0].blocks},
            np.concatenate([t.seconds for t in tables]),
            tuple(patient for table in tables for patient in table.patients),
        )

    def to_frame(self) -> pd.DataFrame:
        """Long form, one row per (image, source, class, draw), source by source."""
        return pd.concat([self._frame_of(name) for name in self.blocks], ignore_index=True)

    def _frame_of(self, name: str) -> pd.DataFrame:
        block = self.blocks[name]
        k, n, y = block.draws.shape
        return pd.DataFrame(
            {
                "image_id": np.repeat(np.asarray(self.keys, dtype=object), y * k),
                "patient_id": np.repeat(np.asarray(self.patients, dtype=object), y * k),
                "label": np.repeat(self.labels.astype(np.int32), y * k),
                "source": name,
                "class": np.tile(np.repeat(np.arange(y, dtype=np.int32), k), n),
                "draw": np.tile(np.arange(k, dtype=np.int32), n * y),
                "level": np.tile(block.level.astype(np.int32), n * y),
                "log_snr": np.repeat(block.log_snr.T[:, None, :], y, axis=1).ravel(),
                "value": block.draws.transpose(1, 2, 0).ravel(),
                "nfe": np.repeat(block.nfe.astype(np.int32), y * k),
                "seconds": np.repeat(self.seconds, y * k),
                "status": np.repeat(block.status.astype(object), y * k),
                "kind": block.kind,
                "exact": block.exact,
            }
        )

    def write_part(self, path: Path) -> None:
        """Write the table as one part of a folder, whole or not at all."""
        sealed.make_folder(path.parent)
        rows = pa.Table.from_pandas(self.to_frame(), preserve_index=False)
        with sealed.replacing(path) as partial:
            pq.write_table(rows, partial, compression="zstd")

    @staticmethod
    def read(folder: Path) -> EvidenceTable:
        """All parts of ``folder``, in order. DataError if there is none or one is damaged, ConfigError if one was changed
        since it was sealed."""
        parts = sorted(folder.glob("part-*.parquet"))
        if not parts:
            raise DataError(f"{folder}: no evidence table there.", "Run 'scorebayes score' first.")
        tables = []
        for part in parts:
            frame = read_frame(part)
            try:
                tables.append(_from_frame(frame))
            except (LookupError, TypeError, ValueError) as error:
                raise DataError(
                    f"{part}: damaged ({error}).", "Delete it and run 'scorebayes score' again."
                ) from error
        return EvidenceTable.concatenate(tables)


def _from_frame(frame: pd.DataFrame) -> EvidenceTable:
    if "source" not in frame:
        frame = _with_sources(frame)
    blocks = {str(name): _block(rows) for name, rows in frame.groupby("source", sort=False)}
    first = frame[frame["source"] == frame["source"].iloc[0]]
    each = first.iloc[:: _draws_an_image(first)]
    patients = tuple(each["patient_id"]) if "patient_id" in frame else ()
    return EvidenceTable(
        tuple(each["image_id"]), each["label"].to_numpy(np.int64), blocks, each["seconds"].to_numpy(np.float64), patients
    )  # fmt: skip


def _draws_an_image(rows: pd.DataFrame) -> int:
    return (int(rows["class"].max()) + 1) * (int(rows["draw"].max()) + 1)


def _block(rows: pd.DataFrame) -> Block:
    n_classes, n_draws = int(rows["class"].max()) + 1, int(rows["draw"].max()) + 1
    shape = (-1, n_classes, n_draws)
    each = rows.iloc[:: n_classes * n_draws]
    return Block(
        draws=rows["value"].to_numpy(np.float64).reshape(shape).transpose(2, 0, 1),
        log_snr=rows["log_snr"].to_numpy(np.float64).reshape(shape)[:, 0].T,
        level=rows["level"].to_numpy(np.int64)[:n_draws],
        nfe=each["nfe"].to_numpy(np.int64),
        status=each["status"].to_numpy(str),
        kind=str(rows["kind"].iloc[0]),
        exact=bool(rows["exact"].iloc[0]),
    )


def _with_sources(frame: pd.DataFrame) -> pd.DataFrame:
    """A table of run format 3 or older, which had one source and, in a column beside it, the wavelets."""
    pixels = frame.assign(source="pixels", exact=False)
    if "wavelets" not in frame or not frame["wavelets"].any():
        return pixels
    wavelets = frame[frame["draw"] == 0].assign(
        source="wavelets", exact=True, level=0, log_snr=np.nan, nfe=0, status=OK, kind="log-ratio",
        value=lambda rows: rows["wavelets"],
    )  # fmt: skip
    return pd.concat([pixels, wavelets], ignore_index=True)
