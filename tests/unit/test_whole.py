"""Everything in one command, and the same command again after it was stopped."""

from __future__ import annotations

import json

from fixtures.tiny_run import DATA, LAYER
from typer.testing import CliRunner

from scorebayes.cli.main import app


def scorebayes(*words: str):
    return CliRunner().invoke(app, words)


def test_one_command_leaves_all_that_five_leave_and_goes_on_where_it_was_stopped(tmp_path):
    from tomli_w import dumps

    (tmp_path / "own.toml").write_text(dumps(LAYER))
    run = tmp_path / "run"
    words = (
        "all",
        "--data",
        DATA,
        "--preset",
        "tiny",
        "--config",
        str(tmp_path / "own.toml"),
        "--out",
        str(run),
    )
    done = scorebayes(*words, "--quiet")
    assert done.exit_code in (0, 3), done.output
    assert done.stdout.startswith("test split:") and f"report: {run}/report.html" in done.stdout
    assert {"evidence.npz", "metrics-test.json", "predictions-test.csv", "report.json"} <= {
        p.name for p in run.iterdir()
    }
    report, weights = run / "report.html", run / "train.jsonl"
    trained = weights.read_bytes()
    report.unlink()
    again = scorebayes(*words, "--json")
    assert report.exists() and weights.read_bytes() == trained
    facts = json.loads(again.stdout)
    assert (
        facts["split"] == "test"
        and facts["metrics"]["auc"] == json.loads((run / "metrics-test.json").read_text())["auc"]
    )


def test_data_and_run_have_to_be_named():
    assert scorebayes("all", "--data", DATA).exit_code == 2
    assert "--label-free" not in scorebayes("all", "--help").output
