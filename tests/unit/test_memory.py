"""Work that does not fit into memory goes in smaller parts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scorebayes.diffusion.memory import NoMemory, with_less_memory
from scorebayes.diffusion.score import Denoiser


class SmallMemory(nn.Module):
    """A network that asks the allocator for more than any machine has, where it is shown more than three rows."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((1,), 2.0))
        self.seen: list[int] = []

    def forward(self, x, level, y, augment=None):
        self.seen.append(len(x))
        if len(x) > 3:
            torch.empty(2**59)
        return self.weight * x * y[:, None, None, None] + level[:, None, None, None]

    def all_classes(self, x, level, augment=None):
        return torch.stack([self(x, level, torch.full((len(x),), y)) for y in range(2)], dim=1)


def test_a_score_is_asked_in_the_parts_that_fit_and_the_size_is_kept():
    """T6: scoring and sampling recover as training does."""
    denoiser = Denoiser(SmallMemory()).eval()
    z, log_snr, y = torch.randn(8, 1, 4, 4), torch.linspace(-1, 1, 8), torch.arange(8)
    with torch.no_grad():
        found = denoiser(z, log_snr, y)
        one_by_one = torch.cat([denoiser(z[i : i + 1], log_snr[i : i + 1], y[i : i + 1]) for i in range(8)])
    assert torch.equal(found, one_by_one)
    assert denoiser.net.seen[:6] == [8, 4, 2, 2, 2, 2]
    denoiser.net.seen.clear()
    with torch.no_grad():
        assert denoiser.all_classes(z, log_snr).shape == (8, 2, 1, 4, 4)
    assert max(denoiser.net.seen) == 2


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    def wrong(size: int) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        with_less_memory(wrong, 4)


def test_where_not_even_one_fits_it_says_so():
    asked = []

    def never(size: int) -> None:
        asked.append(size)
        raise torch.OutOfMemoryError

    with pytest.raises(NoMemory):
        with_less_memory(never, 5)
    assert asked == [5, 2, 1]
