"""Divergence of a vector field: exact, or by Hutchinson's estimator with given probes.

tr J = E[v' J v] for probes v of unit covariance (Hutchinson 1990); signs (Rademacher) have the smallest
variance. The probes come from outside, so that all classes of an image share them. v' J v is computed either in
forward mode (J v) or in reverse mode (v' J); which is faster depends on the network and the machine and is
measured.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import jvp, vjp, vmap
from torch.nn.functional import one_hot

Field = Callable[[Tensor], Tensor]
Mode = Literal["forward", "reverse"]

# A forward-mode derivative that a network cannot give (flash attention, for one) raises one of these.
_NO_DERIVATIVE = (RuntimeError, NotImplementedError)
_MEASURED: weakref.WeakKeyDictionary[Any, Mode] = weakref.WeakKeyDictionary()


def _push(field: Field, x: Tensor, along: Tensor) -> tuple[Tensor, Tensor]:
    """Value and J v."""
    results = jvp(field, (x,), (along,))
    return results[0], results[1]


def _pullback(field: Field, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Value and the map from v to J' v."""
    results = vjp(field, x)
    return results[0], lambda along: results[1](along)[0]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


def hutchinson(field: Field, x: Tensor, probes: Tensor, mode: Mode) -> tuple[Tensor, Tensor]:
    """Value and one divergence estimate per probe.

    x [B, ...], probes [K, B, ...] -> field(x) [B, ...], v' J v [K, B]. ``field`` must treat rows
    independently.
    """
    if mode == "reverse":
        value, pull = _pullback(field, x)
        return value, torch.stack([_dot(pull(probe), probe) for probe in probes])
    values, pushed = zip(*(_push(field, x, probe) for probe in probes), strict=True)
    return values[0], torch.stack([_dot(push, probe) for push, probe in zip(pushed, probes, strict=True)])


def exact(field: Field, x: Tensor, mode: Mode, chunk: int = 256) -> tuple[Tensor, Tensor]:
    """Value and exact divergence, by as many derivatives as x has numbers.

    x [B, ...] -> field(x) [B, ...], tr J [B].

    Unit vectors are taken ``chunk`` at a time, which bounds the memory to ``chunk`` times that of one
    derivative.
    """
    size = x[0].numel()
    value, pull = _pullback(field, x)

    def column(unit: Tensor) -> Tensor:
        """Contribution [B] of one unit vector [D]."""
        along = unit.view(x.shape[1:]).expand_as(x)
        return _dot(pull(along) if mode == "reverse" else _push(field, x, along)[1], along)

    total = x.new_zeros(len(x))
    for indices in torch.arange(size, device=x.device).split(chunk):
        total = total + vmap(column)(one_hot(indices, size).to(x.dtype)).sum(0)
    return value, total


def fastest_mode(owner: object, field: Field, x: Tensor, probe: Tensor) -> Mode:
    """The faster mode for ``field``, by a short measurement, remembered for ``owner`` (the score).

    Both modes give the same number up to rounding; name one where results must be equal bit by bit between
    runs. Reverse mode where forward mode is not supported by an operation of the network.
    """
    if owner not in _MEASURED:
        _MEASURED[owner] = (
            "forward"
            if _seconds(field, x, probe, "forward") < _seconds(field, x, probe, "reverse")
            else "reverse"
        )
    return _MEASURED[owner]


def _seconds(field: Field, x: Tensor, probe: Tensor, mode: Mode) -> float:
    """Shortest of three timed derivatives, the first of which warms up; infinite where unsupported."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        try:
            hutchinson(field, x, probe[None], mode)
        except _NO_DERIVATIVE:
            if mode == "reverse":
                raise
            return float("inf")
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        times.append(time.perf_counter() - start)
    return min(times[1:])
