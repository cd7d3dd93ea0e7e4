"""The kernels of `commbench_kernels.grouped` beside their references; as a program, by triton's interpreter."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from typing import Any

import torch
from commbench_kernels import grouped

COUNTS = ((3, 0, 70), (0, 0, 5), (0, 0, 0), (1, 200, 1), (65,))  # empty experts, several tiles, nothing, one
SHAPES = ((1, 5), (40, 24), (64, 300))  # I, O


def compare(device: str, dtypes: Sequence[torch.dtype], shapes: Sequence[tuple[int, int]] = SHAPES,
            counts: Sequence[tuple[int, ...]] = COUNTS) -> int:  # fmt: skip
    """How many cases were equal; an AssertionError for the first that is not."""
    found = 0
    for dtype, (inner, width), lengths in itertools.product(dtypes, shapes, counts):
        generator = torch.Generator().manual_seed(inner + len(lengths))
        rows = torch.randn(sum(lengths), inner, generator=generator).to(device, dtype)
        grad = torch.randn(sum(lengths), width, generator=generator).to(device, dtype)
        weight = torch.randn(len(lengths), inner, width, generator=generator).to(device, dtype)
        per_expert = torch.tensor(lengths, device=device)
        near(grouped.grouped_mm(rows, weight, per_expert),
             grouped.grouped_mm_reference(rows.double(), weight.double(), per_expert))  # fmt: skip
        transposed = weight.transpose(1, 2)
        near(grouped.grouped_mm(grad, transposed, per_expert),
             grouped.grouped_mm_reference(grad.double(), transposed.double(), per_expert))  # fmt: skip
        near(grouped.grouped_mm_by_weight(rows, grad, per_expert),
             grouped.grouped_mm_by_weight_reference(rows.double(), grad.double(), per_expert))  # fmt: skip
        found += 1
    return found


def near(ours: torch.Tensor, right: torch.Tensor) -> None:
    """To the bits of the dtype, in norm, and nothing is left out."""
    assert ours.shape == right.shape and bool(ours.isfinite().all())
    far = float((ours.double() - right).norm() / right.norm().clamp(min=1e-30))
    assert far < max(torch.finfo(ours.dtype).eps, 2e-6), far


def loops_to_loaded_numbers() -> None:
    """Let triton's interpreter loop to a number that was loaded: numpy 2.5 makes no number of an array of one."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patched


if __name__ == "__main__":
    loops_to_loaded_numbers()
    sys.stdout.write(str(compare("cpu", [torch.float16, torch.float32])))
