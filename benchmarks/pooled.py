"""What do an encoder's features say without a network of our own? On folds of the training images alone.

    python benchmarks/pooled.py --data-root ../shared/data

BreastMNIST at 224 pixels, the official training images: three folds (near-copies on one side), each classified by what was
learned from the other two; then again with 10, 25 or 50 labels per class of the other two, whose further images enter the
covariance without labels. Compared: Gaussian mixtures of the statistics of Lite0's map (mean and deviation over the cells;
the source ``pooled``), or of the vector that its authors pool; the mixtures of the wavelet coefficients; several together;
and logistic regression on the same statistics or vector, whose strength is chosen within the training part. Each is
calibrated on the held-out images, cross-fitted. No validation or test image is read.
Writes ``benchmarks/results/pooled.json``; docs/decisions/0023 and 0026 say what follows.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import pdist, squareform
from sklearn.linear_model import LogisticRegressionCV
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from scorebayes.decision.calibration import fit_calibration
from scorebayes.decision.table import Block, EvidenceTable
from scorebayes.evidence.encoders import open_encoder
from scorebayes.evidence.feature_maps import statistics
from scorebayes.evidence.mixtures import parts_by_patient
from scorebayes.evidence.pooled import fit_pooled
from scorebayes.evidence.scattering import scattering
from scorebayes.evidence.wavelets import fit_wavelets
from scorebayes.runs.device import environment
from scorebayes.storage.atomic import write_atomically

RESULT = Path(__file__).parent / "results" / "pooled.json"
TWINS = 2.5  # root-mean-square difference in grey levels at 28 pixels, below which pictures are copies of each other
FOLDS = 3
DRAWS = {
    None: 1,
    10: 3,
    25: 2,
    50: 2,
}  # labels per class (None: all), and how often folds and labels are drawn
STRENGTHS = np.geomspace(1e-5, 1, 11)
Learn = Callable[[NDArray[np.int64], NDArray[np.int64]], Callable[[NDArray[np.int64]], NDArray]]
"""Rows to learn from and their labels (-1: unknown) -> rows -> log-likelihoods or logits [N, Y]."""


class Images:
    """The training images, as each model sees them."""

    def __init__(self, path: Path, kept: Path) -> None:
        arrays = np.load(path)
        levels = torch.from_numpy(arrays["train_images"]).float()[:, None]
        self.labels = arrays["train_labels"][:, 0].astype(np.int64)
        small = torch.nn.functional.interpolate(levels, size=28, mode="area").flatten(1).numpy()
        near = squareform(pdist(small)) / np.sqrt(small.shape[1]) < TWINS
        self.groups = np.array([f"g{of}" for of in connected_components(near)[1]])
        if not kept.exists():
            np.savez(kept, **self._encoded((levels + 0.5) / 256))
        seen = np.load(kept)
        self.statistics, self.vector = seen["statistics"], seen["vector"]
        self.wavelets = torch.from_numpy(seen["wavelets"])

    @staticmethod
    def _encoded(pixels: torch.Tensor) -> dict[str, NDArray]:
        encoder, standard = (
            open_encoder("lite0", 224, torch.device("cpu")),
            (pixels - pixels.mean()) / pixels.std(),
        )
        with torch.no_grad():
            vectors, of_maps = (
                [torch.stack([ask(some), ask(some.flip(-1))], dim=1) for some in pixels.split(16)]
                for ask in (encoder.pooled, encoder)
            )
            return {
                "vector": torch.cat(vectors).double().mean(dim=1).numpy(),
                "statistics": torch.cat([statistics(maps) for maps in of_maps]).numpy(),
                "wavelets": torch.cat([scattering(some) for some in standard.split(16)]).numpy(),
            }


def feature_mixtures(images: Images, features: NDArray) -> Learn:
    def learn(rows: NDArray[np.int64], labels: NDArray[np.int64]) -> Callable[[NDArray], NDArray]:
        found = fit_pooled(torch.from_numpy(features[rows]), labels, list(images.groups[rows]), 0)
        return lambda asked: found(torch.from_numpy(features[asked])).numpy()

    return learn


def wavelet_mixtures(images: Images) -> Learn:
    def learn(rows: NDArray, labels: NDArray) -> Callable[[NDArray], NDArray]:
        found = fit_wavelets(images.wavelets[rows], labels, list(images.groups[rows]), mirrored=True, seed=0)
        return lambda asked: found(images.wavelets[asked]).numpy()

    return learn


def regression(images: Images, features: NDArray) -> Learn:
    """Logistic; its logits less the class shares that they contain."""

    def learn(rows: NDArray, labels: NDArray) -> Callable[[NDArray], NDArray]:
        rows, y = rows[labels >= 0], labels[labels >= 0]
        inner = LogisticRegressionCV(
            Cs=STRENGTHS, cv=parts_by_patient(y, images.groups[rows], 0), scoring="neg_log_loss", max_iter=2000,
            l1_ratios=(0.0,), use_legacy_attributes=False,
        )  # fmt: skip
        model = make_pipeline(StandardScaler(), inner).fit(features[rows], y)
        shares = np.log(np.bincount(y) / len(y))

        def ask(asked: NDArray) -> NDArray:
            odds = model.decision_function(features[asked])
            return np.stack([np.zeros_like(odds), odds], axis=1) - shares

        return ask

    return learn


def some_labels(labels: NDArray, per_class: int | None, draw: int) -> NDArray[np.int64]:
    """So many of every class; the others unknown."""
    if per_class is None:
        return labels
    rng, found = np.random.default_rng([per_class, draw]), np.full(len(labels), -1)
    for y in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == y))[:per_class]
        found[rows] = y
    return found


def held_out(images: Images, learn: Learn, per_class: int | None, draw: int) -> NDArray:
    """Values of every image by what was learned without its fold [N, Y]; the mean of a fold's values is taken out."""
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=draw)
    found = np.zeros((len(images.labels), 2))
    for rows, asked in folds.split(images.labels, images.labels, images.groups):
        values = learn(rows, some_labels(images.labels[rows], per_class, draw))(asked)
        found[asked] = values - values.mean(axis=1, keepdims=True)
    return found


