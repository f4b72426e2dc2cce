"""Fixed costs are in proportion to the work: what a command and a short training cost before and beside it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures.tiny_run import train_tiny, trained_tiny

import scorebayes
from scorebayes.diffusion.likelihood import flow as flow_module
from scorebayes.diffusion.likelihood.flow import Flow
from scorebayes.evidence import pixels
from scorebayes.training import loop, validate

SOURCE = Path(scorebayes.__file__).parents[1]
MEASURED = """
import resource, sys, time
{script}
used = resource.getrusage(resource.RUSAGE_SELF)
print(f"cpu {{used.ru_utime + used.ru_stime:.3f}}", file=sys.stderr)
"""
HELP = """
from scorebayes.cli.main import app
try:
    app({words!r})
except SystemExit:
    pass
"""
FIT = """
import numpy as np
from scorebayes import ScoreBayesClassifier
from scorebayes.training import loop
seconds, real = [], loop._step
def step(*args):
    start = time.process_time()
    loss = real(*args)
    seconds.append(time.process_time() - start)
    return loss
loop._step = step
images = np.random.default_rng(0).integers(0, 120, (90, 28, 28), dtype=np.uint8)
labels = np.arange(90) % 2
images[labels == 1, 8:20, 8:20] += 60
start = time.process_time()
ScoreBayesClassifier(steps=8, device="cpu").fit(images, labels)
print("fit", time.process_time() - start, "steps", sum(seconds))
"""


def cpu_seconds(script: str) -> tuple[float, str]:
    """CPU time of a fresh process with one thread, and what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", MEASURED.format(script=script)], env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return float(done.stderr.split()[-1]), done.stdout


@pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="the CPU time of another process is read from /proc"
)
def test_the_first_word_comes_before_the_libraries(tmp_path: Path) -> None:
    """U8: a command that needs torch says at once what it does."""
    words = [
        sys.executable,
        "-c",
        "from scorebayes.cli.main import main; main()",
        "predict",
        str(tmp_path),
        "x.png",
    ]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    with subprocess.Popen(
        words, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        rest = process.stderr.read()
    assert first == "predict ...\n"
    assert "not a run directory" in rest
    assert (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") < 1.5


@pytest.mark.parametrize(
    "words", [["--help"], ["train", "--help"], ["data", "check", "--help"]], ids=" ".join
)
def test_help_costs_little(words):
    """U8: under 1.5 CPU-seconds; a quarter of a second on the machine that this was written on."""
    seconds, told = cpu_seconds(HELP.format(words=words))
    assert "Usage" in told
    assert seconds < 1.5


def test_a_look_at_data_begins_without_what_it_does_not_need():
    """U8: ``data check`` needs no torch, no scikit-learn and no pandas."""
    script = "from scorebayes.data import open_source; open_source('phantom:n_patients=2').records()\n"
    seconds, _ = cpu_seconds(script + "assert not {'torch', 'sklearn', 'monai'} & set(sys.modules)")
    assert seconds < 1.5


def test_a_short_training_is_not_buried_in_validation():
    """U8: eight steps on ninety images; all the rest, with the libraries that training loads, costs about as much as the
    steps themselves."""
    _, told = cpu_seconds(FIT)
    _, fit, _, steps = told.split()
    assert float(fit) < 2 * float(steps) + 6


def looks(tmp_path: Path, monkeypatch, steps: int, **settings: int) -> tuple[int, list[int]]:
    """How often a training of so many steps of eight images validates, and how many images each later look sees: the choice
    of the noise, where one is made, and the calibration."""
    seen: list[int] = []
    passes: list[int] = []
    monkeypatch.setattr(loop, "_accumulate", lambda *_: 0.5)
    monkeypatch.setattr(validate, "validate", lambda *_: (passes.append(1) or 0.5, 0.5))
    real = pixels.Pixels.log_lik

    def asked(self, x, *rest):
        seen.append(len(x))
        return real(self, x, *rest)

    monkeypatch.setattr(pixels.Pixels, "log_lik", asked)
    of_training = {"steps": steps, "batch": 8, "precision": "fp32", **settings}
    train_tiny(tmp_path / f"run{steps}", train=of_training, evidence={"sources": ["pixels"]})
    return len(passes), seen


def test_validation_is_as_frequent_as_the_training_is_long(tmp_path, monkeypatch):
    """U8: no more often than every twenty steps, ten times in a training of ordinary length; and never in one so short that
    there is nothing to choose, whose validation images are seen once, for the calibration."""
    one_set, (calibrated_on,) = looks(tmp_path, monkeypatch, 8, validate_every=0)
    few, (chosen_on_few, _) = looks(tmp_path, monkeypatch, 21, validate_every=0)
    some, (chosen_on_some, _) = looks(tmp_path, monkeypatch, 100, validate_every=0)
    assert (one_set, few, some) == (0, 2, 5)
    assert chosen_on_few < chosen_on_some <= calibrated_on


def test_an_ordinary_training_looks_at_all_that_it_is_to_look_at():
    """U8: what short trainings save, ordinary ones do not."""
    from scorebayes.training.settings import TrainConfig

    for settings in (
        TrainConfig(),
        TrainConfig(steps=200),
        TrainConfig(steps=800),
        TrainConfig(validate_every=1000),
    ):
        assert validate.chooses(settings)
        assert validate.affordable_looks(settings) // 2 >= validate.FINAL_IMAGES
    ordinary = TrainConfig()
    assert validate.affordable_looks(ordinary) // 8 >= ordinary.val_images
    assert validate.LEAST_STEPS_BETWEEN * validate.VALIDATIONS <= 200


def test_the_way_of_the_derivatives_is_measured_once_a_run(tmp_path, monkeypatch):
    """S6: every image of a table of the flow takes the same mode, however often the run is asked."""
    run = trained_tiny(tmp_path / "run")
    images = run.images("test").subset([0, 1])
    measured: list[object] = []
    real = flow_module.fastest_mode

    def counted(score, field, x, probe):
        measured.append(score)
        return real(score, field, x, probe)

    monkeypatch.setattr(flow_module, "fastest_mode", counted)
    for row in range(2):
        some = images.subset([row])
        run.evidence(run.standardise(some.images), some.keys, Flow(solver="heun", steps=1))
    assert len(measured) == 2 and measured[0] is measured[1]
