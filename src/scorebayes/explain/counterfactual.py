"""Counterfactuals: the same image as it would be in another class.

The probability-flow ODE of the image's own class carries it to a noise level, the ODE of the other class carries it back.
The noised image keeps what both classes share; what depends on the class at the levels passed is generated again. Both ways
are deterministic, so even going all the way up keeps the image. A lower log-SNR changes more of it, including more that does
not matter. The flow of the class alone changes little, often too little for the classifier, so the way back is guided
(classifier-free guidance, Ho & Salimans 2022, arXiv 2207.12598), as in Sanchez & Tsaftaris 2022 (arXiv 2202.10166).

The image is a picture of what the model believes, not of what the disease does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scorebayes.decision.posterior import bayes
from scorebayes.diffusion.likelihood.flow import velocity
from scorebayes.diffusion.sample import guide
from scorebayes.diffusion.score import Score
from scorebayes.diffusion.solve import SOLVERS, State, integrate
from scorebayes.errors import ConfigError, NumericalError
from scorebayes.runs.run import Run

START = -1.0  # log-SNR of the turning point
STEPS = 12  # of the solver, one way; six network evaluations each, twelve where guided
GUIDANCE = 3.0  # flipped the decision on all of 12 validation images of the phantom; 1.0 on 8 of them


@dataclass(frozen=True)
class Counterfactual:
    """One image as another class.

    image: [C, S, S] pixels in [0, 1]. difference: [C, S, S], of the standardised images before they are cut to that range,
    in grey values of [0, 1]. round_trip: root-mean-square difference per pixel after going back under the image's own
    class, which would be 0 without errors of the solver. prob: [Y], posterior of the counterfactual.
    """

    source: int
    target: int
    image: NDArray[np.float32]
    difference: NDArray[np.float32]
    round_trip: float
    prob: NDArray[np.float64]
    log_snr: float
    steps: int
    guidance: float


def counterfactual(
    run: Run,
    x: Tensor,
    key: str,
    source: int,
    target: int,
    *,
    log_snr: float = START,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    log_prior: NDArray | None = None,
) -> Counterfactual:
    """The prepared image x [1, C, S, S] of class ``source`` as ``target``; ``key`` names the draws of its posterior.

    log_snr: of the turning point; lower changes the image more. steps: of the solver, one way. guidance: weight of the
    classifier-free guidance on the way back. log_prior: [Y], by default the run's.

    Raises ConfigError for a log-SNR outside the range of the forward process, or guidance by a score that was not trained
    for it; NumericalError where the solver failed.
    """
    score = run.score.in_float32()
    way = _way(score, log_snr, steps)
    scale = float((1 + (2 * way[0]).exp()).sqrt())
    noised = _carry(score, x.cpu().double() / scale, source, way)
    same = _carry(score, noised, source, way.flip(0)) * scale
    changed = _carry(guide(score, guidance), noised, target, way.flip(0)) * scale
    there_and_back = torch.cat([same, changed])
    if not torch.isfinite(there_and_back).all():
        raise NumericalError(
            f"the counterfactual of {key} is not finite.", "Take more steps or a higher log-SNR."
        )
    change = (there_and_back - x.cpu().double()).numpy() * run.facts.std
    other = there_and_back[1:].float()
    posterior = bayes(
        run.evidence(other, [key]), run.log_prior if log_prior is None else log_prior, run.calibration
    )
    return Counterfactual(
        source=source,
        target=target,
        image=run.restore(other)[0],
        difference=change[1].astype(np.float32),
        round_trip=float(np.sqrt(np.square(change[0]).mean())),
        prob=posterior.prob[0],
        log_snr=log_snr,
        steps=steps,
        guidance=guidance,
    )


def _way(score: Score, log_snr: float, steps: int) -> Tensor:
    """The grid in rho = -log_snr / 2, from the highest log-SNR of the process, which stands for the image."""
    low, high = score.noise.log_snr_range
    if not low <= log_snr < high:
        raise ConfigError(
            f"log-SNR {log_snr:g} is outside the forward process ({low:.1f} to {high:.1f}).",
            "Choose a value in this range; a lower one changes the image more.",
        )
    return torch.linspace(-high / 2, -log_snr / 2, steps + 1, dtype=torch.float64)


def _carry(score: Score, u: Tensor, y: int, way: Tensor) -> Tensor:
    """u [1, C, S, S], in the coordinates of ``scorebayes.diffusion.likelihood.flow``, along the flow of class y."""

    def dynamics(rho: Tensor, state: State, rows: Tensor) -> State:
        return (velocity(score, rho, state[0], torch.tensor([y])),)

    with torch.no_grad():
        return integrate(dynamics, (u,), way, SOLVERS["dopri5"])[0]
