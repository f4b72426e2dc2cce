"""Commands that measure: ``scorebayes benchmark breastmnist`` (and others), ``speed``, ``curves``, ``data-curves``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from scorebayes.benchmark.names import BENCHMARKS, BEST, MASK_BENCHMARKS, OURS, PRETRAINED, REFERENCE
from scorebayes.cli.common import RESULTS
from scorebayes.cli.face import AGAIN, Told, face
from scorebayes.cli.mask_benchmark import of_masks

app = typer.Typer(help="Measure speed and accuracy; results go to benchmarks/.", no_args_is_help=True)

FIGURES = Path("benchmarks/figures")

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]


def _over_seeds(name: str) -> Callable[..., Told]:
    """The command that runs one accuracy benchmark."""

    def command(
        data_root: Annotated[Path, typer.Option(help="Folder with the real data.")] = Path("../shared/data"),
        seeds: Annotated[
            int | None, typer.Option(min=1, help="Runs with the seeds 0, 1, ... [default: 3; 1 with --quick]")
        ] = None,
        baselines: Annotated[
            str, typer.Option(help="Classifiers to compare with: all, none, or names separated by commas.")
        ] = "all",
        quick: Annotated[
            bool, typer.Option("--quick", help="Quick trial: few steps of the tiny preset, separate files.")
        ] = False,
        keep: Annotated[
            bool, typer.Option("--keep", help="Keep the other baselines that the result file already has.")
        ] = False,
        keep_ours: Annotated[
            bool,
            typer.Option("--keep-ours", help="Keep our results as well, and train only the named baselines."),
        ] = False,
        only_seed: Annotated[
            int | None,
            typer.Option(
                min=0,
                help="Run only this seed and write no results, to spread the seeds over several machines.",
            ),
        ] = None,
        runs: Annotated[Path, typer.Option(help="Folder for the run directories.")] = Path("runs/benchmarks"),
        out: Annotated[Path, typer.Option(help="Folder for the JSON file and the posteriors.")] = RESULTS,
        figures: Annotated[Path, typer.Option(help="Folder for the cost figure.")] = FIGURES,
    ) -> Told:
        from scorebayes.benchmark.names import OURS
        from scorebayes.benchmark.shown.figures import draw_costs
        from scorebayes.benchmark.shown.markdown import difference
        from scorebayes.benchmark.training.accuracy import run_benchmark, run_one_seed

        names = {"all": None, "none": ()}.get(baselines, tuple(baselines.split(",")))
        if only_seed is not None:
            found_run = run_one_seed(
                name, data_root, runs, only_seed, baselines=names, quick=quick, keep_ours=keep_ours
            )
            words = f"done: {found_run}. When all seeds are done, run again without --only-seed."
            return Told({"benchmark": name, "seed": only_seed, "run": found_run}, words)
        n_seeds = seeds or (1 if quick else 3)
        path = run_benchmark(
            name, data_root, runs, out, range(n_seeds),
            baselines=names, quick=quick, keep=keep, keep_ours=keep_ours,
        )  # fmt: skip
        found = json.loads(path.read_text())
        figure = figures / f"{path.stem}-costs.svg"
        draw_costs(found, figure)
        lines = []
        for model, values in found["models"].items():
            auc = values["test"]["auc"]
            lines.append(f"{model}: test AUC {auc['mean']:.3f}, seeds {[round(v, 3) for v in auc['values']]}")
        lines += [f"minus {rival}: {difference(lead)[0]}" for rival, lead in found["paired"][OURS].items()]
        if quick:
            lines.append("Quick trial: everything works, but the numbers say nothing about the models.")
        return _told([path, figure], found, lines)

    command.__doc__ = f"""Train, score and evaluate our model and the baselines on {name} over seeds; run again to resume.

    Example: scorebayes benchmark {name} --seeds 3
    """
    return command


for _name in (*BENCHMARKS, *PRETRAINED):
    app.command(_name)(face(_over_seeds(_name), resume=AGAIN))


for _name in MASK_BENCHMARKS:
    app.command(_name)(face(of_masks(_name), resume=AGAIN))


def speed(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Trained runs; the first one gives the headline number."),
    ],
    images: Annotated[
        list[int] | None, typer.Option(min=2, help="Test images, given once or once per run. [default: 300]")
    ] = None,
    literal_images: Annotated[
        list[int] | None,
        typer.Option(
            min=0,
            help="How many of them are also scored with the paper's exact computation, given the same way. [default: 24]",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="JSON file to write.")] = RESULTS / "speed.json",
    device: Device = "cpu",
) -> Told:
    """Compare seconds, evaluations and AUC of a run's estimator with the paper's computation; run again to resume.

    Example: scorebayes benchmark speed runs/breast
    """
    from scorebayes.benchmark.trained.speed import measure_speed
    from scorebayes.runs.run import open_run

    found = measure_speed([open_run(run, device) for run in runs], images or [300], literal_images or [24])
    _write(out, found)
    line = (
        f"{found['speedup_vs_paper']:.0f} times fewer seconds than the paper's computation, one image at a time; "
        f"{found['runs'][0]['paper_in_batches']['speedup_of_default']:.0f} times less processor time than it would take in "
        f"batches; AUC {found['auc']:.3f} against {found['auc_paper']:.3f}"
    )
    return _told([out], found, [line])


def curves(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="A trained run.")],
    images: Annotated[int, typer.Option(min=2, help="Test images.")] = 300,
    val_images: Annotated[int, typer.Option(min=4, help="Validation images for the calibrations.")] = 300,
    flow_images: Annotated[int, typer.Option(min=2, help="Test images for the probability flow.")] = 100,
    out: Annotated[Path, typer.Option(help="JSON file to write.")] = RESULTS / "curves.json",
    figure: Annotated[Path, typer.Option(help="SVG file to draw.")] = FIGURES / "auc-vs-evaluations.svg",
    device: Device = "cpu",
) -> Told:
    """Measure AUC against network evaluations for every estimator; run again to resume.

    Example: scorebayes benchmark curves runs/breast
    """
    from scorebayes.benchmark.trained.evaluations import draw_curves, measure_curves
    from scorebayes.runs.run import open_run

    found = measure_curves(open_run(run_dir, device), images, val_images, flow_images)
    _write(out, found)
    draw_curves(found, figure)
    return _told([out, figure], found)


def evidence(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Trained runs; a phantom run gives the lesion share."),
    ],
    images: Annotated[int, typer.Option(min=2, help="Test images of each run.")] = 60,
    steps: Annotated[
        int | None,
        typer.Option(help="Training steps of the ResNet-18. Default: the training budget of the score."),
    ] = None,
    out: Annotated[Path, typer.Option(help="JSON file to write.")] = RESULTS / "evidence.json",
    device: Device = "cpu",
) -> Told:
    """Compare evidence maps with saliency maps of a ResNet-18: share in the known lesion, and deletion test.

    Example: scorebayes benchmark evidence runs/demo runs/breast
    """
    from scorebayes.benchmark.trained.maps import measure_evidence
    from scorebayes.runs.run import open_run

    found = measure_evidence([open_run(run, device) for run in runs], images, steps=steps)
    _write(out, found)
    lines = []
    for name, measured in found["runs"].items():
        shares = (measured["lesion"] or {"methods": {}})["methods"]
        for method, of in shares.items():
            share = of["share_positive"]["mean"]
            lines.append(f"{name}: {share:.3f} of the evidence for the class lies in the lesion, by {method}")
    return _told([out], found, lines)


def data_curves(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A benchmark: breastmnist, phantom, ...")],
    vary: Annotated[str, typer.Option(help="per-class, imbalance or label-noise.")],
    values: Annotated[
        str, typer.Option(help="For example 5,10,all. Default: the usual values of the curve.")
    ] = "",
    seeds: Annotated[int, typer.Option(min=1, help="Runs with the seeds 0, 1, ... at every value.")] = 3,
    models: Annotated[
        str, typer.Option(help="scorebayes, and the baselines to compare with.")
    ] = "scorebayes,resnet18,logistic",
    quick: Annotated[
        bool, typer.Option("--quick", help="Quick trial: few steps of the tiny preset, separate files.")
    ] = False,
    reduce_val: Annotated[
        bool, typer.Option("--reduce-val", help="Reduce the validation split like the training split.")
    ] = False,
    scratch: Annotated[
        bool,
        typer.Option("--scratch", help="Start our model from random weights, not from label-free training."),
    ] = False,
    data_root: Annotated[Path, typer.Option(help="Folder with the real data.")] = Path("../shared/data"),
    runs: Annotated[Path, typer.Option(help="Folder for the run directories.")] = Path("runs/benchmarks"),
    out: Annotated[Path, typer.Option(help="Folder for the JSON file.")] = RESULTS,
    figures: Annotated[Path, typer.Option(help="Folder for the figure.")] = FIGURES,
) -> Told:
    """Measure AUC against the number, imbalance or wrong labels of the training images; run again to resume.

    Example: scorebayes benchmark data-curves breastmnist --vary per-class
    """
    from scorebayes.benchmark.training.data_curves import Study, default_values, measure_curve, parse_values

    chosen = parse_values(values) if values else default_values(vary)
    names = tuple(part.strip() for part in models.split(","))
    study = Study(name, vary, chosen, tuple(range(seeds)), names, quick, reduce_val, scratch)
    path = measure_curve(study, data_root, runs, out, figures)
    return _told([path, figures / f"{path.stem}.svg"], json.loads(path.read_text()))


def ood(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="A trained run.")],
    images: Annotated[int, typer.Option(min=2, help="Images of each foreign kind.")] = 50,
    data_root: Annotated[Path, typer.Option(help="Folder with other data sets.")] = Path("../shared/data"),
    out: Annotated[Path, typer.Option(help="JSON file to write.")] = RESULTS / "ood.json",
    device: Device = "cpu",
) -> Told:
    """Measure which foreign images are declined, by typicality and by likelihood; run again to resume.

    Example: scorebayes benchmark ood runs/breast
    """
    from scorebayes.benchmark.trained.ood import measure_ood
    from scorebayes.runs.run import open_run

    found = measure_ood(open_run(run_dir, device), images, data_root)
    _write(out, found)
    line = (
        f"foreign images declined: at least {found['worst_flagged']:.0%} of every kind; "
        f"test images declined: {found['in_distribution']['flagged']:.1%}"
    )
    return _told([out], found, [line])


def robustness(
    run_dir: Annotated[
        Path, typer.Argument(metavar="RUN", help="A trained run; its baselines are measured too.")
    ],
    images: Annotated[int, typer.Option(min=4, help="Test images.")] = 100,
    severities: Annotated[str, typer.Option(help="Some of 1 to 5, separated by commas.")] = "1,2,3,4,5",
    out: Annotated[Path, typer.Option(help="JSON file to write.")] = RESULTS / "robustness.json",
    figure: Annotated[Path, typer.Option(help="SVG file to draw.")] = FIGURES / "robustness.svg",
    device: Device = "cpu",
) -> Told:
    """Measure AUC, accuracy and log-loss of the run and its baselines under twelve corruptions; run again to resume.

    Example: scorebayes benchmark robustness runs/breast --severities 1,3,5
    """
    from scorebayes.benchmark.trained.robustness import OURS, draw_robustness, measure_robustness
    from scorebayes.runs.run import open_run

    chosen = _numbers("severities", severities, "1,3,5")
    found = measure_robustness(open_run(run_dir, device), images, chosen)
    _write(out, found)
    draw_robustness(found, figure)
    summary = found["summary"][OURS]
    line = f"mean AUC {summary['mean_auc']:.3f} under corruption, {summary['auc_lost']:.3f} less than on clean images"
    return _told([out, figure], found, [line])


def adversarial(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="A trained run.")],
    images: Annotated[int, typer.Option(min=1, help="Test images.")] = 32,
    peer: Annotated[
        str, typer.Option(help="Baseline to attack as well. It is trained if needed.")
    ] = "resnet18",
    steps: Annotated[int, typer.Option(min=1, help="Steps of gradient descent.")] = 10,
    queries: Annotated[int, typer.Option(min=1, help="Queries of the Square attack for each image.")] = 100,
    repeats: Annotated[
        int, typer.Option(min=1, help="Draws per noise level in each attack step on our model.")
    ] = 1,
    out: Annotated[Path, typer.Option(help="JSON file to write.")] = RESULTS / "adversarial.json",
    device: Device = "cpu",
) -> Told:
    """Measure the accuracy of the model and of a baseline under a gradient attack and a query attack.

    Example: scorebayes benchmark adversarial runs/breast --images 32
    """
    from scorebayes.benchmark.trained.adversarial import measure_adversarial
    from scorebayes.runs.run import open_run

    found = measure_adversarial(open_run(run_dir, device), images, peer, steps, queries, repeats)
    _write(out, found)
    lines = [
        f"{row['model']}, {row['attack']} {row['budget']}/255: accuracy {row['accuracy']:.2f}"
        for row in found["results"]
    ]
    return _told([out], found, lines)


def page(
    results: Annotated[Path, typer.Option(help="Folder with the JSON files.")] = RESULTS,
    figures: Annotated[Path, typer.Option(help="Folder with the figures.")] = FIGURES,
    out: Annotated[Path, typer.Option(help="Markdown file to write.")] = Path("docs/benchmarks.md"),
    readme: Annotated[Path | None, typer.Option(help="File whose quoted tables are updated.")] = None,
) -> Told:
    """Write all tables and figures to one Markdown page. Missing results are listed with their command.

    Example: scorebayes benchmark page --readme docs/results.md
    """
    from scorebayes.benchmark.shown.page import quote_glance, write_page

    written = [write_page(results, figures, out)]
    if readme:
        written.append(quote_glance(out, readme))
    return _told(written, {})


def compare(
    results: Annotated[Path, typer.Argument(metavar="JSON", help="Results of a benchmark.")],
    predictions: Annotated[
        Path, typer.Argument(metavar="CSV", help="image_id and prob_<positive class> of all test images.")
    ],
) -> Told:
    """Compare your own classifier with a benchmark's models on the same test images: AUC and paired differences.

    Example: scorebayes benchmark compare benchmarks/results/breastmnist.json mine.csv
    """
    from scorebayes.benchmark.shown.markdown import difference
    from scorebayes.benchmark.stored.compare import compare_predictions

    found = compare_predictions(results, predictions)
    lines = [f"minus {model}: {difference(lead)[0]}" for model, lead in found["minus"].items()]
    return Told(found, "\n".join([f"test AUC {found['auc']:.3f}", *lines]))


def site(
    results: Annotated[Path, typer.Argument(metavar="JSON", help="Results of a benchmark.")],
    models: Annotated[str, typer.Option(help="Models in the results, separated by commas.")] = ",".join(
        (OURS, BEST, REFERENCE)
    ),
    patients: Annotated[
        str, typer.Option(help="Numbers of test patients to calibrate on, separated by commas.")
    ] = "20,50,100",
    out: Annotated[
        Path | None, typer.Option(help="JSON file to write. [default: next to the results]")
    ] = None,
) -> Told:
    """Measure the gain from labelled images of the site: calibrate a benchmark's models on some test patients.

    Example: scorebayes benchmark site benchmarks/results/pneumoniamnist.json
    """
    from scorebayes.benchmark.stored.site import measure_site

    numbers = _numbers("patients", patients, "20,50")
    path = out or results.with_name(f"{results.stem}-site.json")
    found = measure_site(results, [part.strip() for part in models.split(",")], numbers)
    _write(path, found)
    lines = []
    for model, by_number in found["models"].items():
        told = (f"{n}: {of['accuracy']['mean']:.3f} / {of['ece']['mean']:.3f}" for n, of in by_number.items())
        lines.append(f"{model}, accuracy / calibration error by patients: {', '.join(told)}")
    return _told([path], found, lines)


_COMMANDS: tuple[tuple[Callable[..., Told], str], ...] = (
    (speed, AGAIN), (curves, AGAIN), (evidence, ""), (data_curves, AGAIN), (ood, AGAIN), (robustness, AGAIN),
    (adversarial, ""), (page, ""), (compare, ""), (site, ""),
)  # fmt: skip
for _command, _resume in _COMMANDS:
    app.command(_command.__name__.replace("_", "-"))(face(_command, resume=_resume))


def _told(written: Sequence[Path], found: dict[str, Any], lines: Sequence[str] = ()) -> Told:
    """What was measured, and where it lies."""
    words = [*lines, f"written: {', '.join(map(str, written))}"]
    return Told({"written": list(written), **found}, "\n".join(words))


def _numbers(name: str, text: str, example: str) -> list[int]:
    """Whole numbers separated by commas. ConfigError for anything else."""
    from scorebayes.errors import ConfigError

    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(
            f"{name} {text!r}: expected whole numbers.", f"Separate them by commas, such as {example}."
        ) from error


def _write(path: Path, content: dict[str, Any]) -> None:
    from scorebayes.storage import sealed

    path.parent.mkdir(parents=True, exist_ok=True)
    sealed.write(path, json.dumps(content, indent=1, default=str) + "\n")
