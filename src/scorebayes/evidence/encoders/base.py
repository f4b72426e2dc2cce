"""The interface for encoders, and what those made of torch have in common."""

from __future__ import annotations

import abc
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scorebayes.errors import ConfigError
from scorebayes.training.random import lent_random_numbers

NOT_STATED = "not stated"
UNNAMED_DATA = "data that its publisher does not name here"
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and standard deviation


class Encoder(Protocol):
    """Images to maps of features. name: as in the configuration. kind: its name in ``ENCODERS``."""

    name: str
    kind: str

    @property
    def licence(self) -> str:
        """Of the weights."""
        ...

    @property
    def pretrained_on(self) -> str:
        """The data, in words."""
        ...

    @property
    def side(self) -> int:
        """In pixels, of the images that the network sees."""
        ...

    @property
    def sha256(self) -> str:
        """Of the weights."""
        ...

    @property
    def fingerprint(self) -> str:
        """A digest of the weights and of all else that the features depend on; not of where the files lie."""
        ...

    @property
    def cells(self) -> int:
        """Along a side of the map."""
        ...

    @property
    def channels(self) -> int:
        """Features of a cell."""
        ...

    @property
    def deepest(self) -> int:
        """How many of them are of the last stage that the map shows; they come last."""
        ...

    @property
    def pooled_features(self) -> int:
        """Length of what ``pooled`` gives."""
        ...

    def __call__(self, pixels: Tensor) -> Tensor:
        """Pixels [N, 1 or 3, H, W] float32 in [0, 1], on the CPU -> features [N, C, h, w] float32, on the CPU. The gradient
        passes through, or ConfigError says that this kind has none."""
        ...

    def pooled(self, pixels: Tensor) -> Tensor:
        """The same -> one vector of features for the image [N, F] float32, on the CPU."""
        ...

    def network(self) -> EncoderNet:
        """A copy of the network that can be trained further, on the CPU. ConfigError where this kind cannot be."""
        ...


class EncoderNet(nn.Module, abc.ABC):
    """The network of an encoder; pixels [N, C, H, W] in [0, 1] go in, as an encoder gets them.

    last: an identity through which the last map of features [N, F, h, w] passes on the way to ``pooled``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Identity()
        self.latest: deque[tuple[Tensor, Tensor]] = deque(maxlen=2)

    def recalled_map(self, pixels: Tensor) -> Tensor:
        """``map`` without gradient; what was asked last is known still, since several sources of evidence look at an image
        and its mirror image in turn."""
        for asked, found in tuple(self.latest):
            if asked.shape == pixels.shape and torch.equal(asked, pixels):
                return found
        with torch.no_grad():
            found = self.map(pixels)
        self.latest.append((pixels, found))
        return found

    @abc.abstractmethod
    def map(self, pixels: Tensor) -> Tensor:
        """[N, C, h, w]."""

    @abc.abstractmethod
    def pooled(self, pixels: Tensor) -> Tensor:
        """[N, F]."""


class TorchEncoder(abc.ABC):
    """What the encoders made of torch have in common: a frozen network, loaded when it is first asked, and once for all
    that ask it."""

    kind: str
    _loaded: ClassVar[WeakValueDictionary[tuple[object, ...], EncoderNet]] = WeakValueDictionary()

    def __init__(self, name: str, side: int, device: torch.device) -> None:
        self.name, self.side, self.device = name, side, device

    @abc.abstractmethod
    def network(self) -> EncoderNet:
        """A copy of the network that can be trained further, on the CPU."""

    @property
    @abc.abstractmethod
    def fingerprint(self) -> str: ...

    @cached_property
    def frozen(self) -> EncoderNet:
        key = self.kind, self.fingerprint, self.side, self.device
        net = self._loaded.get(key)
        if net is None:
            with lent_random_numbers():  # networks draw weights before they load theirs
                net = self.network().eval().requires_grad_(False).to(self.device)
            self._loaded[key] = net
        return net

    def __call__(self, pixels: Tensor) -> Tensor:
        with_gradient = torch.is_grad_enabled() and pixels.requires_grad
        encode = self.frozen.map if with_gradient else self.frozen.recalled_map
        return encode(pixels.to(self.device)).cpu()

    def pooled(self, pixels: Tensor) -> Tensor:
        return self.frozen.pooled(pixels.to(self.device)).cpu()

    @cached_property
    def channels(self) -> int:
        return self._probed(self).shape[1]

    @property
    def deepest(self) -> int:
        return self.channels

    @cached_property
    def cells(self) -> int:
        return self._probed(self).shape[-1]

    @cached_property
    def pooled_features(self) -> int:
        return self._probed(self.pooled).shape[-1]

    def _probed(self, ask: Callable[[Tensor], Tensor]) -> Tensor:
        """What comes of one black image."""
        with torch.no_grad():
            return ask(torch.zeros(1, 3, self.side, self.side))


@dataclass(frozen=True)
class Rule:
    """How pixels in [0, 1] become the input of a network: side x side of them, (scale * pixel - mean) / std in every
    channel.

    backwards: blue comes first.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 1.0
    backwards: bool = False

    def __call__(self, pixels: Tensor, side: int) -> Tensor:
        """[N, 1 or 3, H, W] -> [N, channels, side, side]; grey is repeated in all channels."""
        x, channels = resized(pixels, side), len(self.mean)
        if x.shape[1] > channels:
            raise ConfigError(
                f"the encoder takes grey images, but these have {x.shape[1]} channels.",
                "Set [prepare] channels = 1, or choose an encoder of colour images.",
            )
        x = x.expand(-1, channels, -1, -1)
        x = x.flip(1) if self.backwards else x
        mean, std = (x.new_tensor(of)[:, None, None] for of in (self.mean, self.std))
        return (x * self.scale - mean) / std


def resized(pixels: Tensor, side: int) -> Tensor:
    """To side x side: averaged down, or interpolated up."""
    if pixels.shape[-1] == side:
        return pixels
    return F.interpolate(pixels, size=(side, side), mode="bilinear", align_corners=False, antialias=True)


def as_map(name: str, found: Tensor, special: int | None = None) -> Tensor:
    """Maps [N, C, h, w] as they are, or tokens [N, T, C] as maps: the last square number of them are the patches, row by
    row; class and register tokens come first and are left out. special: how many these are; None: as few as leave a square.

    ConfigError for anything else.
    """
    if found.ndim == 4 and found.shape[2] == found.shape[3]:
        return found
    if found.ndim == 3:
        n = found.shape[1] if special is None else found.shape[1] - special
        cells = math.isqrt(max(n, 0))
        if cells and (special is None or cells**2 == n):
            return found[:, -(cells**2) :].transpose(1, 2).unflatten(2, (cells, cells))
    raise ConfigError(
        f"encoder {name!r}: its output has the shape {list(found.shape)}.",
        "Expected a square map [N, C, h, h], or the tokens [N, T, C] of a square of patches.",
    )


def of_both_views(encode: Callable[[Tensor], Tensor], x: Tensor, scaling: tuple[float, float]) -> Tensor:
    """What an encoder says of standardised images [N, C, S, S] and of their mirror images: [N, 2, ...]. The gradient passes
    through. scaling: mean and standard deviation of the training pixels."""
    pixels = in_pixels(x, scaling)
    return torch.stack([encode(pixels), encode(pixels.flip(-1))], dim=1)


def in_pixels(x: Tensor, scaling: tuple[float, float]) -> Tensor:
    """Standardised images -> pixels in [0, 1]."""
    mean, std = scaling
    return (x.float() * std + mean).clamp(0, 1)
