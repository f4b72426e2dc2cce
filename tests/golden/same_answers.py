"""Do two checkouts give the same answers, to the bit? For changes that move code and must change no figure.

    python tests/golden/same_answers.py OTHER_CHECKOUT

Either checkout trains two small runs (synthetic mammograms; three classes in colour), scores, evaluates and predicts with
them, and then predicts with the runs that the other one trained. Compared are weights, predictions and metrics; times
are left out. Exit code 1 where anything differs.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

HERE = Path(__file__).parents[2]
COMMAND = """
try:
    from scorebayes.cli.main import main
except ImportError:
    from scorebayes.cli import main
main()
"""
CONFIG = """seed = 6
[net]
channels = [8, 16]
blocks = 1
attention = 1
[train]
steps = 20
batch = 8
validate_every = 5
warmup = 2
precision = "fp32"
"""
TIMES = ("seconds", "ms_per_image", "seconds_per_image")


def scorebayes(checkout: Path, *words: str) -> None:
    """Run a command of a checkout."""
    environment = os.environ | {"PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *words], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, 3):
        raise SystemExit(f"{checkout}: scorebayes {' '.join(words)}\n{done.stdout}{done.stderr}")


def make_data(folder: Path) -> dict[str, str]:
    """Sources of the two runs; the second is made here."""
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 3
    images = rng.integers(0, 120, (90, 16, 16, 3), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[4:12, 4:12, label] += 100
    np.savez(folder / "colour.npz", images=images, labels=labels)
    return {"grey": "phantom:n_patients=60,views=2,size=16", "colour": f"arrays:{folder / 'colour.npz'}"}


def pictures(folder: Path, name: str) -> list[str]:
    """A few images as files, one of them a copy, one unlike the others."""
    rng = np.random.default_rng(1)
    shape = (16, 16, 3) if name == "colour" else (16, 16)
    paths = []
    for number in range(4):
        path = folder / f"{name}-{number}.npy"
        np.save(path, (rng.random(shape) * (0.3 + 0.2 * number)).astype(np.float32))
        paths.append(str(path))
    return paths


def whole_way(checkout: Path, data: dict[str, str], folder: Path) -> None:
    """Train, score, evaluate and predict."""
    (folder / "config.toml").write_text(CONFIG)
    for name, source in data.items():
        run = str(folder / name)
        config = str(folder / "config.toml")
        scorebayes(checkout, "train", "--preset", "tiny", "--data", source, "--out", run, "--config", config)
        scorebayes(checkout, "score", run, "--split", "test")
        scorebayes(checkout, "evaluate", run, "--split", "test")
        files = pictures(folder, name)
        scorebayes(checkout, "predict", run, *files, "--force", "--out", str(folder / f"{name}.csv"))


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(of) for key, of in value.items() if not key.endswith(TIMES)}
    return [_without_times(of) for of in value] if isinstance(value, list) else value


def found_in(folder: Path) -> dict[str, str]:
    """What is compared: name -> digest or text."""
    found = {}
    for path in sorted(folder.glob("*/checkpoints/step-*")):
        found[f"weights {path.relative_to(folder)}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted([*folder.glob("*.csv"), *folder.glob("*/predictions-*.csv")]):
        frame = pd.read_csv(path, dtype=str, keep_default_na=False).drop(columns="seconds")
        if "file" in frame:
            frame["file"] = [Path(name).name for name in frame["file"]]
        found[f"predictions {path.relative_to(folder)}"] = frame.to_csv(index=False)
    for path in sorted(folder.glob("*/metrics-*.json")):
        kept = {k: v for k, v in json.loads(path.read_text()).items() if k != "calibration_sha256"}
        found[f"metrics {path.relative_to(folder)}"] = json.dumps(
            _without_times(kept), indent=1, sort_keys=True
        )
    return found


def compare(first: dict[str, str], second: dict[str, str]) -> int:
    """How many differ; says which."""
    different = 0
    for name in sorted({*first, *second}):
        same = first.get(name) == second.get(name)
        different += not same
        sys.stdout.write(f"{'same     ' if same else 'DIFFERENT'} {name}\n")
    return different


def main(other: Path) -> int:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        data = make_data(folder)
        folders = {name: folder / name for name in ("here", "other", "crossed")}
        for one in folders.values():
            one.mkdir()
        whole_way(HERE, data, folders["here"])
        whole_way(other, data, folders["other"])
        different = compare(found_in(folders["here"]), found_in(folders["other"]))
        for name in data:  # a run of the other checkout, opened here
            run = folders["crossed"] / name
            shutil.copytree(folders["other"] / name, run)
            files = pictures(folders["crossed"], name)
            scorebayes(HERE, "predict", str(run), *files, "--force", "--out", f"{run}.csv")
            scorebayes(HERE, "evaluate", str(run), "--split", "test")
        sys.stdout.write("runs of the other checkout, opened here\n")
        different += compare(found_in(folders["crossed"]), found_in(folders["other"]))
    return int(different > 0)


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]).resolve()))
