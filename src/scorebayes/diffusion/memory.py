"""When memory is short: the same work in smaller parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

_IN_WORDS = ("out of memory", "can't allocate memory")  # of MPS and of the CPU, which raise a RuntimeError

Result = TypeVar("Result")


class NoMemory(Exception):
    """Not even the smallest part fits into the memory of the device."""


def with_less_memory(work: Callable[[int], Result], size: int) -> tuple[Result, int]:
    """``work(size)`` or, where memory is too small for that, with half the size, and half of that; and the size that fitted.

    size: how many things the work does at a time. NoMemory where one at a time is too much.
    """
    while True:
        try:
            return work(size), size
        except RuntimeError as error:
            if not _is_of_memory(error):
                raise
            if size == 1:
                raise NoMemory from error
        # Outside of the except clause, which holds on to all that the work had.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        size = max(1, size // 2)


def _is_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _IN_WORDS)
