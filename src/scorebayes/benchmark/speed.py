"""What a decision costs: the estimator of a run against the paper's computation, and AUC against evaluations.

Every measurement goes in small parts that are kept in the run directory (``benchmark/``): a stopped benchmark goes on
where it was. Contestants take turns on the same images, so that a machine that slows down slows all of them.
"""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from scorebayes.calibrate import Calibration, fit_calibration
from scorebayes.checkpoint import write_atomically
from scorebayes.data.load import ImageSet
from scorebayes.divergence import hutchinson
from scorebayes.draws import Draws
from scorebayes.errors import ConfigError
from scorebayes.inputs import load_split
from scorebayes.likelihood import Denoising, DenoisingBound, Flow, Likelihood, PaperFlow
from scorebayes.likelihood.flow import velocity
from scorebayes.metrics import auc_interval, classification_metrics, delong, delong_test
from scorebayes.posterior import bayes
from scorebayes.progress import progress_bar
from scorebayes.run import Run, environment, log_lik_table
from scorebayes.score import Denoiser, Score, ScoreModel, training_loss
from scorebayes.sequential import Sequential
from scorebayes.table import LogLikTable

IMAGES_PER_PART = 4
BATCH_CALL = 4  # images a network call where latency is measured in batches: the estimator's default
OURS, PAPER = "default", "paper"
PAPER_ALL, PAPER_OWN = "paper, all noise levels", "paper, all noise levels, a probe per class"


@dataclass(frozen=True)
class Contestant:
    """An estimator, how many of the images it is given, and the highest log-SNR it uses (None: that of the process)."""

    name: str
    likelihood: Likelihood
    images: int
    log_snr_max: float | None = None


# -- speed --------------------------------------------------------------------------------------------------------------


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


def trained_log_snr_max(run: Run) -> float:
    """The log-SNR below which all but 2 % of the training images were: mean + 2 standard deviations."""
    config = run.config.train
    return min(config.log_snr_mean + 2 * config.log_snr_std, run.score.noise.log_snr_range[1])


