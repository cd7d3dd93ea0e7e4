"""Tokens to the ranks of their experts and back, on tensors: equal to one rank that has all experts, gradients too.

One process group of two pretended nodes of two ranks runs all cases.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch import Tensor

import commbench
from commbench import payloads
from commbench.communicators.communicator import Communicator
from commbench.communicators.routed_agreement import WAYS
from commbench.communicators.routed_choice import LayerAsk, RoutedChoice
from commbench.errors import UsageError
from commbench.payloads import tensors
from commbench.train import config
from moe_ref import DistributedMoE, Gate, schedules
from moe_ref.schedules import Shape
from moe_ref.schedules.deduplicated import EXCHANGES, Deduplicated
from moe_ref.schedules.predict import plan
from moe_ref.schedules.verify import verify
from moe_ref.training import build
from tests.gloo.calls import by, nodes_of
from tests.gloo.test_moe import Case, check
from tests.gloo.test_train import TINY, run
from tests.support import profiles
from tests.support.ranks import on_gloo

RANKS, EXPERTS, TOP_K, D = 4, 8, 3, 6


def tokens_of(rank: int, many: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, experts and weights. Some choices are none."""
    generator = torch.Generator().manual_seed(rank)
    x = torch.randn(many, D, dtype=torch.float64, generator=generator)
    experts = torch.rand(many, EXPERTS, generator=generator).topk(TOP_K).indices
    experts[torch.rand(many, TOP_K, generator=generator) < 0.1] = -1
    return x, experts, torch.rand(many, TOP_K, dtype=torch.float64, generator=generator)


def apply(expert: int, rows: Tensor) -> Tensor:
    return (rows * (1 + expert)).tanh()


