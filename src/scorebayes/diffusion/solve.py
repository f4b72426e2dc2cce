"""Solvers of ordinary differential equations for a batch of independent rows.

Fixed grids (Heun, RK4, Dormand-Prince 5) for a known number of evaluations, and Dormand-Prince 5(4) with a
separate step size for every row. Rows never influence each other: step sizes, error norms and status are
per row, so that an image has the same likelihood alone and in any batch. The state is a tuple of float64
tensors [B, ...].

Sources: Hairer, Norsett & Wanner 1993, *Solving Ordinary Differential Equations I*, II.1, II.4 and II.5
(tableaux, step control); IV.2 of volume II (PI controller).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

State = tuple[Tensor, ...]
Dynamics = Callable[[Tensor, State, Tensor], State]
"""(time [B], state, rows [B] of the whole batch that these are) -> derivative of every part of the state."""


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method; ``error`` weighs its slopes to an error estimate, if it has one."""

    times: tuple[float, ...]
    stages: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]
    error: tuple[float, ...] = ()


HEUN = Tableau((0.0, 1.0), ((), (1.0,)), (1 / 2, 1 / 2))
RK4 = Tableau(
    (0.0, 1 / 2, 1 / 2, 1.0), ((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)
)
_DOPRI5_WEIGHTS = (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)
DOPRI5 = Tableau(
    (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0),
    (
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    ),
    _DOPRI5_WEIGHTS,
    # Fifth minus fourth order; the seventh stage is the derivative at the result.
    (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
)
SOLVERS: dict[str, Tableau] = {"heun": HEUN, "rk4": RK4, "dopri5": DOPRI5}


def _per_row(values: Tensor, like: Tensor) -> Tensor:
    """[B] -> [B, 1, ...] with as many axes as ``like``."""
    return values.view(-1, *[1] * (like.ndim - 1))


def _combine(weights: tuple[float, ...], slopes: list[State], step: Tensor, part: int) -> Tensor:
    """step * sum of weight * slope for one part of the state; plain products and sums only.

    Fused operations round differently at the end of a vector register, which would couple rows by their
    position.
    """
    total = torch.zeros_like(slopes[0][part])
    for weight, slope in zip(weights, slopes, strict=True):
        if weight:
            total = total + weight * slope[part]
    return _per_row(step, total) * total


def _advance(weights: tuple[float, ...], slopes: list[State], step: Tensor, state: State) -> State:
    return tuple(part + _combine(weights, slopes, step, index) for index, part in enumerate(state))


def _step(
    f: Dynamics, tableau: Tableau, start: Tensor, step: Tensor, state: State, rows: Tensor, first: State
):
    """One step from ``start`` [B], where the slope is ``first``: the new state and all slopes."""
    slopes = [first]
    for time, weights in zip(tableau.times[1:], tableau.stages[1:], strict=True):
        slopes.append(f(start + time * step, _advance(weights, slopes, step, state), rows))
    return _advance(tableau.weights, slopes, step, state), slopes


def integrate(f: Dynamics, state: State, grid: Tensor, tableau: Tableau = DOPRI5) -> State:
    """Integrate along the times ``grid`` [N + 1], in N * len(tableau.times) evaluations of f."""
    batch = len(state[0])
    rows = torch.arange(batch)
    times = grid.double().to(state[0].device)
    for start, end in pairwise(times):
        begin, step = start.expand(batch), (end - start).expand(batch)
        state, _ = _step(f, tableau, begin, step, state, rows, f(begin, state, rows))
    return state


@dataclass(frozen=True)
class Solution:
    """End of a solve: state [B, ...], evaluations [B], and per row "ok", "max steps" or "not finite".

    A row that is not "ok" holds the state where it stopped, which is no result.
    """

    state: State
    nfe: Tensor
    status: list[str]


@dataclass(frozen=True)
class Adaptive:
    """Dormand-Prince 5(4) with a PI-controlled step size per row.

    A step is accepted when, in every part of the state, the root mean square of error / (atol + rtol |value|)
    is at most 1; a part is thereby held to the tolerance however many numbers the others have.

    Parameters
    ----------
    rtol, atol: relative and absolute tolerance of a step.
    max_steps: attempts per row, rejected ones included, after which the row gets the status "max steps".
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    max_steps: int = 1000

    def __call__(self, f: Dynamics, state: State, start: float, end: float) -> Solution:
        """Integrate from ``start`` to ``end``; a row that is finished is no longer evaluated."""
        batch, device = len(state[0]), state[0].device
        final = tuple(part.clone() for part in state)
        nfe, status = torch.ones(batch, dtype=torch.int64), ["max steps"] * batch
        rows = torch.arange(batch)
        time = torch.full((batch,), float(start), dtype=torch.float64, device=device)
        step = torch.full_like(time, (end - start) / 16)
        previous = torch.ones_like(time)
        first = f(time, state, rows)
        for _ in range(self.max_steps):
            step = torch.where((step - (end - time)) * (end - start) > 0, end - time, step)
            new, slopes = _step(f, DOPRI5, time, step, state, rows, first)
            last = f(time + step, new, rows)
            nfe[rows] += 6
            error = self._error(state, new, [*slopes, last], step)
            accepted = error <= 1
            arrived = accepted & (step == end - time)
            lost = ~error.isfinite() & (step.abs() < 1e-6 * abs(end - start))

            # PI control with the exponents of Hairer & Wanner; exp(log) since pow rounds by position in the
            # batch.
            bounded = error.nan_to_num(nan=torch.inf).clamp(1e-10, 1e10)
            factor = 0.9 * (-0.17 * bounded.log() + 0.04 * previous.log()).exp()
            factor = torch.where(accepted, factor.clamp(0.2, 10.0), factor.clamp(0.2, 1.0))
            time = torch.where(accepted, time + step, time)
            step = step * factor
            previous = torch.where(accepted, bounded.clamp(min=1e-4), previous)
            state = tuple(torch.where(_per_row(accepted, a), a, b) for a, b in zip(new, state, strict=True))
            first = tuple(torch.where(_per_row(accepted, a), a, b) for a, b in zip(last, first, strict=True))

            for row in (arrived | lost).nonzero()[:, 0].tolist():
                status[int(rows[row])] = "ok" if arrived[row] else "not finite"
            for whole, part in zip(final, state, strict=True):
                whole[rows] = part
            left = ~(arrived | lost)
            if not left.any():
                break
            rows, time, step, previous = rows[left.cpu()], time[left], step[left], previous[left]
            state, first = tuple(part[left] for part in state), tuple(part[left] for part in first)
        return Solution(final, nfe, status)

    def _error(self, old: State, new: State, slopes: list[State], step: Tensor) -> Tensor:
        """Largest scaled error over the parts of the state, [B]."""
        ratios = []
        for index, (a, b) in enumerate(zip(old, new, strict=True)):
            scale = self.atol + self.rtol * torch.maximum(a.abs(), b.abs())
            ratio = (_combine(DOPRI5.error, slopes, step, index) / scale).flatten(1)
            ratios.append(ratio.square().mean(1).sqrt())
        # maximum() hands a NaN on.
        return torch.stack(ratios).amax(0)
