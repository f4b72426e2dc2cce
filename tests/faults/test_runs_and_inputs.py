"""Run directories that were damaged or cannot be written, and images that must get no posterior."""

from __future__ import annotations

import errno
import hashlib
import json
import pickle
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fixtures.native_trees import CANARY, breast, inbreast, write_dicom
from fixtures.tiny_run import LAYER, train_tiny, trained_tiny
from PIL import Image
from safetensors.torch import load_file, save_file

from scorebayes import open_run
from scorebayes.data.base import Record
from scorebayes.data.load import ImageSet
from scorebayes.diffusion.likelihood import LIKELIHOODS
from scorebayes.errors import ConfigError, DataError
from scorebayes.runs import inputs
from scorebayes.runs.device import pick_device
from scorebayes.runs.reader import Reader
from scorebayes.runs.run import Facts, Run
from scorebayes.stages import train as stages
from scorebayes.stages.predict import predict_files
from scorebayes.storage import checkpoint, sealed
from scorebayes.storage.spreadsheet import csv_text, plain
from scorebayes.training import loop as training
from scorebayes.training.state import write_log

CPU = torch.device("cpu")
ALONE = {"sources": ["pixels"]}  # where it is about the network's training


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return trained_tiny(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def copy(trained, tmp_path):
    shutil.copytree(trained.path, tmp_path / "copy")
    return tmp_path / "copy"


def picture(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def mammogram(size: int = 16) -> np.ndarray:
    source = inputs.open_source(f"phantom:n_patients=1,views=1,size={size}")
    return np.rint(source.read(source.records()[0]) * 255).astype(np.uint8)


# --- the directory -----------------------------------------------------------------------------------------


def test_a_directory_that_cannot_be_made_or_written_stops_before_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        train_tiny(tmp_path / "file" / "run")

    def refuse(**_):  # the tests may run as root, whom no permission stops
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(inputs.tempfile, "TemporaryFile", refuse)
    with pytest.raises(ConfigError, match=r"run: the run directory cannot be written \(Permission denied\)"):
        train_tiny(tmp_path / "run")


def test_a_start_that_was_broken_off_is_taken_up(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "create_run", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train_tiny(tmp_path / "run", evidence=ALONE)
    assert (tmp_path / "run" / "split.parquet").exists()
    monkeypatch.undo()
    assert train_tiny(tmp_path / "run", resume=True, evidence=ALONE).calibration.n > 0


def test_a_full_disk_keeps_the_checkpoint_before_and_training_goes_on_from_it(tmp_path, monkeypatch):
    real, saved = checkpoint.save_file, []

    def disk_full(tensors, path):
        saved.append(path)
        if len(saved) > 2:
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", disk_full)
    with pytest.raises(ConfigError, match="No space left on device"):
        train_tiny(tmp_path / "run", evidence=ALONE)
    monkeypatch.undo()
    kept = open_run(tmp_path / "run").checkpoints
    assert [entry["step"] for entry in kept.entries("state")] == [4]
    assert not list(kept.folder.glob("*.partial"))
    assert (
        train_tiny(tmp_path / "run", resume=True, evidence=ALONE).checkpoints.entries("state")[-1]["step"]
        == 12
    )


def test_a_log_that_cannot_be_written_costs_a_warning_only():
    with pytest.warns(UserWarning, match="training continues"):
        write_log(Path("/dev/full"), step=1)


def test_a_memory_too_small_for_one_image_is_an_error_with_an_estimate(tmp_path, monkeypatch):
    def no_memory(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(training, "_accumulate", no_memory)
    with pytest.raises(ConfigError, match=r"million weights take \d+\.\d+ GB.*--size"):
        train_tiny(tmp_path / "run")


def test_a_clock_that_jumps_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 0.0)
    run = train_tiny(tmp_path / "run", train={**LAYER["train"], "minutes": 10.0}, evidence=ALONE)
    assert run.checkpoints.entries("state")[-1]["step"] == 12


def test_a_prior_that_is_none_stops_before_the_images_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(Reader, "load", lambda *_: pytest.fail("images were read"))
    for prob in ([0.9, 0.2], [1.0], [1.1, -0.1]):
        with pytest.raises(ConfigError, match="prob"):
            train_tiny(tmp_path / "run", prior={"kind": "given", "prob": prob})


# --- the model ---------------------------------------------------------------------------------------------


def weights_of(run: Path) -> Path:
    return next((run / "checkpoints").glob("step-*.safetensors"))


def vouch_for(path: Path) -> None:
    """Enter a changed file into the manifest, as a forger would."""
    manifest = path.with_name("manifest.json")
    entries = json.loads(manifest.read_text())
    for entry in entries:
        if entry["file"] == path.name:
            entry["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest.write_text(json.dumps(entries))
    sealed.accept(path.parents[1])


def test_truncated_weights_are_refused(copy):
    path = weights_of(copy)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ConfigError, match="SHA-256"):
        _ = open_run(copy).score
    vouch_for(path)
    with pytest.raises(ConfigError, match="damaged"):
        _ = open_run(copy).score
    path.unlink()
    with pytest.raises(ConfigError, match="missing"):
        _ = open_run(copy).score


def test_a_pickle_is_never_opened(copy, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "opened",))

    path = weights_of(copy)
    path.write_bytes(pickle.dumps(Bomb()))
    vouch_for(path)
    with pytest.raises(ConfigError, match="damaged"):
        _ = open_run(copy).score
    assert not (tmp_path / "opened").exists()


def test_weights_that_are_not_numbers_are_refused(copy):
    path = weights_of(copy)
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    tensors[next(iter(tensors))].fill_(float("nan"))
    save_file(tensors, path)
    vouch_for(path)
    with pytest.raises(ConfigError, match="NaN or infinite"):
        _ = open_run(copy).score


def test_a_state_without_its_averaged_weights_is_refused(copy):
    path = sorted((copy / "checkpoints").glob("state-*.safetensors"))[-1]
    tensors = {name: t.clone() for name, t in load_file(path).items() if not name.startswith("average.")}
    save_file(tensors, path)
    vouch_for(path)
    with pytest.raises(ConfigError, match="do not belong to this network"):
        train_tiny(copy, resume=True)


def change_source(run: Path, **fields) -> None:
    path = run / "source.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    sealed.accept(run)


def test_other_classes_another_preparation_and_a_newer_format_are_refused(trained, tmp_path):
    for number, (fields, words) in enumerate(
        [
            ({"classes": ["a", "b", "c"], "train_counts": [5, 5, 5]}, "do not fit the network"),
            ({"pipeline": "0" * 16}, "prepare images differently"),
            ({"format": 99}, "newer version"),
        ]
    ):
        shutil.copytree(trained.path, tmp_path / str(number))
        change_source(tmp_path / str(number), **fields)
        with pytest.raises(ConfigError, match=words):
            _ = open_run(tmp_path / str(number)).score


def test_a_run_of_the_first_version_opens(copy):
    path = copy / "source.json"
    stored = json.loads(path.read_text())
    del stored["format"], stored["pipeline"]
    path.write_text(json.dumps(stored))
    sealed.accept(copy)
    assert open_run(copy).score.n_classes == 2


@pytest.mark.parametrize("written, common", [(1, False), (2, True)])
def test_a_run_keeps_the_noise_that_its_calibration_was_fitted_with(copy, written, common):
    config = copy / "config.toml"
    config.write_text(config.read_text().replace("common_noise = true\n", ""))
    change_source(copy, format=written)
    assert open_run(copy).likelihood.common_noise is common


# --- copies and leaks --------------------------------------------------------------------------------------


def records_with(splits: list[str | None]) -> list[Record]:
    return [Record(f"i{k}", Path(f"i{k}"), k % 2, split=split) for k, split in enumerate(splits)]


AUDIT = {"same_pixels_across_splits": [["i0", "i1"]], "same_pixels_within_split": []}


def test_copies_of_different_patients_across_splits_that_we_drew_stop(tmp_path):
    with pytest.raises(DataError, match=r"i0 and i1 are the same image.*same patient_id"):
        inputs._judge_copies(AUDIT, records_with([None, None]))
    rows = ["path,label,patient_id"]
    for k in range(24):
        name, label = f"{k}.png", ("benign", "malignant")[k % 2]
        picture(tmp_path / name, np.roll(mammogram(), k // 8, axis=0))
        rows.append(f"{name},{label},p{k}")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    with pytest.raises(DataError, match="the same image"):
        stages.train(tmp_path / "run", f"folder:{tmp_path}", [LAYER], "tiny", CPU)
    assert not (tmp_path / "run" / "config.toml").exists()


def test_copies_across_official_splits_and_within_a_split_are_warned_of():
    with pytest.warns(UserWarning, match=r"more than one official split, for example i0 = i1.*audit\.json"):
        inputs._judge_copies(AUDIT, records_with(["train", "test"]))
    within = {"same_pixels_across_splits": [], "same_pixels_within_split": [["i0", "i1"]]}
    with pytest.warns(UserWarning, match="more than once within a split"):
        inputs._judge_copies(within, records_with([None, None]))


def test_the_statistics_of_the_pixels_are_exact():
    images = np.random.default_rng(0).integers(0, 4096, (5, 1, 9, 9)).astype(np.uint16)
    shares = (images + 0.5) / 4096
    found = inputs.grey_statistics(ImageSet(images, 12, tuple(records_with([None] * 5))))
    np.testing.assert_allclose(found, (shares.mean(), shares.std()))


def test_nothing_that_names_a_patient_reaches_the_run_directory(tmp_path):
    rows = [
        (f"{29990000 + k}", f"{k // 2:016x}", "L" if k % 2 else "R", "CC", "1" if k % 4 < 2 else "5", "2")
        for k in range(48)
    ]
    root = inbreast(tmp_path / "data", rows)
    layer = {**LAYER, "prepare": {"size": 16}}
    run = stages.train(tmp_path / "run", f"inbreast:{root}", [layer], "tiny", CPU)
    assert run.facts.info.modalities == ("MG",)
    files = [path for path in run.path.rglob("*") if path.is_file()]
    assert len(files) > 10
    for path in files:
        # Either part alone, too; the shorter one would be found in weights by chance.
        assert CANARY.split("^")[0].encode() not in path.read_bytes(), path.name
        assert b"DOE" not in path.read_bytes() or path.suffix == ".safetensors", path.name
    assert "Patient Name" not in run.split.columns


# --- prediction --------------------------------------------------------------------------------------------


def statuses(run: Run, *files: Path, force: bool = False) -> list[str]:
    frame = predict_files(run, files, force=force)
    bad = frame["status"].ne("ok")
    if "log_odds" in frame:
        assert frame.loc[bad, "log_odds"].isna().all()
    return frame["status"].tolist()


def test_another_modality_gets_no_posterior(trained, tmp_path):
    facts = Facts(replace(trained.facts.info, modalities=("MG",)), *list(vars(trained.facts).values())[1:])
    run = Run(trained.path, trained.config, facts, CPU)
    scan = write_dicom(tmp_path / "ct.dcm", breast(), Modality="CT")
    good = write_dicom(tmp_path / "mg.dcm", breast())
    found = statuses(run, scan, good, force=True)
    assert "modality 'CT', expected MG" in found[0] and found[1] == "ok"


def test_a_small_image_is_warned_of_and_a_far_too_small_one_refused(trained, tmp_path):
    small = picture(tmp_path / "small.png", mammogram(16)[:12, :12])
    # At side 32 twelve pixels are too few, at side 16 they are few.
    frame = predict_files(trained, [small], force=True)
    assert (
        frame.loc[0, "status"] == "ok"
        and "12 x 12 pixels, but the model works at 16" in frame.loc[0, "warning"]
    )
    stamp = picture(tmp_path / "stamp.png", mammogram(16)[:7, :7])
    assert "too small: 7 x 7 pixels" in statuses(trained, stamp)[0]


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (np.stack([mammogram(), 0 * mammogram(), mammogram()], -1), "overlay"),
        (0 * mammogram(), "blank"),
        (np.full((16, 16), 255, np.uint8), "blank"),
        (np.where(np.eye(16) > 0, np.nan, 0.5), "NaN"),
        (np.where(np.arange(4096).reshape(64, 64) < 3, 0, 255).astype(np.uint8), "saturated"),
    ],
)
def test_an_image_without_meaning_gets_no_posterior(trained, tmp_path, pixels, words):
    path = tmp_path / "image.npy"
    np.save(path, pixels)
    good = picture(tmp_path / "good.png", mammogram())
    found = statuses(trained, path, good, force=True)
    assert words in found[0] and found[1] == "ok"


@pytest.mark.parametrize("bad", [{0}, {0, 1}])
def test_a_failed_solve_costs_that_image_only(trained, tmp_path, monkeypatch, bad):
    files = [picture(tmp_path / f"{k}.png", np.roll(mammogram(), k, axis=0)) for k in range(2)]
    alone = predict_files(trained, files, force=True)
    real, calls = Run.evidence, []

    def failing(self, *args):
        table = real(self, *args)
        calls.append(1)
        if len(calls) - 1 not in bad:
            return table
        pixels = table.blocks["pixels"]
        lost = replace(pixels, draws=np.full_like(pixels.draws, np.nan), status=np.array(["too many steps"]))
        return replace(table, blocks={**table.blocks, "pixels": lost})

    monkeypatch.setattr(Run, "evidence", failing)
    frame = predict_files(trained, files, force=True)
    for row in range(2):
        if row in bad:
            assert frame.loc[row, "status"] == "abstained: the estimator failed (too many steps)"
            assert pd.isna(frame.loc[row, "log_odds"])
        else:
            assert frame.loc[row, "log_odds"] == alone.loc[row, "log_odds"]


def test_every_estimator_has_a_status_for_an_image_that_fails(trained):
    x = torch.full((1, 1, 16, 16), float("nan"))
    table = trained.evidence(x, ["nan"], LIKELIHOODS["denoising"](levels=2))
    assert table.status.tolist() != ["ok"] and len(table.usable()) == 0


def test_no_cell_of_an_output_is_a_formula():
    frame = pd.DataFrame({"file": ["=cmd()", "-rf.dcm", "+1", "@x", "a=b", ""], "log_odds": [-1.5] * 6})
    lines = csv_text(frame).splitlines()
    assert lines[1:] == ["'=cmd(),-1.5", "'-rf.dcm,-1.5", "'+1,-1.5", "'@x,-1.5", "a=b,-1.5", ",-1.5"]
    assert [plain(line.split(",")[0]) for line in lines[1:5]] == frame["file"].tolist()[:4]
    assert plain("'quoted'") == "'quoted'"


def test_a_device_that_is_absent_is_named():
    with pytest.raises(ConfigError, match=r"'tpu' is not available.*Available: .*cpu"):
        pick_device("tpu")