def whole(x: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
    """What one rank with all experts makes of its tokens."""
    y = torch.zeros_like(x)
    for expert in range(EXPERTS):
        y = y + apply(expert, x) * (weights * (experts == expert)).sum(1, keepdim=True)
    return y


def over_ranks(comm: Communicator, x: Tensor, experts: Tensor, weights: Tensor, algorithm: str) -> Tensor:
    rows, counts, handle = comm.dispatch(x, experts, weights, num_experts=EXPERTS, algorithm=algorithm)
    assert counts.tolist() == handle.counts and sum(handle.counts) == len(rows)
    here = EXPERTS // RANKS
    parts = [apply(comm.rank * here + place, part) for place, part in enumerate(rows.split(handle.counts))]
    return comm.combine(torch.cat(parts), handle)


def results(comm: Communicator, algorithm: str) -> None:
    for case in ("even", "uneven", "one expert", "no tokens"):
        many = {"uneven": (7 + 3 * comm.rank) * (comm.rank != 1), "no tokens": 0}.get(case, 9)
        x, experts, weights = tokens_of(comm.rank, many)
        if case == "one expert":
            experts[:] = -1
            experts[:, 0] = 5
        x.requires_grad_()
        weights.requires_grad_()
        loss_weights = torch.arange(many * D, dtype=torch.float64).view(many, D) + comm.rank
        want, found = whole(x, experts, weights), over_ranks(comm, x, experts, weights, algorithm)
        assert torch.allclose(found, want, rtol=1e-12, atol=1e-12), (algorithm, case)
        expected = torch.autograd.grad((want * loss_weights).sum(), [x, weights])
        gradients = torch.autograd.grad((found * loss_weights).sum(), [x, weights])
        for name, got, due in zip(("x", "weights"), gradients, expected, strict=True):
            assert torch.allclose(got, due, rtol=1e-12, atol=1e-11), (algorithm, case, name)


def rows_and_dtypes(comm: Communicator, algorithm: str) -> None:
    """Rows are those of the tokens that the handle names, in order; narrow dtypes are added up in fp32."""
    everybody = [tokens_of(rank, 9) for rank in range(RANKS)]
    x, experts, weights = everybody[comm.rank]
    x = x.to(torch.bfloat16)
    rows, _, handle = comm.dispatch(x, experts, weights.float(), num_experts=EXPERTS, algorithm=algorithm)
    here = EXPERTS // RANKS
    expert = np.repeat(np.arange(comm.rank * here, (comm.rank + 1) * here), handle.counts)
    want = sorted(
        (int(e), source, token)
        for source, (_, of_source, _) in enumerate(everybody)
        for token, chosen in enumerate(of_source)
        for e in chosen
        if e >= 0 and e // here == comm.rank
    )
    assert [*zip(expert.tolist(), handle.source.tolist(), handle.token.tolist(), strict=True)] == want
    for row, (_, source, token) in zip(rows, want, strict=True):
        assert torch.equal(row, everybody[source][0][token].to(torch.bfloat16))
    ones = (experts >= 0).sum(1, keepdim=True).to(torch.bfloat16).expand(-1, 2)
    back = comm.dispatch(x, experts, torch.ones(9, TOP_K), num_experts=EXPERTS, algorithm=algorithm)
    assert torch.equal(comm.combine(torch.ones(len(rows), 2, dtype=torch.bfloat16), back[2]), ones)
    assert f"top-{TOP_K} of {EXPERTS}: {algorithm}" in comm.explain()


def payloads_of_rows(comm: Communicator, algorithm: str) -> None:
    """Rows are what the quantiser makes of them once, to the bit, whatever the hops; gradients pass as they are."""
    x, experts, weights = tokens_of(comm.rank, 9)
    x, weights = x.float().repeat(1, 25).requires_grad_(), weights.float()
    payload = payloads.TABLE["fp8"]
    once = tensors.dequantise(tensors.quantise(x, payload), x.shape[1], x.dtype, payload).requires_grad_()
    given: dict[str, Any] = {"num_experts": EXPERTS, "algorithm": algorithm}
    rows, _, handle = comm.dispatch(x, experts, weights, payload="fp8", **given)
    want, _, plain = comm.dispatch(once, experts, weights, **given)
    assert torch.equal(rows, want)
    torch.manual_seed(3)
    loss_weights = torch.randn(rows.shape)
    (found,) = torch.autograd.grad((rows * loss_weights).sum(), [x])
    (due,) = torch.autograd.grad((want * loss_weights).sum(), [once])
    assert torch.equal(found, due)
    back, exact = comm.combine(rows.detach(), handle, payload="int8"), comm.combine(rows.detach(), plain)
    assert not torch.equal(back, exact) and torch.allclose(back, exact, atol=0.02 * float(rows.abs().max()))
    assert f"top-{TOP_K} of {EXPERTS}, as fp8: {algorithm}" in comm.explain()


def by_profile() -> None:
    """What nobody asks for by name is the profile's choice for the rank that has most tokens; in layers, too."""
    arguments = {"router": "uniform", "counts": "host", "output": "expert", "top_k": TOP_K, "experts": EXPERTS}
    row = D * 8
    ways = [
        profiles.choice("dispatch", name, first, last, arguments=arguments)
        for name, first, last in (("per_rank", 0, 10 * row - 1), ("per_node_pipelined", 10 * row, None))
    ]
    with by(*ways) as comm:
        for many, way in ((9, "per_rank"), (9 + comm.rank, "per_node")):
            x, experts, weights = tokens_of(comm.rank, many)
            rows, _, handle = comm.dispatch(x, experts, weights, num_experts=EXPERTS)
            assert handle.algorithm == way
            assert torch.allclose(comm.combine(rows, handle), x * (weights * (experts >= 0)).sum(1, keepdim=True))
        said = comm.explain()
        assert "480 B a rank, top-3 of 8: per_rank\n    why: the profile's choice for 0 .. 479 B" not in said
        assert "432 B a rank, top-3 of 8: per_rank\n    why: the profile's choice for 0 .. 479 B" in said
        assert "per_node_pipelined chunks=4 is a sweep's alone, and per_node sends the same rows" in said
        assert said.count("evidence: ") == 2
        x, experts, weights = tokens_of(comm.rank, 9)
        rows, _, handle = comm.dispatch(x.float(), experts, weights, num_experts=EXPERTS, payload="fp8")
        assert (
            handle.algorithm == "per_choice" and "nothing for top-3 of 8, as fp8, but for top-3 of 8" in comm.explain()
        )
        case = Case(EXPERTS, "dropless", top_k=TOP_K)
        check(comm, case, schedules.get("sequential"), exchange="profile")
        moe = DistributedMoE(case.gate(), case.mine(comm), comm, exchange="profile", equal_tokens=True)
        x = case.x(comm.rank)
        chosen = moe.schedule.settled(moe, x.reshape(-1, x.shape[-1]))
        assert isinstance(chosen, Deduplicated) and chosen.exchange == "per_node"
        verify(moe, x.requires_grad_()).raise_if_different()
        with pytest.raises(UsageError, match="exchange=profile without equal_tokens"):
            DistributedMoE(case.gate(), case.mine(comm), comm, exchange="profile")


def errors(comm: Communicator) -> None:
    """What one rank has wrong is an error on all of them."""
    x, experts, weights = tokens_of(0, 9)
    good: dict[str, Any] = {"x": x, "experts": experts, "weights": weights, "num_experts": EXPERTS}
    outside, twice, broken = experts.clone(), experts.clone(), weights.clone()
    outside[3, 1], twice[2], broken[4, 0] = EXPERTS, 1, float("nan")
    many = torch.zeros(9, EXPERTS + 1)
    for changed, words in (
        ({"experts": outside}, "expert 8 of num_experts=8"),
        ({"experts": twice}, "token 2 has an expert twice"),
        ({"weights": broken}, "a weight of token 4 is not finite"),
        ({"weights": weights[:, :1]}, r"weights are \(9, 1\)"),
        ({"experts": many.long(), "weights": many}, "9 experts a token of num_experts=8"),
        ({"num_experts": 6}, "num_experts=6 on 4 ranks"),
        ({"x": x[0]}, r"x is \(6,\)"),
        ({"algorithm": "per_planet"}, "unknown algorithm"),
        ({"payload": "fp4"}, "unknown payload"),
        ({"payload_back": "int8"}, "float64"),
        ({"algorithm": "all_gather", "payload": "int8"}, "sends rows as they are"),
    ):
        mine = comm.rank == 2
        told = words if mine else "rank 2 brings what cannot be dispatched"
        with pytest.raises(UsageError, match=told):
            comm.dispatch(**(good | changed if mine else good))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="rank 1 differs from rank 0 in dtype: 0 and 3"):
        comm.dispatch(**good | {"x": x.float() if comm.rank == 1 else x})
    _, _, handle = comm.dispatch(**good)
    with pytest.raises(UsageError, match="combine: y is"):
        comm.combine(x[:0], handle)
    given = good | {"x": x.float()}
    with pytest.raises(UsageError, match="rank 1 differs from rank 0 in payload: 2 and 0"):
        comm.dispatch(**given | {"payload": "fp8" if comm.rank == 1 else "none"})


