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

from scorebayes import __version__
from scorebayes.cli import answer, learn
from scorebayes.cli.benchmark import app as benchmark_app
from scorebayes.cli.common import SOURCES, Device, metrics_words, shift_warnings
from scorebayes.cli.data import app as data_app
from scorebayes.cli.face import AGAIN, DONE, EXIT_CODES, FAULT, Told, aligned, face, say
from scorebayes.cli.whole import all_command
from scorebayes.errors import ScoreBayesError, command, printable

app = typer.Typer(
    help="Classify medical images with score-based generative models and Bayes' rule. Not a medical device.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.add_typer(data_app, name="data")
app.add_typer(benchmark_app, name="benchmark")


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


def doctor(
    run_dir: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="Run directory whose files to check.")
    ] = None,
    accept: Annotated[
        bool,
        typer.Option("--accept", help="Accept the files of RUN as they are, with what was changed by hand."),
    ] = False,
    data_root: Annotated[Path | None, typer.Option(help="Data folder to look at.")] = None,
) -> Told:
    """Show versions, devices, data root and free space; or check the files of a run.

    Example: scorebayes doctor runs/breast
    """
    if run_dir is not None:
        return _checked(run_dir, accept)
    if accept:
        raise typer.BadParameter("name the run whose files to accept: doctor RUN --accept")
    import torch

    from scorebayes.runs.device import environment, pick_device

    found = environment(pick_device("auto")) | {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "free_gb": shutil.disk_usage(".").free / 1e9,
    }
    rows = [
        ("Python", found["python"]),
        *found["versions"].items(),
        ("system", f"{found['system']}, {found['processor']}, {found['cores']} cores"),
        ("device", f"{found['device']} {found['accelerator'] or ''}".strip()),
        ("CUDA / MPS", f"{found['cuda']} / {found['mps']}"),
        ("threads", str(found["threads"])),
        ("free space here", f"{found['free_gb']:.1f} GB"),
    ]
    there = True
    if data_root is not None:
        there = data_root.is_dir()
        entries = sorted(p.name for p in data_root.iterdir()) if there else None
        rows.append(("data root", f"{data_root}: {'not found' if entries is None else ', '.join(entries)}"))
        found["data_root"] = {"path": data_root, "entries": entries}
    return Told(
        found, aligned([(str(name), str(value)) for name, value in rows]), (), DONE if there else FAULT
    )


def _checked(run_dir: Path, accept: bool) -> Told:
    """What is not as the run wrote it."""
    from scorebayes.stages.doctor import accept_files, check_files

    found = accept_files(run_dir) if accept else check_files(run_dir)
    facts = {"run": run_dir, "sealed": found.sealed, "different": found.different, "accepted": accept}
    rows = [(f"{name}:", what) for name, what in found.different.items()]
    if accept:
        words = [aligned(rows), f"accepted: {run_dir} is sealed as it is"]
    elif not found.sealed:
        remedy = command("doctor", run_dir, "--accept")
        words = [f"{run_dir} is of an older version and not sealed; `{remedy}` seals it as it is"]
    elif not rows:
        words = ["all files are as they were written"]
    else:
        remedy = command("doctor", run_dir, "--accept")
        words = [aligned(rows), f"Restore these files, or accept them as they are: `{remedy}`."]
    return Told(facts, "\n".join(filter(None, words)), (), DONE if accept or not found.serious else FAULT)


def demo(
    data: Annotated[str, typer.Option(help=f"KIND[:PATH]: {SOURCES}.")] = "phantom",
    run_dir: Annotated[Path, typer.Option("--out", help="Run directory to create.")] = Path("runs/demo"),
    task: Annotated[str, typer.Option(help="classify or segment.")] = "classify",
    device: Device = "auto",
) -> Told:
    """Train, score, evaluate and report in a few minutes, on synthetic mammograms or on your own data.

    Example: scorebayes demo
    """
    from scorebayes.runs.device import pick_device
    from scorebayes.runs.inputs import absolute_source
    from scorebayes.stages.demo import demo

    if task not in ("classify", "segment"):
        raise typer.BadParameter(f"--task {task}: classify or segment")
    if task == "segment":
        from scorebayes.cli import masks

        return masks.demo(run_dir, absolute_source(data), device)
    metrics, path = demo(run_dir, absolute_source(data), pick_device(device))
    which = (
        "held-out patients" if metrics["split"] == "test" else "the validation split (there is no test split)"
    )
    words = f"{metrics_words(metrics)}\nAUC on {which}: {metrics['auc']:.3f}\nreport: {path}"
    return Told({"run": run_dir, "report": path, **metrics}, words, shift_warnings(run_dir, metrics))


app.command()(face(learn.train, resume=learn.go_on))
app.command("all")(face(all_command, resume=AGAIN))
for function, resume in (
    (learn.tune, ""), (answer.score, AGAIN), (learn.baseline, AGAIN), (answer.evaluate, ""), (learn.recalibrate, ""),
    (answer.predict, ""), (answer.explain, ""), (answer.sample, ""), (answer.report, ""), (doctor, ""), (demo, AGAIN),
):  # fmt: skip
    app.command()(face(function, resume=resume))


def main() -> None:
    """Entry point: one clear line for an error that is the input's fault, a traceback only with --debug."""
    # Before torch is loaded: threads that wait for others leave the core to other programs (docs/decisions/0019).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    debug = "--debug" in sys.argv
    if not debug:
        warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}", err=True)
    try:
        app()
    except ScoreBayesError as error:
        if debug:
            raise
        say(f"error: {error}", err=True)
        sys.exit(FAULT)
    except OSError as error:
        if debug:
            raise
        say(f"error: {error.strerror or error}: {printable(str(error.filename or ''))}", err=True)
        sys.exit(FAULT)
