"""The losses that teach the score, the noise levels they see, and where training starts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from fixtures.tiny_run import train_tiny, trained_tiny

from scorebayes.baselines import score_steps
from scorebayes.data.sources.phantom import Phantom
from scorebayes.diffusion.nets.unet import UNet
from scorebayes.diffusion.score import Denoiser, hybrid_loss, training_loss
from scorebayes.errors import ConfigError
from scorebayes.evidence import pixels
from scorebayes.training.batches import draw_log_snr
from scorebayes.training.settings import TrainConfig

RANGE = (-9.0, 12.0)


def levels(uniform: float, batch: int = 4000) -> np.ndarray:
    config = dataclasses.replace(TrainConfig(), uniform=uniform, batch=batch)
    return draw_log_snr(config, RANGE, config.batch, torch.Generator().manual_seed(0)).numpy()


def test_noise_levels_are_normal_but_for_a_share_over_the_whole_range():
    normal = levels(0.0)
    assert normal.mean() == pytest.approx(-1.0, abs=0.01)
    assert normal.std() == pytest.approx(2.4, abs=0.03)
    mixed = levels(0.25)
    high = 8.0  # beyond what the normal part reaches
    assert (mixed > high).mean() == pytest.approx(0.25 * (12 - high) / 21, rel=0.02)
    assert mixed.min() >= RANGE[0]
    assert mixed.max() <= RANGE[1]


def test_noise_levels_of_a_batch_are_not_in_order():
    first = levels(0.1, 64)
    assert np.abs(np.corrcoef(first, np.arange(64))[0, 1]) < 0.5


@pytest.fixture
def problem():
    torch.manual_seed(0)
    denoiser = Denoiser(UNet(1, 2, 0, channels=(8, 16), blocks=1, attention=0, label_in="decoder")).eval()
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x_0, eps = torch.randn(2, 8, 1, 8, 8)
    y = torch.tensor([0, 1] * 4)
    return denoiser, (x_0, y, torch.linspace(-3, 3, 8, dtype=torch.float64), eps, None)


def test_without_its_weight_the_hybrid_loss_is_the_denoising_loss(problem):
    denoiser, batch = problem
    torch.testing.assert_close(hybrid_loss(denoiser, *batch, 0.0), training_loss(denoiser, *batch))


def test_the_hybrid_loss_teaches_to_tell_the_classes_apart(problem):
    denoiser, (x_0, y, *rest) = problem
    x_0 = x_0 + torch.where(y == 0, 1.0, -1.0)[:, None, None, None]

    def cross_entropy():
        return (hybrid_loss(denoiser, x_0, y, *rest, 1.0) - training_loss(denoiser, x_0, y, *rest)).mean()

    before = cross_entropy().item()
    optimizer = torch.optim.Adam(denoiser.parameters(), 1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        hybrid_loss(denoiser, x_0, y, *rest, 1.0).mean().backward()
        optimizer.step()
    assert cross_entropy().item() < 0.5 * before


def test_training_starts_from_the_weights_of_another_run(tmp_path):
    first = trained_tiny(tmp_path / "first")
    start = first.checkpoints.load(first.checkpoints.best())
    start_at = {"init": str(first.path), "steps": 1, "warmup": 1000, "cross_entropy": 0.3}
    second = train_tiny(tmp_path / "second", train=start_at, evidence={"sources": ["pixels"]})
    end = second.checkpoints.load(second.checkpoints.best())
    assert max(float((start[k] - end[k]).abs().max()) for k in start) < 1e-4


def test_a_label_free_run_is_a_start_and_no_classifier(tmp_path):
    free = trained_tiny(tmp_path / "free", train={"null_label": 1.0})
    logged = (free.path / "train.jsonl").read_text()
    assert '"val_loss"' in logged and "val_auc" not in logged
    with pytest.raises(ConfigError, match="not calibrated"):
        _ = free.decision
    best = free.checkpoints.best()
    assert best["step"] == free.config.train.steps
    start_at = {"init": str(free.path), "steps": 1, "warmup": 1000}
    second = train_tiny(tmp_path / "second", data={"per_class": 3}, train=start_at, seed=1)
    start, end = (run.checkpoints.load(run.checkpoints.best()) for run in (free, second))
    label = "net.embed_label.weight"
    assert max(float((start[k] - end[k]).abs().max()) for k in start if k != label) < 1e-4
    # The labels that it never saw are not taken over, the null label is.
    moved = (start[label] - end[label]).abs().amax(dim=1)
    assert (moved > 0.1).tolist() == [True, True, False]
    assert (second.facts.mean, second.facts.std) == (free.facts.mean, free.facts.std)
    assert score_steps(second) == score_steps(free) + 1


def test_a_label_free_run_has_no_cross_entropy(tmp_path):
    with pytest.raises(ConfigError, match=r"cross_entropy .* null_label = 1"):
        train_tiny(tmp_path / "free", train={"null_label": 1.0, "cross_entropy": 0.3})
    assert not (tmp_path / "free" / "config.toml").exists()


def test_a_label_free_run_learns_from_images_without_a_label(tmp_path, monkeypatch):
    records = Phantom.records

    def half_unlabelled(source):
        return [
            dataclasses.replace(r, label=None if i % 8 < 4 else r.label)
            for i, r in enumerate(records(source))
        ]

    monkeypatch.setattr(Phantom, "records", half_unlabelled)
    seen = []
    monkeypatch.setattr(pixels, "fit", lambda plan, goal: seen.append(len(plan.train.labels)))
    train_tiny(tmp_path / "free", train={"null_label": 1.0})
    for resume in (False, True):
        with pytest.raises(ConfigError, match="no trained weights"):
            train_tiny(tmp_path / "labelled", resume=resume)
    assert seen == [56, 28, 28]


def test_weights_of_another_network_are_refused(tmp_path):
    first = trained_tiny(tmp_path / "first")
    other = {"net": {"channels": [16, 16]}, "train": {"init": str(first.path)}}
    with pytest.raises(ConfigError, match="a different network"):
        train_tiny(tmp_path / "second", **other)
