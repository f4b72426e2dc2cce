"""The report of a complete run, of runs with files missing, and of files with hostile contents."""

from __future__ import annotations

import html.parser
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fixtures.fake_run import write_fake_run

from scorebayes.errors import ConfigError, DataError
from scorebayes.plots import charts as figures
from scorebayes.report import write_report
from scorebayes.report.files import Run
from scorebayes.report.page import _headline, _sure_words
from scorebayes.report.parts import estimate, percent, seconds
from scorebayes.report.sections import SECTIONS

KEYS = [
    "discrimination", "threshold", "comparison", "calibration", "usefulness", "posteriors", "levels",
    "subgroups", "abstention", "robustness", "examples", "samples", "data", "precision", "exclusions", "leakage",
    "training", "curves", "cost", "model",
]  # fmt: skip
FIGURES = [
    "headline", "roc", "precision-recall", "reliability-raw", "reliability-calibrated", "decision",
    "posterior", "log-odds", "log-odds-histogram", "class-likelihood-pixels", "class-values-pixels",
    "level-auc-pixels", "level-weights-pixels", "robustness-auc", "subgroups-forest", "coverage",
    "training-loss", "validation", "learning", "imbalance",
]  # fmt: skip
BUILD = {build.__name__.strip("_"): build for build in SECTIONS}


