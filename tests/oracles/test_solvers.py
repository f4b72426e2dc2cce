"""The solvers against closed-form solutions, their own order, and torchdiffeq."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchdiffeq import odeint

from scorebayes.diffusion.solve import DOPRI5, SOLVERS, Adaptive, integrate

ORDER = {"heun": 2, "rk4": 4, "dopri5": 5}


def oscillator(time, state, rows):
    """A driven oscillator: nonlinear and dependent on time; each row treated alone."""
    angle, speed = state
    return speed, time[:, None] - 4 * angle / (1 + angle * angle)


def start(batch: int, size: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(2, batch, size, generator=generator, dtype=torch.float64).unbind())


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_tableau_is_consistent(name):
    tableau = SOLVERS[name]
    assert sum(tableau.weights) == pytest.approx(1)
    for time, stage in zip(tableau.times, tableau.stages, strict=True):
        assert sum(stage) == pytest.approx(time)
    assert sum(tableau.error) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_error_falls_with_the_order_of_the_solver(name):
    truth = Adaptive(1e-13, 1e-13)(oscillator, start(5), 0.0, 2.0).state
    errors = []
    for steps in (32, 64):
        end = integrate(
            oscillator, start(5), torch.linspace(0, 2, steps + 1, dtype=torch.float64), SOLVERS[name]
        )
        errors.append(float((torch.stack(end) - torch.stack(truth)).square().mean().sqrt()))
    assert errors[0] / errors[1] == pytest.approx(2 ** ORDER[name], rel=0.35)


@pytest.mark.parametrize("backwards", [False, True])
def test_both_kinds_agree_with_torchdiffeq(backwards):
    state, times = start(4), torch.tensor([3.0, 0.0] if backwards else [0.0, 3.0], dtype=torch.float64)

    def peer(time, joint):
        return torch.stack(oscillator(time.expand(4), tuple(joint), None))

    truth = odeint(peer, torch.stack(state), times, rtol=1e-11, atol=1e-11, method="dopri5")[-1]
    grid = torch.linspace(float(times[0]), float(times[1]), 401, dtype=torch.float64)
    fixed = integrate(oscillator, state, grid, DOPRI5)
    adaptive = Adaptive(1e-9, 1e-9)(oscillator, state, float(times[0]), float(times[1]))
    assert adaptive.status == ["ok"] * 4
    torch.testing.assert_close(torch.stack(fixed), truth, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(torch.stack(adaptive.state), truth, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-7, 1e-9])
def test_adaptive_error_follows_the_tolerance(tolerance):
    def exponential(time, state, rows):
        return (state[0],)

    solution = Adaptive(tolerance, tolerance)(exponential, (torch.ones(1, 1, dtype=torch.float64),), 0.0, 2.0)
    error = abs(float(solution.state[0]) / torch.e**2 - 1)
    assert error < 10 * tolerance


@settings(max_examples=25, deadline=None)
@given(batch=st.integers(2, 19), size=st.integers(1, 40), data=st.data())
def test_images_are_solved_independently_bit_by_bit(batch, size, data):
    """A row among all, and among some others in another order: the same bits and evaluations."""
    state, solve = start(batch, size), Adaptive(1e-6, 1e-6)
    together = solve(oscillator, state, 0.0, 3.0)
    order = data.draw(st.permutations(range(batch)))[: data.draw(st.integers(1, batch))]
    apart = solve(oscillator, tuple(part[order] for part in state), 0.0, 3.0)
    for whole, some in zip(together.state, apart.state, strict=True):
        assert torch.equal(whole[order], some)
    assert torch.equal(together.nfe[order], apart.nfe)


def test_finished_rows_are_no_longer_evaluated():
    seen = torch.zeros(2, dtype=torch.int64)

    def oscillation(time, state, rows):
        seen[rows] += 1
        speed = torch.tensor([1.0, 30.0], dtype=torch.float64)[rows, None]
        return (speed * torch.cos(speed * time[:, None]).expand_as(state[0]),)

    solution = Adaptive(1e-6, 1e-6)(oscillation, (torch.zeros(2, 4, dtype=torch.float64),), 0.0, 2.0)
    assert torch.equal(seen, solution.nfe)
    assert seen[1] > 3 * seen[0]


def test_a_row_that_fails_says_so_and_leaves_the_others_alone():
    def explode(time, state, rows):
        """Row 0 decays, row 1 has a pole at time 0.5, row 2 is not a number."""
        values = state[0].clone()
        values[rows == 0] *= -1
        values[rows == 1] = values[rows == 1].square()
        values[rows == 2] = torch.nan
        return (values,)

    y_0 = torch.tensor([[1.0], [2.0], [1.0]], dtype=torch.float64)
    solution = Adaptive(1e-6, 1e-6, max_steps=60)(explode, (y_0,), 0.0, 1.0)
    assert solution.status[0] == "ok"
    assert solution.status[1] != "ok"
    assert solution.status[2] == "not finite"
    assert float(solution.state[0][0]) == pytest.approx(torch.e**-1, rel=1e-5)


def test_too_few_steps_is_a_status():
    solution = Adaptive(1e-9, 1e-9, max_steps=3)(oscillator, start(2), 0.0, 3.0)
    assert solution.status == ["max steps"] * 2
    assert solution.nfe.tolist() == [19, 19]


def test_each_part_of_the_state_is_held_to_the_tolerance_by_itself():
    """One hard number beside a thousand easy ones."""

    def mixed(time, state, rows):
        return torch.zeros_like(state[0]), 40 * torch.cos(40 * time)[:, None]

    state = (torch.zeros(1, 1000, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64))
    solution = Adaptive(1e-7, 1e-7)(mixed, state, 0.0, 1.0)
    truth = torch.sin(torch.tensor(40.0, dtype=torch.float64))
    assert abs(float(solution.state[1]) - float(truth)) < 1e-5
