"""How large a number in a configuration may be: beyond, memory or patience would end before the work does."""

from __future__ import annotations

from typing import Any

from scorebayes.errors import ConfigError

LARGEST = {
    "batch": 65_536, "micro_batch": 65_536, "val_images": 1_000_000, "minutes": 1e6, "lr": 1e3,
    "channels": 8192, "blocks": 64, "attention": 64, "heads": 1024, "size": 4096, "components": 65_536, "shift": 1024,
    "levels": 1000, "repeats": 1000, "passes": 1000, "candidates": 1000, "probes": 10_000,
    "images_per_call": 65_536, "rows_per_call": 1_048_576, "max_steps": 1_000_000,
}  # fmt: skip
"""By the name of the field, whatever its section."""
LARGEST_OF_ANY, MOST_ENTRIES = 1e9, 100_000
LARGEST_TEXT = 100  # characters of a value that a message shows


def require_bounded(section: str, name: str, value: Any) -> None:
    """ConfigError for a number beyond its bound, alone or in a list, and for a list without end."""
    each = value if isinstance(value, tuple) else (value,)
    bound = LARGEST.get(name, LARGEST_OF_ANY)
    if len(each) > MOST_ENTRIES:
        raise ConfigError(f"[{section}] {name} has {len(each)} entries, expected at most {MOST_ENTRIES}.")
    for number in each:
        if isinstance(number, (int, float)) and abs(number) > bound:
            raise ConfigError(f"[{section}] {name} = {short(number)}: expected at most {bound:,.0f} in size.")


def short(value: Any) -> str:
    """A value as a message shows it."""
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**LARGEST_TEXT else "a huge number"
    return text if len(text) <= LARGEST_TEXT else f"{text[:LARGEST_TEXT]}..."
