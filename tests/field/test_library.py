"""The library works anywhere, leaves the process alone, and answers an image in a line."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fixtures.tiny_run import DATA, LAYER, finish, trained_tiny, write_pictures

import scorebayes
from scorebayes.data import open_source, read_image
from scorebayes.errors import ConfigError, DataError
from scorebayes.runs.config import resolve
from scorebayes.sklearn import ScoreBayesClassifier
from scorebayes.stages.predict import predict_files

CONFIG = {name: LAYER[name] for name in ("net", "train", "likelihood")}
ALONE = CONFIG | {"evidence": {"sources": ["pixels"]}}
SHORT = ALONE | {"train": LAYER["train"] | {"steps": 2}}
SOURCE = open_source(DATA)
RECORDS = SOURCE.records()
X = np.stack([np.rint(255 * SOURCE.read(record)).astype(np.uint8) for record in RECORDS])
Y = np.array([record.label for record in RECORDS])
PATIENTS = np.array([record.patient_id for record in RECORDS])
SOURCE_FOLDER = Path(scorebayes.__file__).parents[1]


def tiny(**parameters) -> ScoreBayesClassifier:
    return ScoreBayesClassifier("tiny", **{"config": CONFIG, "device": "cpu", "random_state": 6} | parameters)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return scorebayes.open_run(finish(trained_tiny(tmp_path_factory.mktemp("runs") / "tiny")).path)


@pytest.fixture(scope="module")
def model():
    return tiny().fit(X, Y, groups=PATIENTS)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"), 3)


# -- one image, one line ------------------------------------------------------------------------------------------------


def test_an_image_is_answered_in_one_line_as_on_the_command_line(run, pictures):
    """U9: run.predict gives the figures of ``scorebayes predict``, with class names and error."""
    table = predict_files(run, pictures)
    for answer, (_, row) in zip(run.predict(pictures), table.iterrows(), strict=True):
        assert answer.image == row["file"]
        assert answer.reason == ("" if row["status"] == "ok" else row["status"])
        assert answer.typical == (row["typical"] == "yes")
        if answer.reason:
            assert answer.posterior == {} and answer.predicted is None
            continue
        assert answer.posterior == {name: row[f"prob_{name}"] for name in run.classes}
        assert (answer.predicted, answer.log_odds) == (row["predicted"], row["log_odds"])
        assert answer.log_odds_std_error == row["log_odds_std_error"]
        assert answer.decided == (row["decided"] == "yes")
        assert answer.above_threshold == (row["above_threshold"] == "yes")
        p, by_odds = answer.posterior["malignant"], answer.log_odds_std_error
        assert answer.std_error["malignant"] == pytest.approx(p * (1 - p) * by_odds)
        assert f"malignant {p:.3f} ± {p * (1 - p) * by_odds:.3f}" in str(answer)
    assert any(not answer.reason for answer in run.predict(pictures))


def test_pixels_are_answered_as_their_file_and_a_file_is_read_once(run, pictures, monkeypatch):
    """U9: an array is an image, too."""
    of_file = run.predict(pictures[0])
    of_pixels = run.predict(read_image(pictures[0]))
    assert of_pixels.posterior == of_file.posterior and of_pixels.log_odds == of_file.log_odds
    assert of_pixels.image == "image of 16 x 16 pixels"
    seen, real = [], run.reader.file
    monkeypatch.setattr(run.reader, "file", lambda path: seen.append(path) or real(path))
    run.predict(pictures[0])
    assert seen == [pictures[0]]


def test_where_there_is_no_answer_the_reason_is_told(run, pictures, tmp_path):
    """U9: an unusable file in a list costs no other its answer; a path that does not exist is an error."""
    broken = tmp_path / "broken.png"
    broken.write_bytes(pictures[0].read_bytes()[:100])
    first, second = run.predict([broken, pictures[0]])
    assert first.reason.startswith("quarantined: ") and "no answer" in str(first) and first.decided is None
    assert second.posterior == run.predict(pictures[0]).posterior
    with pytest.raises(DataError, match="no such file"):
        run.predict(tmp_path / "nwe.png")


def test_a_run_says_what_it_is(run):
    """U9: repr names classes, images, sources, and how far the run is."""
    said = f"Run('{run.path}': 2 classes benign, malignant; 16 px grey; sources pixels, wavelets; step 12; calibrated)"
    assert repr(run) == said


def test_the_package_lists_what_is_to_be_used_and_nothing_else():
    """U9: no Any, no TYPE_CHECKING; Tab completes names before they are imported."""
    script = "import scorebayes; print(dir(scorebayes)); assert 'torch' not in __import__('sys').modules"
    listed = ran(script).stdout
    assert listed.strip() == str(sorted(scorebayes.__all__))
    assert all(hasattr(scorebayes, name) for name in scorebayes.__all__)


# -- the scikit-learn class ---------------------------------------------------------------------------------------------


def test_fit_is_silent_unless_it_is_asked_to_tell(capfd):
    """U10: verbose=0 prints nothing, verbose=1 says how far it is."""
    tiny().fit(X, Y, groups=PATIENTS)
    assert capfd.readouterr() == ("", "")
    tiny(verbose=1, config=ALONE).fit(X, Y, groups=PATIENTS)
    out, err = capfd.readouterr()
    assert out == "" and "train: 12 of 12" in err


def test_answers_are_booleans(model):
    """U10: decided and typical are True or False, missing where there is no answer."""
    noise = np.random.default_rng(0).integers(0, 256, (1, 16, 16), dtype=np.uint8)
    found = model.answers(np.concatenate([X[:6], noise]))
    in_words = predict_files(model.run_, [])
    assert in_words.empty
    for name in ("decided", "typical", "above_threshold"):
        assert found[name].dtype == "boolean"
    answered = found["status"] == "ok"
    assert answered.any() and found["decided"][answered].notna().all()
    assert pd.isna(found["decided"].iloc[-1]) and found["typical"].iloc[-1] == False  # noqa: E712
    decided = found[found["decided"]]
    assert len(decided) == int(found["decided"].sum())


# -- seeds --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [5_000_000_000, 2**31 - 1])
def test_any_whole_number_is_a_seed(seed):
    """T2: a seed beyond 32 bits ends in a calibrated model, not in a crash after the whole training."""
    model = tiny(random_state=seed).fit(X, Y, groups=PATIENTS)
    assert model.run_.calibration.n > 0
    assert np.isfinite(model.predict_proba(X[:2])).all()


@pytest.mark.parametrize("seed", [-1, 1.5, True, "7"])
def test_what_is_no_seed_is_refused_before_work_starts(seed, tmp_path):
    """T2: in words, and nothing is left behind."""
    with pytest.raises(ConfigError, match=r"seed must be a whole number >= 0"):
        resolve({"data": {"source": DATA}, "prepare": {"size": 16}, "seed": seed})
    path = tmp_path / "runs" / "run"
    with pytest.raises((ConfigError, ValueError), match="seed"):
        tiny(random_state=seed, path=path).fit(X, Y)
    assert not path.parent.exists()


def test_the_same_remainder_is_the_same_seed():
    """T2: seeds are taken modulo 2^32 in one place."""
    layers = {"data": {"source": DATA}, "prepare": {"size": 16}}
    assert resolve({**layers, "seed": 2**32 + 7}).seed == resolve({**layers, "seed": 7}).seed == 7
    assert type(resolve({**layers, "seed": np.int64(7)}).seed) is int


# -- anywhere -----------------------------------------------------------------------------------------------------------

SCRIPT = """
import numpy as np
print("script runs")
from scorebayes import ScoreBayesClassifier
images = np.random.default_rng(0).integers(0, 120, (220, 16, 16), dtype=np.uint8)
labels = np.arange(220) % 2
images[labels == 1, 4:12, 4:12] += 80
config = {config!r}
model = ScoreBayesClassifier("tiny", config=config, device="cpu").fit(images, labels)
print(model.predict_proba(images[:2]).shape)
"""
FOLDER_SCRIPT = """
print("script runs")
from pathlib import Path
import torch
from scorebayes.stages import train
layer = {config!r} | {{"seed": 6}}
run = train.train(Path("run"), "folder:images", [layer], "tiny", torch.device("cpu"))
print(len(run.images("train")))
"""


def ran(script: str, folder: Path | None = None) -> subprocess.CompletedProcess:
    """A plain script, without ``if __name__``, in a process of its own."""
    words = ["-c", script]
    if folder is not None:
        (folder / "script.py").write_text(script)
        words = ["script.py"]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE_FOLDER), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


def test_a_plain_script_fits_more_than_two_hundred_images(tmp_path):
    """T4: README's snippet as a file, without ``if __name__ == "__main__"``."""
    done = ran(SCRIPT.format(config=SHORT), tmp_path)
    assert done.stdout.split("\n")[:2] == ["script runs", "(2, 2)"]


