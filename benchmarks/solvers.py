"""Errors of the flow likelihood where the truth is known: writes docs/solvers.md and docs/likelihood-errors.md.

Run ``python benchmarks/solvers.py``: half a minute on one thread.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from scorebayes.diffusion.draws import Draws
from scorebayes.diffusion.likelihood.flow import Flow, PaperFlow
from scorebayes.diffusion.noise import NOISES
from scorebayes.diffusion.oracle import GaussianScore, MixtureScore, Oracle

DOCS = Path(__file__).parents[1] / "docs"
FIXED = {"heun": (16, 32, 64, 128), "rk4": (8, 16, 32, 64), "dopri5": (4, 8, 16, 32)}
TOLERANCES = (1e-3, 1e-4, 1e-5, 1e-6)


def spectrum(process: str, size: int) -> GaussianScore:
    return GaussianScore.image_like(NOISES[process](), (1, size, size))


def mixture(process: str) -> MixtureScore:
    """Three components of quite different width per class, in four dimensions."""
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(2, 3, 1, 2, 2, generator=generator, dtype=torch.float64)
    variance = torch.tensor([0.05, 0.2, 0.5], dtype=torch.float64).view(1, 3, 1, 1, 1)
    return MixtureScore(NOISES[process](), mean, variance, torch.ones(2, 3))


def images(world: Oracle, per_class: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.cat([world.sample(per_class, y, generator) for y in range(world.n_classes)])
    return x, torch.arange(world.n_classes).repeat_interleave(per_class)


def log_prob_at_t_min(world: Oracle, x: Tensor, y: Tensor) -> Tensor:
    """log p(x | y) [B] up to the noise of t_min, which every solver starts from."""
    t = torch.full((len(x),), world.noise.t_min, dtype=torch.float64)
    alpha, _ = world.noise.scales(t)
    return world.log_prob(alpha[:, None, None, None] * x, t, y) + x[0].numel() * alpha.log()


def solver_error(world: Oracle, flow: Flow, per_class: int) -> tuple[float, float]:
    """Evaluations of the score per image, and root-mean-square error in nats per dimension; exact trace and p_T."""
    x, y = images(world, per_class)
    size = x[0].numel()

    def terminal(x_T: Tensor, y: Tensor) -> Tensor:
        return world.log_prob(x_T, torch.ones(len(y), dtype=torch.float64), y)

    result = flow.log_prob(world, x, y, x[None], terminal)
    error = (result.log_prob[0] - log_prob_at_t_min(world, x, y)).square().mean().sqrt() / size
    return float(result.nfe.double().mean()) / size, float(error)


def solver_table() -> str:
    flows = {
        f"{name}, {steps} steps": Flow(solver=name, steps=steps, exact=True, mode="reverse")
        for name, grids in FIXED.items()
        for steps in grids
    } | {
        f"adaptive, tolerance {tolerance:.0e}": Flow(
            solver="adaptive", rtol=tolerance, atol=tolerance, exact=True, mode="reverse"
        )
        for tolerance in TOLERANCES
    }
    worlds: list[tuple[str, Oracle, int]] = [
        ("spectrum, VP", spectrum("vp", 8), 1),
        ("spectrum, sub-VP", spectrum("sub-vp", 8), 1),
        ("spectrum, VE", spectrum("ve", 8), 1),
        ("spectrum, cosine", spectrum("cosine", 8), 1),
        ("mixture, VP", mixture("vp"), 32),
    ]
    rows = ["| solver | " + " | ".join(name for name, _, _ in worlds) + " |", "|---|" + "---|" * len(worlds)]
    for label, flow in flows.items():
        cells = [solver_error(world, flow, per_class) for _, world, per_class in worlds]
        rows.append(f"| {label} | " + " | ".join(f"{error:.0e} ({nfe:.0f})" for nfe, error in cells) + " |")
    return "\n".join(rows)


def paper_evaluations() -> float:
    world = spectrum("vp", 8)
    x, _ = images(world, 2)
    nfe = PaperFlow()(world, x, Draws(0, [str(i) for i in range(len(x))])).nfe
    return float(nfe.mean())


def error_table() -> str:
    rows = [
        "| process | log-SNR | t_min in place of 0 | prior in place of p_T | dopri5, 16 steps | one probe, std |",
        "|---|---|---|---|---|---|",
    ]
    for process in sorted(NOISES):
        world = spectrum(process, 16)
        noise = world.noise
        x, y = images(world, 32)
        truncation = log_prob_at_t_min(world, x, y) - world.clean_log_prob(x)[torch.arange(len(x)), y]
        t = torch.ones(len(x), dtype=torch.float64)
        alpha_T, sigma_T = (scale[:, None, None, None] for scale in noise.scales(t))
        generator = torch.Generator().manual_seed(2)
        x_T = alpha_T * x + sigma_T * torch.randn(x.shape, generator=generator, dtype=torch.float64)
        prior = noise.terminal_log_prob(x_T) - world.log_prob(x_T, t, y)
        _, solver = solver_error(world, Flow(exact=True, mode="reverse"), 1)
        probes = torch.stack(
            [Draws(0, [str(i)] * 2).rademacher("probe", x.shape[1:]).double() for i in range(24)]
        )
        estimates = Flow(probes=24, mode="reverse").log_prob(world, x[[0, -1]], y[[0, -1]], probes).log_prob
        low, high = noise.log_snr_range
        errors = (truncation, prior)
        cells = [f"{float(error.square().mean().sqrt()):.1e}" for error in errors]
        cells += [f"{solver * 256:.1e}", f"{float(estimates.std(0).mean()):.1f}"]
        rows.append(f"| {process} | {low:.1f} to {high:.1f} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


SOLVERS_PAGE = """# Error against evaluations, for each solver

