"""Bits per dimension against exact code lengths, enumerated over all grey values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from scorebayes.diffusion.draws import Draws
from scorebayes.diffusion.likelihood.bits import bits_per_dim
from scorebayes.diffusion.likelihood.flow import Flow
from scorebayes.diffusion.noise import VE
from scorebayes.diffusion.oracle import GaussianScore, MixtureScore

MEAN, SCALE = 0.4, 0.2
DEPTHS = [8, 12, 16]


def standardised(values: np.ndarray) -> np.ndarray:
    """x in [0, 1] -> z."""
    return (values - MEAN) / SCALE


def world(n_dims: int) -> MixtureScore:
    """Two narrow components and a wide one; the narrowest is a few 8-bit grey values wide."""
    mean = torch.tensor([[-0.5, 0.3, 0.0], [0.2, -0.4, 0.5]])[:n_dims].T.reshape(1, 3, 1, 1, n_dims)
    variance = torch.tensor([0.02, 0.2, 0.6]).square().view(1, 3, 1, 1, 1)
    return MixtureScore(VE(), mean, variance, torch.tensor([[0.5, 0.3, 0.2]]))


def exact_probability(oracle: MixtureScore, k: np.ndarray, bits: int) -> np.ndarray:
    """P(k) of grey values k [N, D]: the mass of each cell."""
    mean, std = oracle.mean[0].flatten(1).numpy(), oracle.variance[0].flatten(1).sqrt().numpy()
    low, high = standardised(k / 2**bits)[:, None], standardised((k + 1) / 2**bits)[:, None]
    # By symmetry from the nearer tail, which keeps the digits of small masses.
    flip = np.where(low > mean, -1.0, 1.0)
    mass = flip * (norm.cdf(flip * (high - mean) / std) - norm.cdf(flip * (low - mean) / std))
    return (mass.prod(2) * oracle.log_weight[0].exp().numpy()).sum(1)


def expected_bits(oracle: MixtureScore, k: np.ndarray, bits: int, nodes: int = 8) -> np.ndarray:
    """Mean of bits per dimension over the dequantisation noise, by Gauss-Legendre quadrature: k [N, D]."""
    place, weight = np.polynomial.legendre.leggauss(nodes)
    n_dims = k.shape[1]
    u = np.stack(np.meshgrid(*[(place + 1) / 2] * n_dims, indexing="ij"), -1).reshape(-1, n_dims)
    w = np.stack(np.meshgrid(*[weight / 2] * n_dims, indexing="ij"), -1).reshape(-1, n_dims).prod(1)
    total = np.zeros(len(k))
    for offset, share in zip(u, w, strict=True):
        z = torch.from_numpy(standardised((k + offset) / 2**bits)).view(len(k), 1, 1, n_dims)
        total += share * bits_per_dim(oracle.clean_log_prob(z)[:, 0].numpy(), n_dims, SCALE, bits)
    return total


@pytest.mark.parametrize("bits", DEPTHS)
def test_never_beats_the_exact_code_in_one_dimension(bits):
    """All grey values, one by one, and in the mean over the true distribution."""
    oracle, k = world(1), np.arange(2**bits, dtype=float)[:, None]
    probability = exact_probability(oracle, k, bits)
    here = expected_bits(oracle, k, bits)
    assert (here >= -np.log2(probability) - 1e-9).all()
    assert probability.sum() == pytest.approx(1, abs=0.03)
    gap = (probability * (here + np.log2(probability))).sum()
    # The price of uniform dequantisation falls with the depth: a cell is ever flatter.
    assert 0 < gap < {8: 0.05, 12: 2e-4, 16: 1e-6}[bits]


@pytest.mark.parametrize("bits", DEPTHS)
def test_never_beats_the_exact_code_in_two_dimensions(bits):
    """All pairs of grey values at 8 bits; a lattice over the whole square at 12 and 16."""
    axis = np.arange(0, 2**bits, 2 ** (bits - 8), dtype=float)
    k = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    oracle = world(2)
    probability = exact_probability(oracle, k, bits)
    assert (expected_bits(oracle, k, bits, nodes=4) >= -np.log2(probability) / 2 - 1e-9).all()


def test_uniform_noise_costs_its_depth():
    """A uniform image of b bits has b bits per dimension, whatever mean and scale."""
    log_prob = 100 * math.log(SCALE)
    assert bits_per_dim(log_prob, 100, SCALE, 12) == pytest.approx(12)


def test_scale_only_changes_the_coordinates():
    assert bits_per_dim(-50.0, 10, 0.5, 8) - bits_per_dim(
        -50.0 - 10 * math.log(2), 10, 0.25, 8
    ) == pytest.approx(0)


def test_flow_gives_the_bits_of_the_world():
    """The whole way: grey values, dequantised, standardised, through the flow, to bits per dimension."""
    oracle = GaussianScore(VE(1e-4, 150.0), torch.tensor([[[[0.1, -0.2]]]]), torch.tensor([[[[0.3, 0.6]]]]))
    x = oracle.sample(20, 0, torch.Generator().manual_seed(0))
    k = torch.floor((x * SCALE + MEAN) * 256)
    u = Draws(0, [str(i) for i in range(20)]).uniform("dequantise", (1, 1, 2))
    z = ((k + u) / 256 - MEAN) / SCALE
    table = Flow(steps=32, exact=True, mode="reverse", images_per_call=20)(oracle, z, Draws(0, [""] * 20))
    here = bits_per_dim(table.draws[0, :, 0], 2, SCALE, 8)
    truth = bits_per_dim(oracle.clean_log_prob(z)[:, 0].numpy(), 2, SCALE, 8)
    # What is left is the prior in place of p_T.
    np.testing.assert_allclose(here, truth, atol=5e-3)
