"""The flow likelihood against worlds whose density is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import Tensor, nn

from scorebayes.diffusion.draws import Draws
from scorebayes.diffusion.likelihood.flow import Flow, PaperFlow
from scorebayes.diffusion.noise import NOISES, VE, VP, NoiseProcess, SubVP
from scorebayes.diffusion.oracle import GaussianScore, MixtureScore, Oracle
from scorebayes.diffusion.score import Score
from scorebayes.errors import ConfigError

D = 256


def images(world: Oracle, per_class: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.cat([world.sample(per_class, y, generator) for y in range(world.n_classes)])
    return x, torch.arange(world.n_classes).repeat_interleave(per_class)


def truth_at_t_min(world: Oracle, x: Tensor, y: Tensor) -> Tensor:
    """log p_{t_min}(alpha x | y) + D log alpha: what the flow, which starts at t_min, stands for."""
    t = torch.full((len(x),), world.noise.t_min, dtype=torch.float64)
    alpha, _ = world.noise.scales(t)
    return world.log_prob(alpha[:, None, None, None] * x, t, y) + x[0].numel() * alpha.log()


def exact_terminal(world: Oracle):
    return lambda x_T, y: world.log_prob(x_T, torch.ones(len(y), dtype=torch.float64), y)


def signs(x: Tensor, probes: int = 1) -> Tensor:
    return (
        Draws(0, [str(i) for i in range(len(x))]).rademacher("probe", (probes, *x.shape[1:])).transpose(0, 1)
    )


@pytest.fixture(params=sorted(NOISES))
def noise(request: pytest.FixtureRequest) -> NoiseProcess:
    return NOISES[request.param]()


@pytest.mark.parametrize(("tolerance", "nats"), [(1e-5, 5e-3), (1e-7, 1e-4)])
def test_exact_trace_gives_the_density_to_the_tolerance(noise, tolerance, nats):
    world = GaussianScore.image_like(noise, (1, 16, 16))
    x, y = (part[1:] for part in images(world, 1))
    flow = Flow(solver="adaptive", rtol=tolerance, atol=tolerance, exact=True, mode="reverse")
    result = flow.log_prob(world, x, y, x[None], exact_terminal(world))
    assert result.status == ["ok"] * len(x)
    torch.testing.assert_close(result.log_prob[0], truth_at_t_min(world, x, y), rtol=0, atol=nats)


def test_exact_trace_of_a_mixture_whose_flow_is_not_linear(noise):
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(2, 3, 1, 2, 2, generator=generator, dtype=torch.float64)
    variance = torch.tensor([0.05, 0.2, 0.5], dtype=torch.float64).view(1, 3, 1, 1, 1)
    world = MixtureScore(noise, mean, variance, torch.ones(2, 3))
    x, y = images(world, 20)
    flow = Flow(solver="adaptive", rtol=1e-7, atol=1e-7, exact=True, mode="reverse")
    result = flow.log_prob(world, x, y, x[None], exact_terminal(world))
    torch.testing.assert_close(result.log_prob[0], truth_at_t_min(world, x, y), rtol=0, atol=1e-4)


def test_default_grid_is_within_a_hundred_thousandth_of_a_nat_per_dimension(noise):
    world = GaussianScore.image_like(noise, (1, 8, 8))
    x, y = images(world, 1)
    result = Flow(exact=True, mode="forward").log_prob(world, x, y, x[None], exact_terminal(world))
    assert (result.log_prob[0] - truth_at_t_min(world, x, y)).abs().max() < 1e-5 * 64
    assert result.nfe.tolist() == [16 * 6 * 64] * len(x)


def test_truncation_and_prior_errors_are_small_and_of_known_order(noise):
    """The bounds are those of docs/likelihood-errors.md, with room for other images."""
    world = GaussianScore.image_like(noise, (1, 16, 16))
    x, y = images(world, 8)
    truncation = truth_at_t_min(world, x, y) - world.clean_log_prob(x)[torch.arange(len(x)), y]
    # Second order in s_0 = sigma / alpha at t_min, with the largest precision of the world.
    s2_0 = math.exp(-noise.log_snr_range[1])
    assert truncation.abs().max() < 3 * D * s2_0 / float(world.variance.min())
    t = torch.ones(len(x), dtype=torch.float64)
    alpha_T, sigma_T = (scale[:, None, None, None] for scale in noise.scales(t))
    x_T = alpha_T * x + sigma_T * torch.randn(
        x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    prior = noise.terminal_log_prob(x_T) - world.log_prob(x_T, t, y)
    assert 1e-4 < prior.abs().max() < 0.3


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_probes_average_to_the_exact_trace(mode):
    world = GaussianScore.image_like(VP(), (1, 4, 4))
    x, y = images(world, 2)
    exact = Flow(solver="heun", exact=True, mode=mode).log_prob(world, x, y, x[None]).log_prob[0]
    result = Flow(solver="heun", probes=16, mode=mode).log_prob(world, x, y, signs(x, 16))
    assert ((result.log_prob.mean(0) - exact).abs() < 4 * result.log_prob.std(0) / 4).all()
    assert result.nfe.tolist() == [16 * 2 * 16] * 4


def test_change_of_variables_moves_the_density_and_leaves_the_posterior():
    """x -> a x + b moves log p by -D log a; the noise is scaled with the image."""
    a, b = 2.5, -0.7
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(2, 1, 4, 4, generator=generator, dtype=torch.float64)
    variance = torch.rand(2, 1, 4, 4, generator=generator, dtype=torch.float64) + 0.2
    world = GaussianScore(VE(0.002, 150.0), mean, variance)
    shift = torch.zeros(1, 4, 4, dtype=torch.float64) + b
    moved = GaussianScore(VE(0.002 * a, 150.0 * a), a * mean + shift, a**2 * variance)
    x, y = images(world, 3)
    flow = Flow(solver="adaptive", rtol=1e-8, atol=1e-8, exact=True, mode="reverse")
    log_prob, log_prob_moved = [], []
    for label in range(2):
        labels = torch.full_like(y, label)
        log_prob.append(flow.log_prob(world, x, labels, x[None], exact_terminal(world)).log_prob[0])
        result = flow.log_prob(moved, a * x + shift, labels, x[None], exact_terminal(moved))
        log_prob_moved.append(result.log_prob[0])
    before, after = torch.stack(log_prob, 1), torch.stack(log_prob_moved, 1)
    torch.testing.assert_close(after, before - 16 * math.log(a), rtol=1e-6, atol=0)
    torch.testing.assert_close(after.softmax(1), before.softmax(1), rtol=1e-6, atol=1e-8)


def test_posterior_is_that_of_the_world():
    world = GaussianScore.image_like(VP(), (1, 8, 8), n_classes=3)
    x, _ = images(world, 5)
    table = Flow(steps=24, exact=True, mode="reverse", images_per_call=15)(
        world, x, Draws(0, [str(i) for i in range(len(x))])
    )
    assert table.kind == "density" and table.draws.shape == (1, 15, 3)
    truth = world.posterior(x, torch.full((3,), 1 / 3).log())
    # What is left is the prior N(0, sigma_T^2 I) in place of p_T: a few hundredths of a nat.
    np.testing.assert_allclose(softmax(table.draws[0], axis=1), truth.numpy(), atol=5e-3)


@pytest.mark.parametrize("solver", ["heun", "rk4", "dopri5", "adaptive"])
def test_classes_share_the_probes_of_an_image(solver):
    """Equal classes get equal bits: what differs between classes is never the probe."""
    world = GaussianScore.image_like(VP(), (1, 4, 4), n_classes=1)
    twins = GaussianScore(VP(), world.mean.repeat(2, 1, 1, 1), world.variance.repeat(2, 1, 1, 1))
    x = world.sample(3, 0, torch.Generator().manual_seed(0))
    table = Flow(solver=solver, probes=2, mode="reverse")(twins, x, Draws(0, "abc"))
    np.testing.assert_allclose(table.draws[:, :, 0], table.draws[:, :, 1], rtol=1e-12)
    assert abs(table.draws[0] - table.draws[1]).min() > 1e-3
    assert table.status.tolist() == ["ok"] * 3


class PixelScore(Score):
    """Every pixel normal, of variance 0.5 and mean y, in plain arithmetic: rows are truly independent."""

    def __init__(self, noise: NoiseProcess) -> None:
        self.noise, self.n_classes = noise, 2

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        alpha_t, sigma_t = (scale[:, None, None, None] for scale in self.noise.scales(t))
        mean = alpha_t * y[:, None, None, None]
        return (mean - x_t) / (0.5 * alpha_t * alpha_t + sigma_t * sigma_t)


@pytest.mark.parametrize("solver", ["dopri5", "adaptive"])
def test_an_image_has_the_same_likelihood_alone_and_in_any_batch(solver):
    """Bit by bit, where the score is."""
    score, keys = PixelScore(SubVP()), [f"image {i}" for i in range(11)]
    x = torch.randn(11, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    x[3] *= 40
    flow = Flow(solver=solver, mode="reverse", images_per_call=11)
    together = flow(score, x, Draws(7, keys))
    for i in (0, 3, 10):
        alone = flow(score, x[i : i + 1], Draws(7, keys[i : i + 1]))
        assert np.array_equal(alone.draws[:, 0], together.draws[:, i])
        assert alone.nfe[0] == together.nfe[i]


def test_images_per_call_changes_nothing_but_rounding():
    world = GaussianScore.image_like(VP(), (1, 4, 4))
    x, _ = images(world, 2)
    tables = [Flow(steps=4, mode="reverse", images_per_call=n)(world, x, Draws(0, "abcd")) for n in (1, 3, 4)]
    for table in tables[1:]:
        np.testing.assert_allclose(table.draws, tables[0].draws, rtol=1e-10)
        assert np.array_equal(table.nfe, tables[0].nfe)


def test_automatic_mode_gives_the_same_number():
    world = GaussianScore.image_like(VP(), (1, 4, 4))
    x, _ = images(world, 2)
    tables = [
        Flow(mode=mode, images_per_call=4)(world, x, Draws(0, "abcd")).draws
        for mode in ("auto", "forward", "reverse")
    ]
    np.testing.assert_allclose(tables[0], tables[1], rtol=1e-10)
    np.testing.assert_allclose(tables[0], tables[2], rtol=1e-10)


class Broken(PixelScore):
    """Not a number where an image is brighter than 100."""

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        bad = x_t.amax((1, 2, 3), keepdim=True) > 100
        return torch.where(bad, torch.nan, super().__call__(x_t, t, y))


@pytest.mark.parametrize("solver", ["dopri5", "adaptive"])
def test_a_failed_solve_is_a_status_without_a_number(solver):
    x = torch.randn(3, 1, 3, 3)
    x[1] += 200
    table = Flow(solver=solver, mode="reverse", max_steps=200)(Broken(VP()), x, Draws(0, "abc"))
    assert table.status.tolist() == ["ok", "not finite", "ok"]
    assert np.isnan(table.draws[:, 1]).all()
    assert np.isfinite(table.draws[:, [0, 2]]).all()


def test_encode_then_decode_returns_the_image(noise):
    world = GaussianScore.image_like(noise, (1, 16, 16))
    x, y = images(world, 2)
    flow = Flow(solver="adaptive", rtol=1e-8, atol=1e-8)
    x_T = flow.encode(world, x, y)
    torch.testing.assert_close(flow.decode(world, x_T, y), x, rtol=0, atol=1e-5)
    counterfactual = flow.decode(world, x_T, 1 - y)
    assert (counterfactual - x).abs().amax() > 0.1
    # Under its class, the counterfactual has the place that the image has under its own, but for alpha_T > 0.
    place = world._to_cosines(x - world.mean[y]) / world.variance[y].sqrt()
    other = world._to_cosines(counterfactual - world.mean[1 - y]) / world.variance[1 - y].sqrt()
    torch.testing.assert_close(other, place, rtol=0, atol=0.05)


def test_encoded_images_of_a_gaussian_world_are_noise_of_the_last_level(noise):
    world = GaussianScore.image_like(noise, (1, 16, 16))
    x, y = images(world, 8)
    _, sigma_T = noise.scales(torch.ones(1))
    x_T = Flow(steps=32).encode(world, x, y)
    assert float(x_T.std() / sigma_T) == pytest.approx(1.0, abs=0.05)


def test_a_failed_path_is_not_a_number():
    x = torch.full((1, 1, 3, 3), 200.0)
    assert Flow().encode(Broken(VP()), x, torch.zeros(1, dtype=torch.int64)).isnan().all()


def test_a_lower_highest_log_snr_gives_the_density_of_the_noised_image():
    world = GaussianScore.image_like(VP(), (1, 4, 4))
    x, y = images(world, 2)
    t = world.noise.time(torch.full((len(x),), 4.0, dtype=torch.float64))
    alpha, _ = world.noise.scales(t)
    truth = world.log_prob(alpha[:, None, None, None] * x, t, y) + 16 * alpha.log()
    flow = Flow(steps=32, exact=True, mode="forward", log_snr_max=4.0)
    result = flow.log_prob(world, x, y, x[None], exact_terminal(world))
    torch.testing.assert_close(result.log_prob[0], truth, rtol=0, atol=1e-4)


class Network(Score, nn.Module):
    """A network in float32 with parameters, as a learned score has."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.noise, self.n_classes = VP(), 2
        self.net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 1, 3, padding=1))

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        label = y[:, None, None, None].float()
        return self.net(x_t.float() + label).to(x_t.dtype) - x_t


