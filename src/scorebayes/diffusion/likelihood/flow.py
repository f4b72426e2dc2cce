"""Log-density by the probability-flow ODE (Song et al. 2021, arXiv 2011.13456, section 4.3 and appendix D.2).

Coordinates. In z = x_t / alpha_t = x_0 + s eps, with s = sigma_t / alpha_t and rho = log s = -log_snr / 2,
every forward process has the same flow, dz/drho = z - D(z, s) = -(sigma_t^2 / alpha_t) score(x_t, t, y), with
the denoiser D (Karras et al. 2022, arXiv 2206.00364, eq. 4). Integrated is u = z / c, c = sqrt(1 + s^2),
which keeps unit variance for images of unit variance, at all noise levels:

    du/drho = -sigma_t^2 / (alpha_t c) score(x_t, t, y) - s^2 / c^2 u,      x_t = alpha_t c u,
    log p(u_0) = log p(u_T) + integral of div(du/drho) drho.

The lowest noise level counts as no noise: x is taken as z there, hence log p(x) = log p(u_0) - D log c_0. State
and integral are in float64; the score is called with float64 and casts to the dtype of its network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from scorebayes.diffusion.divergence import Mode, exact, fastest_mode, hutchinson
from scorebayes.diffusion.draws import Draws
from scorebayes.diffusion.likelihood.base import Kind, LogProb
from scorebayes.diffusion.noise import NoiseProcess
from scorebayes.diffusion.score import Score
from scorebayes.diffusion.solve import SOLVERS, Adaptive, Dynamics, Solution, State, integrate
from scorebayes.errors import ConfigError

Terminal = Callable[[Tensor, Tensor], Tensor]
"""(x_T [B, C, H, W], y [B]) -> log p_T(x_T | y) [B], nats."""


def _per_row(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def velocity(score: Score, rho: Tensor, u: Tensor, y: Tensor) -> Tensor:
    """du/drho of the flow above: rho [B], u [B, C, H, W] float64, y [B] -> [B, C, H, W] float64."""
    t = score.noise.time(-2 * rho)
    alpha_t, sigma_t = score.noise.scales(t)
    c = (1 + (2 * rho).exp()).sqrt()
    drift = -_per_row(sigma_t.square() / (alpha_t * c)) * score(_per_row(alpha_t * c) * u, t, y)
    return drift - _per_row(1 / (1 + (-2 * rho).exp())) * u


@dataclass(frozen=True)
class FlowResult:
    """log_prob [K, B] float64 in nats, one per probe; nfe [B] with a derivative each; status [B]."""

    log_prob: Tensor
    nfe: Tensor
    status: list[str]


@dataclass(frozen=True)
class Flow:
    """log p(x | y) by the probability-flow ODE, all classes on the same probes.

    Parameters
    ----------
    solver: "heun", "rk4" or "dopri5" on a fixed grid, even in log-SNR, or "adaptive" (Dormand-Prince per
    image).
    steps: of the fixed grid.
    rtol, atol, max_steps: of the adaptive solver.
    probes: Rademacher probes per image; each gives one draw.
    exact: the exact trace in place of probes, at one derivative per pixel and evaluation.
    mode: how derivatives are taken. "auto" measures once per score, which is once per run and process; name one for
        results equal bit by bit.
    images_per_call: images solved together. 1 makes the result of an image bitwise independent of the others;
    more is
        faster on a GPU and equal up to rounding.
    log_snr_max: highest log-SNR to use, for a score that was not trained up to that of its process; None for
    all.
    """

    solver: Literal["heun", "rk4", "dopri5", "adaptive"] = "dopri5"
    steps: int = 16
    rtol: float = 1e-4
    atol: float = 1e-4
    max_steps: int = 1000
    probes: int = 1
    exact: bool = False
    mode: Literal["auto", "forward", "reverse"] = "auto"
    images_per_call: int = 1
    log_snr_max: float | None = None

    kind: ClassVar[Kind] = "density"

    def __post_init__(self) -> None:
        known = [*SOLVERS, "adaptive"]
        if self.solver not in known:
            raise ConfigError(f"solver = {self.solver!r} is unknown.", f"Choose one of {', '.join(known)}.")
        if self.mode not in ("auto", "forward", "reverse"):
            raise ConfigError(f"mode = {self.mode!r} is unknown.", "Choose one of auto, forward, reverse.")
        for name in ("steps", "max_steps", "probes", "images_per_call"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"{name} = {getattr(self, name)} is too small.", "Give a whole number of at least 1."
                )
        for name in ("rtol", "atol"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(
                    f"{name} = {getattr(self, name)} is out of range.", "Give a tolerance between 0 and 1."
                )

    def __call__(self, score: Score, x: Tensor, draws: Draws) -> LogProb:
        """x [N, C, H, W] standardised -> one draw per probe, in nats of the same coordinates."""
        results = []
        for start in range(0, len(x), self.images_per_call):
            rows = slice(start, start + self.images_per_call)
            probes = draws[rows].rademacher("flow-probe", (self.probes, *x.shape[1:])).to(x.device)
            y = torch.arange(score.n_classes, device=x.device).repeat(len(x[rows]))
            image = x[rows].repeat_interleave(score.n_classes, dim=0)
            shared = probes.transpose(0, 1).repeat_interleave(score.n_classes, dim=1)
            results.append(self.log_prob(score, image, y, shared))
        return _collect(results, len(x), score.n_classes)

    def log_prob(
        self, score: Score, x: Tensor, y: Tensor, probes: Tensor, terminal: Terminal | None = None
    ) -> FlowResult:
        """x [B, C, H, W], y [B], probes [K, B, C, H, W] (not used by the exact trace) -> log p(x | y).

        ``terminal`` replaces the process's prior N(0, sigma_T^2 I), where the true log p_T is known.
        """
        start, end = self._rho_range(score.noise)
        with torch.no_grad():
            rho = torch.tensor([start, end], dtype=torch.float64)
            log_c = 0.5 * torch.log1p((2 * rho).exp())
            u_0 = x.double() / log_c[0].exp()
            probes = probes.to(u_0)
            n_draws = 1 if self.exact else len(probes)
            dynamics = self._with_divergence(score, u_0, y, probes)
            change = torch.zeros(len(x), n_draws, dtype=torch.float64, device=x.device)
            solution = self._solve(dynamics, (u_0, change), start, end)
            u_T, change = solution.state
            x_T, log_scale = self._to_x(score.noise, u_T, end)
            prior = score.noise.terminal_log_prob(x_T) if terminal is None else terminal(x_T, y)
            size = x[0].numel()
            log_prob = change.T + prior + size * (log_scale - log_c[0])
        per_evaluation = size if self.exact else n_draws
        return FlowResult(log_prob, solution.nfe * per_evaluation, solution.status)

    def encode(self, score: Score, x: Tensor, y: Tensor) -> Tensor:
        """The x_T [B, C, H, W] float64 that the flow of class y carries x to; a failed row is NaN."""
        start, end = self._rho_range(score.noise)
        u_0 = x.double() / (1 + np.exp(2 * start)) ** 0.5
        return self._to_x(score.noise, self._carry(score, u_0, y, start, end), end)[0]

    def decode(self, score: Score, x_T: Tensor, y: Tensor) -> Tensor:
        """The inverse of ``encode``: with another y, the counterfactual image that has the same x_T."""
        start, end = self._rho_range(score.noise)
        _, log_scale = self._to_x(score.noise, x_T, end)
        u_T = x_T.double() / float(np.exp(log_scale))
        return self._carry(score, u_T, y, end, start) * (1 + np.exp(2 * start)) ** 0.5

    def _rho_range(self, noise: NoiseProcess) -> tuple[float, float]:
        """rho of the image and of the prior."""
        low, high = noise.log_snr_range
        if self.log_snr_max is not None:
            high = min(high, self.log_snr_max)
        return -high / 2, -low / 2

    @staticmethod
    def _to_x(noise: NoiseProcess, u: Tensor, rho: float) -> tuple[Tensor, float]:
        """x_t = alpha_t c u and log(alpha_t c)."""
        log_snr = torch.tensor([-2 * rho], dtype=torch.float64)
        alpha_t, _ = noise.scales(noise.time(log_snr))
        factor = float(alpha_t) * float(np.sqrt(1 + np.exp(2 * rho)))
        return u.double() * factor, float(np.log(factor))

    def _solve(self, dynamics: Dynamics, state: State, start: float, end: float) -> Solution:
        if self.solver == "adaptive":
            return Adaptive(self.rtol, self.atol, self.max_steps)(dynamics, state, start, end)
        tableau = SOLVERS[self.solver]
        grid = torch.linspace(start, end, self.steps + 1, dtype=torch.float64)
        state = integrate(dynamics, state, grid, tableau)
        batch = len(state[0])
        finite = torch.stack([part.flatten(1).isfinite().all(1) for part in state]).all(0).tolist()
        nfe = torch.full((batch,), self.steps * len(tableau.times))
        return Solution(state, nfe, ["ok" if row else "not finite" for row in finite])

    def _carry(self, score: Score, u: Tensor, y: Tensor, start: float, end: float) -> Tensor:
        def dynamics(rho: Tensor, state: State, rows: Tensor) -> State:
            return (velocity(score, rho, state[0], y[rows]),)

        with torch.no_grad():
            solution = self._solve(dynamics, (u.double(),), start, end)
        failed = torch.tensor([status != "ok" for status in solution.status], device=u.device)
        return torch.where(_per_row(failed), torch.nan, solution.state[0])

    def _with_divergence(self, score: Score, u_0: Tensor, y: Tensor, probes: Tensor) -> Dynamics:
        mode = self._mode(score, u_0, y)

        def dynamics(rho: Tensor, state: State, rows: Tensor) -> State:
            def flow(u: Tensor) -> Tensor:
                return velocity(score, rho, u, y[rows])

            if self.exact:
                value, trace = exact(flow, state[0], mode)
                return value, trace[:, None]
            value, estimates = hutchinson(flow, state[0], probes[:, rows], mode)
            return value, estimates.T

        return dynamics

    def _mode(self, score: Score, u_0: Tensor, y: Tensor) -> Mode:
        if self.mode != "auto":
            return self.mode
        few = slice(0, 8)
        rho = torch.zeros(len(u_0[few]), dtype=torch.float64, device=u_0.device)
        return fastest_mode(
            score, lambda u: velocity(score, rho, u, y[few]), u_0[few], torch.ones_like(u_0[few])
        )


@dataclass(frozen=True)
class PaperFlow:
    """The computation of arXiv 2502.17727, with the label passed. It is slow and kept for comparison.

    Scipy's RK45 on the flow in t from t_min to 1, one image and class at a time, one probe, reverse mode.

    Parameters
    ----------
    rtol, atol: of RK45.
    probe: distribution of the probe.
    shared_probe: one probe for all classes of an image; False draws one per class, as the source does.
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    probe: Literal["rademacher", "gaussian"] = "rademacher"
    shared_probe: bool = False

    kind: ClassVar[Kind] = "density"

    def __call__(self, score: Score, x: Tensor, draws: Draws) -> LogProb:
        """x [N, C, H, W] standardised -> one draw, in nats of the same coordinates."""
        results = []
        for index, image in enumerate(x):
            own = draws[index : index + 1]
            for y in range(score.n_classes):
                name = "paper-flow-probe" if self.shared_probe else f"paper-flow-probe-{y}"
                draw = own.rademacher if self.probe == "rademacher" else own.normal
                probe = draw(name, image.shape).to(x.device, torch.float64)
                results.append(
                    self._one(score, image[None].double(), torch.tensor([y], device=x.device), probe[0])
                )
        return _collect(results, len(x), score.n_classes)

    def _one(self, score: Score, x: Tensor, y: Tensor, probe: Tensor) -> FlowResult:
        """One image [1, C, H, W] under one class [1]."""
        if not torch.isfinite(x).all():
            return _single(float("nan"), 0, "not finite")
        noise, size, shape = score.noise, x.numel(), x.shape
        nfe = 0

        def derivative(time: float, state: np.ndarray) -> np.ndarray:
            nonlocal nfe
            nfe += 1
            t = torch.tensor([time], dtype=torch.float64, device=x.device)
            f_t, g2_t = noise.rates(t)

            def flow(x_t: Tensor) -> Tensor:
                return f_t * x_t - 0.5 * g2_t * score(x_t, t, y)

            x_t = torch.from_numpy(state[:size].copy()).to(x).view(shape)
            value, trace = hutchinson(flow, x_t, probe[None, None], "reverse")
            slope = np.append(value.flatten().cpu().numpy(), trace.item())
            # Scipy's step control never returns from a NaN.
            if not np.isfinite(slope).all():
                raise FloatingPointError
            return slope

        with torch.no_grad():
            alpha_t, _ = noise.scales(torch.tensor([noise.t_min], dtype=torch.float64))
            start = np.append((float(alpha_t) * x).flatten().cpu().numpy(), 0.0)
            span = (noise.t_min, 1.0)
            try:
                solution = solve_ivp(derivative, span, start, method="RK45", rtol=self.rtol, atol=self.atol)
            except FloatingPointError:
                return _single(float("nan"), nfe, "not finite")
            x_T = torch.from_numpy(solution.y[:size, -1].copy()).view(shape)
            log_prob = (
                float(noise.terminal_log_prob(x_T)) + solution.y[size, -1] + size * float(alpha_t.log())
            )
        return _single(log_prob, nfe, "ok" if solution.success else "not finite")


def _single(log_prob: float, nfe: int, status: str) -> FlowResult:
    return FlowResult(torch.tensor([[log_prob]], dtype=torch.float64), torch.tensor([nfe]), [status])


def _collect(results: list[FlowResult], n: int, n_classes: int) -> LogProb:
    """Rows of (image, class) to images; one that failed under any class has no likelihood (NaN)."""
    log_prob = torch.cat([result.log_prob for result in results], dim=1).cpu().numpy()
    log_prob = log_prob.reshape(-1, n, n_classes)
    nfe = torch.cat([result.nfe for result in results]).numpy().reshape(n, n_classes)
    status = np.array([row for result in results for row in result.status]).reshape(n, n_classes)
    status = status[np.arange(n), (status != "ok").argmax(1)]
    log_prob[:, status != "ok"] = np.nan
    n_draws = len(log_prob)
    return LogProb(
        draws=log_prob,
        log_snr=np.full((n_draws, n), np.nan),
        level=np.zeros(n_draws, dtype=np.int64),
        nfe=np.ceil(nfe.mean(1)).astype(np.int64),
        status=status,
        kind="density",
    )
