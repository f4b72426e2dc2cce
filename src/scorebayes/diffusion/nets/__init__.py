"""Backbones: networks from (picture, level, label) to a picture. They know nothing of noise.

A new backbone is one file here and one line in ``BACKBONES``. Its constructor takes ``image_channels``, ``n_classes`` and
``n_augment`` first; its other parameters are the fields of the configuration's ``[net]`` section. It offers
``forward(x, level, y, augment)`` and ``all_classes(x, level)`` as ``UNet`` does.
"""

from __future__ import annotations

from torch import nn

from scorebayes.diffusion.nets.unet import UNet

BACKBONES: dict[str, type[nn.Module]] = {"unet": UNet}
