"""Every way to dispatch equals the oracle, outputs and gradients, on all that a gate can decide."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable

import pytest
import torch
from commbench_kernels import rows
from torch import Tensor

from commbench.errors import UsageError
from moe_ref import FFN, Capacity, Gate, GateConfig, MoE, Routing, dispatch, fused
from moe_ref.sparse_rows import SparseCombine

EXACT = ("fairseq_einsum", "sparse")
WIDTH = 6
CAPACITIES = {
    "even": Capacity("tutel", 1.0),
    "overflow": Capacity("tutel", 0.5),
    "no drop": Capacity("tutel", 0.0),
    "capped": Capacity("tutel", -1.0),
    "roomy": Capacity("deepspeed", 2.0),
    "nothing fits": Capacity("tutel", 0.1),
    "dropless": Capacity("dropless"),
}


def made(
    capacity: Capacity, *, tokens: int, k: int, padded: bool, skewed: bool, second: str = "all", device: str = "cpu"
) -> tuple[Callable[[], Routing], Tensor]:
    """Something that routes anew (a graph serves one backward pass only), and the tokens, fp64 with an fp64 gate."""
    generator = torch.Generator().manual_seed(tokens + k)
    gate = Gate(WIDTH, GateConfig(experts=4, top_k=k, dtype="fp64", capacity=capacity, second=second),
                generator=generator)  # fmt: skip
    x_TD = torch.randn(tokens, WIDTH, dtype=torch.float64, generator=generator)
    if skewed and tokens:
        # All tokens point towards expert 0, so that it overflows and others stay empty.
        x_TD = 0.1 * x_TD + gate.get_parameter("router.weight_ED")[0].detach()
    padding_T = torch.arange(tokens) % 3 == 1 if padded else None
    gate, x_TD = gate.to(device), x_TD.to(device)
    padding_T = None if padding_T is None else padding_T.to(device)
    return lambda: gate(x_TD, padding_T, generator=torch.Generator(device).manual_seed(3)), x_TD


def moved(way: str, routing: Routing, x_TD: Tensor) -> list[Tensor]:
    """The buffer, the output, and the gradients by tokens, by what experts made, and by weights."""
    x_TD = x_TD.clone().requires_grad_()
    routing.weights_TK.retain_grad()
    moves = dispatch.get(way)(routing)
    buffer = moves.dispatch(x_TD)
    made_of_it = (buffer.sin() + 1).detach().requires_grad_()  # not 0 in rows that nobody took
    y_TD = moves.combine(made_of_it)
    loss = (y_TD * torch.linspace(1, 2, y_TD.numel(), dtype=y_TD.dtype, device=x_TD.device).view_as(y_TD)).sum()
    slope = torch.linspace(-1, 1, buffer.numel(), dtype=buffer.dtype, device=x_TD.device)
    loss = loss + (buffer * slope.view_as(buffer)).sum()
    (loss + 0 * (x_TD.sum() + made_of_it.sum() + routing.weights_TK.sum())).backward()  # all have a gradient
    found = [buffer, y_TD, x_TD.grad, made_of_it.grad, routing.weights_TK.grad]
    assert all(tensor is not None for tensor in found)
    return [tensor.detach() for tensor in found if tensor is not None]


@pytest.mark.parametrize("name", CAPACITIES)
@pytest.mark.parametrize("way", EXACT)
def test_equal_to_the_oracle(way: str, name: str) -> None:
    sizes = itertools.product((16, 13, 1, 0), (1, 2, 4), (False, True), (False, True))
    for tokens, k, padded, skewed in sizes:
        route, x_TD = made(CAPACITIES[name], tokens=tokens, k=k, padded=padded, skewed=skewed)
        for ours, oracle in zip(moved(way, route(), x_TD), moved("loop", route(), x_TD), strict=True):
            torch.testing.assert_close(ours, oracle, rtol=1e-12, atol=1e-12)


def test_the_cases_are_what_they_are_called() -> None:
    overflow, _ = made(CAPACITIES["overflow"], tokens=16, k=1, padded=False, skewed=True)
    assert int(overflow().dropped) == 14 and overflow().counts_E.tolist() == [2, 0, 0, 0]
    none, _ = made(CAPACITIES["no drop"], tokens=16, k=2, padded=True, skewed=True)
    assert int(none().dropped) == 0 and none().capacity == int(none().loads_E.max())
    nothing, _ = made(CAPACITIES["nothing fits"], tokens=16, k=2, padded=False, skewed=False)
    assert nothing().capacity == 0 and int(nothing().dropped) == 32


@pytest.mark.parametrize("second", ["sampling", "random"])
@pytest.mark.parametrize("name", ["overflow", "dropless"])
def test_second_expert_policies_move_right(name: str, second: str) -> None:
    route, x_TD = made(CAPACITIES[name], tokens=15, k=2, padded=True, skewed=False, second=second)
    if second == "random" and name == "dropless":
        assert route().rows < 20, "some second experts are not taken"
    for way in EXACT:
        for ours, oracle in zip(moved(way, route(), x_TD), moved("loop", route(), x_TD), strict=True):
            torch.testing.assert_close(ours, oracle, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["overflow", "no drop", "dropless"])
def test_the_tensor_core_way_is_good_to_bf16(name: str, dtype: torch.dtype) -> None:
    route, x_TD = made(CAPACITIES[name], tokens=64, k=2, padded=True, skewed=False)
    x_TD = x_TD.to(dtype)
    found = moved("fairseq_einsum_tc", route(), x_TD)
    for ours, oracle in zip(found, moved("loop", route(), x_TD), strict=True):
        assert ours.dtype == oracle.dtype
        torch.testing.assert_close(ours, oracle, rtol=2**-6, atol=2**-6 * float(oracle.abs().max()))
    if dtype != torch.bfloat16:
        assert torch.equal(found[0], found[0].bfloat16().to(dtype)), "its products are bf16"


def test_sparse_gradients_are_those_of_finite_differences() -> None:
    for name in ("overflow", "dropless"):
        route, x_TD = made(CAPACITIES[name], tokens=7, k=2, padded=True, skewed=False)
        routing = route()
        moves = dispatch.SparseDispatcher(routing)
        assert torch.autograd.gradcheck(moves.dispatch, (x_TD.clone().requires_grad_(),))
        rows = torch.randn(routing.buffer_shape(WIDTH), dtype=torch.float64)
        weights = routing.weights_TK.detach().requires_grad_()

        def combined(rows: Tensor, weights: Tensor, moves: dispatch.SparseDispatcher = moves) -> Tensor:
            y_TD: Tensor = SparseCombine.apply(rows.flatten(0, -2), weights, moves.rows_TK, moves.choice_R)
            return y_TD

        # Weights without a slot have no gradient, and none numerically either.
        assert torch.autograd.gradcheck(combined, (rows.requires_grad_(), weights))


def kept_for_backward(way: str, tokens: int) -> int:
    """Elements that the graph of one dispatch and combine holds."""
    route, x_TD = made(CAPACITIES["even"], tokens=tokens, k=2, padded=False, skewed=False)
    routing, held = route(), {}

    def hold(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        moves = dispatch.get(way)(routing)
        loss = moves.combine(moves.dispatch(x_TD.requires_grad_())).sum()
    loss.backward()
    return sum(held.values())


def test_the_baseline_is_quadratic_and_sparse_is_not() -> None:
    """E C = K T here, so a dense tensor has K T^2 elements."""
    assert kept_for_backward("fairseq_einsum", 256) >= 2 * 256**2
    few, many = (kept_for_backward("sparse", tokens) for tokens in (128, 512))
    assert many == 4 * few and many < 512 * 2 * (WIDTH + 8)


def test_dropless_rows_are_sorted_by_expert_then_order() -> None:
    route, x_TD = made(CAPACITIES["dropless"], tokens=9, k=2, padded=True, skewed=False)
    routing = route()
    buffer_RD = dispatch.SparseDispatcher(routing).dispatch(x_TD)
    rows = []
    for e in range(4):
        for k in range(2):
            rows += [t for t in range(9) if t % 3 != 1 and routing.experts_TK[t, k] == e]
    assert torch.equal(buffer_RD, x_TD[rows])
    assert routing.rows == len(rows) == int(routing.counts_E.sum()) == 12


def test_what_experts_write_where_nobody_is_does_not_come_back() -> None:
    route, x_TD = made(CAPACITIES["roomy"], tokens=5, k=2, padded=True, skewed=False)
    moves = dispatch.SparseDispatcher(route())
    buffer = moves.dispatch(x_TD)
    spoilt = torch.where(buffer == 0, torch.nan, buffer)
    assert torch.equal(moves.combine(spoilt), moves.combine(buffer))


def test_auto_is_the_fastest_that_runs_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = MoE(Gate(4, GateConfig(experts=2)), FFN(2, 4, 8))
    routing = layer.gate(torch.zeros(3, 4))
    assert type(layer.dispatcher(routing)) is dispatch.SparseDispatcher
    assert "permute=auto (sparse: fused needs a GPU, and tensors are on cpu)" in repr(layer)
    monkeypatch.setattr(fused, "unsupported", lambda device: "")
    assert type(layer.dispatcher(routing)) is dispatch.FusedDispatcher
    assert "permute=auto (fused: it runs here)" in repr(layer)
    assert "permute=loop\n" in repr(MoE(layer.gate, layer.experts, permute="loop"))
    with pytest.warns(FutureWarning, match="dispatch= is called permute= now"):
        assert "permute=loop\n" in repr(MoE(layer.gate, layer.experts, dispatch="loop"))


@pytest.mark.parametrize("way", dispatch.TABLE)
def test_shapes_that_do_not_fit(way: str) -> None:
    if way == "fused" and (reason := fused.unsupported(torch.device("cpu"))):
        pytest.skip(f"needs {reason}")
    route, x_TD = made(CAPACITIES["even"], tokens=8, k=2, padded=False, skewed=False)
    moves = dispatch.get(way)(route())
    with pytest.raises(UsageError, match=r"tokens of shape \[7, 6\] for a routing of 8 tokens"):
        moves.dispatch(x_TD[1:])
    with pytest.raises(UsageError, match=r"a buffer of shape \[16, 6\] for a routing with rows of shape \[4, 4\]"):
        moves.combine(moves.dispatch(x_TD).flatten(0, 1))


def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """`fused` by the references of its kernels, on any device."""
    monkeypatch.setattr(fused, "unsupported", lambda device: "")
    for name in ("scatter", "gather_sum", "combine_backward"):
        monkeypatch.setattr(rows, name, getattr(rows, f"{name}_reference"))


@pytest.mark.parametrize("name", CAPACITIES)
def test_the_references_of_the_kernels_are_sparse(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain(monkeypatch)
    for tokens, k, skewed in itertools.product((13, 1, 0), (1, 2, 4), (False, True)):
        route, x_TD = made(CAPACITIES[name], tokens=tokens, k=k, padded=True, skewed=skewed)
        for ours, oracle in zip(moved("fused", route(), x_TD), moved("sparse", route(), x_TD), strict=True):
            assert ours.shape == oracle.shape and ours.dtype == oracle.dtype
            torch.testing.assert_close(ours, oracle, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_fused_has_the_dtypes_of_sparse(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    plain(monkeypatch)
    route, x_TD = made(CAPACITIES["overflow"], tokens=64, k=2, padded=True, skewed=False)
    found = [moved(way, route(), x_TD.to(dtype)) for way in ("fused", "sparse")]
    for ours, oracle in zip(*found, strict=True):
        assert ours.dtype == oracle.dtype
        torch.testing.assert_close(ours, oracle, rtol=2**-6, atol=2**-6)


def test_what_fused_needs_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    gate = Gate(WIDTH, GateConfig(experts=4))
    layer = MoE(gate, FFN(4, WIDTH, WIDTH), permute="fused")
    with pytest.raises(UsageError, match="permute=fused needs a GPU, and tensors are on cpu") as caught:
        layer(torch.ones(3, WIDTH))
    assert "permute=sparse" in str(caught.value.hint)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setitem(sys.modules, "triton", None)
    rows._missing_triton.cache_clear()
    with pytest.raises(UsageError, match="permute=fused needs triton, which cannot be imported"):
        layer(torch.ones(3, WIDTH))
    rows._missing_triton.cache_clear()


def test_an_unknown_way_is_named() -> None:
    with pytest.raises(UsageError, match="unknown permute 'spars'"):
        dispatch.get("spars")
