"""What the commands do with a segmentation run: train, score, evaluate, predict. Each can be stopped, and resumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image

from scorebayes.data.listing import list_images
from scorebayes.data.masks import Frame
from scorebayes.errors import ConfigError, DataError, command
from scorebayes.progress import progress_bar
from scorebayes.segmentation.answer import MaskAnswer, mask_answer
from scorebayes.segmentation.begin import start_mask_run
from scorebayes.segmentation.config import resolve_masks
from scorebayes.segmentation.decision import fit_decision
from scorebayes.segmentation.drawn import Drawn
from scorebayes.segmentation.examples import MaskedSet
from scorebayes.segmentation.figures import each_image, summary
from scorebayes.segmentation.fit import MaskScore, MaskTraining
from scorebayes.segmentation.pictures import save_cases
from scorebayes.segmentation.run import MaskRun, open_mask_run
from scorebayes.storage import sealed
from scorebayes.storage.atomic import write_atomically
from scorebayes.storage.spreadsheet import csv_text
from scorebayes.training.loop import fit


def train_masks(
    path: Path,
    data: str,
    layers: Sequence[Mapping[str, Any]],
    preset: str,
    device: torch.device,
    *,
    resume: bool = False,
) -> MaskRun:
    """From a data source to a trained and calibrated run directory; with ``resume`` one that was begun is gone on with."""
    if resume and (path / "config.toml").exists():
        return resume_masks(path, device, layers)
    run, by_split = start_mask_run(path, data, layers, preset, device)
    return _finished(run, by_split)


def resume_masks(path: Path, device: torch.device, layers: Sequence[Mapping[str, Any]] = ()) -> MaskRun:
    """Go on with a run as its own configuration says. ConfigError where the layers ask for another one."""
    run = open_mask_run(path, str(device))
    wanted = resolve_masks(*layers, preset=None, defaults={"seed": run.config.seed, **run.config.sections})
    differences = run.config.differences(wanted)
    if differences:
        raise ConfigError(
            f"{path}: the run was started with another configuration: {'; '.join(differences)}.",
            f"Resume it with `{command('train', '--resume', path)}`, or use a new directory.",
        )
    return _finished(run, {name: run.examples(name) for name in ("train", "val")})


def _finished(run: MaskRun, by_split: Mapping[str, MaskedSet]) -> MaskRun:
    config = run.config
    with run.locked():
        training = MaskTraining(run.path, config.train, config.seed, run.device, run.new_denoiser)
        given = (config.train, config.segment, run.standardise, by_split["train"], by_split["val"])
        fit(training, MaskScore(config.noise, *given, config.seed))
        drawn = score_masks(run, "val", by_split["val"])
        val = by_split["val"]
        run.write_json(
            "calibration.json", fit_decision(drawn, val.masks, insides(val.frames), config.seed).to_dict()
        )
    return run


def score_masks(run: MaskRun, split: str, found: MaskedSet | None = None) -> Drawn:
    """Draw masks for a split into ``masks-<split>.npz``; what is there is not drawn again."""
    path = run.path / f"masks-{split}.npz"
    if path.exists():
        return Drawn.load(path)
    found = run.examples(split) if found is None else found
    parts = []
    with progress_bar("score", len(found)) as advance:
        for row, (seen, key) in enumerate(zip(run.seen(found), found.keys, strict=True)):
            parts.append(run.draw([seen], [key]))
            advance(row + 1, "")
    drawn = Drawn.concatenate(parts)
    drawn.save(path)
    return drawn


def evaluate_masks(run: MaskRun, split: str) -> dict[str, Any]:
    """Metrics of a scored split: ``metrics-<split>.json``, ``cases-<split>.csv``, and overlays of best, median and worst."""
    path = run.path / f"masks-{split}.npz"
    if not path.exists():
        raise ConfigError(
            f"{path}: the split is not scored.", f"Run `{command('score', run.path, '--split', split)}`."
        )
    drawn, found, decision = Drawn.load(path), run.examples(split), run.decision
    if drawn.keys != found.keys:
        raise ConfigError(
            f"{path}: its images are not those of the split.",
            "Delete it and score again, or restore the data.",
        )
    inside = insides(found.frames)
    cases = each_image(drawn, decision, found.masks, inside)
    frame = pd.DataFrame({"image_id": found.keys, **cases})
    sealed.write(run.path / f"cases-{split}.csv", csv_text(frame))
    pixels = (found.images.images / (2.0**found.images.bits - 1)).astype(np.float32)
    shown = save_cases(
        run.path / f"overlays-{split}",
        cases["dice"],
        pixels,
        found.masks,
        (decision.prob(drawn) * inside) > decision.threshold,
    )
    segment = run.config.segment
    metrics = {
        "task": "segment",
        "split": split,
        "synthetic": run.facts.info.synthetic,
        **summary(drawn, decision, found.masks, inside, run.config.seed),
        "evaluations": segment.evaluations,
        "samples": segment.samples,
        "decision": decision.to_dict(),
        "cases": {name: found.keys[row] for name, row in shown.items()},
    }
    run.write_json(f"metrics-{split}.json", metrics)
    return metrics


def predict_masks(
    run: MaskRun, paths: Sequence[Path], out: Path | None
) -> tuple[pd.DataFrame, list[MaskAnswer]]:
    """Answers for files, those of folders by name. One row per file: objects, area with its interval in pixels of the file,
    status. With ``out``: also ``<name>.png`` (mask), ``<name>.npy`` (probability) and ``masks.csv``.
    """
    absent = [str(path) for path in paths if not path.exists()]
    if absent:
        raise DataError(f"there is no file or folder named {', '.join(absent[:5])}.", "Check the spelling.")
    files = [file for path in paths for file in (list_images(path).images if path.is_dir() else [path])]
    answers, names = [], _names_of(files)
    if out is not None:
        sealed.require_free(out)
        out.mkdir(parents=True, exist_ok=True)
    with progress_bar("predict", len(files)) as advance:
        for row, (file, name) in enumerate(zip(files, names, strict=True)):
            answer = mask_answer(run, file)
            answers.append(answer)
            if out is not None and answer.mask is not None:
                Image.fromarray(answer.mask.astype(np.uint8) * 255).save(out / f"{name}.png")
                np.save(out / f"{name}.npy", answer.probability)  # type: ignore[arg-type]
            advance(row + 1, "")
    rows = [
        {
            "file": a.image,
            "mask": "" if a.mask is None or out is None else f"{name}.png",
            "objects": a.objects,
            "area": a.area,
            "area_low": a.area_low,
            "area_high": a.area_high,
            "warning": a.warning,
            "status": a.reason or "ok",
        }
        for a, name in zip(answers, names, strict=True)
    ]
    frame = pd.DataFrame(rows)
    if out is not None:
        write_atomically(out / "masks.csv", csv_text(frame).encode("utf-8", "backslashreplace"))
    return frame, answers


def insides(frames: Sequence[Frame]) -> NDArray[np.bool_]:
    """Which pixels of the squares belong to the images [N, S, S]."""
    return np.stack([frame.inside for frame in frames])


def _names_of(files: Sequence[Path]) -> list[str]:
    """Names for what is written, one a file: its own, with a number where two share it."""
    used: dict[str, int] = {}
    names = []
    for file in files:
        used[file.stem] = used.get(file.stem, 0) + 1
        names.append(file.stem if used[file.stem] == 1 else f"{file.stem}-{used[file.stem]}")
    return names
