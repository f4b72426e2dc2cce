"""JSON that every reader takes: arrays are lists, and what is not finite is null."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np


def json_text(content: Any, indent: int = 1) -> str:
    """Nested facts as JSON; what JSON does not know, such as paths, as text."""
    return json.dumps(plain(content), indent=indent, ensure_ascii=False, allow_nan=False, default=str)


def plain(value: Any) -> Any:
    """The same facts in lists, dictionaries, numbers and texts."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
