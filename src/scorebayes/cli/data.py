"""Commands that look at a data set before training: ``scorebayes data check`` and ``data show``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from scorebayes.cli.common import DataOptions
from scorebayes.cli.face import DONE, FAULT, Told, face

app = typer.Typer(help="Look at a data set before training.", no_args_is_help=True)

Data = Annotated[
    str, typer.Argument(metavar="KIND:ROOT", help="For example cbis-ddsm:DIR, inbreast:DIR, vindr-mammo:DIR.")
]


def check_command(
    data: Data,
    option: DataOptions = None,
    pixels: Annotated[bool, typer.Option(help="Also decode every image.")] = True,
    workers: Annotated[int, typer.Option(help="Number of decoding processes.")] = max(
        1, (os.cpu_count() or 1) - 1
    ),
    task: Annotated[str, typer.Option(help="classify, or segment for images with masks.")] = "classify",
) -> Told:
    """Compare a data set with its published counts. List missing, duplicate, conflicting, unreadable and leaking
    images.

    The exit code is 1 if something needs a look.

    Example: scorebayes data check cbis-ddsm:~/CBIS-DDSM
    """
    from scorebayes.data import open_source, parse_options
    from scorebayes.data.check import as_text, check
    from scorebayes.progress import progress_bar

    if task == "segment":
        return _check_masks(data, option or [])
    if task != "classify":
        raise typer.BadParameter(f"--task {task}: classify or segment")
    source = open_source(data, **parse_options(option or []))
    with progress_bar("decode", len(source.records()) if pixels else 0) as advance:
        result = check(source, pixels=pixels, workers=workers, progress=lambda done, _: advance(done, ""))
    return Told(result, as_text(result), (), DONE if result["ok"] else FAULT)


def _check_masks(data: str, option: list[str]) -> Told:
    from scorebayes.data import open_mask_source, parse_options
    from scorebayes.data.check_masks import check_masks, masks_as_text

    found = check_masks(open_mask_source(data, **parse_options(option)))
    return Told(found, masks_as_text(found), (), DONE if found["ok"] else FAULT)


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
) -> Told:
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
    facts = {"written": out, "images": [record.image_id for record in records]}
    return Told(facts, f"{out} shows {len(records)} images before and after preparation.")


app.command("check")(face(check_command))
app.command("show")(face(show_command))
