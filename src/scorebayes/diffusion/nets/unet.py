"""A class-conditional U-Net: residual blocks with group normalisation, the level and the label entering by FiLM.

Pictures are folded by space-to-depth before the first convolution (``patch``), which makes small images cheap on a CPU.
The label can be kept out of the encoder (``label_in = "decoder"``): all classes then share one pass through it.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from scorebayes.diffusion.nets.dropout import Dropout
from scorebayes.errors import ConfigError

MOST_RESOLUTIONS = 12  # each halves the image
Positive = Annotated[int, Field(gt=0)]


def _groups(channels: int) -> int:
    """The largest group count up to 8 that divides the channels."""
    return next(g for g in (8, 4, 2, 1) if channels % g == 0)


def _zero(module: nn.Conv2d | nn.Linear) -> nn.Module:
    """A layer that starts at zero, so that a residual branch starts as the identity."""
    nn.init.zeros_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module


class _Block(nn.Module):
    """Residual block: norm, SiLU, 3x3, FiLM from the embedding, SiLU, dropout, 3x3."""

    def __init__(self, c_in: int, c_out: int, embed: int, dropout: float) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(_groups(c_in), c_in)
        self.conv_in = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.film = nn.Linear(embed, 2 * c_out)
        self.norm_out = nn.GroupNorm(_groups(c_out), c_out)
        self.dropout = Dropout(dropout)
        self.conv_out = _zero(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.skip = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.film(embedding)[:, :, None, None].chunk(2, dim=1)
        out = self.conv_in(F.silu(self.norm_in(h)))
        out = F.silu(self.norm_out(out) * (1 + scale) + shift)
        return self.skip(h) + self.conv_out(self.dropout(out))


class _Attention(nn.Module):
    """Self-attention over positions, residual."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(_groups(channels), channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = _zero(nn.Conv2d(channels, channels, 1))

    def forward(self, h: Tensor) -> Tensor:
        size = h.shape[2:]
        q, k, v = (
            self.qkv(self.norm(h)).flatten(2).unflatten(1, (3, self.heads, -1)).transpose(-1, -2).unbind(1)
        )
        # Written out: the fused kernel guards against masked rows, which costs a fifth of it on small maps, and its
        # derivative stays in float32.
        mixed = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1).to(v) @ v
        return h + self.out(mixed.transpose(-1, -2).flatten(1, 2).unflatten(2, size))


class _Stage(nn.Module):
    """The blocks of one resolution, each followed by attention where it is asked for."""

    def __init__(self, widths: list[tuple[int, int]], embed: int, dropout: float, heads: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Block(a, b, embed, dropout) for a, b in widths)
        self.mixers = nn.ModuleList(_Attention(b, heads) if heads else nn.Identity() for _, b in widths)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        for block, mixer in zip(self.blocks, self.mixers, strict=True):
            h = mixer(block(h, embedding))
        return h


