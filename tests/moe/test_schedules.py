"""Schedules on one rank: what overlaps what, formulas by hand, ablation, and what cannot be meant."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from commbench.errors import UsageError
from moe_ref import FFN, Capacity, DistributedMoE, Gate, GateConfig, MoE, schedules, shard, sharding
from moe_ref.schedules import Shape, TrafficEntry, equivalence, verify
from tests.moe.fake import Alone

D, H, E = 8, 16, 4
CONFIG = GateConfig(experts=E, top_k=2, dtype="fp64", capacity=Capacity(factor=1.5))
DROPLESS = replace(CONFIG, capacity=Capacity("dropless"))


def layer(comm: Any, config: GateConfig = CONFIG, **given: Any) -> DistributedMoE:
    generator = torch.Generator().manual_seed(0)
    gate = Gate(D, config, generator=generator)
    return DistributedMoE(gate, FFN(E, D, H, dtype=torch.float64, generator=generator), comm, **given)


def tokens(*shape: int) -> Tensor:
    return torch.randn(*shape, D, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


class Watched(Alone):
    """Experts are noted too, forward and backward, and counts are not."""

    def all_gather(self, out: Tensor, inp: Tensor, *, async_op: bool = False) -> Any:
        out.copy_(inp)

    def watch(self, moe: DistributedMoE) -> None:
        apply = moe.apply_experts
        number = iter(range(100))

        def noted(x: Tensor, *given: Any) -> Tensor:
            part = next(number)
            self.events.append(f"experts {part}")
            x.register_hook(lambda _: self.events.append(f"done {part}"))
            out = apply(x, *given)
            out.register_hook(lambda _: self.events.append(f"back {part}"))
            return out

        moe.apply_experts = noted  # type: ignore[method-assign]


@pytest.mark.parametrize("config", [CONFIG, DROPLESS], ids=["capacity", "dropless"])
@pytest.mark.parametrize("name", ["pipelined", "expert_groups"])
def test_exchanges_run_beside_experts_in_both_passes(name: str, config: GateConfig) -> None:
    """Three parts: 0, 1, 2 go there, 3, 4, 5 come back; backward 6, 7, 8 and 9, 10, 11 are their adjoints."""
    comm = Watched()
    moe = layer(comm, config, equal_tokens=True)
    moe.schedule = schedules.get(name, **{"chunks" if name == "pipelined" else "groups": 3})
    comm.watch(moe)
    x = tokens(12).requires_grad_()
    y, _ = moe(x)
    assert comm.events == [
        "issue 0", "issue 1", "issue 2",
        "wait 0", "experts 0", "issue 3",
        "wait 1", "experts 1", "issue 4",
        "wait 2", "experts 2", "issue 5",
        "wait 3", "wait 4", "wait 5",
    ]  # fmt: skip
    comm.events.clear()
    y.square().sum().backward()
    assert comm.events == [
        "issue 6", "issue 7", "issue 8",
        "wait 6", "back 2", "done 2", "issue 9",
        "wait 7", "back 1", "done 1", "issue 10",
        "wait 8", "back 0", "done 0", "issue 11",
        "wait 9", "wait 10", "wait 11",
    ]  # fmt: skip
    alone = MoE(moe.gate, moe.experts)
    torch.testing.assert_close(y, alone(x).y, rtol=1e-12, atol=1e-12)
    (wanted,) = torch.autograd.grad(alone(x).y.square().sum(), [x])
    torch.testing.assert_close(x.grad, wanted, rtol=1e-12, atol=1e-12)


def test_a_graph_may_be_gone_through_twice() -> None:
    moe = layer(Alone(), schedule=schedules.get("pipelined", chunks=2))
    x = tokens(12).requires_grad_()
    y, _ = moe(x)
    first, second = (torch.autograd.grad(y.square().sum(), [x], retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


EVEN = Shape(T=10, D=8, E=4, K=2, C=6, W=2, itemsize=2, agreements=1)
ROWS = ((3, 1, 0, 4), (2, 2, 2, 2))


@pytest.mark.parametrize(
    ("name", "params", "shape", "expected"),
    [
        # S = E C D bytes: 4 x 6 x 8 x 2 = 384, twice there and twice back
        ("sequential", {}, EVEN, {"all_to_all": [384] * 4, "all_reduce": [8]}),
        ("sequential", {}, replace(EVEN, input_grad=False), {"all_to_all": [384] * 3, "all_reduce": [8]}),
        # 6 slots in 4 chunks: 1, 2, 1, 2, each 64 bytes
        ("pipelined", {"chunks": 4}, EVEN, {"all_to_all": [64] * 8 + [128] * 8, "all_reduce": [8]}),
        # one of two experts of each rank at a time
        ("expert_groups", {"groups": 2}, EVEN, {"all_to_all": [192] * 8, "all_reduce": [8]}),
        # 2 experts on 8 ranks, q = 4, r = 2: blocks of ceil(6 / 2) = 3 slots to 8 ranks; pieces of 2 ranks gathered
        ("sequential", {"r": 2}, replace(EVEN, E=2, W=8, weight_bytes=100),
         {"all_to_all": [8 * 3 * 16] * 4, "all_to_allv": [200] * 2, "all_reduce": [8]}),
        ("sequential", {"r": 4}, replace(EVEN, E=2, W=8, weight_bytes=100),
         {"all_to_all": [8 * 6 * 16] * 4, "all_reduce": [8]}),
        ("sequential", {"r": 1}, replace(EVEN, E=2, W=8, weight_bytes=100),
         {"all_to_all": [8 * 2 * 16] * 4, "all_to_allv": [400] * 2, "all_reduce": [8]}),
        ("sequential", {"r": 0}, replace(EVEN, E=2, W=8, weight_bytes=100),
         {"all_gather": [800], "reduce_scatter": [800], "all_reduce": [8]}),
        # rank 0 of 2 sends its 8 rows of 16 bytes, and gets 4 + 4
        ("sequential", {}, replace(EVEN, C=None, rows_WE=ROWS, agreements=0),
         {"all_to_allv": [128] * 4, "all_gather": [64]}),
        # rank 1 sends 8 and gets 4 + 4; halves: of 3, 1, 0, 4 they are 1 + 0 + 0 + 2 and 2 + 1 + 0 + 2
        ("pipelined", {"chunks": 2}, replace(EVEN, C=None, rows_WE=ROWS, agreements=0),
         {"all_to_allv": [16 * n for n in (3, 1 + 2, 5, 3 + 2)] * 2, "all_gather": [64]}),
    ],
)  # fmt: skip
def test_formulas_by_hand(name: str, params: dict[str, Any], shape: Shape, expected: dict[str, list[int]]) -> None:
    found: dict[str, list[int]] = {}
    for message in schedules.get(name, **params).traffic(shape):
        found.setdefault(message.collective, []).extend([message.nbytes] * message.calls)
    assert {name: sorted(sizes) for name, sizes in found.items()} == {
        name: sorted(sizes) for name, sizes in expected.items()
    }


class Scaled(schedules.chunked.Sequential):
    """Planted: y is off."""

    def forward(self, *given: Any) -> Any:
        y, routing = super().forward(*given)
        return 1.001 * y, routing


class Frozen(schedules.chunked.Sequential):
    """Planted: y is right, and goes nowhere backward."""

    def forward(self, layer: Any, x_TD: Tensor, *given: Any) -> Any:
        y, routing = super().forward(layer, x_TD, *given)
        return y.detach() + 0 * x_TD, routing


class Swapped(schedules.chunked.Sequential):
    """Planted: the gradients of two tokens are exchanged."""

    def forward(self, layer: Any, x_TD: Tensor, *given: Any) -> Any:
        order = torch.arange(len(x_TD))
        order[:2] = order[:2].flip(0)
        back = x_TD.detach()[order]
        mixed = x_TD[order] + (x_TD.detach() - back)
        return super().forward(layer, mixed, *given)


@pytest.mark.parametrize(
    "config", [CONFIG, DROPLESS, replace(CONFIG, noise=0.5)], ids=["capacity", "dropless", "noise"]
)
def test_schedules_are_compared_by_what_they_compute(config: GateConfig) -> None:
    moe, x = layer(Watched(), config), tokens(12).requires_grad_()
    own = moe.schedule
    for name, params in (("pipelined", {"chunks": 3}), ("expert_groups", {"groups": 2}), ("sequential", {})):
        for generator in (None, torch.Generator().manual_seed(3)):
            before = torch.get_rng_state(), generator and generator.get_state()
            found = equivalence.compare(moe, x, schedules.get(name, **params), generator=generator)
            found.raise_if_different()
            assert torch.equal(torch.get_rng_state(), before[0]), "what comes after draws the same"
            assert generator is None or torch.equal(generator.get_state(), before[1])  # type: ignore[arg-type]
    assert {"y", "tokens"} < found.differences.keys() and len(found.differences) > 4
    assert moe.schedule is own and x.grad is None


def test_schedules_that_compute_something_else_are_named_with_what_differs() -> None:
    moe, x = layer(Alone()), tokens(12).requires_grad_()
    with pytest.raises(equivalence.DifferentResult, match=r"differ in y by 0\.001, tokens by 0\.001, gate"):
        equivalence.compare(moe, x, Scaled()).raise_if_different()
    equivalence.compare(moe, x, Scaled(), tolerance=0.01).raise_if_different()
    with pytest.raises(equivalence.DifferentResult, match=r"differ in tokens by 1, gate.*experts"):
        equivalence.compare(moe, x, Frozen()).raise_if_different()
    found = equivalence.compare(moe, x, Swapped())
    assert [name for name, far in found.differences.items() if far > found.tolerance] == ["tokens"]
    assert not found.differences["y"] > found.tolerance
    nowhere = found._replace(differences={"y": float("nan")})
    with pytest.raises(equivalence.DifferentResult, match="y by nan"):
        nowhere.raise_if_different()
    with pytest.raises(UsageError, match="tp"):
        equivalence.compare(moe, x, schedules.get("parm_s2"))
    assert str(moe.schedule) == "sequential r=1"


def test_verify_sees_what_is_not_in_the_formula() -> None:
    moe, x = layer(Alone()), tokens(12).requires_grad_()
    report = verify.verify(moe, x)
    report.raise_if_different()
    assert report.shape.C == 8 and x.grad is None
    wrong = verify.TrafficReport(
        [*report.sent, TrafficEntry("backward", "all_to_all", "comm", 1, 7)], report.expected, report.shape
    )
    with pytest.raises(verify.Mismatch, match="nbytes=7"):
        wrong.raise_if_different()
    with pytest.raises(verify.Mismatch, match="sent and not in the formula: nothing"):
        verify.TrafficReport(report.sent[1:], report.expected, report.shape).raise_if_different()


@pytest.mark.parametrize("config", [CONFIG, DROPLESS], ids=["capacity", "dropless"])
@pytest.mark.parametrize("schedule", ["sequential", "pipelined", "expert_groups"])
def test_skips(schedule: str, config: GateConfig) -> None:
    comm = Alone()
    moe, x = layer(comm, config, schedule=schedule), tokens(12).requires_grad_()
    whole = moe(x).y
    assert comm.issued
    moe.skip, comm.issued = "communication", 0
    unsent = moe(x).y
    assert not comm.issued, "nothing is sent"
    torch.testing.assert_close(unsent, whole, rtol=1e-12, atol=1e-12)  # of one rank that is what would arrive
    unsent.sum().backward()
    assert not comm.issued and x.grad is not None
    moe.skip = "experts"
    y, routing = moe(x)
    expected = routing.weights_TK.sum(1, keepdim=True) * x
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


def test_shapes_of_what_a_no_op_gives() -> None:
    from moe_ref.comms import NoOpComm

    class Four(Alone):
        size = 4

    no_op, inp = NoOpComm(Four()), torch.arange(3.0)[:, None]
    assert no_op.autograd.all_gather(inp).flatten().tolist() == [0, 1, 2] * 4
    assert no_op.exchange_counts([1, 2]) == [[1, 2]] * 4
    out = no_op.autograd.all_to_allv(inp, [2, 0, 0, 2], [3, 0, 0, 0])
    assert out.flatten().tolist() == [0, 1, 2, 0]
    assert no_op.autograd.all_to_allv(inp[:0], [1, 0, 0, 0], [0, 0, 0, 0]).tolist() == [[0]]


def pieces(count: int, *, bias: bool = True) -> list[Any]:
    """One expert cut into `count`, each piece from an equal whole."""
    make = [FFN(1, D, H, bias=bias, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
            for _ in range(count)]  # fmt: skip
    for experts in make:
        if bias:
            torch.nn.init.normal_(experts.b2_ED, generator=torch.Generator().manual_seed(4))
    return [shard(experts, piece, count) for piece, experts in enumerate(make)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("count", [2, 4])
def test_pieces_sum_to_the_whole(count: int, bias: bool) -> None:
    (whole,), cut, x = pieces(1, bias=bias), pieces(count, bias=bias), tokens(1, 5)
    assert sum(p.numel() for experts in cut for p in experts.parameters()) == sum(p.numel() for p in whole.parameters())
    outputs = [torch.func.functional_call(experts, sharding.own_weights(experts), (x,)) for experts in cut]
    torch.testing.assert_close(sum(outputs), whole(x), rtol=1e-12, atol=1e-12)


BAD: list[tuple[Any, str]] = [
    (lambda: schedules.get("piplined"), "unknown schedule 'piplined'"),
    (lambda: schedules.get("pipelined", d=2), "schedule pipelined has no parameter 'd'"),
    (lambda: layer(Alone(), schedule=schedules.get("pipelined", chunks=0)), "chunks=0 is below 1"),
    (lambda: layer(Alone(), schedule=schedules.get("expert_groups", groups=5)), "groups=5 of 4 experts of a rank"),
    (lambda: layer(Alone(), schedule=schedules.get("sequential", r=2)), "r=2 for experts in 1 shards"),
    (lambda: layer(Alone(), schedule=schedules.get("pipelined", r=0)), "no token is sent"),
    (lambda: layer(Alone(), skip="gate"), "unknown skip 'gate'"),
    (lambda: layer(Alone(), tp=Alone()), "tp and ep of 1 and None ranks for a comm of 1"),
    (lambda: layer(Alone(), tp=Alone(), ep=Alone()), "schedule sequential of a layer with a tp communicator"),
    (lambda: layer(Alone())(torch.zeros(3, 7)), r"input of shape \[3, 7\] for a layer of width 8"),
    (lambda: layer(Alone())(tokens(3, 4), torch.zeros(12, dtype=torch.bool)), r"\[12\] for input of shape \[3, 4, 8\]"),
    (lambda: layer(ranks(3)), "experts=4 do not divide among 3 ranks"),
    (lambda: layer(ranks(6)), "experts=4 do not share 6 ranks equally"),
    (lambda: layer(ranks(2)), "rank 0 of 2 has 4 experts, piece 0 of 1, of the gate's 4"),
    (lambda: shard(FFN(1, D, 6), 0, 4), r"w1_EDH of shape \[1, 8, 6\] does not divide into 4 shards"),
    (lambda: shard(FFN(1, 6, H), 0, 4), r"b2_ED of shape \[1, 6\] does not divide into 4 shards"),
    (lambda: shard(FFN(1, D, H), 2, 2), "piece=2 of 2"),
    (lambda: shard(pieces(2)[0], 0, 2), "cut into 2 shards already"),
    (lambda: Capacity(factor=float("nan")), "capacity factor=nan"),
    (lambda: GateConfig(experts=2, top_k=3), "top_k=3 of experts=2"),
]  # fmt: skip


def ranks(size: int) -> Any:
    comm = Alone()
    comm.size = size  # type: ignore[misc]
    return comm


@pytest.mark.parametrize(("make", "words"), BAD)
def test_what_cannot_be_meant(make: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make()
