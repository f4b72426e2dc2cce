"""The classifier behind scikit-learn's interface."""

from __future__ import annotations

import io
import pickle
import re
import warnings
import zipfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fixtures.tiny_run import DATA, LAYER, write_pictures
from sklearn import config_context
from sklearn.base import clone
from sklearn.exceptions import NotFittedError, SkipTestWarning
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.utils.estimator_checks import parametrize_with_checks

import scorebayes
from scorebayes import sklearn
from scorebayes.data import open_source
from scorebayes.errors import ConfigError, DataError
from scorebayes.sklearn import ScoreBayesClassifier
from scorebayes.stages.predict import predict_files

CONFIG = {name: LAYER[name] for name in ("net", "train", "likelihood")}
ALONE = CONFIG | {"evidence": {"sources": ["pixels"]}}  # where it is not about the model
SOURCE = open_source(DATA)
RECORDS = SOURCE.records()
X = np.stack([np.rint(255 * SOURCE.read(record)).astype(np.uint8) for record in RECORDS])
Y = np.array([SOURCE.info.classes[record.label] for record in RECORDS])
PATIENTS = np.array([record.patient_id for record in RECORDS])


def tiny(**parameters) -> ScoreBayesClassifier:
    return ScoreBayesClassifier("tiny", **{"config": CONFIG, "device": "cpu", "random_state": 6} | parameters)


@pytest.fixture(scope="module")
def model():
    return tiny().fit(X, Y, groups=PATIENTS)


with warnings.catch_warnings():  # those on data cannot be done: they have no images
    warnings.simplefilter("ignore", SkipTestWarning)
    checks = parametrize_with_checks([ScoreBayesClassifier()])


@checks
def test_it_is_an_estimator(estimator, check):
    check(estimator)


def test_it_classifies_by_the_labels_it_was_given(model):
    prob = model.predict_proba(X[:5])
    assert model.classes_.tolist() == ["benign", "malignant"]
    np.testing.assert_allclose(prob.sum(axis=1), 1)
    assert model.predict(X[:5]).tolist() == model.classes_[prob.argmax(axis=1)].tolist()
    assert model.score(X, Y) == np.mean(model.predict(X) == Y)


def test_patients_are_in_one_split_and_none_is_kept_for_a_test(model):
    split = model.run_.split
    assert set(split["split"]) == {"train", "val"}
    assert split.groupby("patient_id")["split"].nunique().max() == 1
    assert 0.1 < (split["split"] == "val").mean() < 0.3


def test_an_image_is_answered_as_its_file_is(model, tmp_path):
    files = write_pictures(tmp_path, 3)
    there, here = predict_files(model.run_, files), model.answers(X[:3])
    assert here.columns.tolist() == [name for name in there if name not in ("file", "warning")]
    np.testing.assert_allclose(here["prob_malignant"], there["prob_malignant"].astype(float), rtol=1e-6)
    known = here["status"] == "ok"
    np.testing.assert_allclose(here["prob_malignant"][known], model.predict_proba(X[:3])[known, 1], rtol=1e-6)


def test_what_is_no_such_image_gets_no_answer(model):
    noise = np.random.default_rng(0).integers(0, 256, (1, 16, 16), dtype=np.uint8)
    answer = model.answers(noise).iloc[0]
    assert answer["status"].startswith("abstained") and np.isnan(answer["prob_malignant"])


def test_it_survives_its_pickle_without_the_folder(model):
    before = model.predict_proba(X[:2])
    other = pickle.loads(pickle.dumps(model))
    packed = pickle.dumps(other)
    del other
    again = pickle.loads(packed)
    np.testing.assert_array_equal(again.predict_proba(X[:2]), before)
    assert again.run_.path != model.run_.path


def test_a_temporary_folder_below_one_named_cache_is_packed_all_the_same(tmp_path):
    folder = tmp_path / "cache" / "scorebayes-1"
    for name in (
        "run/config.toml",
        "run/checkpoints/step-1",
        "run/checkpoints/state-1",
        "run/cache/a",
        "run.npz",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"1")
    with zipfile.ZipFile(io.BytesIO(sklearn._pack(folder))) as archive:
        assert set(archive.namelist()) == {"run/config.toml", "run/checkpoints/step-1"}


def test_a_run_with_a_path_is_gone_on_with_and_found_by_the_pickle(tmp_path):
    first = tiny(path=tmp_path / "runs" / "own", config=ALONE).fit(X, Y)
    weights = first.run_.checkpoints.best()["sha256"]
    assert clone(first).fit(X, Y).run_.checkpoints.best()["sha256"] == weights
    assert pickle.loads(pickle.dumps(first)).run_.path == tmp_path / "runs" / "own"
    with pytest.raises(ConfigError, match="another configuration"):
        clone(first).fit(255 - X, Y)


def test_cross_validation_hands_the_patients_on(monkeypatch):
    seen, fit = [], ScoreBayesClassifier.fit

    def watched(self, X, y, groups=None):
        seen.append(set(groups))
        return fit(self, X, y, groups)

    monkeypatch.setattr(ScoreBayesClassifier, "fit", watched)
    with config_context(enable_metadata_routing=True):
        prob = cross_val_predict(
            tiny(config=ALONE).set_fit_request(groups=True), X, Y, cv=StratifiedGroupKFold(2), method="predict_proba",
            params={"groups": PATIENTS},
        )  # fmt: skip
    assert prob.shape == (len(X), 2) and np.isfinite(prob).all()
    assert len(seen) == 2 and not seen[0] & seen[1] and seen[0] | seen[1] == set(PATIENTS)


def test_the_readme_example_runs_as_printed():
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    code = next(b for b in re.findall(r"```python\n(.*?)```", readme, re.S) if "ScoreBayesClassifier" in b)
    assert scorebayes.ScoreBayesClassifier is ScoreBayesClassifier
    quick = SimpleNamespace(ScoreBayesClassifier=partial(tiny, config=ALONE))
    known = {"scorebayes": quick, "images": X, "labels": Y, "patients": PATIENTS, "new_images": X[:2]}
    exec(compile(code, "README.md", "exec"), known)
    assert known["model"].run_.path.is_dir()


def test_it_must_be_fitted_first():
    with pytest.raises(NotFittedError):
        tiny().predict(X)


@pytest.mark.parametrize(
    ("images", "labels", "error", "message"),
    [
        (X.reshape(len(X), -1), Y, DataError, r"Expected images, \(N, H, W\)"),
        (X, Y[:-1], ConfigError, "for 80 images"),
        (X, np.zeros(len(X), dtype=int), ConfigError, "y has only one class, 0"),
        (X.astype(np.int64) - 1, Y, DataError, "X has values from -1 to"),
        (X.astype(float), Y, DataError, r"X has values from 0 to \d+"),
        (X, np.linspace(0, 1, len(X)), ValueError, "Unknown label type"),
    ],
)
def test_what_does_not_fit_is_refused(images, labels, error, message):
    with pytest.raises(error, match=message):
        tiny().fit(images, labels)