def _speed_of(run: Run, images: int, literal_images: int) -> dict[str, Any]:
    some = _some(load_split(run, "test"), images, run.config.seed)
    shared = PaperFlow(shared_probe=True)
    contestants = [
        Contestant(OURS, run.likelihood, images),
        Contestant(PAPER, shared, images, trained_log_snr_max(run)),
        Contestant(PAPER_ALL, shared, literal_images),
        Contestant(PAPER_OWN, PaperFlow(shared_probe=False), literal_images),
    ]
    contestants = [c for c in contestants if c.images]
    tables, seconds = _take_turns(run, some, contestants[:2])
    literal_tables, literal_seconds = _take_turns(run, some, contestants[2:], "literal")
    tables, seconds = tables | literal_tables, seconds | literal_seconds
    positive = run.facts.info.positive
    truth = some.labels == positive
    log_odds = {
        OURS: bayes(tables[OURS], run.log_prior, run.calibration).log_odds[:, positive],
        **{c.name: _raw_log_odds(tables[c.name], positive) for c in contestants[1:]},
    }
    auc = {name: _auc(truth[: len(values)], values) for name, values in log_odds.items()}
    difference = delong_test(truth, log_odds[OURS], log_odds[PAPER])
    x = run.standardise(some.images)
    row_ms = {rows: _gradient_ms(run, x, rows) for rows in (1, 32)}
    ours, paper = seconds[OURS], seconds[PAPER]
    paper_nfe = float(tables[PAPER].nfe.mean())
    in_batches = paper_nfe * len(run.facts.classes) * row_ms[32] / 1000
    latency = _latency(run, x, some.keys)
    return {
        "run": str(run.path),
        "data": run.config.data.source.rpartition("/")[2],
        "size": run.config.prepare.size,
        "images": len(some),
        "speedup_vs_paper": paper["wall"] / ours["wall"],
        "speedup_vs_paper_cpu": paper["cpu"] / ours["cpu"],
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


def _take_turns(
    run: Run, images: ImageSet, contestants: Sequence[Contestant], title: str = "measure"
) -> tuple[dict[str, LogLikTable], dict[str, dict[str, float]]]:
    """Tables, and seconds per image (wall and CPU), of every contestant; what is there already is kept."""
    folders = {c.name: _folder(run, images, c) for c in contestants}
    scores = {c.name: _score(run, c.likelihood.kind, c.log_snr_max) for c in contestants}
    # Warm up: libraries choose their kernels at the first call.
    run.log_lik(run.standardise(images.subset([0]).images), images.keys[:1])
    with progress_bar(title, len(images)) as advance:
        for part, start in enumerate(range(0, len(images), IMAGES_PER_PART)):
            rows = np.arange(start, min(start + IMAGES_PER_PART, len(images)))
            for c in contestants:
                path = folders[c.name] / f"part-{part:06d}.parquet"
                own = rows[rows < c.images]
                if path.exists() or not len(own):
                    continue
                some = images.subset(own)
                x = run.standardise(some.images)
                wall, cpu = time.perf_counter(), time.process_time()
                if c.name == OURS:  # with what stands beside the estimator in the run's decision
                    table = run.log_lik(x, some.keys, c.likelihood)
                else:
                    table = log_lik_table(c.likelihood, scores[c.name], x, some.keys, run.config.seed)
                spent = {
                    "wall": time.perf_counter() - wall,
                    "cpu": time.process_time() - cpu,
                    "images": len(own),
                }
                write_atomically(path.with_suffix(".json"), json.dumps(spent))
                table.with_labels(some.labels).write_part(folders[c.name], part)
            advance(int(rows[-1]) + 1, "")
    return (
        {c.name: LogLikTable.read(folders[c.name]) for c in contestants},
        {c.name: _seconds(folders[c.name]) for c in contestants},
    )


def _folder(run: Run, images: ImageSet, contestant: Contestant) -> Path:
    """Where the parts of a contestant are kept: another network, estimator or choice of images has another folder."""
    identity = (
        run.maker(contestant.likelihood),
        images.keys[: contestant.images],
        contestant.log_snr_max,
    )
    digest = hashlib.blake2b(repr(identity).encode(), digest_size=6).hexdigest()
    folder = run.path / "benchmark" / f"{contestant.name.replace(',', '').replace(' ', '-')}-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _seconds(folder: Path) -> dict[str, float]:
    """Mean wall and CPU seconds per image."""
    spent = [json.loads(path.read_text()) for path in sorted(folder.glob("part-*.json"))]
    images = sum(part["images"] for part in spent)
    return {key: sum(part[key] for part in spent) / images for key in ("wall", "cpu")}


def _score(run: Run, kind: str, log_snr_max: float | None = None) -> ScoreModel:
    """The run's score; for values in nats in single precision, as rounding to bf16 would spoil them."""
    if kind == "class-score":
        return run.score
    noise: Any = run.score.noise
    if log_snr_max is not None:
        noise = replace(noise, t_min=float(noise.time(torch.tensor(log_snr_max, dtype=torch.float64))))
    return ScoreModel(Denoiser(run.score.denoiser.net).eval(), noise)


def _some(images: ImageSet, n: int, seed: int) -> ImageSet:
    """n images in random order, with the class shares of all."""
    if len(images) <= n:
        return images.subset(np.random.default_rng(seed).permutation(len(images)))
    rng = np.random.default_rng(seed)
    classes, counts = np.unique(images.labels, return_counts=True)
    shares = np.round(n * counts / len(images)).astype(int)
    shares[counts.argmax()] += n - shares.sum()
    rows = [
        rng.permutation(np.flatnonzero(images.labels == y))[:share]
        for y, share in zip(classes, shares, strict=True)
    ]
    return images.subset(rng.permutation(np.concatenate(rows)))


def _raw_log_odds(table: LogLikTable, positive: int) -> NDArray[np.float64]:
    """Log-odds at a uniform prior, taken at their word: any calibration with one weight keeps their order [N]."""
    n_classes = table.draws.shape[2]
    flat = np.full(n_classes, -np.log(n_classes))
    return bayes(table, flat).log_odds[:, positive]


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
    score = _score(run, "density")
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
        wall, cpu = _median_ms(lambda: run.log_lik(x[:1], keys[:1]), 9)
        found[title] = {"wall_ms_one_image": wall, "cpu_ms_one_image": cpu}
        for together, likelihood in by_call.items():
            wall, cpu = _median_ms(partial(run.log_lik, x[batch], names, likelihood), 2)
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
    lines = (run.path / "train.jsonl").read_text(encoding="utf-8").splitlines()
    return [entry for entry in map(json.loads, lines) if "val_log_loss" in entry]


# -- AUC against evaluations ----------------------------------------------------------------------------------------------

EVALUATIONS_PER_LEVEL = 8
CURVES: dict[str, dict[int, Any]] = {
    "probability flow, Heun": {n: Flow("heun", n, mode="reverse") for n in (4, 8, 16)},
    "probability flow, RK4": {n: Flow("rk4", n, mode="reverse") for n in (4, 8)},
    "probability flow, Dormand-Prince": {n: Flow("dopri5", n, mode="reverse") for n in (4, 8, 16)},
}
TARGET_ERRORS = (0.5, 0.2, 0.05, 0.01)


@dataclass(frozen=True)
class _Point:
    """One estimator at one cost: evaluations per class, AUC with interval, log-loss and ECE of the calibrated posterior."""

    evaluations: float
    prob: NDArray[np.float64]
    labels: NDArray[np.int64]
    positive: int

    def to_dict(self) -> dict[str, Any]:
        metrics = classification_metrics(self.labels, self.prob, positive=self.positive)
        names = ("auc", "auc_ci95", "accuracy", "log_loss", "ece")
        return {"evaluations_per_class": self.evaluations, **{name: metrics[name] for name in names}}


def measure_curves(run: Run, images: int, val_images: int, flow_images: int) -> dict[str, Any]:
    """AUC, log-loss and calibration against evaluations per class, for every estimator, on the same test images.

    The estimators that need weights are calibrated on ``val_images`` of the validation split, anew for every number of
    draws. Values in nats are taken over the noise levels that the network was trained on, for the bound over all levels
    too; the flow, which costs most, sees ``flow_images``.
    """
    own: Any = run.likelihood
    if own.kind != Denoising.kind:
        raise ConfigError(f"{run.path}: the curves need a run whose own estimator is 'denoising'.")
    test = _some(load_split(run, "test"), images, run.config.seed)
    val = _some(load_split(run, "val"), val_images, run.config.seed)
    scored: dict[str, Denoising] = {
        "class score": replace(own, repeats=_passes(own)),
        "class score, noise by image": replace(own, repeats=_passes(own), common_noise=False),
        "class score, independent draws": replace(
            own, repeats=EVALUATIONS_PER_LEVEL, common_noise=False, antithetic=False
        ),
    }
    on_val, _ = _take_turns(run, val, [Contestant(k, v, len(val)) for k, v in scored.items()], "validation")
    bound = DenoisingBound(levels=own.levels, repeats=EVALUATIONS_PER_LEVEL)
    highest = trained_log_snr_max(run)
    nats = [
        Contestant("bound", bound, len(test), highest),
        Contestant("bound, all noise levels", bound, len(test)),
    ]
    on_test, _ = _take_turns(
        run, test, [*(Contestant(k, v, len(test)) for k, v in scored.items()), *nats], "test"
    )
    positive = run.facts.info.positive
    curves: dict[str, list[_Point]] = {}
    for name in scored:
        passes = range(1, scored[name].repeats + 1)
        curves[name] = [_calibrated(run, on_test[name], on_val[name], p) for p in passes]
    for each in nats:
        shorter = [_first_passes(on_test[each.name], own.levels, p) for p in (1, 2, 4, EVALUATIONS_PER_LEVEL)]
        curves[each.name] = [_as_it_is(table, positive) for table in shorter]
    curves["sequential"] = [
        _sequential(run, own, on_test["class score"], on_val["class score"], error) for error in TARGET_ERRORS
    ]
    flows = [
        Contestant(f"{name}, {n} steps", flow, min(flow_images, len(test)), highest)
        for name, by_steps in CURVES.items()
        for n, flow in by_steps.items()
    ]
    on_flow, _ = _take_turns(run, test, flows, "flow")
    for name, by_steps in CURVES.items():
        curves[name] = [_as_it_is(on_flow[f"{name}, {n} steps"], positive) for n in by_steps]
    paper = _paper_so_far(run, test)
    if paper is not None:
        curves["the paper's computation"] = [_as_it_is(paper, positive)]
    return {
        "run": str(run.path),
        "test_images": len(test),
        "val_images": len(val),
        "flow_images": flows[0].images,
        "curves": {name: [point.to_dict() for point in points] for name, points in curves.items() if points},
        "seed": run.config.seed,
        "command": f"scorebayes benchmark curves {run.path} --images {images}",
        "written": time.strftime("%Y-%m-%d %H:%M"),
    }


def _passes(estimator: Denoising) -> int:
    """Over the noise levels, for all evaluations."""
    return EVALUATIONS_PER_LEVEL // (2 if estimator.antithetic else 1)


def _first_passes(table: LogLikTable, levels: int, passes: int) -> LogLikTable:
    """What the estimator would have given with fewer repeats: its draws come pass by pass."""
    kept = slice(0, levels * passes)
    share = len(table.level[kept]) / len(table.level)
    return replace(
        table,
        draws=table.draws[kept],
        log_snr=table.log_snr[kept],
        level=table.level[kept],
        nfe=np.round(table.nfe * share).astype(np.int64),
    )


def _calibrated(run: Run, test: LogLikTable, val: LogLikTable, passes: int) -> _Point:
    levels = len(np.unique(test.level))
    test, val = (_first_passes(table, levels, passes).usable() for table in (test, val))
    calibration = fit_calibration(val, val.log_shares, seed=run.config.seed)
    prob = bayes(test, run.log_prior, calibration).prob
    return _Point(float(test.nfe.mean()), prob, test.labels, run.facts.info.positive)


def _as_it_is(table: LogLikTable, positive: int) -> _Point:
    """Log-likelihoods at their word, at a uniform prior."""
    table = table.usable()
    n_classes = table.draws.shape[2]
    prob = bayes(table, np.full(n_classes, -np.log(n_classes))).prob
    return _Point(float(table.nfe.mean()), prob, table.labels, positive)


@dataclass(frozen=True)
class _Replay:
    """Stands for ``Denoising`` where its draws are in a table already: the same passes, without the network."""

    table: LogLikTable
    levels: int
    antithetic: bool
    kind: Literal["class-score"] = "class-score"

    def passes(
        self, score: Score, x: Tensor, draws: Draws, numbers: range, classes: Tensor | None = None
    ) -> tuple[NDArray[np.float64], Tensor]:
        row = self.table.keys.index(draws.keys[0])
        kept = slice(numbers.start * self.levels, numbers.stop * self.levels)
        values = self.table.draws[kept, row : row + 1]
        log_snr = torch.from_numpy(self.table.log_snr[kept, row : row + 1].T)
        return (values if classes is None else values[..., classes.numpy()]), log_snr


def _sequential(run: Run, own: Denoising, test: LogLikTable, val: LogLikTable, target_error: float) -> _Point:
    """Sequential decisions, with the calibration that the default number of draws has on validation images."""
    few = _first_passes(val, own.levels, own.repeats).usable()
    calibration: Calibration = fit_calibration(few, few.log_shares, seed=run.config.seed)
    test = test.usable()
    replay: Any = _Replay(test, own.levels, own.antithetic)
    rule = Sequential(calibration, run.log_prior, _passes(own), target_error, replay)
    result = rule(run.score, torch.empty(len(test)), Draws(run.config.seed, test.keys))
    n_classes = test.draws.shape[2]
    return _Point(
        float(result.evaluations.mean()) / n_classes,
        result.posterior.prob,
        test.labels,
        run.facts.info.positive,
    )


def _paper_so_far(run: Run, test: ImageSet) -> LogLikTable | None:
    """What ``measure_speed`` has stored of the paper's computation on these images."""
    contestant = Contestant(PAPER, PaperFlow(shared_probe=True), len(test), trained_log_snr_max(run))
    folder = _folder(run, test, contestant)
    table = LogLikTable.read(folder) if any(folder.glob("part-*.parquet")) else None
    return table if table is not None and len(set(table.labels.tolist())) > 1 else None


def draw_curves(measured: Mapping[str, Any], path: Path) -> None:
    """The figure of ``measure_curves`` as SVG: AUC and log-loss against evaluations per class."""
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "scorebayes", "font.size": 9}
    markers = "os^Dv<>pX*"
    with rc_context(style):
        figure = Figure(figsize=(9.5, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        for marker, (name, points) in zip(markers, measured["curves"].items(), strict=False):
            cost = [point["evaluations_per_class"] for point in points]
            area = [point["auc"] for point in points]
            low, high = np.array([point["auc_ci95"] for point in points]).T
            line = left.plot(cost, area, marker=marker, markersize=4, label=name)[0]
            left.fill_between(cost, low, high, color=line.get_color(), alpha=0.08, linewidth=0)
            if not name.startswith(
                ("probability", "bound", "the paper")
            ):  # raw nats: their log-loss is off the scale
                loss = [point["log_loss"] for point in points]
                right.plot(cost, loss, marker=marker, markersize=4, color=line.get_color(), label=name)
        for axes, title in (
            (left, "AUC, with 95 % intervals"),
            (right, "log-loss of the calibrated posterior"),
        ):
            axes.set(xscale="log", xlabel="network evaluations per class", title=title)
            axes.grid(alpha=0.3)
        left.legend(fontsize=7.5, loc="lower left")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})
