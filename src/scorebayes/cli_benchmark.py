"""Commands that measure: ``scorebayes benchmark breastmnist`` (and others), ``speed`` and ``curves``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(help="Measure speed and accuracy; results go to benchmarks/.", no_args_is_help=True)

RESULTS = Path("benchmarks/results")
FIGURES = Path("benchmarks/figures")


def _over_seeds(name: str) -> Callable[..., None]:
    """The command that runs one accuracy benchmark."""

    def command(
        data_root: Annotated[Path, typer.Option(help="Folder with the real data.")] = Path("../shared/data"),
        seeds: Annotated[int, typer.Option(min=1, help="Runs with the seeds 0, 1, ...")] = 3,
        runs: Annotated[Path, typer.Option(help="Folder for the run directories.")] = Path("runs/benchmarks"),
        out: Annotated[Path, typer.Option(help="Folder for the JSON file.")] = RESULTS,
    ) -> None:
        from scorebayes.benchmark import OURS, run_benchmark

        path = run_benchmark(name, data_root, runs, out, range(seeds))
        auc = json.loads(path.read_text())["models"][OURS]["test"]["auc"]
        typer.echo(
            f"test AUC {auc['mean']:.3f}, seeds {[round(v, 3) for v in auc['values']]}; written: {path}"
        )

    command.__doc__ = f"""Train, score and evaluate on {name} over seeds; run again to resume.

    Example: scorebayes benchmark {name} --seeds 3
    """
    return command


for _name in ("breastmnist", "pneumoniamnist", "phantom"):
    app.command(_name)(_over_seeds(_name))


@app.command()
def speed(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Trained runs; the first is the headline.")
    ],
    images: Annotated[int, typer.Option(min=2, help="Test images of each run.")] = 300,
    literal_images: Annotated[
        int, typer.Option(min=2, help="How many of them get the paper's computation to the letter, too.")
    ] = 40,
    out: Annotated[Path, typer.Option(help="JSON file to write.")] = RESULTS / "speed.json",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "cpu",
) -> None:
    """Seconds, evaluations and AUC of a run's estimator against the paper's computation; run again to resume.

    Example: scorebayes benchmark speed runs/breast
    """
    from scorebayes.benchmark_speed import measure_speed
    from scorebayes.run import open_run

    found = measure_speed([open_run(run, device) for run in runs], images, literal_images)
    _write(out, found)
    typer.echo(
        f"{found['speedup_vs_paper']:.0f} times fewer seconds than the paper's computation; "
        f"AUC {found['auc']:.3f} against {found['auc_paper']:.3f}; written: {out}"
    )


@app.command()
def curves(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="A trained run.")],
    images: Annotated[int, typer.Option(min=2, help="Test images.")] = 300,
    val_images: Annotated[int, typer.Option(min=4, help="Validation images for the calibrations.")] = 300,
    flow_images: Annotated[int, typer.Option(min=2, help="Test images for the probability flow.")] = 100,
    out: Annotated[Path, typer.Option(help="JSON file to write.")] = RESULTS / "curves.json",
    figure: Annotated[Path, typer.Option(help="SVG file to draw.")] = FIGURES / "auc-vs-evaluations.svg",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "cpu",
) -> None:
    """AUC against network evaluations, for every estimator; run again to resume.

    Example: scorebayes benchmark curves runs/breast
    """
    from scorebayes.benchmark_speed import draw_curves, measure_curves
    from scorebayes.run import open_run

    found = measure_curves(open_run(run_dir, device), images, val_images, flow_images)
    _write(out, found)
    draw_curves(found, figure)
    typer.echo(f"written: {out}, {figure}")


def _write(path: Path, content: dict[str, Any]) -> None:
    from scorebayes.checkpoint import write_atomically

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(content, indent=1, default=str) + "\n")
