"""What every forward process must keep, whoever adds one."""

from __future__ import annotations

import pytest
import torch

from scorebayes.diffusion.noise import NOISES, NoiseProcess


@pytest.fixture(params=sorted(NOISES))
def noise(request: pytest.FixtureRequest) -> NoiseProcess:
    return NOISES[request.param]()


@pytest.fixture
def t(noise: NoiseProcess) -> torch.Tensor:
    inner = torch.logspace(-5, 0, 60, dtype=torch.float64)
    return torch.cat([inner[inner > noise.t_min], torch.tensor([noise.t_min], dtype=torch.float64)])


def test_time_inverts_log_snr(noise, t):
    torch.testing.assert_close(noise.time(noise.log_snr(t)), t, rtol=1e-8, atol=0)


def test_log_snr_is_twice_the_log_of_the_ratio_of_scales_and_falls(noise, t):
    alpha_t, sigma_t = noise.scales(t)
    torch.testing.assert_close(noise.log_snr(t), (alpha_t / sigma_t).log() * 2)
    assert (noise.log_snr(t.sort().values).diff() < 0).all()


def test_log_snr_range_is_that_of_the_ends_and_beyond_it_time_stays_inside(noise):
    low, high = noise.log_snr_range
    assert low < -9 and high > 9
    ends = noise.time(torch.tensor([low - 1, high + 3], dtype=torch.float64))
    assert ends.tolist() == [1.0, noise.t_min]


def test_rates_are_those_of_the_scales(noise, t):
    """d alpha / dt = f alpha and d sigma^2 / dt = 2 f sigma^2 + g^2."""
    t = t.clone().requires_grad_()
    alpha_t, sigma_t = noise.scales(t)
    # VE has a constant alpha, which carries no gradient.
    alpha_slope = torch.autograd.grad((alpha_t + 0 * t).sum(), t, retain_graph=True)[0]
    variance_slope = torch.autograd.grad(sigma_t.square().sum(), t)[0]
    f_t, g2_t = noise.rates(t)
    torch.testing.assert_close(f_t * alpha_t, alpha_slope)
    torch.testing.assert_close(2 * f_t * sigma_t.square() + g2_t, variance_slope, rtol=1e-6, atol=1e-12)
    assert (g2_t > 0).all()


def test_simulated_diffusion_has_the_stated_mean_and_variance(noise):
    generator = torch.Generator().manual_seed(0)
    grid = torch.linspace(noise.t_min, 0.6, 400, dtype=torch.float64)
    x_0 = 1.5
    alpha, sigma = noise.scales(grid)
    x = alpha[0] * x_0 + sigma[0] * torch.randn(20_000, generator=generator, dtype=torch.float64)
    for t, step in zip(0.5 * (grid[:-1] + grid[1:]), grid.diff(), strict=True):
        f_t, g2_t = noise.rates(t)
        x = x * (1 + f_t * step) + (g2_t * step).sqrt() * torch.randn(
            x.shape, generator=generator, dtype=torch.float64
        )
    # Standard errors: sigma / 141 of the mean and 1 % of the variance.
    assert abs(x.mean() - alpha[-1] * x_0) < 4 * sigma[-1] / 141 + 1e-3
    assert x.var() == pytest.approx(float(sigma[-1] ** 2), rel=0.05)


def test_scales_and_rates_are_in_float64_whatever_comes(noise):
    t = torch.tensor([0.5], dtype=torch.float32)
    assert {value.dtype for value in (*noise.scales(t), *noise.rates(t), noise.time(t))} == {torch.float64}


def test_terminal_log_prob_is_the_normal_density_of_the_last_noise_level(noise):
    x_T = torch.randn(3, 1, 4, 5)
    _, sigma_T = noise.scales(torch.ones(1))
    truth = torch.distributions.Normal(0.0, sigma_T).log_prob(x_T.double()).flatten(1).sum(1)
    torch.testing.assert_close(noise.terminal_log_prob(x_T), truth)


@pytest.mark.parametrize("batch", [2, 7, 16, 33])
def test_times_and_scales_do_not_depend_on_the_position_in_the_batch(noise, batch):
    """Bit by bit: the adaptive solver asks for a different time per image."""
    log_snr = torch.linspace(*noise.log_snr_range, batch, dtype=torch.float64)
    t = noise.time(log_snr)
    assert torch.equal(t, torch.cat([noise.time(value[None]) for value in log_snr]))
    for whole, alone in zip(
        noise.scales(t), zip(*[noise.scales(value[None]) for value in t], strict=True), strict=True
    ):
        assert torch.equal(whole, torch.cat(alone))
