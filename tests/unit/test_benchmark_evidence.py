"""The benchmark of evidence maps: shares, deletion and the saliencies it compares with."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from fixtures.tiny_run import finish, trained_tiny
from torch import nn
from typer.testing import CliRunner

from scorebayes.benchmark.trained import maps as evidence
from scorebayes.benchmark.trained.maps import (
    DELETED,
    _log_odds,
    _share_within,
    _summary,
    delete,
    grad_cam,
    measure_evidence,
)
from scorebayes.cli.benchmark import app
from scorebayes.errors import ConfigError
from scorebayes.evidence.gradients import integrated_gradients
from scorebayes.runs.run import open_run


class Net(nn.Module):
    """A convolution, and the mean of its two maps as logits."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Conv2d(1, 2, 3, padding=1, bias=False)

    def forward(self, x):
        return 4 * self.map(x).relu().mean((2, 3))


class Standin:
    """What the benchmark asks of a baseline, without its training."""

    def __init__(self, run, name, steps):
        torch.manual_seed(0)
        self.net, self.record, self.calibration = Net(), {"steps": steps}, run.calibration
        self.feature_layer, self.logits = self.net.map, self.net


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return finish(trained_tiny(tmp_path_factory.mktemp("benchmark") / "run")).path


@pytest.fixture
def run(path, monkeypatch):
    monkeypatch.setattr(evidence, "fit_baseline", Standin)
    return open_run(path, "cpu")


def test_integrated_gradients_sum_to_the_change_of_the_log_odds():
    torch.manual_seed(1)
    net, x = Net(), torch.randn(1, 1, 8, 8)
    odds = (net(x) - net(torch.zeros_like(x))).detach()[0]
    found, mirrored = (
        integrated_gradients(lambda image, y=y: _log_odds(net(image), y).sum(), x, steps=400) for y in (1, 0)
    )
    assert found.sum() == pytest.approx(float(odds[1] - odds[0]), abs=1e-3)
    np.testing.assert_allclose(found, -mirrored, atol=1e-9)


def test_grad_cam_lights_where_the_class_is_seen():
    net = Net()
    with torch.no_grad():
        net.map.weight.zero_()
        net.map.weight[1, 0, 1, 1] = 1.0
    x = torch.zeros(1, 1, 8, 8)
    x[0, 0, 2:4, 5:7] = 1
    seen = grad_cam(net, net.map, x, 1)
    assert seen[2:4, 5:7].min() > 0
    assert seen.sum() == pytest.approx(seen[2:4, 5:7].sum())
    assert not grad_cam(net, net.map, x, 0).any()
    assert not net.map._forward_hooks


def test_deletion_takes_the_strongest_pixels_first():
    x, ranking = torch.zeros(1, 1, 10, 10), np.arange(100.0).reshape(10, 10)
    gone = delete(x, ranking, torch.ones(1, 1, 10, 10))[:, 0].numpy().astype(bool)
    assert gone.sum((1, 2)).tolist() == [round(share * 100) for share in DELETED]
    for picture, share in zip(gone, DELETED, strict=True):
        assert (ranking[picture] >= 100 - round(share * 100)).all()


def test_a_map_without_content_has_the_share_of_the_area():
    mask = np.eye(4, dtype=bool)
    assert _share_within(np.zeros((4, 4)), mask) == 0.25
    assert _share_within(mask.astype(float), mask) == 1.0


def test_the_benchmark_compares_our_maps_with_saliencies_and_chance(run):
    found = measure_evidence([run], 4, steps=7)
    measured = found["runs"]["phantom"]
    assert (measured["images"], measured["network_steps"]) == (4, 7)
    lesion = measured["lesion"]
    assert set(lesion["methods"]) == {"evidence", "grad-cam", "integrated-gradients"}
    for method, minus in lesion["ours_minus"].items():
        shares = (lesion["methods"][name]["share"]["mean"] for name in ("evidence", method))
        assert np.subtract(*shares) == pytest.approx(minus["share"]["mean"])
    for chance in ("area", "brightness"):
        low, high = lesion[chance]["ci95"]
        assert 0 < low <= lesion[chance]["mean"] <= high < 0.6
    assert set(measured["deletion"]) == {"scorebayes", "resnet18"}
    for by_fill in measured["deletion"].values():
        for of in by_fill.values():
            curves = {method: entry["curve"] for method, entry in of.items()}
            assert len({curve[0] for curve in curves.values()}) == 1  # nothing is gone yet
            assert set(curves) == {"evidence", "grad-cam", "integrated-gradients", "random"}
            assert of["random"]["below_random"]["mean"] == 0


def test_pixels_that_decide_bring_the_probability_down_sooner_than_random_ones(run, monkeypatch):
    def logits(x):
        seen = x[:, 0, :4, :4].mean((1, 2))
        return torch.stack([-9 * seen, 9 * seen], dim=1)

    def maps(run, baseline, x, key, target):
        known = np.zeros((16, 16))
        known[:4, :4] = 1
        return {"evidence": known}

    monkeypatch.setattr(evidence, "_maps", maps)
    monkeypatch.setattr(evidence, "smooth", lambda found: found)
    baseline = Standin(run, "", 0)
    baseline.logits = logits
    images = run.images("test").subset(range(4))
    images.images[:, :, :4, :4] = 255
    found = evidence.deletion_test(run, baseline, images, lambda done: None)["resnet18"]["mean"]
    assert found["evidence"]["below_random"]["mean"] > 0.1


def test_lesions_need_the_geometry_of_the_phantom(run):
    run.config.sections["prepare"]["size"] = 24
    with pytest.raises(ConfigError, match="original geometry"):
        evidence.lesion_shares(run, Standin(run, "", 0), None, lambda done: None)


def test_the_command_writes_the_figures(run, tmp_path):
    path = tmp_path / "results" / "evidence.json"
    done = CliRunner().invoke(app, ["evidence", str(run.path), "--images", "2", "--out", str(path)])
    assert done.exit_code == 0, done.output
    assert "of the evidence for the class lies in the lesion, by evidence" in done.output
    assert json.loads(path.read_text())["benchmark"] == "evidence"


def test_a_ratio_is_that_of_the_sums_with_whole_patients_drawn():
    found = _summary(["a", "a", "b"], [(1.0, 2.0), (2.0, 2.0), (0.0, 4.0)])
    assert found == {"mean": 3 / 8, "ci95": [0.0, 0.75]}
    assert _summary(["a", "b"], [(1.0, 2.0), (1.0, 2.0)], minus=[(0.0, 1.0), (0.2, 1.0)])["mean"] == 0.4


def test_a_ratio_to_nothing_is_none():
    assert _summary(["a", "b"], [(0.0, 0.0), (0.0, 0.0)]) == {"mean": None, "ci95": None}
