"""The command line: thin wrappers around the stages, each of which works on a run directory.

Heavy imports happen inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from scorebayes import __version__
from scorebayes.cli import answer, learn
from scorebayes.cli.benchmark import app as benchmark_app
from scorebayes.cli.common import SOURCES, Device, out, show_metrics
from scorebayes.cli.data import app as data_app
from scorebayes.errors import ScoreBayesError

app = typer.Typer(
    help="Classify medical images with score-based generative models and Bayes' rule. Not a medical device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.add_typer(data_app, name="data")
app.add_typer(benchmark_app, name="benchmark")
for command in (
    learn.train, learn.tune, answer.score, learn.baseline, answer.evaluate, learn.recalibrate, answer.predict,
    answer.explain, answer.sample, answer.report,
):  # fmt: skip
    app.command()(command)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"scorebayes {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Read by ``main`` (debug) or at once (version)."""


@app.command()
def doctor(
    data_root: Annotated[Path | None, typer.Option(help="Data folder to look at.")] = None,
) -> None:
    """Show versions, devices, data root and free space.

    Example: scorebayes doctor --data-root ../data
    """
    import torch

    from scorebayes.runs.device import environment, pick_device

    found = environment(pick_device("auto"))
    table = Table(show_header=False, title="ScoreBayes doctor")
    table.add_row("Python", found["python"])
    for name, version in found["versions"].items():
        table.add_row(name, version)
    table.add_row("system", f"{found['system']}, {found['processor']}, {found['cores']} cores")
    table.add_row("device", f"{found['device']} {found['accelerator'] or ''}".strip())
    table.add_row("CUDA / MPS", f"{torch.cuda.is_available()} / {torch.backends.mps.is_available()}")
    table.add_row("threads", str(found["threads"]))
    table.add_row("free space here", f"{shutil.disk_usage('.').free / 1e9:.1f} GB")
    if data_root is not None:
        entries = sorted(p.name for p in data_root.iterdir()) if data_root.is_dir() else None
        table.add_row(
            "data root", f"{data_root}: " + (", ".join(entries) if entries is not None else "not found")
        )
    out.print(table)
    if data_root is not None and not data_root.is_dir():
        raise typer.Exit(1)


@app.command()
def demo(
    data: Annotated[str, typer.Option(help=f"KIND[:PATH]: {SOURCES}.")] = "phantom",
    run_dir: Annotated[Path, typer.Option("--out", help="Run directory to create.")] = Path("runs/demo"),
    device: Device = "auto",
) -> None:
    """Train, score, evaluate and report in a few minutes, on synthetic mammograms or on your own data.

    Example: scorebayes demo
    """
    from scorebayes.runs.device import pick_device
    from scorebayes.runs.inputs import absolute_source
    from scorebayes.stages.demo import demo

    metrics, path = demo(run_dir, absolute_source(data), pick_device(device))
    show_metrics(metrics)
    which = (
        "held-out patients" if metrics["split"] == "test" else "the validation split (there is no test split)"
    )
    out.print(f"AUC on {which}: {metrics['auc']:.3f}\nreport: {path}", soft_wrap=True)


def main() -> None:
    """Entry point: one clear line for an error that is the input's fault, a traceback only with --debug."""
    # Before torch is loaded: threads that wait for others leave the core to other programs (docs/decisions/0019).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    debug = "--debug" in sys.argv
    if not debug:
        warnings.showwarning = lambda message, *_, **__: typer.echo(f"warning: {message}", err=True)
    try:
        app()
    except ScoreBayesError as error:
        if debug:
            raise
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        typer.echo("stopped. Run the same command with --resume to continue.", err=True)
        sys.exit(130)
    except OSError as error:
        if debug:
            raise
        typer.echo(f"error: {error.strerror or error}: {error.filename or ''}", err=True)
        sys.exit(1)
