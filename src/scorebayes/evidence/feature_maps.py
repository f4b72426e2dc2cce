"""From images to an encoder's maps of image and mirror image, and from these to statistics or principal components."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from scorebayes.data.load import ImageSet
from scorebayes.errors import ConfigError, command
from scorebayes.evidence.base import Home
from scorebayes.evidence.encoders import Encoder, of_both_views
from scorebayes.evidence.learned_score import OfImages
from scorebayes.progress import progress_bar
from scorebayes.storage import sealed
from scorebayes.storage.atomic import write_atomically
from scorebayes.storage.digest import sha256_of, with_digest, without_digest

IMAGES_AT_A_TIME = 16  # that the encoder sees in one call
LEAST_VARIANCE = 1e-6  # of a component, as a share of the first
LEAST_SQUARE = 1e-12  # the derivative of a root at zero is infinite


class EncodedMaps:
    """The maps of an encoder. size: side of the images that the encoder sees."""

    def __init__(self, home: Home, encoder: Encoder, size: int) -> None:
        self.home, self.encoder, self.size = home, encoder, size

    def __call__(self, x: Tensor) -> Tensor:
        """Standardised images [N, C, S, S] -> maps of the image and of its mirror image [N, 2, F, h, w]. The gradient passes
        through."""
        return of_both_views(self.encoder, x, self.home.scaling[:2])

    def of_images(self, images: ImageSet, title: str) -> Iterator[Tensor]:
        """Of prepared images, batch by batch in half precision; kept in the run's cache by content."""
        store = _Store(self.home, self.encoder.kind, self.encoder.fingerprint, self.size)
        with progress_bar(title, len(images)) as advance:
            for first in range(0, len(images), IMAGES_AT_A_TIME):
                levels = images.images[first : first + IMAGES_AT_A_TIME]
                maps = store.read(levels)
                if maps is None:
                    with torch.no_grad():
                        maps = self(self.home.standardise(levels)).half()
                    store.write(levels, maps)
                yield maps
                advance(min(first + IMAGES_AT_A_TIME, len(images)), "")


def statistics(maps: Tensor) -> Tensor:
    """Maps [N, 2, F, h, w] -> mean and standard deviation of every feature over the cells, averaged over the image and its
    mirror image: [N, 2F] float64. The gradient passes through."""
    cells = maps.double().flatten(3)
    deviation = (cells.var(dim=3, unbiased=False) + LEAST_SQUARE).sqrt()
    return torch.cat([cells.mean(dim=3), deviation], dim=2).mean(dim=1)


class FeatureMaps:
    """The maps of an encoder's deepest stage, and their principal components.

    path: of the file with the components. components: how many are kept.
    """

    def __init__(self, encoded: EncodedMaps, path: Path, components: int) -> None:
        self.encoded, self.path, self.components = encoded, path, components

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of a whitened map: components, height, width."""
        cells = self.encoded.encoder.cells
        return len(self.basis["axes"]), cells, cells

    @property
    def sha256(self) -> str:
        """Of the components."""
        return sha256_of(self.path)

    def __call__(self, x: Tensor) -> Tensor:
        """Standardised images [N, C, S, S] -> whitened maps of image and mirror image [N, 2, K, h, w], with gradient."""
        return self.whitened(self.encoded(x))

    def whitened(self, maps: Tensor) -> Tensor:
        """[N, 2, F, h, w] -> principal components of unit variance [N, 2, K, h, w]."""
        centred = self._deepest(maps) - self.basis["mean"][:, None, None]
        return torch.einsum("kf,nmfhw->nmkhw", self.basis["axes"], centred)

    def _deepest(self, maps: Tensor) -> Tensor:
        return maps[:, :, -self.encoded.encoder.deepest :]

    @cached_property
    def basis(self) -> dict[str, Tensor]:
        """mean [F] and axes [K, F] of the features. ConfigError where they are lost."""
        if not self.path.exists():
            finish = command("train", "--resume", self.encoded.home.path)
            raise ConfigError(f"{self.path}: missing.", f"Finish the run with `{finish}`.")
        try:
            found = safetensors.torch.load(sealed.read(self.path))
            return {name: found[name] for name in ("mean", "axes", "kept_variance")}
        except (safetensors.SafetensorError, KeyError) as error:
            raise sealed.damaged(self.path, error) from error

    def learn(self, maps: Tensor) -> None:
        """Principal axes of the cells of the training maps, scaled to unit variance."""
        if self.path.exists():
            return
        cells = self._deepest(maps).float().permute(0, 1, 3, 4, 2).flatten(0, 3).double()
        mean = cells.mean(dim=0)
        covariance = (cells - mean).T @ (cells - mean) / len(cells)
        variances, axes = torch.linalg.eigh(covariance)
        variances, axes = variances.flip(0), axes.flip(1)
        kept = int((variances > LEAST_VARIANCE * variances[0]).sum().clamp(max=self.components))
        share = float(variances[:kept].sum() / variances.sum())
        scaled = (axes[:, :kept] / variances[:kept].sqrt()).T
        arrays = {"mean": mean.float(), "axes": scaled.float(), "kept_variance": torch.tensor(share)}
        sealed.write(
            self.path, safetensors.torch.save({name: of.contiguous() for name, of in arrays.items()})
        )


@dataclass(frozen=True)
class MapExamples(OfImages):
    """Whitened maps as a score is fitted to them: those of the image or of its mirror image, moved by up to ``shift`` cells.

    raw: maps of the encoder [N, 2, F, h, w].
    """

    maps: FeatureMaps
    raw: Tensor
    shift: int

    def batch(self, rows: NDArray[np.int64], generator: torch.Generator) -> Tensor:
        which = torch.randint(2, (len(rows),), generator=generator)
        most = self.shift
        moved = torch.randint(-most, most + 1, (len(rows), 2), generator=generator).tolist()
        chosen = self.raw[torch.from_numpy(rows), which].float()[:, None]
        x = self.maps.whitened(chosen)[:, 0]
        return torch.stack([_moved(one, *by) for one, by in zip(x, moved, strict=True)])

    def middle(self, rows: NDArray[np.int64]) -> Tensor:
        return self.maps.whitened(self.raw[torch.from_numpy(rows), :1].float())[:, 0]


def _moved(x: Tensor, down: int, right: int) -> Tensor:
    """[K, h, w], moved by cells; the edge is repeated."""
    rows = (torch.arange(x.shape[1]) - down).clamp(0, x.shape[1] - 1)
    columns = (torch.arange(x.shape[2]) - right).clamp(0, x.shape[2] - 1)
    return x[:, rows][:, :, columns]


class _Store:
    """Maps of the encoder in the run's cache, a file for each batch of images, named by their content and the encoder."""

    def __init__(self, home: Home, *made_by: object) -> None:
        self.folder = home.path / "cache" / "features"
        self.made_by = repr([*made_by, home.scaling])

    def _path(self, levels: NDArray) -> Path:
        digest = hashlib.blake2b(
            self.made_by.encode() + np.ascontiguousarray(levels).tobytes(), digest_size=16
        )
        return self.folder / f"{digest.hexdigest()}.maps"

    def read(self, levels: NDArray) -> Tensor | None:
        path = self._path(levels)
        if not path.exists():
            return None
        content = without_digest(path.read_bytes())
        return None if content is None else safetensors.torch.load(content)["maps"]  # damaged: encoded again

    def write(self, levels: NDArray, maps: Tensor) -> None:
        sealed.make_folder(self.folder)
        write_atomically(self._path(levels), with_digest(safetensors.torch.save({"maps": maps.contiguous()})))
