"""Tables in Parquet, checked when they are read."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from scorebayes.storage import sealed


def read_frame(path: Path) -> pd.DataFrame:
    """A table. DataError where the file is damaged, ConfigError where it was changed."""
    content = sealed.read(path)
    try:
        return pq.read_table(pa.BufferReader(content)).to_pandas()
    except Exception as error:  # of foreign bytes, Arrow may raise almost anything
        raise sealed.damaged(path, error) from error
