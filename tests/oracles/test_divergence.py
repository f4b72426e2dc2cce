"""The divergence, exact and estimated, against the full Jacobian."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from scorebayes.diffusion import divergence
from scorebayes.diffusion.divergence import exact, fastest_mode, hutchinson

MODES = ["forward", "reverse"]


class Field(nn.Module):
    """A small nonlinear field with parameters that ask for gradients, as a trained network's do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1), nn.SiLU(), nn.GroupNorm(2, 8), nn.Conv2d(8, 2, 3, padding=1)
        )
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


@pytest.fixture
def field() -> Field:
    return Field()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def jacobians(field: Field, x: Tensor) -> Tensor:
    """[B, D, D]"""
    rows = [torch.autograd.functional.jacobian(lambda v: field(v[None])[0], row) for row in x]
    return torch.stack([row.reshape(x[0].numel(), -1) for row in rows])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("chunk", [5, 256])
def test_exact_divergence_is_the_trace_of_the_jacobian(field, x, mode, chunk):
    value, trace = exact(field, x, mode, chunk)
    torch.testing.assert_close(value, field(x))
    torch.testing.assert_close(trace, jacobians(field, x).diagonal(dim1=1, dim2=2).sum(1))


@pytest.mark.parametrize("mode", MODES)
def test_hutchinson_is_the_quadratic_form_of_each_probe(field, x, mode):
    probes = torch.randn(4, *x.shape, dtype=torch.float64)
    value, estimates = hutchinson(field, x, probes, mode)
    flat = probes.flatten(2)
    truth = torch.einsum("kbi,bij,kbj->kb", flat, jacobians(field, x), flat)
    torch.testing.assert_close(value, field(x))
    torch.testing.assert_close(estimates, truth)


def test_hutchinson_with_signs_is_unbiased(field, x):
    generator = torch.Generator().manual_seed(0)
    probes = torch.randint(0, 2, (2000, *x.shape), generator=generator).double() * 2 - 1
    _, estimates = hutchinson(field, x, probes, "reverse")
    error = estimates.mean(0) - exact(field, x, "reverse")[1]
    assert (error.abs() < 4 * estimates.std(0) / 2000**0.5).all()


def test_no_graph_of_the_parameters_is_kept(field, x):
    with torch.no_grad():
        for mode in MODES:
            value, estimates = hutchinson(field, x, torch.ones(1, *x.shape, dtype=torch.float64), mode)
            assert not value.requires_grad and not estimates.requires_grad


def test_the_faster_mode_is_taken_and_remembered(field, x, monkeypatch):
    seconds = {"forward": 2.0, "reverse": 1.0}
    monkeypatch.setattr(divergence, "_seconds", lambda field, x, probe, mode: seconds[mode])
    owner = Field()
    assert fastest_mode(owner, field, x, x) == "reverse"
    seconds["forward"] = 0.5
    assert fastest_mode(owner, field, x, x) == "reverse"
    assert fastest_mode(Field(), field, x, x) == "forward"


def test_a_real_measurement_names_a_mode(field, x):
    assert fastest_mode(Field(), field, x, torch.ones_like(x)) in MODES


class ReverseOnly(torch.autograd.Function):
    """An operation that has a reverse derivative and no forward one."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x * 2

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


class NoDerivative(ReverseOnly):
    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError("no derivative at all")


def test_reverse_mode_where_forward_mode_is_not_supported(x):
    assert fastest_mode(Field(), ReverseOnly.apply, x, torch.ones_like(x)) == "reverse"


def test_a_field_without_any_derivative_is_an_error_not_a_choice(x):
    with pytest.raises(RuntimeError, match="no derivative at all"):
        fastest_mode(Field(), NoDerivative.apply, x, torch.ones_like(x))
