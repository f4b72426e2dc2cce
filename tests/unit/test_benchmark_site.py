"""What labelled images of the place bring, where the truth is known: posteriors that are right but for a shift."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from typer.testing import CliRunner

from scorebayes.benchmark.stored.posteriors import posteriors_path
from scorebayes.benchmark.stored.site import REPEATS, measure_site
from scorebayes.cli.benchmark import app
from scorebayes.errors import DataError

N = 300


@pytest.fixture
def results(tmp_path):
    """Log-odds of two patients' images each, right by themselves ("right"), and moved and stretched ("moved")."""
    rng = np.random.default_rng(0)
    log_odds = rng.normal(0, 2, 2 * N)
    labels = np.where(rng.random(2 * N) < expit(log_odds), "b", "a")
    frames = []
    for model, shown in (("right", log_odds), ("moved", 2 * log_odds + 5)):
        for seed in (0, 1):
            frame = pd.DataFrame({"model": model, "seed": seed, "image_id": np.arange(2 * N).astype(str)})
            frame = frame.assign(patient_id=[f"p{i // 2}" for i in range(2 * N)], label=labels)
            frames.append(frame.assign(prob_a=expit(-shown), prob_b=expit(shown)))
    path = tmp_path / "there.json"
    path.write_text(json.dumps({"classes": ["a", "b"], "positive": "b"}))
    pd.concat(frames).to_parquet(posteriors_path(path))
    return path


def test_a_shift_is_mended_and_what_is_right_stays_so(results):
    found = measure_site(results, ["right", "moved"], [50, 100])["models"]
    right, moved = found["right"], found["moved"]
    assert len(right["0"]["ece"]["values"]) == 2 * REPEATS
    assert moved["0"]["accuracy"]["mean"] < right["0"]["accuracy"]["mean"] - 0.1
    assert moved["0"]["ece"]["mean"] > 0.2
    for number in ("50", "100"):
        assert moved[number]["accuracy"]["mean"] == pytest.approx(right["0"]["accuracy"]["mean"], abs=0.02)
        assert moved[number]["ece"]["mean"] < 0.1
        assert moved[number]["ece"]["mean"] == pytest.approx(right[number]["ece"]["mean"], abs=0.02)


def test_the_command_writes_it_beside_the_results(results):
    options = ["--models", "moved", "--patients", "50"]
    result = CliRunner().invoke(app, ["site", str(results), *options], catch_exceptions=False)
    assert result.exit_code == 0 and "moved, accuracy / calibration error by patients: 0: 0." in result.output
    assert list(json.loads((results.parent / "there-site.json").read_text())["models"]) == ["moved"]


def test_what_is_not_there_is_named(results):
    with pytest.raises(DataError, match="no posteriors of 'theirs'"):
        measure_site(results, ["theirs"], [50])
    with pytest.raises(DataError, match=f"{N} patients, too few to calibrate on 300"):
        measure_site(results, ["right"], [300])
