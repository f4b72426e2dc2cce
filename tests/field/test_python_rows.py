"""Images given as arrays: a bad row is named, and costs no other row its answer."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from fixtures.tiny_run import LAYER

from scorebayes.errors import DataError
from scorebayes.sklearn import ScoreBayesClassifier

X = np.random.default_rng(0).random((32, 16, 16), dtype=np.float32)
Y = np.arange(32) % 2


def tiny() -> ScoreBayesClassifier:
    config = {name: LAYER[name] for name in ("net", "train", "likelihood")} | {
        "evidence": {"sources": ["pixels"]}
    }
    return ScoreBayesClassifier("tiny", config=config, device="cpu", random_state=6)


@pytest.fixture(scope="module")
def model() -> ScoreBayesClassifier:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tiny().fit(X, Y)


def with_bad_rows() -> np.ndarray:
    images = X[:5].copy()
    images[1] = 0.25  # blank
    images[3, 0, 0] = np.nan
    return images


def test_a_blank_and_a_nan_row_get_no_answer_with_the_reason(model) -> None:
    """R4: answers gives the other rows what they get alone."""
    frame, alone = model.answers(with_bad_rows()), model.answers(X[[0, 2, 4]])
    assert len(frame) == 5
    assert frame["status"][1].startswith("quarantined: ") and "NaN" in frame["status"][3]
    assert frame.loc[[1, 3], ["prob_0", "prob_1"]].isna().all(axis=None)
    rest = frame.loc[[0, 2, 4]].reset_index(drop=True)
    assert rest["status"].tolist() == alone["status"].tolist()
    np.testing.assert_array_equal(rest["log_odds"].astype(float), alone["log_odds"].astype(float))


def test_only_bad_rows_are_rows_without_answers(model) -> None:
    """R4: also where nothing is left."""
    frame = model.answers(with_bad_rows()[[3]])
    assert len(frame) == 1 and frame["status"][0].startswith("quarantined: image 0 holds NaN")


@pytest.mark.parametrize("ask", ["predict_proba", "predict", "predict_log_proba"])
def test_probabilities_are_refused_with_all_rows_named(model, ask) -> None:
    """R4: an array has no place for a reason."""
    with pytest.raises(DataError, match=r"2 of the images cannot be used, rows 1, 3: .*answers\(\)"):
        getattr(model, ask)(with_bad_rows())


def test_fit_names_the_rows(model) -> None:
    """R4: before anything is trained."""
    images = X.copy()
    images[7, 3, 3], images[9] = np.inf, 1.5
    with pytest.raises(
        DataError, match="2 of the images cannot be used, rows 7, 9: image 7 holds NaN or infinite"
    ):
        tiny().fit(images, Y)
    with pytest.raises(DataError, match="X has values from 0"):
        tiny().fit(255 * X, Y)
