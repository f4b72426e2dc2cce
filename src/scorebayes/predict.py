"""Prediction: image files to a table of posteriors, with abstention in words where there is none."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from scorebayes.data import read_image, read_tags
from scorebayes.errors import DataError
from scorebayes.evaluate import predictions
from scorebayes.progress import progress_bar
from scorebayes.run import Run
from scorebayes.table import LogLikTable


def predict_files(run: Run, files: Sequence[Path]) -> pd.DataFrame:
    """One row per file, in the order given: class, posterior, log-odds with standard error, or the reason for none.

    A file that cannot be read or prepared has the status "quarantined: ..."; the others are scored as if it were not
    there. Random draws are keyed by the prepared pixels: the same image gets the same answer under any name.
    """
    tables: list[LogLikTable] = []
    reasons: dict[int, str] = {}
    with progress_bar("predict", len(files)) as advance:
        for row, path in enumerate(files):
            try:
                image = read_image(path, run.facts.info.modalities)
                x = run.prepare(image, *read_tags(path))
            except DataError as error:
                reasons[row] = str(error)
            else:
                key = hashlib.blake2b(x.numpy().tobytes(), digest_size=16).hexdigest()
                tables.append(run.log_lik(x, [key]))
            advance(row + 1, "")
    frame = pd.DataFrame({"file": [str(path) for path in files]})
    if tables:
        table = LogLikTable.concatenate(tables)
        found = predictions(run, table, run.decision).drop(columns="image_id")
        rows = np.setdiff1d(np.arange(len(files)), list(reasons))
        frame = frame.join(found.set_index(pd.Index(rows)))
    for row, reason in reasons.items():
        frame.loc[row, "status"] = f"quarantined: {reason}"
    return frame