def test_a_plain_script_reads_a_folder_by_worker_processes_that_do_not_run_it_again(tmp_path):
    """T4: worker processes leave the caller's script alone."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for row in range(204):
        name = ("benign", "malignant")[row % 2]
        (tmp_path / "images" / name).mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 120, (16, 16), dtype=np.uint8)
        pixels[4:12, 4:12] += 80 * (row % 2)
        Image.fromarray(pixels).save(tmp_path / "images" / name / f"{row}.png")
    done = ran(FOLDER_SCRIPT.format(config=SHORT), tmp_path)
    assert done.stdout.count("script runs") == 1 and "Traceback" not in done.stderr


def state_of_the_process() -> tuple:
    return (
        torch.random.get_rng_state().tolist(),
        [part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state()],
        random.getstate(),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_default_dtype(),
        list(warnings.filters),
        [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)],
        dict(os.environ),
    )


def test_fit_and_predict_leave_the_process_as_it_was_and_what_it_was_changes_nothing():
    """T5: random numbers of torch, NumPy and Python, threads, warning filters, signal handlers, environment; the model
    follows from random_state alone."""
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        before = state_of_the_process()
        model = tiny(config=CONFIG | {"net": {**CONFIG["net"], "dropout": 0.1}}).fit(X, Y, groups=PATIENTS)
        assert state_of_the_process() == before
        found.append(model.predict_proba(X[:3]))
        model.answers(X[:3])
        assert state_of_the_process() == before
    np.testing.assert_array_equal(*found)


def test_threads_fit_side_by_side_as_they_would_alone(model):
    """T5: fit works outside of the main thread, and two of them do not disturb each other."""
    alone, found = model.predict_proba(X[:3]), {}

    def work(name: int) -> None:
        found[name] = tiny().fit(X, Y, groups=PATIENTS).predict_proba(X[:3])

    threads = [threading.Thread(target=work, args=(name,)) for name in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in range(2):
        np.testing.assert_array_equal(found[name], alone)
