"""The kernels of `commbench_kernels.activations` beside their references; as a program, by triton's interpreter."""

from __future__ import annotations

import itertools
import sys

import torch
from commbench_kernels import activations

from tests.kernels.rows import close

COUNTS = ((3, 0, 70), (0, 0, 5), (0, 0, 0), (1, 1, 1))  # empty experts, several tiles, nothing
WIDTHS = (1, 6, 200)


def compare(device: str, dtypes: list[torch.dtype]) -> int:
    """How many cases were equal; an AssertionError for the first that is not."""
    found = 0
    for dtype, width, counts, name in itertools.product(dtypes, WIDTHS, COUNTS, activations.ACTIVATIONS):
        generator = torch.Generator().manual_seed(width)
        per_expert = torch.tensor(counts, device=device)
        rows, grad = (torch.randn(sum(counts), width, generator=generator).to(device, dtype) for _ in range(2))
        bias = torch.randn(len(counts), width, generator=generator).to(device, dtype)
        out, kept = activations.biased_reference(rows, bias, per_expert, name)
        for ours, right in zip(activations.biased(rows, bias, per_expert, name), (out, kept), strict=True):
            assert ours.dtype == right.dtype
            close(ours, right)
        check_backward(grad, kept, per_expert, name)
        blocks = (torch.randn(2, sum(counts), width, generator=generator).to(device, dtype) for _ in range(2))
        check_backward(*blocks, None, name)
        found += 1
    for dtype, size in itertools.product(dtypes, (0, 1, 5000)):
        generator = torch.Generator().manual_seed(size)
        grad, gate, up = (torch.randn(size, generator=generator).mul(3).to(device, dtype) for _ in range(3))
        close(activations.silu_mul(gate, up), activations.silu_mul_reference(gate, up))
        both = (f(grad, gate, up) for f in (activations.silu_mul_backward, activations.silu_mul_backward_reference))
        for ours, right in zip(*both, strict=True):
            close(ours, right)
        found += 1
    return found


def check_backward(grad: torch.Tensor, kept: torch.Tensor, per_expert: torch.Tensor | None, name: str) -> None:
    """Sums are held against those of fp64: rounding grows with what is added, whatever is left of it."""
    found = activations.biased_backward(grad, kept, per_expert, name)
    right = activations.biased_backward_reference(grad, kept, per_expert, name)
    for ours, oracle in zip(found, right, strict=True):
        assert ours.dtype == oracle.dtype and ours.shape == oracle.shape
    close(found[0], right[0])
    by_rows, sums = activations.biased_backward_reference(grad.double(), kept.double(), per_expert, name)
    added = float(by_rows.abs().sum(-2).max()) if by_rows.numel() else 0.0
    eps = torch.finfo(found[1].dtype).eps
    torch.testing.assert_close(found[1].double(), sums, rtol=0, atol=eps * max(1.0, added))


if __name__ == "__main__":
    sys.stdout.write(str(compare("cpu", [torch.float32, torch.float64])))
