"""The network: a reader of the image, evaluated once, and a small scorer, evaluated at every noise level of every sample.

The reader is a U-Net with the loss of any discriminative segmenter. Its logits, its guess at the signed distance and some
features are the condition of the score, which so has to learn only what the guess leaves open.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from scorebayes.diffusion.nets.unet import Positive, UNet

LOGIT, GUESS = slice(0, 1), slice(1, 2)
"""Channels of a condition: log-odds of being inside, and the guess at the scaled distance."""


class MaskNet(nn.Module):
    """Maps a noised distance, a level and the condition of an image to a distance.

    Parameters
    ----------
    image_channels: 1 (grey) or 3 (RGB).
    channels, blocks, attention, patch, dropout: of the reader, as in ``UNet``.
    scorer_channels, scorer_patch: of the scorer.
    features: channels that the reader hands on beside logits and guess.
    """

    n_classes = 1  # "which image" is the label, and it comes as a condition

    def __init__(
        self,
        image_channels: int,
        channels: tuple[Positive, ...] = (32, 64, 128),
        blocks: Positive = 1,
        attention: Annotated[int, Field(ge=0)] = 0,
        patch: Annotated[int, Field(ge=1, le=8)] = 2,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1,
        scorer_channels: tuple[Positive, ...] = (32, 64),
        scorer_patch: Annotated[int, Field(ge=1, le=8)] = 4,
        features: Annotated[int, Field(ge=0)] = 8,
    ) -> None:
        super().__init__()
        self.reader = UNet(
            image_channels, 1, 0, channels, blocks, attention, 4, patch, dropout, out_channels=2 + features
        )
        self.scorer = UNet(
            3 + image_channels + features, 1, 0, scorer_channels, 1, 0, 4, scorer_patch, 0.0, out_channels=1
        )

    def read(self, image: Tensor) -> Tensor:
        """Standardised images [B, C, H, W] -> their conditions [B, 2 + C + F, H, W]: logits, guess, image, features.

        -tanh(logit / 2) is P(outside) - P(inside), the mean of a distance that is cut at -1 and 1 but for what lies between;
        the guess is a correction of it.
        """
        zero = torch.zeros(len(image), device=image.device)
        out = self.reader(image, zero, zero.long())
        guess = out[:, 1:2] - torch.tanh(out[:, LOGIT] / 2)
        return torch.cat([out[:, LOGIT], guess, image, out[:, 2:]], dim=1)

    def forward(self, z: Tensor, level: Tensor, condition: Tensor, augment: Tensor | None = None) -> Tensor:
        """z [B, 1, H, W], level [B] = log-SNR / 4, condition [B, 2 + C + F, H, W] -> [B, 1, H, W].

        With the preconditioning of ``Denoiser``, the added guess is the exact denoiser of a normal distribution of variance
        1 around the guess: at the highest noise level all that is said is the guess, and a correction of it.
        """
        seen = torch.cat([z, torch.tanh(condition[:, LOGIT] / 2), condition[:, 1:]], dim=1)
        zero = torch.zeros(len(z), device=z.device).long()
        share = torch.sigmoid(-4 * level).sqrt()[:, None, None, None]
        return self.scorer(seen, level, zero) + share * condition[:, GUESS]
