"""What a decision costs: the estimator of a run against the paper's computation."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scorebayes.benchmark.trained.contest import (
    PAPER,
    Contestant,
    at_its_word,
    paper_at_best,
    score_for,
    some_images,
    take_turns,
)
from scorebayes.decision.posterior import bayes
from scorebayes.diffusion.divergence import hutchinson
from scorebayes.diffusion.likelihood import PaperFlow
from scorebayes.diffusion.likelihood.flow import velocity
from scorebayes.diffusion.score import Denoiser, training_loss
from scorebayes.metrics import auc_interval, delong, delong_test
from scorebayes.runs.device import environment
from scorebayes.runs.run import Run
from scorebayes.storage.log import read_log

BATCH_CALL = 4  # images a network call where latency is measured in batches: the estimator's default
OURS = "default"
PAPER_ALL, PAPER_OWN = "paper, all noise levels", "paper, all noise levels, a probe per class"


def measure_speed(
    runs: Sequence[Run], images: Sequence[int], literal_images: Sequence[int]
) -> dict[str, Any]:
    """The run's estimator against ``PaperFlow`` on test images; the keys at the top are those of the first run.

    ``images``, ``literal_images``: how many of each run, the last number for all runs that are left.

    ``paper`` is given its best chance: one probe for all classes (the source draws one per class) and only the noise
    levels that the network was trained on (the source integrates up to t = 1e-5, where a network that saw few images
    with so little noise adds errors of hundreds of nats). The literal computation is measured on ``literal_images``.
    """
    counts = ([*given, *[given[-1]] * len(runs)][: len(runs)] for given in (images, literal_images))
    details = [_speed_of(run, n, min(n, literal)) for run, n, literal in zip(runs, *counts, strict=True)]
    top = ("speedup_vs_paper", "auc", "auc_paper", "nfe_per_class", "ms_per_image")
    return {
        **{key: details[0][key] for key in top},
        "runs": details,
        "command": " ".join(
            [
                "scorebayes benchmark speed",
                *(str(run.path) for run in runs),
                *(f"--images {n}" for n in images),
            ]
        ),
        "written": time.strftime("%Y-%m-%d %H:%M"),
    }


def _speed_of(run: Run, images: int, literal_images: int) -> dict[str, Any]:
    some = some_images(run.images("test"), images, run.config.seed)
    paper = paper_at_best(run, images)
    contestants = [
        Contestant(OURS, run.likelihood, images, whole=True),
        paper,
        Contestant(PAPER_ALL, paper.likelihood, literal_images),
        Contestant(PAPER_OWN, PaperFlow(shared_probe=False), literal_images),
    ]
    contestants = [c for c in contestants if c.images]
    tables, seconds = take_turns(run, some, contestants[:2])
    literal_tables, literal_seconds = take_turns(run, some, contestants[2:], "literal")
    tables, seconds = tables | literal_tables, seconds | literal_seconds
    positive = run.facts.info.positive
    truth = some.labels == positive
    log_odds = {
        OURS: bayes(tables[OURS], run.log_prior, run.calibration).log_odds[:, positive],
        **{c.name: at_its_word(tables[c.name]).log_odds[:, positive] for c in contestants[1:]},
    }
    auc = {name: _auc(truth[: len(values)], values) for name, values in log_odds.items()}
    difference = delong_test(truth, log_odds[OURS], log_odds[PAPER])
    x = run.standardise(some.images)
    row_ms = {rows: _gradient_ms(run, x, rows) for rows in (1, 32)}
    our_seconds, paper_seconds = seconds[OURS], seconds[PAPER]
    paper_nfe = float(tables[PAPER].nfe.mean())
    in_batches = paper_nfe * len(run.facts.classes) * row_ms[32] / 1000
    latency = _latency(run, x, some.keys)
    return {
        "run": str(run.path),
        "data": run.config.data.source.rpartition("/")[2],
        "size": run.config.prepare.size,
        "images": len(some),
        "speedup_vs_paper": paper_seconds["wall"] / our_seconds["wall"],
        "speedup_vs_paper_cpu": paper_seconds["cpu"] / our_seconds["cpu"],
        "auc": auc[OURS]["auc"],
        "auc_paper": auc[PAPER]["auc"],
        "nfe_per_class": float(tables[OURS].nfe.mean()),
        "ms_per_image": latency["two_threads"][f"batch_of_64_{BATCH_CALL}_per_call"]["wall_ms_per_image"],
        "ms_per_image_is": f"of a batch of 64, two threads, {BATCH_CALL} images a network call; the ratio is of the "
        "wall seconds of the contestants, who took turns",
        "auc_difference": {"value": difference.difference, "ci95": difference.interval, "p": difference.p},
        "contestants": {
            c.name: {
                "estimator": repr(c.likelihood),
                "log_snr_max": c.log_snr_max,
                "images": len(tables[c.name]),
                "failed": int((tables[c.name].status != "ok").sum()),
                "wall_seconds_per_image": seconds[c.name]["wall"],
                "cpu_seconds_per_image": seconds[c.name]["cpu"],
                "nfe_per_class": float(tables[c.name].nfe.mean()),
                **auc[c.name],
            }
            for c in contestants
        },
        "paper_in_batches": {
            "why": "an upper bound on what batches would bring to the paper's computation: its evaluations, each at the "
            "cost of a row in a batch of 32",
            "ms_per_evaluation_alone": row_ms[1],
            "ms_per_evaluation_in_32": row_ms[32],
            "seconds_per_image": in_batches,
            "speedup_of_default": 1000 * in_batches / latency["one_thread"]["cpu_ms_one_image"],
        },
        "latency": latency,
        "paths": _paths(run, x, torch.from_numpy(some.labels)),
        "validation": _validation(run),
        "seed": run.config.seed,
        "environment": environment(run.device),
    }


def _auc(truth: NDArray[np.bool_], values: NDArray) -> dict[str, Any]:
    return {"auc": delong(truth, values)[0], "auc_ci95": auc_interval(truth, values)}


def _median_ms(call: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median wall and CPU milliseconds of a call, after one to warm up."""
    call()
    wall, cpu = [], []
    for _ in range(repeats):
        before = time.perf_counter(), time.process_time()
        call()
        wall.append(time.perf_counter() - before[0])
        cpu.append(time.process_time() - before[1])
    return 1000 * float(np.median(wall)), 1000 * float(np.median(cpu))


