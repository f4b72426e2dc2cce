"""Imports go downward only: a room may import what the table allows, and what decides imports no torch."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "scorebayes"

GROUND = {"errors", "progress", "storage", "metrics", "plots"}
MAY_IMPORT = {
    "errors": set(),
    "progress": {"errors"},
    "metrics": {"errors"},
    "plots": {"metrics"},
    "storage": {"errors"},
    "data": {"errors", "storage"},
    "diffusion": {"errors"},
    "decision": {"errors", "metrics", "storage"},
    "training": {"errors", "progress", "storage", "diffusion", "decision"},
    "evidence": {"errors", "progress", "storage", "data", "diffusion", "decision", "training"},
    "runs": {"errors", "progress", "storage", "data", "diffusion", "decision", "training", "evidence"},
    "tasks": {"errors", "metrics", "decision", "runs"},
    "baselines": GROUND | {"data", "diffusion", "decision", "training", "evidence", "runs"},
    "explain": GROUND | {"data", "diffusion", "decision", "evidence", "runs"},
    "report": GROUND | {"decision"},
    "segmentation": GROUND | {"data", "diffusion", "training", "runs", "report"},
    "stages": GROUND
    | {"data", "diffusion", "decision", "training", "evidence", "runs", "tasks", "baselines", "report"},
}
"""From the ground floor up. Faces and benchmarks may import whatever is below them."""
BELOW_FACES = set(MAY_IMPORT) | {"stages"}
MAY_IMPORT["benchmark"] = BELOW_FACES
MAY_IMPORT["classifier"] = BELOW_FACES
MAY_IMPORT["sklearn"] = BELOW_FACES | {"classifier"}
MAY_IMPORT["segmenter"] = {"segmentation"}
MAY_IMPORT["opening"] = {"classifier", "segmenter", "segmentation"}
MAY_IMPORT["sklearn_segmenter"] = GROUND | {"data", "runs", "segmentation", "segmenter"}
MAY_IMPORT["cli"] = BELOW_FACES | {"benchmark"}

BENCHMARK = {
    "names": set(),
    "stored": {"names"},
    "training": {"names", "stored", "shown"},
    "trained": {"names", "stored"},
    "shown": {"names", "stored"},
}
"""Inside the room of the benchmarks."""
NO_TORCH = {
    "decision",
    "metrics",
    "plots",
    "report",
    "storage/arrays.py",
    "storage/atomic.py",
    "storage/digest.py",
    "storage/frames.py",
    "storage/json_text.py",
    "storage/lock.py",
    "storage/log.py",
    "storage/sealed.py",
    "storage/spreadsheet.py",
    "storage/timings.py",
}
LONG = 400  # lines of a file


def imported_modules(path: Path) -> set[str]:
    """Names of all modules that a file imports at its top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def rooms(path: Path) -> set[str]:
    """Rooms of ours that a file imports."""
    return {
        module.split(".")[1]
        for module in imported_modules(path)
        if module.startswith("scorebayes.") and module.split(".")[1] in MAY_IMPORT
    }


FILES = sorted(p for p in SOURCE.rglob("*.py") if p != SOURCE / "__init__.py")


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def name(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_room_imports_what_the_table_allows(path):
    own = room_of(path)
    assert own in MAY_IMPORT, f"{own} is in no row of the table: add it to MAY_IMPORT"
    assert not rooms(path) - MAY_IMPORT[own] - {own}


def test_the_table_has_no_circle():
    done: set[str] = set()
    while set(MAY_IMPORT) - done:
        free = {room for room, below in MAY_IMPORT.items() if room not in done and below - {room} <= done}
        assert free, f"these rooms import each other: {set(MAY_IMPORT) - done}"
        done |= free


@pytest.mark.parametrize("path", [p for p in FILES if room_of(p) == "benchmark"], ids=name)
def test_the_parts_of_the_benchmarks_import_what_their_table_allows(path):
    own = path.relative_to(SOURCE / "benchmark").parts[0].removesuffix(".py")
    others = {m.split(".")[2] for m in imported_modules(path) if m.startswith("scorebayes.benchmark.")}
    if own in BENCHMARK:
        assert not others - BENCHMARK[own] - {own}


@pytest.mark.parametrize(
    "path", [p for p in FILES if room_of(p) in NO_TORCH or name(p) in NO_TORCH], ids=name
)
def test_what_decides_imports_no_torch(path):
    assert not any(module.split(".")[0] == "torch" for module in imported_modules(path))


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_long_file_says_why(path):
    text = path.read_text(encoding="utf-8")
    if len(text.splitlines()) > LONG:
        assert "long because" in (ast.get_docstring(ast.parse(text)) or "")
