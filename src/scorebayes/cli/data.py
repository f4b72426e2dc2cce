"""Commands that look at a data set before training: ``scorebayes data check`` and ``data show``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from scorebayes.cli.common import DataOptions

app = typer.Typer(help="Look at a data set before training.", no_args_is_help=True)

Data = Annotated[
    str, typer.Argument(metavar="KIND:ROOT", help="For example cbis-ddsm:DIR, inbreast:DIR, vindr-mammo:DIR.")
]


@app.command("check")
def check_command(
    data: Data,
    option: DataOptions = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    pixels: Annotated[bool, typer.Option(help="Also decode every image.")] = True,
    workers: Annotated[int, typer.Option(help="Number of decoding processes.")] = max(
        1, (os.cpu_count() or 1) - 1
    ),
) -> None:
    """Compare a data set with its published counts. List missing, duplicate, conflicting, unreadable and leaking
    images.

    The exit code is 1 if something needs a look.

    Example: scorebayes data check cbis-ddsm:~/CBIS-DDSM
    """
    from rich.console import Console
    from rich.progress import Progress

    from scorebayes.data import open_source, parse_options
    from scorebayes.data.check import as_text, check

    source = open_source(data, **parse_options(option or []))
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("Decoding", total=None)
        result = check(
            source,
            pixels=pixels,
            workers=workers,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    typer.echo(json.dumps(result, indent=2, ensure_ascii=False) if as_json else as_text(result))
    if not result["ok"]:
        raise typer.Exit(1)


@app.command("show")
def show_command(
    data: Data,
    option: DataOptions = None,
    out: Annotated[Path, typer.Option(help="PNG file to write.")] = Path("contact-sheet.png"),
    steps: Annotated[
        str, typer.Option(help="Preparation steps or a named pipeline, separated by commas.")
    ] = "",
    size: Annotated[int, typer.Option(help="Side of the prepared images.")] = 224,
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="How many images.")] = 8,
    seed: Annotated[int, typer.Option(help="Seed for choosing the images.")] = 0,
) -> None:
    """Write a contact sheet: images before and after preparation.

    Example: scorebayes data show inbreast:~/INbreast --steps mammogram --out sheet.png
    """
    from scorebayes.data import open_source, parse_options
    from scorebayes.data.prepare import Prepare
    from scorebayes.data.show import contact_sheet

    source = open_source(data, **parse_options(option or []))
    chosen = tuple(step.strip() for step in steps.split(",") if step.strip())
    prepare = Prepare(size, source.info.channels, source.info.bits, chosen)
    records = contact_sheet(source, prepare, out, number, seed)
    typer.echo(f"{out} shows {len(records)} images before and after preparation.")