def judged(images: Images, values: dict[str, NDArray]) -> dict[str, float]:
    """Cross-fitted log-loss after calibration, and the AUC of the sum of the parts at the calibrated weights."""
    n = len(images.labels)
    keys = tuple(f"i{row}" for row in range(n))
    blocks = {name: Block.exactly(of) for name, of in values.items()}
    table = EvidenceTable(keys, images.labels, blocks, np.zeros(n), tuple(images.groups))
    fitted = fit_calibration(table, table.log_shares)
    logits = fitted.logits(table)
    return {
        "log_loss": float(fitted.log_loss),
        "auc": float(roc_auc_score(images.labels, logits[:, 1] - logits[:, 0])),
    }


def measure(images: Images) -> dict[str, Any]:
    models = {
        "pooled": feature_mixtures(images, images.statistics),
        "pooled vector": feature_mixtures(images, images.vector),
        "wavelets": wavelet_mixtures(images),
        "logistic": regression(images, images.statistics),
        "logistic on the vector": regression(images, images.vector),
    }
    together = {f"wavelets + {name}": ("wavelets", name) for name in models if name != "wavelets"}
    rows = []
    for per_class, draws in DRAWS.items():
        for draw in range(draws):
            values, seconds = {}, {}
            for name, learn in models.items():
                start = time.perf_counter()
                values[name] = held_out(images, learn, per_class, draw)
                seconds[name] = time.perf_counter() - start
            found = {name: judged(images, {name: of}) for name, of in values.items()}
            found |= {
                name: judged(images, {of: values[of] for of in pair}) for name, pair in together.items()
            }
            rows.append({"per_class": per_class, "draw": draw, "seconds": seconds, "models": found})
    return {"rows": rows, "summary": _summary(rows)}


def _summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean over the draws, by labels per class and model."""
    return {
        str(per_class or "all"): {
            name: {
                key: float(
                    np.mean([row["models"][name][key] for row in rows if row["per_class"] == per_class])
                )
                for key in ("log_loss", "auc")
            }
            for name in rows[0]["models"]
        }
        for per_class in DRAWS
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-root", type=Path, default=Path("../shared/data"))
    parser.add_argument(
        "--cache", type=Path, default=Path("runs/benchmarks/pooled.npz"), help="Encoded images."
    )
    args = parser.parse_args()
    args.cache.parent.mkdir(parents=True, exist_ok=True)
    images = Images(args.data_root / "busi" / "breastmnist_224.npz", args.cache)
    content = measure(images)
    about = {
        "command": "python benchmarks/pooled.py",
        "encoder": "lite0",
        "environment": environment(torch.device("cpu")),
    }
    write_atomically(
        RESULT, json.dumps({**about, **content, "written": time.strftime("%Y-%m-%d")}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
