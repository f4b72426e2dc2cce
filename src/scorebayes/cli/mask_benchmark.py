"""The command of each benchmark of segmentation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from scorebayes.cli.common import RESULTS
from scorebayes.cli.face import Told


def of_masks(name: str) -> Callable[..., Told]:
    """The command that runs one benchmark of segmentation."""

    def command(
        data_root: Annotated[Path, typer.Option(help="Folder with the real data.")] = Path("../shared/data"),
        seeds: Annotated[
            int | None, typer.Option(min=1, help="Runs with the seeds 0, 1, ... [default: 3; 1 with --quick]")
        ] = None,
        segmenters: Annotated[
            str, typer.Option(help="To compare with: unet, dynunet, segresnet, with commas; or none.")
        ] = "unet",
        steps: Annotated[int | None, typer.Option(min=1, help="Training steps of every model.")] = None,
        quick: Annotated[
            bool, typer.Option("--quick", help="Quick trial: few steps of the tiny preset, separate files.")
        ] = False,
        runs: Annotated[Path, typer.Option(help="Folder for the run directories.")] = Path("runs/benchmarks"),
        out: Annotated[Path, typer.Option(help="Folder for the JSON file.")] = RESULTS,
    ) -> Told:
        from scorebayes.benchmark.training.segmentation import run_mask_benchmark

        names = () if segmenters == "none" else tuple(segmenters.split(","))
        path = run_mask_benchmark(
            name, data_root, runs, out, range(seeds or (1 if quick else 3)),
            segmenters=names, steps=steps, quick=quick,
        )  # fmt: skip
        found = json.loads(path.read_text())
        lines = []
        for model, of in found["models"].items():
            dice, coverage = of["test"]["dice"], of["test"]["coverage"]
            told = [None if v is None else round(v, 3) for v in dice["values"]]
            lines.append(f"{model}: test Dice by seed {told}, coverage of the area {coverage['mean']:.3f}")
        if quick:
            lines.append("Quick trial: everything works, but the numbers say nothing about the models.")
        return Told(found | {"written": [path]}, "\n".join([*lines, f"written: {path}"]))

    command.__doc__ = f"""Train and judge our model and plain segmenters on {name} over seeds; run again to resume.

    Example: scorebayes benchmark {name} --quick
    """
    return command
