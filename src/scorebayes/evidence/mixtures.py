"""Class-conditional Gaussian mixtures of features: a score model without a network.

The features of an image are noised as by a forward process; given the class they are a mixture of Gaussians
with one covariance for all. Then the score is known and no network has to be trained. The covariance is learned without
labels, from all training images; the noise replaces what few images cannot show about it. The components are the means of
clusters of the class's images; clusterings from several starts form one mixture. The amount of noise, the width of the
components and the temperature are chosen by cross-validation within the training images, split by patient, for each of
several numbers of clusters (docs/decisions/0017, 0018).
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor

from scorebayes.data.load import ImageSet
from scorebayes.evidence.base import TrainingImages
from scorebayes.evidence.clusterings import clusterings

NOISES = (0.03, 0.1, 0.3, 0.5, 0.7, 0.85, 0.95)  # shares of the noised features' variance
CLUSTERS = (1, 4, 16)  # of a class
LEAST_IMAGES = 4  # of a cluster, in the mean
CLUSTERINGS = 16
MOST_COMPONENTS = 512  # of all classes and clusterings of a mixture
CLUSTER_NOISE, CLUSTER_AXES = 0.3, 512  # what distances are measured with, at most so many axes
SHARPNESS = np.geomspace(0.003, 3.0, 7)  # of the components, 1: as the covariance says
TEMPERATURES = np.geomspace(0.001, 3.0, 30)
FOLDS = 5
MOST_IMAGES = 4000
"""Largest number of training images, balanced over the classes as far as possible: more cost much and change little."""


class Mixtures(NamedTuple):
    """Of one number of clusters. log p(features | y) is, but for what does not depend on the class,
    ``temperature * logsumexp over the components m of y of (slopes[m] @ (features - centre) + offsets[m])``.

    centre: [F] float64. slopes: [M, F] float32. offsets: [M] float64. classes: [M] int64, sorted. temperature: [] float64.
    """

    centre: Tensor
    slopes: Tensor
    offsets: Tensor
    classes: Tensor
    temperature: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """[N, F] float64 -> [N, Y] float64."""
        away = (features - self.centre).to(self.slopes.dtype)
        found = (away @ self.slopes.T).double() + self.offsets
        per_class = found.split(torch.bincount(self.classes).tolist(), dim=1)
        return self.temperature * torch.stack([of.logsumexp(dim=1) for of in per_class], dim=1)


def images_to_cluster(images: TrainingImages, n_classes: int, seed: int) -> ImageSet | None:
    """The training images and further ones without labels, at most so many as are worth their cost; None where a class has
    none, since it would have no mixture."""
    train = images.train
    if np.bincount(train.labels[train.labels >= 0], minlength=n_classes).min() == 0:
        return None
    if (more := images.more()) is not None:
        train = ImageSet(
            np.concatenate([train.images, more.images]), train.bits, train.records + more.records
        )
    return train.subset(some_of_all_classes(train.labels, MOST_IMAGES, seed))


def some_of_all_classes(labels: NDArray[np.int64], most: int, seed: int) -> NDArray[np.int64]:
    """Rows of at most ``most`` images: equally many of every class, as far as they go; unlabelled ones count as a class."""
    order = np.random.default_rng(seed).permutation(len(labels))
    place = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        rows = order[labels[order] == label]
        place[rows] = np.arange(len(rows))
    return np.sort(order[np.argsort(place[order], kind="stable")[:most]])


class _Basis(NamedTuple):
    """Principal axes of the features [F, R] about their mean [F], their variances [R], and the mean variance of all F."""

    mean: NDArray[np.float64]
    axes: NDArray[np.float64]
    variances: NDArray[np.float64]
    level: float


Parts = list[tuple[NDArray[np.int64], NDArray[np.int64]]]


def parts_by_patient(y: NDArray, patients: NDArray, seed: int) -> Parts:
    """Of labelled images, the rows to learn from and those held out, all images of a patient on one side; none where a class
    has one patient."""
    folds = min(FOLDS, *(len(np.unique(patients[y == label])) for label in range(y.max() + 1)))
    if folds < 2:
        return []
    return list(StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(y, y, patients))


class _Choice(NamedTuple):
    """What cross-validation decides."""

    noise: float
    sharpness: float
    temperature: float


def fit_mixtures(features: NDArray, labels: NDArray[np.int64], parts: Parts, seed: int) -> list[Mixtures]:
    """The mixtures of features [N, F] for each number of clusters, at the choice of the lowest held-out log-loss.

    labels [N], -1 where unknown: these images enter the covariance. parts: of ``parts_by_patient``, of the labelled ones.
    """
    basis = _basis(features)
    known = labels >= 0
    z, y = (features[known] - basis.mean) @ basis.axes, labels[known]
    found = []
    for clusters in CLUSTERS:
        choice = _choose(basis, z, y, parts, clusters, seed)
        components = _components(basis, z, y, clusters, seed)
        weighted = choice.sharpness * components.means * _precision(basis, choice.noise)
        offsets = components.log_weights - 0.5 * (weighted * components.means).sum(axis=1)
        found.append(
            Mixtures(
                centre=torch.tensor(basis.mean),
                slopes=torch.from_numpy(weighted @ basis.axes.T).float(),
                offsets=torch.from_numpy(offsets),
                classes=torch.from_numpy(components.classes),
                temperature=torch.tensor(choice.temperature, dtype=torch.float64),
            )
        )
    return found


def _basis(features: NDArray) -> _Basis:
    mean = features.mean(axis=0)
    centred = features - mean
    wide = features.shape[0] < features.shape[1]
    values, vectors = np.linalg.eigh(centred @ centred.T if wide else centred.T @ centred)
    keep = values > 1e-7 * max(values[-1], 1e-12)
    values, vectors = values[keep], vectors[:, keep]
    axes = centred.T @ vectors / np.sqrt(values) if wide else vectors
    return _Basis(mean, axes, values / len(features), float(values.sum() / centred.size))


def _precision(basis: _Basis, noise: float) -> NDArray:
    """Of the noised features along the axes [R]; the noise has the mean variance of the features."""
    return 1 / (noise * basis.level + (1 - noise) * basis.variances)


class _Components(NamedTuple):
    """means [M, R] along the axes, log_weights [M] within the class, classes [M], sorted."""

    means: NDArray[np.float64]
    log_weights: NDArray[np.float64]
    classes: NDArray[np.int64]


def _components(basis: _Basis, z: NDArray, y: NDArray, clusters: int, seed: int) -> _Components:
    """Means of the clusters of each class, of several clusterings that count alike. Small classes have fewer clusters."""
    scale = np.sqrt(_precision(basis, CLUSTER_NOISE))
    leading = np.argsort(basis.variances)[-CLUSTER_AXES:]
    means: list[NDArray] = []
    weights: list[float] = []
    classes: list[int] = []
    for label in range(y.max() + 1):
        of_class = z[y == label]
        wanted = max(1, min(clusters, len(of_class) // LEAST_IMAGES))
        rounds = max(1, min(CLUSTERINGS, MOST_COMPONENTS // (wanted * (y.max() + 1)))) if wanted > 1 else 1
        points = (of_class * scale)[:, leading].astype(np.float32)
        for cluster in clusterings(points, wanted, range(CLUSTERINGS * seed, CLUSTERINGS * seed + rounds)):
            counts = np.bincount(cluster)
            means += [of_class[cluster == one].mean(axis=0) for one in np.flatnonzero(counts)]
            weights += list(counts[counts > 0] / (rounds * len(of_class)))
        classes += [label] * (len(means) - len(classes))
    return _Components(np.stack(means), np.log(weights), np.array(classes))


def _choose(basis: _Basis, z: NDArray, y: NDArray, parts: Parts, clusters: int, seed: int) -> _Choice:
    """The lowest log-loss on held-out training images, all classes counted alike."""
    counts = np.bincount(y)
    if not parts:  # nothing can be held out
        return _Choice(NOISES[-1], 1.0, 1 / len(basis.mean))
    sharpnesses = SHARPNESS if clusters > 1 else (1.0,)
    held_out = {of: np.zeros((len(y), len(counts))) for of in product(NOISES, sharpnesses)}
    for learn, rows in parts:
        if len(np.unique(y[learn])) < len(counts):
            continue  # nothing can be said of these rows
        components = _components(basis, z[learn], y[learn], clusters, seed)
        of_class = np.searchsorted(components.classes, np.arange(len(counts)))
        for noise in NOISES:
            weighted = components.means * _precision(basis, noise)
            values = z[rows] @ weighted.T - 0.5 * (weighted * components.means).sum(axis=1)
            for sharpness in sharpnesses:
                logs = sharpness * values + components.log_weights
                held_out[noise, sharpness][rows] = np.logaddexp.reduceat(logs, of_class, axis=1)
    share = 1 / (len(counts) * counts[y])
    losses: dict[_Choice, float] = {}
    for of, values in held_out.items():
        log_prob = log_softmax(TEMPERATURES[:, None, None] * values, axis=2)[:, np.arange(len(y)), y]
        losses |= dict(
            zip((_Choice(*of, heat) for heat in TEMPERATURES), -(share * log_prob).sum(axis=1), strict=True)
        )
    return min(losses, key=losses.__getitem__)