class UNet(nn.Module):
    """Maps a picture, a level and a label to a picture.

    Parameters
    ----------
    image_channels: 1 (grey) or 3 (RGB).
    n_classes: labels 0 .. n_classes - 1; ``n_classes`` itself is the null label.
    n_augment: length of the augmentation code (zero at inference).
    channels: width per resolution, finest first; each is half the one before in height and width.
    blocks: residual blocks per resolution, on the way down and on the way up.
    attention: how many of the coarsest resolutions have self-attention.
    heads: attention heads.
    patch: side of the space-to-depth folding; odd sizes are padded.
    dropout: inside the residual blocks.
    label_in: "all" blocks or the "decoder" only.
    out_channels: of the output; by default those of the picture.
    """

    def __init__(
        self,
        image_channels: int,
        n_classes: int,
        n_augment: int = 0,
        channels: tuple[Positive, ...] = (48, 96, 128),
        blocks: Positive = 2,
        attention: Annotated[int, Field(ge=0)] = 2,
        heads: Positive = 4,
        patch: Annotated[int, Field(ge=1, le=8)] = 2,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1,
        label_in: Literal["all", "decoder"] = "all",
        out_channels: int | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= len(channels) <= MOST_RESOLUTIONS:
            raise ConfigError(f"[net] channels: {len(channels)} widths, expected 1 to {MOST_RESOLUTIONS}.")
        for width in channels[max(0, len(channels) - attention) :]:
            if width % heads:
                raise ConfigError(
                    f"[net] heads = {heads}: {width} channels cannot be divided among them.",
                    "Choose a number that divides the channels of all resolutions with attention.",
                )
        embed = 4 * channels[0]
        folded = image_channels * patch**2
        self.n_classes = n_classes
        self.n_augment = n_augment
        self.patch = patch
        self.label_in = label_in
        self.frequencies: Tensor
        self.register_buffer(
            "frequencies", torch.exp(torch.linspace(0, math.log(100.0), channels[0])), persistent=False
        )
        self.embed_level = nn.Sequential(
            nn.Linear(2 * channels[0], embed), nn.SiLU(), nn.Linear(embed, embed)
        )
        self.embed_label = nn.Embedding(n_classes + 1, embed)
        self.embed_augment = nn.Linear(n_augment, embed, bias=False) if n_augment else None

        depth = len(channels)
        use_heads = [heads if i >= depth - attention else 0 for i in range(depth)]
        self.stem = nn.Conv2d(folded, channels[0], 3, padding=1)
        self.down, self.shrink, self.up = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for i, width in enumerate(channels):
            before = channels[max(i - 1, 0)]
            self.shrink.append(nn.Conv2d(before, before, 3, stride=2, padding=1) if i else nn.Identity())
            widths = [(before, width), *[(width, width)] * (blocks - 1)]
            self.down.append(_Stage(widths, embed, dropout, use_heads[i]))
        for i, width in reversed(list(enumerate(channels))):
            below = channels[i + 1] if i + 1 < depth else width
            widths = [(below + width, width), *[(width, width)] * (blocks - 1)]
            self.up.append(_Stage(widths, embed, dropout, use_heads[i]))
        self.middle = _Stage([(channels[-1], channels[-1])], embed, dropout, use_heads[-1])
        self.norm = nn.GroupNorm(_groups(channels[0]), channels[0])
        self.head = _zero(nn.Conv2d(channels[0], (out_channels or image_channels) * patch**2, 3, padding=1))

    def forward(self, x: Tensor, level: Tensor, y: Tensor, augment: Tensor | None = None) -> Tensor:
        """x [B, C, H, W], level [B] of order one, y [B] (``n_classes`` = null), augment [B, A] -> [B, C, H, W]."""
        embedding = self._embed(level, augment)
        labelled = embedding + self.embed_label(y)
        features = self._encode(x, labelled if self.label_in == "all" else embedding)
        return self._decode(features, labelled, x.shape[2:])

    def all_classes(self, x: Tensor, level: Tensor, augment: Tensor | None = None) -> Tensor:
        """x [B, C, H, W], level [B], augment [B, A] -> the output under every class, [B, Y, C, H, W]."""
        y = torch.arange(self.n_classes, device=x.device).repeat(len(x))

        def spread(rows: Tensor) -> Tensor:
            return rows.repeat_interleave(self.n_classes, dim=0)

        if self.label_in == "all":
            out = self(spread(x), spread(level), y, None if augment is None else spread(augment))
        else:
            embedding = self._embed(level, augment)
            features = [spread(h) for h in self._encode(x, embedding)]
            out = self._decode(features, spread(embedding) + self.embed_label(y), x.shape[2:])
        return out.unflatten(0, (len(x), self.n_classes))

    def _embed(self, level: Tensor, augment: Tensor | None) -> Tensor:
        angles = level.to(self.frequencies.dtype)[:, None] * self.frequencies
        embedding = self.embed_level(torch.cat([angles.sin(), angles.cos()], dim=1))
        if self.embed_augment is not None and augment is not None:
            embedding = embedding + self.embed_augment(augment)
        return embedding

    def _encode(self, x: Tensor, embedding: Tensor) -> list[Tensor]:
        """The features of every resolution, finest first."""
        height, width = x.shape[2:]
        x = F.pad(x, (0, -width % self.patch, 0, -height % self.patch))
        h = self.stem(F.pixel_unshuffle(x, self.patch))
        embedding = F.silu(embedding)
        features = []
        for shrink, stage in zip(self.shrink, self.down, strict=True):
            h = stage(shrink(h), embedding)
            features.append(h)
        return features

    def _decode(self, features: list[Tensor], embedding: Tensor, size: torch.Size) -> Tensor:
        embedding = F.silu(embedding)
        h = self.middle(features[-1], embedding)
        for skip, stage in zip(reversed(features), self.up, strict=True):
            if h.shape[2:] != skip.shape[2:]:
                h = F.interpolate(h, size=skip.shape[2:], mode="nearest")
            h = stage(torch.cat([h, skip], dim=1), embedding)
        out = F.pixel_shuffle(self.head(F.silu(self.norm(h))), self.patch)
        return out[:, :, : size[0], : size[1]]
