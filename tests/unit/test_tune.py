"""The density of noise levels, fitted on validation images."""

from __future__ import annotations

import numpy as np
import pytest
from fixtures.tables import one_source
from fixtures.tiny_run import trained_tiny
from typer.testing import CliRunner

from scorebayes import open_run
from scorebayes.cli.main import app
from scorebayes.decision.table import Block
from scorebayes.errors import ConfigError
from scorebayes.stages import tune


def world(noise: np.ndarray, repeats: int = 400, images: int = 6) -> tuple[Block, np.ndarray]:
    """A block whose draws vary by ``noise`` at each level, at log-SNR -2, 0, 2, ... with equal weights."""
    rng = np.random.default_rng(0)
    level = np.tile(np.arange(len(noise)), repeats)
    centres = 2.0 * np.arange(len(noise)) - 2
    draws = rng.normal(size=(len(level), images, 2)) * noise[level][:, None, None]
    log_snr = np.repeat(centres[level][:, None], images, 1)
    return one_source(draws, level, log_snr).only, np.full(len(noise), 1.0)


def test_draws_go_where_the_weighted_value_varies():
    mean, std = tune.neyman_density(*world(np.array([1.0, 2.0, 1.0])))
    assert mean == pytest.approx(0.0, abs=0.05)
    assert std == pytest.approx(np.sqrt(2.0), rel=0.03)  # shares 1/4, 1/2, 1/4 at -2, 0, 2
    mean, _ = tune.neyman_density(*world(np.array([1.0, 1.0, 6.0])))
    assert mean == pytest.approx((-2 + 6 * 2) / 8, abs=0.05)


def test_a_weight_of_zero_takes_no_draws():
    block, _ = world(np.array([1.0, 1.0, 1.0]))
    mean, std = tune.neyman_density(block, np.array([0.0, 1.0, 0.0]))
    assert mean == pytest.approx(0.0)
    assert std == pytest.approx(0.0)


def test_one_draw_a_level_cannot_be_tuned():
    with pytest.raises(ConfigError, match="repeats"):
        tune.neyman_density(*world(np.ones(3), repeats=1))


@pytest.fixture
def run(tmp_path):
    return trained_tiny(tmp_path / "run")


def test_a_better_density_is_used_from_then_on(run, monkeypatch):
    monkeypatch.setattr(tune.Tuned, "better", property(lambda self: True))
    found = tune.tune(run)
    again = open_run(run.path)
    assert (again.likelihood.mean, again.likelihood.std) == pytest.approx(found.fitted)
    assert again.calibration.level_log_snr["pixels"].mean() == pytest.approx(found.fitted[0], abs=0.5)


def test_a_worse_density_changes_nothing(run, monkeypatch):
    monkeypatch.setattr(tune.Tuned, "better", property(lambda self: False))
    before = (run.path / "config.toml").read_text(), (run.path / "calibration.json").read_text()
    tune.tune(run)
    assert ((run.path / "config.toml").read_text(), (run.path / "calibration.json").read_text()) == before


def test_the_command_says_what_it_found(run):
    result = CliRunner().invoke(app, ["tune", str(run.path)])
    assert result.exit_code == 0, result.output
    assert "log-SNR" in result.output