def needs_two_levels(comm: Communicator) -> None:
    x, experts, weights = tokens_of(comm.rank, 3)
    with pytest.raises(UsageError, match="two levels need at least 2 nodes"):
        comm.dispatch(x, experts, weights, num_experts=EXPERTS, algorithm="per_node")


def layers(comm: Communicator) -> None:
    """Layers with each exchange equal their oracle, and send what the formula says."""
    sequential = schedules.get("sequential")
    for exchange in EXCHANGES:
        for tokens in ("even", "uneven", "padded"):
            check(comm, Case(EXPERTS, "dropless", tokens, top_k=TOP_K), sequential, exchange=exchange)
    case = Case(EXPERTS, "dropless")
    gate, experts = Gate(8, replace(case.config(), dtype="fp32")), case.mine(comm).float()
    for exchange in ("per_rank", "per_node"):
        moe = DistributedMoE(gate, experts, comm, exchange=exchange, payload="int8", payload_back="bf16")
        verify(moe, case.x(comm.rank).float().requires_grad_()).raise_if_different()
        verify(moe, case.x(comm.rank).float()).raise_if_different()


def refused_layers(comm: Communicator) -> None:
    case = Case(EXPERTS, "dropless")

    def layer(of: Case = case, **named: Any) -> DistributedMoE:
        return DistributedMoE(of.gate(), of.mine(comm), comm, **{"exchange": "per_rank", **named})

    for make, words in (
        (lambda: layer(Case(EXPERTS, "drops")), "exchange=per_rank with capacity tutel"),
        (lambda: layer(Case(2, "dropless")), "exchange=per_rank for 2 experts on 4 ranks"),
        (lambda: layer(schedule="pipelined"), "exchange=per_rank with schedule pipelined"),
        (lambda: layer(keep_buffers=True), "exchange=per_rank with keep_buffers"),
        (lambda: layer(skip="communication"), "skip=communication with exchange=per_rank"),
        (lambda: layer(exchange="all_gather", payload="int8"), "exchange=all_gather sends tokens as they are"),
        (lambda: layer(exchange="per_planet"), "unknown exchange"),
    ):
        with pytest.raises(UsageError, match=words):
            make()