def _gradient_ms(run: Run, x: Tensor, rows: int) -> float:
    """CPU milliseconds of one flow evaluation with its divergence (reverse mode), per row of a batch."""
    score = score_for(run, "density")
    u = x[torch.arange(rows) % len(x)].double()
    rho, y = torch.zeros(rows, dtype=torch.float64), torch.zeros(rows, dtype=torch.int64)
    probe = torch.ones_like(u)[None]
    with torch.no_grad():
        _, cpu = _median_ms(lambda: hutchinson(lambda z: velocity(score, rho, z, y), u, probe, "reverse"), 5)
    return cpu / rows


def _latency(run: Run, x: Tensor, keys: Sequence[str]) -> dict[str, Any]:
    """Milliseconds of the run's estimator for one image, and per image of a batch of 64, by threads and call size."""
    found: dict[str, Any] = {}
    batch = torch.arange(64) % len(x)
    names = [f"{keys[int(row)]}/{place}" for place, row in enumerate(batch)]
    own: Any = run.likelihood
    by_call = (
        {n: replace(own, images_per_call=n) for n in (1, BATCH_CALL, 16)}
        if own.kind == "class-score"
        else {BATCH_CALL: own}
    )
    before = torch.get_num_threads()
    for title, threads in (("one_thread", 1), ("two_threads", 2)):
        torch.set_num_threads(threads)
        wall, cpu = _median_ms(lambda: run.evidence(x[:1], keys[:1]), 9)
        found[title] = {"wall_ms_one_image": wall, "cpu_ms_one_image": cpu}
        for together, likelihood in by_call.items():
            wall, cpu = _median_ms(partial(run.evidence, x[batch], names, likelihood), 2)
            found[title][f"batch_of_64_{together}_per_call"] = {
                "wall_ms_per_image": wall / 64,
                "cpu_ms_per_image": cpu / 64,
            }
    torch.set_num_threads(before)
    return found


def _paths(run: Run, x: Tensor, y: Tensor) -> dict[str, dict[str, float]]:
    """CPU milliseconds per row of a forward pass (32 rows) and a training step (64 rows) by precision and memory format."""
    found = {}
    rows = torch.arange(64) % len(x)
    x, y, level, eps = (
        x[rows],
        y[rows],
        torch.linspace(-4, 4, 64, dtype=torch.float64),
        torch.randn_like(x[rows]),
    )
    formats: tuple[tuple[str, torch.memory_format], ...] = (
        ("contiguous", torch.contiguous_format),
        ("channels_last", torch.channels_last),
    )
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        for layout, memory in formats:
            net = copy.deepcopy(run.score.denoiser.net).to(memory_format=memory)  # type: ignore[call-overload]
            denoiser = Denoiser(net, dtype)

            def forward(model: Denoiser = denoiser) -> None:
                with torch.no_grad():
                    model.eval()(x[:32], level[:32], y[:32])

            def step(model: Denoiser = denoiser) -> None:
                model.train().zero_grad(set_to_none=True)
                training_loss(model, x, y, level, eps, None).mean().backward()

            found[f"{precision} {layout}"] = {
                "forward_cpu_ms_per_row": _median_ms(forward, 7)[1] / 32,
                "training_step_cpu_ms_per_row": _median_ms(step, 5)[1] / 64,
            }
    found["chosen"] = found[f"{'bf16' if run.precision == torch.bfloat16 else 'fp32'} contiguous"]
    return found


def _validation(run: Run) -> list[dict[str, float]]:
    """Class log-loss and AUC along the training: whether the network has converged."""
    return [entry for entry in read_log(run.path / "train.jsonl") if "val_log_loss" in entry]
