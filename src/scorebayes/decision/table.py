"""The log-likelihood table: the waist between the network (costly, torch) and the decision (cheap, NumPy).

One row per (image, class, draw) with its noise level. Priors, calibration, noise-level weights, thresholds and reports
are redone from it in seconds, without the network. Stored as Parquet: a folder of parts, so that scoring streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from scorebayes.errors import DataError, NumericalError
from scorebayes.storage.atomic import replacing


@dataclass(frozen=True)
class LogLikTable:
    """N images, Y classes, K draws shared by the classes.

    keys: image ids [N]. labels: [N], -1 where unknown. draws: [K, N, Y] float64, log_snr: [K, N], level: [K], nfe: [N] and
    status: [N] as in ``scorebayes.diffusion.likelihood.base.LogProb``; kind: "density", "lower-bound" or "class-score".
    seconds: [N], time spent on the image. wavelets: [N, Y], what the wavelet coefficients say of the classes
    (``scorebayes.evidence.mixtures``), nats; zero where a run does not ask them.
    """

    keys: tuple[str, ...]
    labels: NDArray[np.int64]
    draws: NDArray[np.float64]
    log_snr: NDArray[np.float64]
    level: NDArray[np.int64]
    nfe: NDArray[np.int64]
    status: NDArray[np.str_]
    seconds: NDArray[np.float64]
    kind: str
    wavelets: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 0)))

    def __post_init__(self) -> None:
        if not self.wavelets.size:
            object.__setattr__(self, "wavelets", np.zeros(self.draws.shape[1:]))

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def nats(self) -> NDArray[np.float64]:
        """log p(x|y), or its bound, in nats of the standardised image [N, Y]. A class score has none: NumericalError."""
        if self.kind == "class-score":
            raise NumericalError(
                "the table holds class scores (logs of denoising errors), which are no log-likelihoods of the images.",
                "Use the posterior, or score with the estimator 'flow' or 'bound' for nats.",
            )
        return self.draws.mean(axis=0)

    @property
    def level_means(self) -> NDArray[np.float64]:
        """Mean over the draws of each noise level [N, L, Y]."""
        levels = np.unique(self.level)
        return np.stack([self.draws[self.level == level].mean(axis=0) for level in levels], axis=1)

    @property
    def log_shares(self) -> NDArray[np.float64]:
        """Log of the class shares of its images, which all have labels [Y]."""
        return np.log(np.bincount(self.labels, minlength=self.draws.shape[2]) / len(self))

    def rows(self, index: NDArray | slice) -> LogLikTable:
        """The table of some images: an index array, a mask or a slice over N."""
        keys = np.asarray(self.keys, dtype=object)[index]
        return LogLikTable(
            tuple(keys), self.labels[index], self.draws[:, index], self.log_snr[:, index], self.level,
            self.nfe[index], self.status[index], self.seconds[index], self.kind, self.wavelets[index],
        )  # fmt: skip

    def usable(self) -> LogLikTable:
        """The images whose status is "ok"."""
        return self.rows(self.status == "ok")

    def with_labels(self, labels: NDArray[np.int64]) -> LogLikTable:
        """The same table with labels [N]."""
        return replace(self, labels=np.asarray(labels, dtype=np.int64))

    @staticmethod
    def concatenate(tables: Sequence[LogLikTable]) -> LogLikTable:
        """Tables of different images by the same estimator, one after the other."""
        first = tables[0]
        return LogLikTable(
            tuple(key for table in tables for key in table.keys),
            np.concatenate([t.labels for t in tables]),
            np.concatenate([t.draws for t in tables], axis=1),
            np.concatenate([t.log_snr for t in tables], axis=1),
            first.level,
            np.concatenate([t.nfe for t in tables]),
            np.concatenate([t.status for t in tables]),
            np.concatenate([t.seconds for t in tables]),
            first.kind,
            np.concatenate([t.wavelets for t in tables]),
        )

    def to_frame(self) -> pd.DataFrame:
        """Long form, one row per (image, class, draw)."""
        k, n, y = self.draws.shape
        return pd.DataFrame(
            {
                "image_id": np.repeat(np.asarray(self.keys, dtype=object), y * k),
                "label": np.repeat(self.labels.astype(np.int32), y * k),
                "class": np.tile(np.repeat(np.arange(y, dtype=np.int32), k), n),
                "draw": np.tile(np.arange(k, dtype=np.int32), n * y),
                "level": np.tile(self.level.astype(np.int32), n * y),
                "log_snr": np.repeat(self.log_snr.T[:, None, :], y, axis=1).ravel(),
                "value": self.draws.transpose(1, 2, 0).ravel(),
                "nfe": np.repeat(self.nfe.astype(np.int32), y * k),
                "seconds": np.repeat(self.seconds, y * k),
                "status": np.repeat(self.status.astype(object), y * k),
                "kind": self.kind,
                "wavelets": np.repeat(self.wavelets.ravel(), k),
            }
        )

    def write_part(self, folder: Path, part: int) -> None:
        """Add the table to ``folder`` as one part, atomically."""
        folder.mkdir(parents=True, exist_ok=True)
        rows = pa.Table.from_pandas(self.to_frame(), preserve_index=False)
        with replacing(folder / f"part-{part:06d}.parquet") as partial:
            pq.write_table(rows, partial, compression="zstd")

    @staticmethod
    def read(folder: Path) -> LogLikTable:
        """All parts of ``folder``, in order. DataError if there is none or one is damaged."""
        parts = sorted(folder.glob("part-*.parquet"))
        if not parts:
            raise DataError(f"{folder}: no log-likelihood table there.", "Run 'scorebayes score' first.")
        tables = []
        for part in parts:
            try:
                tables.append(_from_frame(pq.read_table(part).to_pandas()))
            except (pa.ArrowException, OSError, KeyError, ValueError) as error:
                raise DataError(
                    f"{part}: damaged ({error}).", "Delete it and run 'scorebayes score' again."
                ) from error
        return LogLikTable.concatenate(tables)


def _from_frame(frame: pd.DataFrame) -> LogLikTable:
    n_classes, n_draws = int(frame["class"].max()) + 1, int(frame["draw"].max()) + 1
    shape = (-1, n_classes, n_draws)
    each = frame.iloc[:: n_classes * n_draws]
    known = {}
    if "wavelets" in frame:  # versions that did not know them wrote none
        known["wavelets"] = frame["wavelets"].to_numpy(np.float64)[::n_draws].reshape(-1, n_classes)
    return LogLikTable(
        keys=tuple(each["image_id"]),
        labels=each["label"].to_numpy(np.int64),
        draws=frame["value"].to_numpy(np.float64).reshape(shape).transpose(2, 0, 1),
        log_snr=frame["log_snr"].to_numpy(np.float64).reshape(shape)[:, 0].T,
        level=frame["level"].to_numpy(np.int64)[:n_draws],
        nfe=each["nfe"].to_numpy(np.int64),
        status=each["status"].to_numpy(str),
        seconds=each["seconds"].to_numpy(np.float64),
        kind=str(frame["kind"].iloc[0]),
        **known,
    )