Written by `python benchmarks/solvers.py`. Each cell gives the root-mean-square error of log p(x | y) in nats per
dimension and, in brackets, the evaluations of the score per image and class, each with its derivative. The test worlds
have a known density (`scorebayes.diffusion.oracle`): Gaussian images of 8 x 8 pixels with a power-law spectrum, and a
mixture in four dimensions whose flow is not linear. The trace and p_T are exact, so the error is that of the solver
alone.

{table}

Grids are uniform in log-SNR and the state is z / sqrt(1 + s^2) (see `scorebayes.diffusion.likelihood.flow`). The paper's
computation (`PaperFlow`: Runge-Kutta 4(5) in t, tolerance 1e-5) takes {paper:.0f} evaluations in the first world.

- With the same number of evaluations, Dormand-Prince beats RK4 where the flow is smooth and is level with it where the
  flow turns sharply (the mixture). Heun is far behind. The default is Dormand-Prince with 16 steps.
- In a smooth world, a fixed grid is as good as adaptive steps. Where the flow turns sharply (the mixture), adaptive steps
  are ten times more accurate at the same cost, but the cost then differs between images.
- A learned score is less smooth than these worlds. Repeat the comparison on your network before you save steps."""

ERRORS_PAGE = """# What the flow likelihood neglects

Written by `python benchmarks/solvers.py`. The test images are Gaussian, 16 x 16 pixels, with a power-law spectrum of unit
variance (smallest variance of a cosine coefficient {smallest:.2f}), so their log-density is known at every noise level. Each
error is measured separately, in nats per image (D = 256), as the root mean square over images; the last column gives the
standard deviation over probes.

{table}

- **t_min in place of 0.** The flow starts at noise level s_0 = sigma / alpha at t_min and treats x as if it already had
  that noise. The result is the density blurred by noise of variance s_0^2, with an error of the order of D s_0^2 /
  (smallest variance). For images with flat regions that were not dequantised, this error has no bound.
- **Prior in place of p_T.** `NoiseProcess.terminal_log_prob` is N(0, sigma_T^2 I), which neglects alpha_T x_0. The error
  is of first order: alpha_T / sigma_T (0.007 here) times the norm of the class mean (2 here). So it does affect the
  difference between classes. The covariance enters only in second order.
- **Solver**: see [solvers](solvers.md).
- **One probe**: this error is the largest, but the classes of an image share the probe, so most of it cancels between
  them."""


def main() -> None:
    torch.set_num_threads(1)
    DOCS.joinpath("solvers.md").write_text(
        SOLVERS_PAGE.format(table=solver_table(), paper=paper_evaluations())
    )
    smallest = float(spectrum("vp", 16).variance.min())
    DOCS.joinpath("likelihood-errors.md").write_text(
        ERRORS_PAGE.format(table=error_table(), smallest=smallest)
    )


if __name__ == "__main__":
    main()
