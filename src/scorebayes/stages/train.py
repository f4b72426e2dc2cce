"""The stages in their order: what the commands, the demonstration and the benchmarks call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from scorebayes.data.load import ImageSet
from scorebayes.errors import ConfigError
from scorebayes.evidence.noise_choice import choose_noise
from scorebayes.evidence.wavelets import learn_wavelets
from scorebayes.report import write_report
from scorebayes.runs import inputs
from scorebayes.runs.config import resolve
from scorebayes.runs.run import Run, open_run, reconfigured
from scorebayes.stages import evaluate
from scorebayes.stages.score import score_split
from scorebayes.training import loop as training

AFTER_TRAINING = ("wavelets", "likelihood", "prior")  # sections that the network does not depend on
DEMO_STEPS = 600
DEMO_MINUTES = 2.5


def train(
    path: Path,
    data: str,
    layers: Sequence[Mapping[str, Any]],
    preset: str,
    device: torch.device,
    *,
    resume: bool = False,
) -> Run:
    """From a data source to a trained and calibrated run directory (without labels: trained only, for others to start
    from)."""
    run, images = begin(path, data, layers, preset, device, resume=resume)
    with run.locked():
        training.fit(run, images["train"], images["val"])
        if run.config.train.label_free:
            return run
        run = choose_noise(learn_wavelets(run), images["val"])
        score_split(run, "val")
        evaluate.calibrate(run)
    return run


def begin(
    path: Path,
    data: str,
    layers: Sequence[Mapping[str, Any]],
    preset: str,
    device: torch.device,
    *,
    resume: bool = False,
) -> tuple[Run, dict[str, ImageSet]]:
    """A run directory with its split, new or, with ``resume``, as it is there; and the images to train and validate on."""
    if not (resume and (path / "config.toml").exists()):
        return inputs.start_run(path, data, layers, preset, device)
    run = _resume(open_run(path, str(device)), data, layers, preset)
    images = {name: inputs.load_split(run, name) for name in ("train", "val")}
    if not run.config.train.label_free:
        images = {name: some.labelled() for name, some in images.items()}
    return run, images


def _resume(run: Run, data: str, layers: Sequence[Mapping[str, Any]], preset: str) -> Run:
    """The run, under the configuration asked for. What the weights do not depend on may have changed since it began."""
    known = {
        "prepare": run.config.sections["prepare"],
        "train": {"steps": run.config.train.steps},
    }
    wanted = resolve(*layers, {"data": {"source": data}}, preset=preset, defaults=known)
    differences = run.config.differences(wanted, leave_out=AFTER_TRAINING)
    if differences:
        raise ConfigError(
            f"{run.path}: the run was started with another configuration: {'; '.join(differences)}.",
            "Resume without these options, or use a new directory.",
        )
    mine = run.config.sections["likelihood"]
    with_choice = wanted.changed("likelihood", first=mine.get("first"))
    same = with_choice.sections["likelihood"] == mine  # the same estimator, whose noise is chosen already
    return reconfigured(run, with_choice if same else wanted)


def demo(path: Path, data: str, device: torch.device) -> tuple[dict[str, Any], Path]:
    """Train, score, evaluate and report within a few minutes; goes on where it was stopped. Returns metrics and report."""
    layers = [{"train": {"steps": DEMO_STEPS, "minutes": DEMO_MINUTES}}]
    run = train(path, data, layers, "tiny", device, resume=path.exists())
    split = "test" if (run.split["split"] == "test").any() else "val"
    score_split(run, split)
    metrics = evaluate.evaluate(run, split)
    return metrics, write_report(path)
