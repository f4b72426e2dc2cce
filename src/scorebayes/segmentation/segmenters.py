"""Plain segmenters for comparison: MONAI's networks on the same images, augmentation, steps and loop.

They have no samples: their mask comes from one probability for each pixel, calibrated and cut like ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scorebayes.errors import ConfigError
from scorebayes.segmentation.decision import MaskDecision, fit_decision
from scorebayes.segmentation.drawn import Drawn
from scorebayes.segmentation.figures import summary
from scorebayes.segmentation.fit import Guess, MaskTraining
from scorebayes.segmentation.posterior import Clock, guess_only, together
from scorebayes.segmentation.run import MaskRun
from scorebayes.segmentation.stages import insides
from scorebayes.storage import sealed
from scorebayes.training.cost import step_cost
from scorebayes.training.loop import fit


def _unet(channels: int) -> nn.Module:
    from monai.networks.nets import UNet

    return UNet(2, channels, 1, (32, 64, 128, 256), (2, 2, 2), num_res_units=2)


def _dynunet(channels: int) -> nn.Module:
    from monai.networks.nets import DynUNet

    net = DynUNet(2, channels, 1, [3, 3, 3, 3], [1, 2, 2, 2], [2, 2, 2], filters=[16, 32, 64, 128])
    # It holds every layer under two names, and checkpoints hold every weight once.
    net.register_state_dict_post_hook(_without_second_names)
    net.register_load_state_dict_post_hook(_second_names_are_not_missing)
    return net


_SECOND = "skip_layers."


def _without_second_names(_net: nn.Module, state: dict[str, Any], _prefix: str, _meta: Any) -> None:
    for name in [name for name in state if _SECOND in name]:
        del state[name]


def _second_names_are_not_missing(_net: nn.Module, keys: Any) -> None:
    keys.missing_keys[:] = [name for name in keys.missing_keys if _SECOND not in name]


def _segresnet(channels: int) -> nn.Module:
    from monai.networks.nets import SegResNet

    return SegResNet(2, init_filters=16, in_channels=channels, out_channels=1)


SEGMENTERS: dict[str, Callable[[int], nn.Module]] = {
    "unet": _unet,
    "dynunet": _dynunet,
    "segresnet": _segresnet,
}
"""Image channels -> an untrained network, image to logits. "dynunet" is the architecture of nnU-Net."""


def fit_segmenter(run: MaskRun, name: str, steps: int | None = None) -> Path:
    """Train one on the images of a run, with as many steps, and calibrate it on the same validation images. It resumes.
    Returns its folder. ConfigError for an unknown name."""
    folder = _folder(run, name)
    settings = replace(run.config.train, steps=steps or run.config.train.steps)
    train, val = run.examples("train"), run.examples("val")
    training = MaskTraining(folder, settings, run.config.seed, run.device, lambda: _new(run, name))
    sealed.make_folder(folder)
    fit(training, Guess(settings, run.config.segment, run.standardise, train, val, run.config.seed))
    decision = fit_decision(segment_split(run, name, "val"), val.masks, insides(val.frames), run.config.seed)
    run.write_json(f"segmenters/{name}/calibration.json", decision.to_dict())
    return folder


def segment_split(run: MaskRun, name: str, split: str) -> Drawn:
    """What a trained segmenter says of a split, with its mirror images: ``segmenters/<name>/masks-<split>.npz``."""
    path = _folder(run, name) / f"masks-{split}.npz"
    if path.exists():
        return Drawn.load(path)
    network = _new(run, name)
    checkpoints = MaskTraining(path.parent, run.config.train, 0, run.device, nn.Identity).checkpoints
    network.load_state_dict(checkpoints.load(checkpoints.best()))
    network.eval()
    found, clock = run.examples(split), Clock()
    each, seconds = [], []
    for seen in run.seen(found):
        each.append(guess_only(network, seen.x.to(run.device)))
        seconds.append(clock())
    drawn = together(found.keys, each, seconds)
    drawn.save(path)
    return drawn


def judge_segmenter(run: MaskRun, name: str, split: str) -> dict[str, Any]:
    """Its metrics on a split, as ``figures.summary`` has them."""
    drawn, found = segment_split(run, name, split), run.examples(split)
    return {
        **summary(drawn, decision_of(run, name), found.masks, insides(found.frames), run.config.seed),
        "evaluations": 1,
        "samples": 0,
        "step_multiply_adds": segmenter_cost(run, name),
    }


def decision_of(run: MaskRun, name: str) -> MaskDecision:
    """What validation images fixed for a trained segmenter."""
    return MaskDecision.from_dict(sealed.read_json(_folder(run, name) / "calibration.json"))


def segmenter_cost(run: MaskRun, name: str) -> int:
    """Multiply-adds of a training step."""
    prepare = run.config.prepare
    shape = (prepare.channels, prepare.size, prepare.size)
    return step_cost(SEGMENTERS[name](prepare.channels), shape, run.config.train.batch)


def our_cost(run: MaskRun) -> int:
    """Multiply-adds of a training step of our model: reader and scorer."""
    prepare, net = run.config.prepare, run.config.net()
    shape = (prepare.channels, prepare.size, prepare.size)

    def forward(x: torch.Tensor) -> object:
        return net(x[:, :1], torch.zeros(len(x)), net.read(x))

    return step_cost(forward, shape, run.config.train.batch)


def _new(run: MaskRun, name: str) -> nn.Module:
    return SEGMENTERS[name](run.config.prepare.channels).to(run.device)


def _folder(run: MaskRun, name: str) -> Path:
    if name not in SEGMENTERS:
        raise ConfigError(f"the segmenter {name!r} is unknown.", f"Known: {', '.join(SEGMENTERS)}.")
    return run.path / "segmenters" / name
