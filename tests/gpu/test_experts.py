"""Fused experts beside plain ones and fp64, on one GPU: outputs, and the gradients of tokens and all parameters."""

from __future__ import annotations

import os

import pytest

from commbench.machine import gpus

if gpus.count(os.environ) < 1:
    pytest.skip("needs a GPU", allow_module_level=True)

import torch

from moe_ref import FFN, SwiGLU, fused, fused_experts
from tests.kernels import activations, grouped
from tests.moe.fused_experts import check, makes

if reason := fused.unsupported(torch.device("cuda")):
    pytest.skip(f"needs {reason}", allow_module_level=True)

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


@pytest.fixture(autouse=True)
def exact() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False


def test_the_activations_are_their_references() -> None:
    assert activations.compare("cuda", list(DTYPES)) == 2 * 102


def test_the_grouped_products_are_their_references() -> None:
    dtypes = (torch.float16, torch.bfloat16, torch.float32)
    assert grouped.compare("cuda", dtypes, (*grouped.SHAPES, (512, 384)), (*grouped.COUNTS, (1000, 0, 3, 64))) == 72


def counts_of(experts: int, rows: int) -> torch.Tensor:
    """So many rows, most of them of a few experts and none of some."""
    shares = torch.arange(1, experts + 1).double().reciprocal() * (torch.arange(experts) % 3 != 1)
    counts = (shares / shares.sum() * rows).long()
    counts[-1 if experts % 3 != 2 else 0] += rows - int(counts.sum())
    return counts


def tolerance(dtype: torch.dtype) -> float:
    return max(4 * torch.finfo(dtype).eps, 1e-14)


@pytest.mark.parametrize("tokens", [0, 1, 7, 4096])
@pytest.mark.parametrize("experts", [2, 8, 64])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sorted_rows(dtype: torch.dtype, experts: int, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of counts on the device, and on the host."""
    counts = counts_of(experts, tokens)
    x = torch.randn(tokens, 64, generator=torch.Generator().manual_seed(2)).to("cuda", dtype)
    chosen = [FFN(experts, 64, 128, activation="gelu"), SwiGLU(experts, 64, 128)]
    for made in chosen if experts > 2 else makes(experts, 64, 128):
        made = made.to("cuda", dtype)
        for known in (False, True):
            monkeypatch.setattr(fused_experts, "MANY_OF_KNOWN", 0 if known else 1 << 40)
            check(made, x, counts if known else counts.cuda(), tolerance(dtype))


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_many_rows_of_many_experts(dtype: torch.dtype, known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = counts_of(256, 32768)
    x = torch.randn(32768, 64, generator=torch.Generator().manual_seed(3)).to("cuda", dtype)
    monkeypatch.setattr(fused_experts, "MANY_OF_KNOWN", 0 if known else 1 << 40)
    check(SwiGLU(256, 64, 128).to("cuda", dtype), x, counts if known else counts.cuda(), tolerance(dtype))


@pytest.mark.parametrize("rows", [0, 1, 33, 1500])
@pytest.mark.parametrize("experts", [2, 8])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equal_blocks(dtype: torch.dtype, experts: int, rows: int) -> None:
    x = torch.randn(experts, rows, 64, generator=torch.Generator().manual_seed(2)).to("cuda", dtype)
    for made in makes(experts, 64, 128):
        check(made.to("cuda", dtype), x, None, tolerance(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_narrow_rows_make_no_host_wait(dtype: torch.dtype) -> None:
    """Of odd widths, which torch's grouped product refuses, too."""
    for width, hidden in ((64, 128), (20, 36)):
        layer = SwiGLU(4, width, hidden).to("cuda", dtype)
        x = torch.randn(100, width, device="cuda", dtype=dtype, requires_grad=True)
        counts = torch.tensor([90, 0, 3, 7], device="cuda")
        layer(x, counts).sum().backward()  # kernels are loaded
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            layer(x, counts).sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
