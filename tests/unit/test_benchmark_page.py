"""The page of results: what the files hold, and what is missing."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from scorebayes.benchmark.shown.page import METRICS, quote_glance, write_page
from scorebayes.benchmark.stored.posteriors import posteriors_path
from scorebayes.cli.benchmark import app
from scorebayes.errors import DataError

SPREAD = {"mean": 0.9, "std": 0.0123, "values": [0.89, 0.91], "ci95": [0.85, 0.95]}
LEAD = {"auc_difference": 0.0312, "auc_difference_ci95": [-0.01, 0.07], "auc_difference_p": 0.0004}


@pytest.fixture
def folders(tmp_path):
    for name in ("results", "figures"):
        (tmp_path / name).mkdir()
    return tmp_path


def _write(folders):
    out = folders / "docs" / "benchmarks.md"
    return write_page(folders / "results", folders / "figures", out).read_text()


def _store(folders, stem, **content):
    (folders / "results" / f"{stem}.json").write_text(json.dumps(content))


def _curve(vary, **changes):
    point = {
        "value": 30, "shown": "30", "train_images": [62, 62], "steps": [300, 310],
        "models": {"scorebayes": {"test": {"auc": SPREAD}}, "resnet18": {"test": {}}},
        "paired": {"scorebayes": {"resnet18": LEAD}},
    }  # fmt: skip
    header = {
        "seeds": [0, 1],
        "rare_class": "malignant",
        "validation": "whole",
        "steps_rule": "a rule",
        "prior": "p",
    }
    return {**header, "vary": vary, "models": ["scorebayes", "resnet18"], "points": [point], **changes}


def test_nothing_run_is_a_page_of_commands(folders):
    text = _write(folders)
    for command in (
        "breastmnist",
        "ddsm64",
        "data-curves phantom --vary imbalance",
        "data-curves breastmnist --vary label-noise",
        "adversarial RUN",
        "site benchmarks/results/pneumoniamnist.json",
    ):
        assert f"Not run yet. Command: `scorebayes benchmark {command}`." in text
    assert text.count("Not run") == 18 and "|" not in text


def test_a_benchmark_has_its_table_paired_tests_and_figures(folders):
    models = {
        "scorebayes-generative": {"test": {metric: SPREAD for metric in METRICS}},
        "resnet18": {"test": {"auc": {"mean": 0.8}}},
    }
    paired = {"scorebayes-generative": {"resnet18": LEAD}}
    facts = {"seeds": [0, 1], "steps": 7, "test_images": 156, "majority_accuracy": 0.73, "written": "today"}
    made = {"environment": {"processor": "A processor"}, "command": "a command"}
    copies = {"correlation": 0.99, "images": [39, 41], "auc": {"resnet18": {"mean": 0.7, "std": 0.01}}}
    _store(folders, "breastmnist", models=models, paired=paired, near_copies=copies, **facts, **made)
    for figure in ("breastmnist-cost", "breastmnist-per-class", "phantom-cost"):
        (folders / "figures" / f"{figure}.svg").write_text("<svg/>")
    text = _write(folders)
    assert "| scorebayes-generative | 0.900 ± 0.012 [0.850, 0.950] |" in text
    assert "| resnet18 | 0.800 | – |" in text and "– | 0.700 ± 0.010 |" in text
    assert "| scorebayes-generative | resnet18 | +0.031 [-0.010, +0.070] | < 0.001 |" in text
    assert (
        "156 test images; 2 seed(s); 7 steps; always naming the most frequent class: accuracy 0.730; "
        "39 to 41 test images have a correlation above 0.99 with a training image; on A processor" in text
    )
    assert "![breastmnist cost](../figures/breastmnist-cost.svg)" in text
    assert "breastmnist-per-class.svg" not in text  # its curve is not there


def test_the_accuracy_in_hindsight_comes_from_the_posteriors_beside_the_file(folders):
    models = {name: {"test": {"accuracy": {"mean": 0.5}}} for name in ("ours", "kept")}
    _store(folders, "ddsm64", models=models, positive="b", written="today", command="a command")
    rows = pd.DataFrame({"model": "ours", "seed": 0, "image_id": ["x", "y"], "label": ["a", "b"]})
    rows.assign(prob_b=[0.6, 0.7]).to_parquet(posteriors_path(folders / "results" / "ddsm64.json"))
    table = _write(folders).partition("## DDSM")[2]
    assert table.count("accuracy in hindsight") == 1
    assert re.search(r"\| ours \|.* 1\.000 \|\n\| kept \|.* – \|\n", table)


def test_a_file_without_paired_tests_says_so(folders):
    _store(folders, "phantom", models={"scorebayes-generative": {"test": {"auc": SPREAD}}})
    assert "The file has no paired tests." in _write(folders)


def test_a_curve_has_a_row_for_every_value_and_its_figure(folders):
    _store(folders, "phantom-imbalance", **_curve("imbalance"))
    (folders / "figures" / "phantom-imbalance.svg").write_text("<svg/>")
    text = _write(folders)
    assert (
        "| 1 to | training images | steps | AUC scorebayes | AUC resnet18 | scorebayes minus resnet18 |"
        in text
    )
    assert "| 30 | 62 | 300 to 310 | 0.900 ± 0.012 [0.850, 0.950] | – | +0.031 [-0.010, +0.070] |" in text
    assert "2 seed(s); rare class: malignant; validation split: whole; steps: a rule; prior: p." in text
    assert "![phantom imbalance](../figures/phantom-imbalance.svg)" in text


def test_further_curves_are_shown_and_quick_tries_are_not(folders):
    _store(folders, "ddsm64-per-class-val-reduced", **_curve("per-class", validation="reduced"))
    _store(folders, "phantom-per-class-quick", **_curve("per-class", validation="quick try"))
    text = _write(folders)
    assert "### DDSM, 64 x 64: training patients" in text and "validation split: reduced" in text
    assert "rare class" not in text and "quick try" not in text


def test_a_study_has_its_rows_its_command_and_its_figure(folders):
    half = {"accuracy": 0.5, "accuracy_ci95": [0.4, 0.6]}
    rows = [
        {"model": "ScoreBayes", "attack": "PGD", "budget": 8, "declined": 0.25, **half},
        {"model": "vit", "attack": "none", "budget": 0, **half},
    ]
    _store(
        folders, "adversarial", data="a set", images=9, steps=10, queries=100, results=rows, written="today"
    )
    mean = {"mean_auc": 0.7, "mean_accuracy": 0.6, "mean_log_loss": 1.0, "auc_lost": 0.1}
    conditions = [{"kind": kind, "severity": s} for kind, s in (("clean", 0), ("blur", 1), ("blur", 2))]
    facts = {"data": "a set", "images": 9, "severities": [1, 2], "command": "its own command"}
    _store(folders, "robustness", conditions=conditions, summary={"ScoreBayes": mean}, **facts)
    (folders / "figures" / "robustness.svg").write_text("<svg/>")
    text = _write(folders)
    assert "| ScoreBayes | PGD | 8/255 | 0.500 [0.400, 0.600] | 0.250 |" in text
    assert "| vit | none | – | 0.500 [0.400, 0.600] | – |" in text
    assert "100 queries; written today. Command: `scorebayes benchmark adversarial RUN`." in text
    assert "9 test images; 1 corruptions of 2 severities. Command: `its own command`." in text
    assert "| ScoreBayes | 0.700 | 0.100 | 0.600 | 1.000 | – |" in text
    assert "![robustness](../figures/robustness.svg)" in text


def test_further_files_of_a_study_are_shown(folders):
    judged = {"accuracy": {"mean": 0.9, "std": 0.01}, "ece": {"mean": 0.1, "std": 0.02}}
    _store(folders, "adversarial-mine", data="x", images=9, steps=1, queries=1, results=[], command="c")
    assert "### Attacks: mine\n\nX; 9 test images" in _write(folders)  # a further file of a study
    _store(folders, "ddsm64-site", repeats=20, models={"scorebayes-generative": {"0": judged, "50": judged}})
    text = _write(folders).partition("### DDSM, 64 x 64: labelled images")[2]
    assert "| ScoreBayes | 0.900 ± 0.010 / 0.100 ± 0.020 | 0.900 ± 0.010 / 0.100 ± 0.020 |" in text


def test_a_damaged_file_is_named(folders):
    (folders / "results" / "phantom.json").write_text("{")
    with pytest.raises(DataError, match=r"phantom\.json: not a JSON file"):
        _write(folders)


def test_the_command_writes_the_page(folders):
    out = folders / "page.md"
    options = [
        "--results",
        str(folders / "results"),
        "--figures",
        str(folders / "figures"),
        "--out",
        str(out),
    ]
    result = CliRunner().invoke(app, ["page", *options])
    assert result.exit_code == 0 and str(out) in result.output and out.read_text().startswith("# Benchmarks")


def test_the_glance_puts_data_sets_side_by_side(folders):
    test = {"test": {"auc": SPREAD, "accuracy": {"mean": 0.8, "std": None}}}
    _store(folders, "breastmnist", models={"scorebayes-generative": test, "vit": test})
    _store(folders, "phantom", models={"scorebayes-generative": test})
    lead = {"scorebayes-generative": {"resnet18": LEAD}}
    for stem, value, shown in (
        ("breastmnist-per-class", None, "all"),
        ("breastmnist-label-noise", 0.2, "0.2"),
    ):
        vary = stem.removeprefix("breastmnist-")
        point = {**_curve(vary)["points"][0], "value": value, "shown": shown, "paired": lead}
        _store(folders, stem, **_curve(vary, points=[point]))
    text = _write(folders).partition("## BreastMNIST")[0]
    assert "| model | BreastMNIST | Synthetic mammograms |" in text
    assert "| ScoreBayes | 0.900 ± 0.012 / 0.800 | 0.900 ± 0.012 / 0.800 |" in text
    assert "| ViT | 0.900 ± 0.012 / 0.800 | – |" in text
    assert "| all | +0.031 [-0.010, +0.070] |" in text
    assert "| 20 % of the labels wrong | +0.031 [-0.010, +0.070] |" in text


def test_the_committed_page_is_up_to_date_and_the_results_quote_its_glance(tmp_path):
    project = Path(__file__).parents[2]
    shutil.copytree(project / "benchmarks", tmp_path / "benchmarks")
    folders = [tmp_path / "benchmarks" / name for name in ("results", "figures")]
    page = write_page(*folders, tmp_path / "docs" / "benchmarks.md")
    hint = "run 'scorebayes benchmark page --readme docs/results.md'"
    assert page.read_text() == (project / "docs" / "benchmarks.md").read_text(), hint
    glance = page.read_text().partition("## At a glance")[2].partition("\n## ")[0]
    tables = re.findall(r"(?:^\|.*\n)+", glance, re.MULTILINE)
    assert len(tables) == 2
    quoted = (project / "docs" / "results.md").read_text()
    assert tables[0] in quoted, hint
    number = re.compile(r"\d\.\d{3}")
    stale = tmp_path / "results.md"
    stale.write_text(quoted.replace(tables[0], number.sub("?", tables[0])))
    assert stale.read_text().count("?") > 100
    assert quote_glance(page, stale).read_text() == quoted
