"""Experts over equal blocks and over sorted rows are each expert on its own rows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from commbench.errors import UsageError
from moe_ref import FFN, SwiGLU, fused_experts
from moe_ref import experts as module

E, D, H = 3, 16, 32
COUNTS = [[3, 4, 2], [0, 9, 0], [9, 0, 0], [0, 0, 9], [0, 0, 0]]


def ffn(dtype: torch.dtype) -> FFN:
    made = FFN(E, D, H, activation="gelu", dtype=dtype, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for bias in (made.b1_EH, made.b2_ED):
            assert bias is not None
            bias.normal_(generator=torch.Generator().manual_seed(1))
    return made


def swiglu(dtype: torch.dtype) -> SwiGLU:
    return SwiGLU(E, D, H, dtype=dtype, generator=torch.Generator().manual_seed(0))


def by_hand(experts: FFN | SwiGLU, x_ND: Tensor, e: int) -> Tensor:
    if isinstance(experts, SwiGLU):
        gated = functional.silu(x_ND @ experts.gate_EDH[e]) * (x_ND @ experts.up_EDH[e])
        return gated @ experts.down_EHD[e]
    assert experts.b1_EH is not None and experts.b2_ED is not None
    hidden = functional.gelu(x_ND @ experts.w1_EDH[e] + experts.b1_EH[e])
    return hidden @ experts.w2_EHD[e] + experts.b2_ED[e]


def gradients(experts: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    """By the tokens and all parameters, of a loss that weighs all elements differently; zeros where there is none."""
    weighed = (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum()
    found = torch.autograd.grad(weighed, [x, *experts.parameters()], allow_unused=True, materialize_grads=True)
    return list(found)


@pytest.mark.parametrize("make", [ffn, swiglu])
@pytest.mark.parametrize("counts", COUNTS, ids=str)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.05)]
)
def test_sorted_rows(
    make: Callable[[torch.dtype], FFN | SwiGLU], counts: list[int], dtype: torch.dtype, tolerance: float
) -> None:
    experts = make(dtype)
    x_ND = torch.randn(sum(counts), D, dtype=dtype, generator=torch.Generator().manual_seed(2)).requires_grad_()
    found = experts(x_ND, torch.tensor(counts))
    expected = torch.cat([by_hand(experts, rows, e) for e, rows in enumerate(x_ND.split(counts))])
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    both = (gradients(experts, x_ND, y) for y in (found, expected))
    for ours, oracle in zip(*both, strict=True):
        torch.testing.assert_close(ours, oracle, rtol=tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("make", [ffn, swiglu])
@pytest.mark.parametrize("rows", [5, 0])
def test_equal_blocks(make: Callable[[torch.dtype], FFN | SwiGLU], rows: int) -> None:
    experts = make(torch.float64)
    x_END = torch.randn(E, rows, D, dtype=torch.float64).requires_grad_()
    found = experts(x_END)
    expected = torch.stack([by_hand(experts, x_END[e], e) for e in range(E)])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for ours, oracle in zip(*(gradients(experts, x_END, y) for y in (found, expected)), strict=True):
        torch.testing.assert_close(ours, oracle, rtol=1e-12, atol=1e-12)


def test_who_does_the_grouped_product() -> None:
    """It is torch's where that can, and else says why not."""
    rows, weights = torch.zeros(8, D), torch.zeros(E, D, H)
    if hasattr(functional, "grouped_mm"):
        assert not fused_experts.grouped_unsupported(rows, weights)
        assert not fused_experts.grouped_unsupported(rows.bfloat16(), weights.bfloat16())
        assert "float64" in fused_experts.grouped_unsupported(rows.double(), weights.double())
        assert "no rows" in fused_experts.grouped_unsupported(rows[:0], weights)
        assert "16 bytes" in fused_experts.grouped_unsupported(torch.zeros(8, 6), torch.zeros(E, 6, H))
        assert "weights torch.bfloat16" in fused_experts.grouped_unsupported(rows, weights.bfloat16())
    else:
        assert "grouped_mm" in fused_experts.grouped_unsupported(rows, weights)


def test_the_grouped_product_takes_the_gradient_of_a_plain_sum() -> None:
    rows, weights = torch.randn(8, D, requires_grad=True), torch.randn(E, D, H, requires_grad=True)
    module.grouped_mm(rows, weights, torch.tensor([3, 0, 5])).sum().backward()
    assert rows.grad is not None and weights.grad is not None and not weights.grad[1].any()


def test_blocks_of_ranks() -> None:
    received_WECD = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5)
    blocks_END = module.by_expert(received_WECD)
    assert blocks_END.shape == (3, 8, 5)
    assert torch.equal(blocks_END[1, :4], received_WECD[0, 1]) and torch.equal(blocks_END[1, 4:], received_WECD[1, 1])
    assert torch.equal(module.by_source(blocks_END, 2), received_WECD)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: module.experts_per_rank(6, 4), "experts=6 do not divide among 4 ranks"),
        (lambda: module.experts_per_rank(0, 1), "experts=0"),
        (lambda: FFN(0, D, H), "experts=0"),
        (lambda: FFN(E, D, H, activation="tanhh"), "unknown activation 'tanhh'"),
        (lambda: FFN(E, D, H)(torch.zeros(2, 4, D)), r"\[2, 4, 16\] for 3 experts of width 16"),
        (lambda: FFN(E, D, H)(torch.zeros(4, D)), r"\[4, 16\]"),
        (lambda: FFN(E, D, H)(torch.zeros(4, D), torch.tensor([2, 2])), r"\[4, 16\] with counts of shape \[2\]"),
        (lambda: module.by_source(torch.zeros(3, 7, 5), 2), "7 rows"),
    ],
)
def test_what_cannot_be_meant(make: Callable[[], object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make()


def test_experts_per_rank() -> None:
    assert module.experts_per_rank(8, 4) == 2