def trainings() -> None:
    """Losses are those of per_choice, also where passes are made again."""
    tiny = replace(TINY, capacity="dropless", nodes=2, ranks_per_node=2, steps=3)
    want = run(tiny, 3)
    for exchange, recompute in (("per_rank", "redo"), ("per_node", "stash")):
        found = run(replace(tiny, exchange=exchange, recompute=recompute), 3)
        assert found == pytest.approx(want, rel=1e-11), exchange
    for changed, words in (
        ({"capacity": "tutel"}, "with capacity tutel"),
        ({"chunks": 2, "schedule": "pipelined"}, "with schedule pipelined"),
    ):
        with pytest.raises(UsageError, match=words):
            build.make_schedule(replace(tiny, exchange="per_node", **changed))


def test_dispatch_and_combine_equal_one_rank_with_all_experts() -> None:
    def rank(transport: Any) -> None:
        torch.set_num_threads(1)
        with commbench.communicator() as comm:
            needs_two_levels(comm)
        nodes_of(2)
        with commbench.communicator() as comm:
            for algorithm in WAYS:
                results(comm, algorithm)
                rows_and_dtypes(comm, algorithm)
                if algorithm != "all_gather":
                    payloads_of_rows(comm, algorithm)
            errors(comm)
            layers(comm)
            refused_layers(comm)
        by_profile()
        trainings()

    on_gloo(RANKS, rank)


def test_the_trainer_has_the_exchanges_of_the_layer() -> None:
    assert config.EXCHANGES == EXCHANGES


def test_trainings_take_the_exchange_that_the_profile_has_for_their_tokens() -> None:
    asked: list[LayerAsk] = []

    def choose(ask: LayerAsk) -> RoutedChoice:
        asked.append(ask)
        return RoutedChoice(algorithm="per_node", why="")

    tiny = replace(TINY, capacity="dropless", nodes=2, ranks_per_node=2, exchange="profile")
    assert build.settled_schedule(tiny, choose) == Deduplicated("per_node", 2)
    tokens = tiny.cut(4)[1] * tiny.context
    assert asked == [LayerAsk(top_k=tiny.top_k, experts=tiny.experts, size_bytes=tokens * tiny.width * 8)]
    # Layers that can have no other are left as they are, and the profile is not asked.
    for other in ({"capacity": "tutel"}, {"schedule": "pipelined", "chunks": 2}, {"exchange": "per_choice"}):
        assert not isinstance(build.settled_schedule(replace(tiny, **other), choose), Deduplicated)
    assert len(asked) == 1


@pytest.mark.parametrize(("nodes", "per_rank", "per_node"), [(4, 5.32, 2.79), (2, 3.55, 1.00)])
def test_layers_expect_the_rows_of_the_docs(nodes: int, per_rank: float, per_node: float) -> None:
    """Rows a token that leave its node, of top-8 of 32 on 16 ranks: docs/guide/dispatch.md."""
    tokens, ranks = 10_000, 16
    shape = Shape(T=tokens, D=100, E=32, K=8, C=None, W=ranks)
    bytes_of = {
        name: {entry.nbytes for entry in Deduplicated(name, nodes).traffic(shape)} for name in ("per_rank", "per_node")
    }
    to_others = per_rank * 15 / (ranks - ranks // nodes)  # those that stay inside of the node, too
    with pytest.raises(UsageError, match="exchange=per_node nodes=4: whose rows go where is not in its shape"):
        plan(Deduplicated("per_node", 4), shape)
    for name, rows in (("per_rank", to_others), ("per_node", per_node)):
        assert any(abs(nbytes / (tokens * shape.row_bytes) - rows) < 0.01 for nbytes in bytes_of[name]), (name, rows)