def test_a_network_in_single_precision_leaves_the_state_in_double_and_no_graph():
    network, x = Network(), torch.randn(2, 1, 6, 6)
    for solver in ("dopri5", "adaptive"):
        result = Flow(solver=solver).log_prob(network, x, torch.tensor([0, 1]), signs(x))
        assert result.log_prob.dtype == torch.float64 and not result.log_prob.requires_grad
    table = Flow()(network, x, Draws(0, "ab"))
    assert (table.draws[0, :, 0] != table.draws[0, :, 1]).all()


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_paper_mode_is_the_same_density_up_to_its_probe(shared, probe):
    """Where pixels are independent and alike, signs have no variance: the result must be exact."""
    score = PixelScore(VP())
    x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    table = PaperFlow(probe=probe, shared_probe=shared)(score, x, Draws(0, "ab"))
    truth = Flow(steps=48, exact=True, mode="reverse")(score, x, Draws(0, "ab")).draws[0]
    assert table.status.tolist() == ["ok", "ok"] and (table.nfe > 30).all()
    if probe == "rademacher":
        np.testing.assert_allclose(table.draws[0], truth, atol=5e-3)
    else:
        error = table.draws[0] - truth
        assert np.abs(error).max() > 0.01
        # A shared probe shifts both classes alike, and only then leaves their difference.
        assert (np.ptp(error, axis=1) < 5e-3).all() == shared


def test_paper_mode_reports_a_failed_solve():
    table = PaperFlow()(Broken(VP()), torch.full((1, 1, 2, 2), 200.0), Draws(0, "a"))
    assert table.status.tolist() == ["not finite"] and np.isnan(table.draws).all()


@pytest.mark.parametrize(
    "options",
    [
        {"solver": "euler"},
        {"mode": "sideways"},
        {"steps": 0},
        {"probes": 0},
        {"rtol": 0.0},
        {"atol": float("nan")},
    ],
)
def test_impossible_options_are_refused_by_name(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        Flow(**options)
