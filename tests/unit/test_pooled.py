"""The pooled features: what is learned of them, that it is kept whole, and what an encoder without a gradient cannot do."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from fixtures.tiny_encoders import onnx_graph, save_model
from fixtures.tiny_run import finish, train_tiny
from sklearn.metrics import roc_auc_score

from scorebayes.errors import ConfigError
from scorebayes.evidence.feature_maps import statistics
from scorebayes.evidence.pooled import PooledMixtures, fit_pooled
from scorebayes.report import write_report
from scorebayes.runs.run import open_run
from scorebayes.storage import sealed

N, FEATURES = 90, 200


def clouds(seed: int) -> tuple[torch.Tensor, np.ndarray]:
    """Two classes that differ in a few of many features, most of which only vary much."""
    rng = np.random.default_rng(seed)
    labels = np.arange(N) % 2
    features = rng.normal(size=(N, FEATURES))
    features[:, :4] += 3.0 * labels[:, None]
    features[:, 4:] += 2.0 * rng.normal(size=(N, 8)) @ np.random.default_rng(9).normal(size=(8, FEATURES - 4))
    return torch.from_numpy(features), labels


def test_classes_are_told_apart_whatever_else_varies_and_numbers_are_kept():
    (train, labels), (test, truth) = clouds(0), clouds(1)
    patients = [f"p{row}" for row in range(N)]
    found = fit_pooled(train, labels, patients, seed=0)
    values = found(test)
    assert values.shape == (N, 2) and values.dtype == torch.float64
    torch.testing.assert_close(values.sum(1), torch.zeros(N).double(), atol=1e-9, rtol=0)
    assert roc_auc_score(truth, values[:, 1] - values[:, 0]) > 0.9
    torch.testing.assert_close(PooledMixtures.of(found.arrays())(test), values, rtol=0, atol=0)
    z = (train - found.centre) @ found.axes
    torch.testing.assert_close(z.T @ z / N, torch.eye(z.shape[1]).double(), atol=1e-6, rtol=0)


def test_statistics_are_of_the_cells_and_of_both_views():
    maps = torch.randn(3, 2, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    found = statistics(maps)
    cells = maps.double().flatten(3)
    expected = torch.cat([cells.mean(3), cells.std(3, unbiased=False)], dim=2).mean(1)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(statistics(maps.flip(1).flip(-1)), found)
    even = torch.zeros(1, 2, 5, 4, 4, requires_grad=True)
    assert torch.autograd.grad(statistics(even).sum(), even)[0].isfinite().all()


def test_unlabelled_images_enter_the_covariance_alone():
    (train, labels), (more, _) = clouds(0), clouds(2)
    patients = [f"p{row}" for row in range(2 * N)]
    both = torch.cat([train, more])
    alone = fit_pooled(train, labels, patients[:N], seed=0)
    with_more = fit_pooled(both, np.concatenate([labels, np.full(N, -1)]), patients, seed=0)
    assert not torch.equal(with_more.centre, alone.centre)
    assert with_more(more).shape == (N, 2)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pooled")
    encoder = save_model("resnet", folder / "encoder")
    options = {"encoder": f"hf:{encoder}", "size": 64}
    return finish(train_tiny(folder / "run", evidence={"sources": ["pooled"], "pooled": options})).path


def test_a_run_on_pooled_features_alone_states_its_encoder(path):
    run = open_run(path, "cpu")
    about = json.loads((path / "pooled" / "about.json").read_text())
    encoder = run.sources["pooled"].encoder
    assert about["licence"] == "mit" and about["learned_by"]["sha256"] == encoder.sha256
    report = write_report(path).read_text(encoding="utf-8")
    assert f"encoder {encoder.name}, pretrained on lines, dots (mit, SHA-256 {encoder.sha256[:16]})" in report
    assert run.evidence(run.standardise(run.images("test").images[:2]), ["a", "b"]).blocks["pooled"].exact


def test_numbers_that_are_damaged_or_of_another_encoder_are_refused(path, tmp_path):
    for name in ("damaged", "other"):
        shutil.copytree(path, tmp_path / name)
    (tmp_path / "damaged" / "pooled" / "mixtures-of-statistics.safetensors").write_bytes(b"cut")
    sealed.accept(tmp_path / "damaged")
    with pytest.raises(ConfigError, match="damaged"):
        open_run(tmp_path / "damaged", "cpu").sources["pooled"].fingerprint()
    about = tmp_path / "other" / "pooled" / "about.json"
    about.write_text(about.read_text().replace('"size": 64', '"size": 96'))
    sealed.accept(tmp_path / "other")
    with pytest.raises(ConfigError, match=r"other options .size: 96 -> 64"):
        _ = open_run(tmp_path / "other", "cpu").sources


def test_an_onnx_encoder_can_answer_but_not_show_where(tmp_path):
    file = onnx_graph(tmp_path / "e.onnx", "map")
    options = {"encoder": f"onnx:{file}", "size": 56}
    run = train_tiny(tmp_path / "run", evidence={"sources": ["pooled"], "pooled": options})
    images = run.images("val").subset([0])
    x = run.standardise(images.images)
    source = run.sources["pooled"]
    block = source.log_lik(x, images.keys)
    assert np.isfinite(block.draws).all()
    with pytest.raises(ConfigError, match="gives no gradient"):
        source.maps(x, images.keys[0], block, np.ones(1), np.array([-1.0, 1.0]))
