"""Imports go downward only, and what decides imports no torch."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "scorebayes"

# From the top down: a module may import from layers below its own (and from its own layer), never from above.
LAYERS = [
    ["cli", "cli_data", "cli_benchmark", "sklearn"],
    ["benchmark"],
    ["stages", "tune"],
    ["noise_choice"],
    ["recalibrate"],
    ["predict", "explain", "evidence", "counterfactual", "gallery", "evaluate", "report"],
    ["scoring", "train", "wavelet_fit", "baselines", "sequential"],
    ["looks"],
    ["inputs"],
    ["run"],
    ["wavelets"],
    ["augment", "checkpoint"],
    ["config"],
    [
        "likelihood",
        "sample",
        "nets",
        "data",
        "posterior",
        "pooling",
        "metrics",
        "figures",
        "heat",
        "shift",
    ],
    ["calibrate", "typicality", "score", "oracle", "divergence", "solve"],
    ["appearance", "table", "spreadsheet", "noise", "draws", "scattering", "progress", "schedule"],
    ["errors", "digest", "atomic"],
]
NO_TORCH = [
    "posterior",
    "pooling",
    "calibrate",
    "typicality",
    "metrics",
    "table",
    "spreadsheet",
    "report",
    "figures",
]
NO_TORCH += ["appearance", "heat", "shift"]
MATHEMATICS = [
    "noise",
    "draws",
    "scattering",
    "solve",
    "divergence",
    "score",
    "oracle",
    "likelihood",
    "sample",
    "posterior",
    "calibrate",
]


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


def part_of(module: str) -> str:
    return module.split(".")[1] if module.startswith("scorebayes.") else ""


FILES = sorted(p for p in SOURCE.rglob("*.py") if p != SOURCE / "__init__.py")
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}


def own_part(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_a_module_imports_from_below_only(path):
    own = own_part(path)
    assert own in RANK, f"{own} is in no layer: add it to LAYERS"
    for module in imported_modules(path):
        other = part_of(module)
        if other in RANK and other != own:
            assert RANK[other] >= RANK[own], f"{path.name} imports {module} from a layer above"


@pytest.mark.parametrize("path", [p for p in FILES if own_part(p) in NO_TORCH], ids=lambda p: p.name)
def test_what_decides_imports_no_torch(path):
    assert not any(module.split(".")[0] == "torch" for module in imported_modules(path))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_data_and_mathematics_do_not_know_each_other(path):
    own, others = own_part(path), {part_of(module) for module in imported_modules(path)}
    if own == "data":
        assert not others & set(MATHEMATICS)
    if own in MATHEMATICS:
        assert "data" not in others