class Page(html.parser.HTMLParser):
    """What a browser would see of a page: elements, ids, addresses, and the text outside <style>."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.tags: set[str] = set()
        self.events: list[str] = []
        self.texts: list[str] = []
        self.cells: list[str] = []
        self._inside_style = self._inside_cell = self._inside_body = False
        self.feed(self.source)
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self._inside_style = tag == "style"
        if tag == "tbody":
            self._inside_body = True
        if tag in ("td", "th") and self._inside_body:
            self._inside_cell = True
            self.cells.append("")
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "srcset", "action", "data"):
                self.addresses.append(value)
            if name.startswith("on"):
                self.events.append(name)

    def handle_data(self, data):
        if not self._inside_style:
            self.texts.append(data)
        if self._inside_cell:
            self.cells[-1] += data

    def handle_endtag(self, tag):
        self._inside_style = False
        if tag in ("td", "th"):
            self._inside_cell = False
        if tag == "tbody":
            self._inside_body = False


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    folder = write_fake_run(tmp_path_factory.mktemp("runs") / "breast", n_patients=60)
    return folder, Page(write_report(folder))


@pytest.fixture
def copy(complete, tmp_path):
    """The complete run, to be damaged."""
    return Path(shutil.copytree(complete[0], tmp_path / "breast"))


def without(folder: Path, *names: str) -> Run:
    for name in names:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return Run(folder)


def test_every_section_and_figure_is_there(complete):
    _, page = complete
    assert [key for key in page.ids if key in KEYS] == KEYS
    assert [name for name in FIGURES if name not in page.ids] == []
    assert len(page.ids) == len(set(page.ids)), "ids must be unique in the page"
    assert "What was not done" not in page.text


def test_the_first_screen_says_what_how_sure_and_compared_with_whom(complete):
    folder, page = complete
    m = json.loads((folder / "metrics-test.json").read_text())
    before = page.text[: page.text.index("Contents")]
    assert (
        "one “malignant” and one “benign”, the model gives the first the higher probability of being malignant "
        f"{percent(m['auc'])} of the time." in before
    )
    assert f"{m['auc_ci95'][0]:.3f} and {m['auc_ci95'][1]:.3f}" in before
    for words in (
        "What was decided",
        "How sure",
        "Compared with whom",
        "Synthetic data",
        "Not a medical device",
    ):
        assert words in before
    assert (
        "Logistic regression on pixels: AUC" in before and "Always naming the most frequent class" in before
    )
    assert "chosen on validation by Youden's index" in before


def test_nothing_is_asked_of_the_network(complete):
    _, page = complete
    assert all(a.startswith(("#", "data:")) for a in page.addresses)
    assert page.tags.isdisjoint({"script", "iframe", "object", "embed"}) and page.events == []
    assert "http" not in page.source and "@import" not in page.source
    assert re.findall(r"url\((?!#)", page.source) == []


def test_report_json_holds_the_metrics_and_the_curves(complete):
    folder, _ = complete
    report = json.loads((folder / "report.json").read_text())
    assert report["metrics"] == json.loads((folder / "metrics-test.json").read_text())
    assert list(report["sections"]) == KEYS and report["synthetic"] is True
    sections = report["sections"]
    assert all(section["done"] for section in sections.values())
    assert np.sum(sections["threshold"]["confusion"]) == 120
    assert sections["discrimination"]["roc"]["sensitivity"][-1] == 1
    auc = sections["levels"]["pixels"]["auc"]
    assert len(auc) == 12 and max(auc) > 0.7
    assert sections["exclusions"]["left_out"] == 3
    assert sections["training"]["steps"] == 3000


def test_report_json_holds_every_table_of_the_page(complete):
    folder, page = complete
    sections = json.loads((folder / "report.json").read_text())["sections"]
    stored = [cell for s in sections.values() for t in s["tables"] for row in t["rows"] for cell in row]
    assert len(page.cells) == len(stored) > 200
    assert [" ".join(c.split()) for c in page.cells] == [" ".join(c.split()) for c in stored]


@pytest.mark.parametrize("key", ["discrimination", "threshold", "comparison", "calibration", "precision"])
def test_the_numbers_in_the_tables_are_in_report_json_unrounded(complete, key):
    folder, _ = complete
    report = json.loads((folder / "report.json").read_text())
    section = report["sections"][key]
    known = numbers_of(
        [report["metrics"], {k: v for k, v in section.items() if k not in ("tables", "words")}]
    )
    shown = [
        n
        for t in section["tables"]
        for row in t["rows"]
        for cell in row
        for n in re.findall(r"-?\d+\.\d{3}\b", cell)
    ]
    assert len(shown) > 4
    guess = {0.5, 0.999}  # the AUC of guessing, and where saturation begins
    for number in map(float, shown):
        assert number in guess or np.abs(known - number).min() <= 0.000501, number


def numbers_of(content):
    """All numbers within nested JSON."""
    if isinstance(content, (dict, list)):
        parts = content.values() if isinstance(content, dict) else content
        return np.concatenate([np.zeros(0), *(numbers_of(part) for part in parts)])
    return np.array([content], float) if isinstance(content, (int, float)) else np.zeros(0)


def test_figures_can_be_drawn_again_from_report_json(complete):
    folder, _ = complete
    s = json.loads((folder / "report.json").read_text())["sections"]
    n = len(s["posteriors"]["prob"])
    assert n == 120 == len(s["posteriors"]["truth"]) == len(s["posteriors"]["log_odds"])
    assert len(s["posteriors"]["own_class"]) == len(s["posteriors"]["best_other_class"]) == n
    assert {"predicted", "observed", "low", "high", "n"} <= set(s["calibration"]["raw"])
    assert len(s["usefulness"]["decision_curve"]["model"]) == 99 and s["abstention"]["coverage"]["risk"]
    assert len(s["training"]["loss"][0]) == 2 and s["curves"]["learning"]["ScoreBayes"]["auc"] == [
        0.6,
        0.7,
        0.8,
    ]
    assert s["threshold"]["by_prevalence"][0]["prevalence"] == 0.005


def test_everything_that_an_evaluation_report_must_show_is_there(complete):
    """Item by item of the reporting guidelines (CLAIM 2024, TRIPOD+AI)."""
    _, page = complete
    for words in (
        "Intended use", "Class prior", "Forward process", "Network evaluations", "Compute", "pixels 5eed5eed5eed5eed",
        "reference standard", "age: median (quartiles)", "The data set does not give: sex, vendor", "density: A",
        "Reasons Reason Images quarantined: zero bytes 1", "half-widths of 95 % intervals", "images needed for ±0.05",
        "accuracy of the majority rule", "Matthews correlation", "by patient", "raw calibrated",
        "share of images with a probability beyond 0.999", "If malignant were rarer or more common",
        "0.5% 0.0", "correlation r = 1.00", "fewer than 10 of a class", "p adjusted (Holm)", "Learning curve",
    ):  # fmt: skip
        assert words.lower() in page.text.lower(), words


def test_the_words_of_the_tables_are_those_of_the_files(complete):
    _, page = complete
    for words in (
        "P901_L quarantined zero bytes", "P900_L abstained blank image", "same_pixels_within_split Q000_0, Q001_0",
        "torch 2.13.0", "likelihood.levels 12", "Split by patient 840", "view: MLO",
        "fewer than 10 of a class", "by patient", "Not done: metrics by breast", "52 ms", "18 min",
    ):  # fmt: skip
        assert words in page.text, words


def test_a_bare_run_says_not_done_everywhere_and_how_to_do_it(complete, tmp_path):
    folder = tmp_path / "bare"
    folder.mkdir()
    shutil.copy(complete[0] / "config.toml", folder)
    page = Page(write_report(folder))
    assert "This model has not been evaluated yet." in page.text
    assert [key for key in page.ids if key in KEYS] == KEYS
    report = json.loads((folder / "report.json").read_text())
    undone = [key for key, section in report["sections"].items() if not section["done"]]
    assert undone == [key for key in KEYS if key != "model"]
    for command in ("score {}", "evaluate {} --split test", "sample {}", "train --resume {}"):
        assert f"scorebayes {command.format(folder)}" in page.text, command
    assert page.text.count("Not done:") >= len(undone) - 1


@pytest.mark.parametrize(
    ("name", "section", "words"),
    [
        ("audit.json", "leakage", "no audit"),
        ("train.jsonl", "training", "no training log"),
        ("evidence-test.parquet", "levels", "evidence table"),
        ("samples.npz", "samples", "no images were generated"),
        ("thumbnails.npz", "examples", "no images of the cases"),
        ("curves.json", "curves", "not trained on smaller"),
        ("metrics-test.json", "precision", "not been evaluated"),
        ("metrics-test.json", "discrimination", "not been evaluated"),
        ("predictions-test.csv", "threshold", "not been evaluated"),
        ("predictions-test.csv", "calibration", "not been evaluated"),
        ("predictions-test.csv", "usefulness", "not been evaluated"),
        ("predictions-test.csv", "abstention", "not been evaluated"),
    ],
)
def test_a_missing_file_makes_its_section_say_not_done(copy, name, section, words):
    built = BUILD[section](without(copy, name))
    assert words in built.missing and (built.command.startswith("scorebayes ") or section == "curves")


def test_parts_that_are_missing_are_named_within_their_section(copy):
    metrics = json.loads((copy / "metrics-test.json").read_text())
    metrics["baselines"]["logistic regression on pixels"].pop("auc_difference_p")
    metrics.pop("patient_level")
    (copy / "metrics-test.json").write_text(json.dumps(metrics))
    predictions = pd.read_csv(copy / "predictions-test.csv", dtype=str, keep_default_na=False)
    dropped = [c for c in predictions if c.startswith(("raw_prob", "log_odds"))]
    predictions.drop(columns=dropped).to_csv(copy / "predictions-test.csv", index=False)
    run = without(copy, "evidence-test.parquet", "quarantine.csv", "split.parquet", "environment.json")
    assert "Not done: the paired comparison with logistic regression" in BUILD["comparison"](run).words[0]
    assert "by breast and by patient" in BUILD["discrimination"](run).words[0]
    assert "Not done: the reliability of the raw" in " ".join(BUILD["calibration"](run).words)
    assert len(BUILD["posteriors"](run).words) == 2
    assert BUILD["subgroups"](run).missing == "no grouping is known"
    assert BUILD["exclusions"](run).numbers["left_out"] == 1
    assert [name for name, *_ in BUILD["data"](run).flow] == [
        "Images in the data set",
        "Scored (test)",
        "Evaluated",
    ]


def test_a_leak_is_named_on_the_first_screen(copy):
    audit = {"patients_in_two_splits": ["P1"], "same_pixels_across_splits": [["a", "b"], ["c", "d"]]}
    (copy / "audit.json").write_text(json.dumps(audit))
    words = "In more than one partition: 1 patient(s), 2 group(s) of identical images."
    assert words in BUILD["leakage"](Run(copy)).words
    assert f"Caution: {words}" in _sure_words(Run(copy))


def test_validation_is_reported_where_no_test_images_were_scored(copy):
    for name in ("predictions-{}.csv", "metrics-{}.json"):
        (copy / name.format("test")).rename(copy / name.format("val"))
    run = Run(copy)
    assert run.split == "val"
    assert "on these same images" in BUILD["threshold"](run).words[0]


def test_three_classes_are_reported_too(tmp_path):
    folder = write_fake_run(tmp_path / "three", n_patients=60, classes=("normal", "benign", "malignant"))
    run = Run(folder)
    assert "separates 3 classes of held-out test images with a mean AUC" in _headline(run)
    assert BUILD["threshold"](run).tables[0].header[1:4] == (
        "called normal",
        "called benign",
        "called malignant",
    )
    assert (
        len(BUILD["posteriors"](run).panels) == 5 and len(BUILD["levels"](run).numbers["pixels"]["auc"]) == 12
    )
    assert len(BUILD["subgroups"](run).panels) == 1


HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)> $x^{$ {{ 7*7 }} | `a` \u202e"


def test_hostile_names_stay_text(tmp_path):
    classes = ("benign", HOSTILE)
    folder = write_fake_run(tmp_path / "run", n_patients=30, classes=classes)
    source = json.loads((folder / "source.json").read_text())
    (folder / "source.json").write_text(json.dumps({**source, "title": HOSTILE, "citation": HOSTILE}))
    (folder / "quarantine.csv").write_text(
        'image_id,path,reason\n"<b onclick=x()>\nid",p,"</td><script>y()</script>"\n'
    )
    metrics = json.loads((folder / "metrics-test.json").read_text())
    metrics["baselines"] = {HOSTILE: metrics["baselines"]["logistic regression on pixels"]}
    (folder / "metrics-test.json").write_text(json.dumps(metrics))
    table = pd.read_parquet(folder / "split.parquet")
    table["view"] = np.where(table["view"] == "CC", HOSTILE, "MLO")
    table.to_parquet(folder / "split.parquet")
    page = Page(write_report(folder))
    assert page.tags.isdisjoint({"script", "b onclick"}) and page.events == []
    assert all(a.startswith(("#", "data:")) for a in page.addresses)
    assert "<script>alert(1)</script>" in page.text and "{{ 7*7 }}" in page.text
    card = (folder / "model-card.md").read_text()
    assert "<script" not in card and "<img" not in card and "\\|" in card


def test_the_model_card_is_in_the_format_of_the_hub(complete):
    folder, _ = complete
    card = (folder / "model-card.md").read_text()
    header = dict(line.split(": ", 1) for line in card.split("---")[1].strip().splitlines())
    index = json.loads(header["model-index"])[0]
    m = json.loads((folder / "metrics-test.json").read_text())
    assert {r["type"]: r["value"] for r in index["results"][0]["metrics"]}["roc_auc"] == m["auc"]
    assert "synthetic-data" in json.loads(header["tags"])
    assert "**Not a medical device.**" in card and "Youden's index" in card
    check_card_header(header)
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    assert hub.ModelCard(card).data.eval_results[0].metric_type == "roc_auc"


def check_card_header(header):
    """The fields and types that the Hub's model card metadata have (its modelcard.md and huggingface_hub's EvalResult)."""
    known = {"library_name": str, "pipeline_tag": str, "license": str, "tags": list, "model-index": list}
    values = {key: json.loads(text) for key, text in header.items()}
    assert set(values) <= set(known) and all(isinstance(values[key], known[key]) for key in values)
    assert values["pipeline_tag"] == "image-classification" and all(
        isinstance(t, str) for t in values["tags"]
    )
    (model,) = values["model-index"]
    assert set(model) == {"name", "results"} and isinstance(model["name"], str)
    for result in model["results"]:
        assert (
            set(result) == {"task", "dataset", "metrics"} and result["task"]["type"] == "image-classification"
        )
        assert {"type", "name"} <= set(result["dataset"])
        for metric in result["metrics"]:
            assert isinstance(metric["type"], str) and isinstance(metric["value"], float)


# Damaged files: one clear error.


@pytest.mark.parametrize(
    ("name", "section", "content", "message"),
    [
        ("metrics-test.json", "precision", b'{"auc": ', "metrics-test.json: damaged"),
        ("source.json", "data", b"[1]", "expected a JSON object"),
        ("predictions-test.csv", "threshold", b"image_id,label\nx,benign\n", "no column 'status'"),
        (
            "predictions-test.csv",
            "threshold",
            b"image_id,label,status\nx,benign,ok\n",
            "no column 'prob_benign'",
        ),
        ("quarantine.csv", "exclusions", b"", "quarantine.csv: damaged"),
        ("split.parquet", "data", b"PAR1 not", "split.parquet: damaged"),
        ("samples.npz", "samples", b"PK not", "samples.npz: damaged"),
        ("config.toml", "model", b"= 3", "config.toml"),
        (
            "source.json",
            "usefulness",
            b'{"classes": ["benign", "malignant"], "positive": 5}',
            "positive class 5 of 2",
        ),
    ],
)
def test_a_damaged_file_is_named(copy, name, section, content, message):
    (copy / name).write_bytes(content)
    with pytest.raises(DataError, match=re.escape(message)):
        BUILD[section](Run(copy))


def test_pickled_arrays_are_not_opened(copy):
    np.savez(copy / "samples.npz", images=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match=r"samples\.npz: damaged"):
        BUILD["samples"](Run(copy))


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is not a run directory: it has no config"):
        write_report(tmp_path)


def test_ids_that_look_like_numbers_or_missing_values_stay_text(copy):
    table = pd.read_csv(copy / "predictions-test.csv", dtype=str, keep_default_na=False)
    table.loc[:1, "image_id"] = ["007", "NA"]
    table.to_csv(copy / "predictions-test.csv", index=False)
    assert list(Run(copy).cases.image_id[:2]) == ["007", "NA"]


def test_an_evaluation_of_one_class_is_reported_without_an_auc(copy):
    metrics = json.loads((copy / "metrics-test.json").read_text())
    metrics |= {"auc": None, "auc_reason": "only one class is present", "auc_ci95": None}
    (copy / "metrics-test.json").write_text(json.dumps(metrics))
    table = pd.read_csv(copy / "predictions-test.csv", dtype=str, keep_default_na=False)
    table[table["label"] == "benign"].to_csv(copy / "predictions-test.csv", index=False)
    run = Run(copy)
    assert _headline(run) == "There is no AUC for these 120 images: only one class is present."
    assert BUILD["discrimination"](run).panels == [] and len(BUILD["posteriors"](run).panels) == 5


# Small things.


def test_numbers_are_written_for_reading():
    assert estimate({"auc": 0.9, "auc_ci95": [0.85, 0.951]}, "auc") == "0.900 (0.850\u00a0to\u00a00.951)"
    assert estimate({"auc": None, "auc_reason": "why"}, "auc") == "not defined: why"
    assert (estimate({}, "auc"), estimate({"auc": 0.5}, "auc")) == ("not done", "0.500")
    assert [seconds(s) for s in (0.052, 3.21, 600, 9000)] == ["52 ms", "3.2 s", "10 min", "2.5 h"]


def test_figures_do_not_depend_on_one_another_and_are_reproducible():
    rows = [figures.Row("a", 0.8, 0.7, 0.9, strong=True), figures.Row("b", None, note="too few")]
    first = figures.forest(rows, "one", "AUC", 0.5)
    assert first == figures.forest(rows, "one", "AUC", 0.5)
    assert "<title>a: 0.800 (0.700 to 0.900)</title>" in first and "too few" in first
    assert 'id="one"' in first and "var(--model, #0072b2)" in first


def test_long_names_are_cut_and_control_characters_dropped():
    assert figures.short("a\nb\x00c") == "a b c"
    assert figures.short("x" * 50, 10) == "x" * 9 + "…"
