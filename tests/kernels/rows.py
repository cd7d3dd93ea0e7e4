"""The kernels of `commbench_kernels.rows` beside their references; as a program, by triton's interpreter on a CPU."""

from __future__ import annotations

import itertools
import sys

import torch
from commbench_kernels import rows

WIDTHS = (1, 6, 64, 4100)  # less than a word, no power of two, whole words, more than a program holds at a time


def maps(tokens: int, top_k: int, height: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of choices [T, K] and choices of rows [R], some of both without the other."""
    generator = torch.Generator().manual_seed(tokens + top_k + height)
    choices = torch.randperm(max(height, tokens * top_k), generator=generator)[:height]
    choice = torch.where(choices < tokens * top_k, choices, -1)
    index = torch.full((tokens * top_k,), -1)
    (taken,) = (choice >= 0).nonzero(as_tuple=True)
    index[choice[taken]] = taken
    return index.view(tokens, top_k), choice


def close(ours: torch.Tensor, right: torch.Tensor) -> None:
    """To three roundings of the dtype, after sums of a few thousand."""
    eps, largest = torch.finfo(right.dtype).eps, float(right.abs().max()) if right.numel() else 0.0
    torch.testing.assert_close(ours, right, rtol=3 * eps, atol=3 * eps * max(1.0, largest))


def compare(device: str, dtypes: list[tuple[torch.dtype, torch.dtype]]) -> int:
    """How many cases were equal; an AssertionError for the first that is not. dtypes: of rows, and of weights."""
    found = 0
    for (kind, of_weights), width, (tokens, top_k, height) in itertools.product(
        dtypes, WIDTHS, [(5, 1, 7), (5, 2, 6), (4, 3, 20), (3, 2, 0), (0, 2, 3)]
    ):
        generator = torch.Generator().manual_seed(width)
        index, choice = (found_map.to(device) for found_map in maps(tokens, top_k, height))
        values = torch.randn(height, width, generator=generator).to(device, kind)
        grad = torch.randn(tokens, width, generator=generator).to(device, kind)
        weights = torch.rand(tokens, top_k, generator=generator).to(device, of_weights)
        for given in (None, weights):
            close(rows.gather_sum(values, index, given), rows.gather_sum_reference(values, index, given))
        assert torch.equal(rows.scatter(grad, index, choice), rows.scatter_reference(grad, index, choice))
        both = (
            f(values, grad, index, choice, weights) for f in (rows.combine_backward, rows.combine_backward_reference)
        )
        for ours, right in zip(*both, strict=True):
            assert ours.dtype == right.dtype
            close(ours, right)
        counts = torch.tensor([0, height - height // 2, 0, height // 2, 0], device=device)
        close(rows.segment_sum(values, counts), rows.segment_sum_reference(values, counts))
        found += 1
    return found


if __name__ == "__main__":
    fp32, fp64 = torch.float32, torch.float64  # bf16 is not rounded by the interpreter
    sys.stdout.write(str(compare("cpu", [(fp32, fp32), (fp64, fp64), (torch.float16, fp32)])))
