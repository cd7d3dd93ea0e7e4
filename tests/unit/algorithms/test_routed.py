"""dispatch and combine: every algorithm brings the right rows to the right experts, and every mistake is seen."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commbench import algorithms, collectives
from commbench.algorithms import token_plan
from commbench.algorithms.base import Algorithm
from commbench.collectives import routing, routing_trace
from commbench.layout import Layout
from commbench.links import LinkRate, least_time
from commbench.spec import Spec, traffic_split
from tests.support.planted_rows import BOTH, COMBINES, HOPPING, KINDS, planted, spec_of
from tests.unit.algorithms.test_algorithms import run_and_compare

LAYOUTS = [(1, 1), (1, 3), (3, 1), (2, 2), (2, 3), (3, 2)]


def runnable(spec: Spec, algorithm: Algorithm) -> bool:
    """Whether it runs there; prepared once, and not by all threads."""
    algorithm.scratch_bytes(spec)
    assert not collectives.get(spec.collective).unsupported(spec)
    return not algorithm.unsupported(spec)


def outputs(algorithm: Algorithm) -> tuple[Any, ...]:
    return (algorithm.demands["output"],) if "output" in algorithm.demands else ("expert", "rank")


def trace_of(experts: Any, path: Path) -> str:
    """The text of a case's argument of a routing trace whose one step has these experts: [ranks, tokens, top_k]."""
    np.savez(path, experts=np.array([experts], np.int32))
    return routing_trace.read(str(path))


@pytest.mark.parametrize(("nodes", "per_node"), LAYOUTS)
@pytest.mark.parametrize(("collective", "name"), BOTH)
def test_right_rows_and_exactly_the_declared_messages(collective: str, name: str, nodes: int, per_node: int) -> None:
    algorithm = algorithms.get(collective, name)
    for output in outputs(algorithm):
        for counts in ("host", "cached") if collective == "dispatch" else ("",):
            spec = spec_of(collective, name, nodes, per_node, output=output, counts=counts)
            if runnable(spec, algorithm):
                run_and_compare(algorithm, spec)


@pytest.mark.parametrize(("collective", "name"), BOTH)
def test_masked_tokens_unequal_ranks_all_to_one_and_an_empty_rank(collective: str, name: str, tmp_path: Path) -> None:
    """8 experts on 2 x 2 ranks. A rank without tokens is one whose tokens are all masked."""
    algorithm = algorithms.get(collective, name)
    rng = np.random.default_rng(3)
    chosen = np.stack([[rng.permutation(8)[:3] for _ in range(6)] for _ in range(4)])
    unequal, to_one, one_rank = chosen.copy(), np.full_like(chosen, -1), chosen.copy()
    unequal[1, 2:] = unequal[2] = -1
    unequal[3, :, 1:] = -1
    to_one[:, :, 0] = 5
    one_rank[...] = [6, 7, -1]
    for experts in (unequal, to_one, one_rank, np.full_like(chosen, -1) + (np.arange(4) == 1)[:, None, None]):
        for output in outputs(algorithm):
            trace = trace_of(np.where(experts == 0, np.arange(3) - 1, experts), tmp_path / "trace.npz")
            spec = spec_of(collective, name, 2, 2, router="trace", trace=trace, experts=8, output=output)
            assert runnable(spec, algorithm) and spec.size_bytes == 6 * 48
            run_and_compare(algorithm, spec)


@pytest.mark.parametrize("collective", ["dispatch", "combine"])
def test_chunks_of_tokens_send_what_all_of_them_do_and_two_are_in_flight(collective: str) -> None:
    """7 tokens in chunks of unequal size, and each alone. `per_node` sends the same rows over each class of link."""
    algorithm, whole = (algorithms.get(collective, name) for name in ("per_node_pipelined", "per_node"))
    for counts in ("host", "cached") if collective == "dispatch" else ("",):
        rows = traffic_split(
            [
                send
                for step in whole.steps(spec_of(collective, "per_node", 2, 3, counts=counts)) or []
                for send in step.sends
                if not step.name.startswith("counts")
            ],
            Layout(2, 3),
        )
        for chunks in (1, 2, 3, 7):
            spec = spec_of(collective, "per_node_pipelined", 2, 3, counts=counts)
            spec = replace(spec, params={"chunks": chunks})
            run_and_compare(algorithm, spec)
            all_steps = algorithm.steps(spec) or []
            steps = [step for step in all_steps if not step.name.startswith("counts")]
            # What all hops bring is told once.
            told = [step.name for step in all_steps if step not in steps]
            assert told == (["counts_world"] if counts == "host" else [])
            assert traffic_split([send for step in steps for send in step.sends], spec.layout) == rows
            after = {step.name: step.after for step in steps}
            for chunk in range(chunks - 1):
                assert after[f"rails-{chunk + 1}"] == after[f"nodes-{chunk}"] != ()
    for chunks, reason in ((0, "there must be at least one"), (8, "a rank has 7 tokens to share out")):
        assert algorithm.unsupported(replace(spec, params={"chunks": chunks})) == f"chunks={chunks}: {reason}"


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_combine_in_every_dtype_that_has_fractions(dtype: str) -> None:
    for name in COMBINES:
        run_and_compare(algorithms.get("combine", name), spec_of("combine", name, 2, 2, dtype=dtype, top_k=8))
    whole = replace(spec_of("combine", "per_choice", 2, 2), dtype="int32")
    assert "int32 has no fractions" in collectives.get("combine").unsupported(whole)
    many = spec_of("combine", "per_choice", 2, 2, top_k=22)
    assert collectives.get("combine").unsupported(many) == "sums of 22 are not exact in bf16, of 21 at the most"


def test_rows_that_are_longer_than_a_piece_of_data() -> None:
    for collective, name in BOTH:
        spec = spec_of(collective, name, 2, 2, tokens=2, model_dim=40_000, top_k=2)
        run_and_compare(algorithms.get(collective, name), spec)


@pytest.mark.parametrize(("collective", "name"), HOPPING)
def test_planted_mistakes_are_seen(collective: str, name: str) -> None:
    """A row twice, missing, in another's place, of the call before; a sum short of a term, or of a neighbour's."""
    struck = 0
    for number, kind in enumerate(KINDS * 2):
        hit, wrong = planted(collective, name, kind, number // len(KINDS), number)
        struck += hit
        assert wrong or not hit, kind
    assert struck >= 2  # all_gather adds up once, and copies nothing


# What is planned from the routing.


def test_rows_by_choice_rank_and_node_are_what_probability_says() -> None:
    """top-8 of 32 on 4 x 4 and 2 x 8: the figures of the field (n g (1 - C(E - E/g, K) / C(E, K)))."""
    for nodes, per_node, by_rank, by_node in ((4, 4, 7.096, 3.718), (2, 8, 7.096, 1.998)):
        spec = spec_of("dispatch", "per_rank", nodes, per_node, tokens=512, top_k=8, experts=32)
        counts = routing.counts_of(spec)
        tokens = 512 * spec.ranks
        assert counts.choices.sum() == 8 * tokens
        assert counts.ranks.sum() / tokens == pytest.approx(by_rank, rel=0.01)
        assert counts.nodes.sum() / tokens == pytest.approx(by_node, rel=0.01)


def test_fewer_bytes_between_nodes_by_the_declared_messages() -> None:
    """4.00 and 2.15 times fewer for rows alone, over one row for each choice."""
    for nodes, per_node, factor in ((2, 8, 4.0), (4, 4, 2.15)):
        bytes_of = {}
        for collective in ("dispatch", "combine"):
            for name in ("per_choice", "per_node"):
                spec = spec_of(collective, name, nodes, per_node, tokens=128, top_k=8, experts=32, counts="cached")
                steps = algorithms.get(collective, name).steps(spec) or []
                sends = [send for step in steps for send in step.sends]
                bytes_of[collective, name] = traffic_split(sends, spec.layout)["inter"]
            ratio = bytes_of[collective, "per_choice"] / bytes_of[collective, "per_node"]
            assert ratio == pytest.approx(factor, rel=0.02)
        assert bytes_of["dispatch", "per_node"] == bytes_of["combine", "per_node"]


@pytest.mark.parametrize(("collective", "name"), BOTH)
def test_no_algorithm_is_faster_than_the_bound(collective: str, name: str) -> None:
    rng = random.Random(name)
    for _ in range(6):
        nodes, per_node = rng.randint(1, 4), rng.randint(1, 4)
        asked = {"router": rng.choice(["uniform", "zipf"]), "top_k": rng.randint(1, 4)}
        spec = spec_of(collective, name, nodes, per_node, tokens=rng.randint(1, 20), **asked)
        algorithm = algorithms.get(collective, name)
        if spec.ranks < 2 or algorithm.unsupported(spec) or algorithm.steps(spec) is None:
            continue
        fast = {link: LinkRate(gbps=8.0) for link in ("intra", "inter")}
        least = least_time(collectives.get(collective).needs(spec), fast, spec.layout)
        moved = np.zeros((2, spec.ranks))
        for send in (send for step in algorithm.steps(spec) or [] for send in step.sends):
            moved[0, send.src] += send.nbytes
            moved[1, send.dst] += send.nbytes
        # Over both classes of link at once, each at the full rate, a rank needs half of the time for its bytes.
        assert least is None or least.us <= moved.max() / 8e3 + 1e-9


def test_routers() -> None:
    """zipf has popular experts; grouped keeps to its groups; each has top_k different ones, and the seed decides."""
    uniform, zipf, again, other, grouped = (
        routing.routing_of(spec_of("dispatch", "per_rank", 1, 4, tokens=400, top_k=4, experts=16, **asked)).experts
        for asked in (
            {}, {"router": "zipf", "alpha": 1.2}, {"router": "zipf", "alpha": 1.2}, {"router_seed": 1},
            {"router": "grouped", "expert_groups": 4, "group_limit": 2},
        )
    )  # fmt: skip
    for experts in (uniform, zipf, grouped):
        assert experts.shape == (4, 400, 4) and experts.min() >= 0 and experts.max() < 16
        assert (np.diff(np.sort(experts, axis=2), axis=2) > 0).all()
    loads = [np.bincount(experts.ravel(), minlength=16) for experts in (uniform, zipf)]
    assert loads[0].max() < 1.2 * loads[0].mean() and loads[1].max() > 2.5 * loads[1].mean()
    assert np.array_equal(zipf, again) and not np.array_equal(uniform, other)
    groups = np.sort(grouped // 4, axis=2)
    assert (1 + (np.diff(groups, axis=2) > 0).sum(axis=2)).max() == 2


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"experts": 6}, "experts=6 do not divide among 4 ranks"),
        ({"experts": 4, "top_k": 5}, "top_k=5: a token goes to different experts, and there are 4"),
        ({"router": "grouped"}, "router=grouped needs expert_groups"),
        ({"router": "grouped", "expert_groups": 5}, "16 experts do not divide into such groups of 2 or more"),
        ({"router": "grouped", "expert_groups": 8, "group_limit": 1}, "cannot give 3"),
    ],
)
def test_what_cannot_be_routed_is_refused(asked: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        spec_of("dispatch", "per_rank", 1, 4, **asked)


def test_counts_on_the_gpu_alone_are_refused_in_words() -> None:
    for name in (name for collective, name in HOPPING if collective == "dispatch"):
        spec = spec_of("dispatch", name, 2, 2, counts="device")
        assert "on the host" in algorithms.get("dispatch", name).unsupported(spec)


def test_traces_are_read_once_and_kept_whole(tmp_path: Path) -> None:
    experts = np.random.default_rng(0).permuted(np.tile(np.arange(8), (2, 4, 5, 1)), axis=3)[..., :3].astype(np.int32)
    experts[0, 1, 2] = -1
    path = tmp_path / "trace.npz"
    np.savez(path, experts=experts)
    spec = spec_of("dispatch", "per_rank", 2, 2, router="trace", trace=routing_trace.read(str(path)), step=1)
    assert np.array_equal(routing.routing_of(spec).experts, experts[1])
    settled = collectives.get("dispatch").settle(0, spec.layout, spec.arguments)
    assert settled == (spec.size_bytes, spec.arguments) and spec.size_bytes == 5 * 48
    split = collectives.get("all_to_allv")
    asked = {"splits": "trace", "trace": routing_trace.read(str(path)), "row_bytes": 16}
    size, _ = split.settle(0, spec.layout, asked)
    assert size == 16 * max(
        (experts[0] >= 0).sum(axis=(1, 2)).max(), np.bincount(experts[0][experts[0] >= 0] // 2).max()
    )
    with pytest.raises(ValueError, match="is of 4 ranks, not 2"):
        spec_of("dispatch", "per_rank", 1, 2, router="trace", trace=routing_trace.read(str(path)))


@pytest.mark.parametrize(
    ("experts", "reason"),
    [
        (np.zeros((2, 3, 4), np.int32), "int32 of shape"),
        (np.zeros((1, 2, 3, 2), np.float32), "float32 of shape"),
        (np.full((1, 2, 3, 2), -2), "numbers from -2"),
        (np.full((1, 2, 3, 2), 3), "twice to the same expert"),
    ],
)
def test_bad_traces_are_refused(experts: Any, reason: str, tmp_path: Path) -> None:
    from commbench.errors import UsageError

    np.savez(tmp_path / "trace.npz", experts=experts)
    with pytest.raises(UsageError, match=reason):
        routing_trace.read(str(tmp_path / "trace.npz"))


def test_a_way_knows_what_it_tells() -> None:
    way = token_plan.Way((token_plan.WORLD,))
    copies = token_plan.Copies(
        *(np.arange(3) for _ in range(4)), np.arange(6).reshape(3, 2), np.ones((3, 2), np.float32)
    )
    told = copies.packed()
    assert told.shape == (3, token_plan.told_bytes(way, 2))
    back = token_plan.unpacked(told, 1)
    assert np.array_equal(back.experts, copies.experts) and np.array_equal(back.weights, copies.weights)


def test_slots_that_are_too_few_are_refused_and_enough_are_used() -> None:
    for collective in ("dispatch", "combine"):
        algorithm = algorithms.get(collective, "slots")
        spec = spec_of(collective, "slots", 2, 2)
        rows = routing.counts_of(spec).ranks * (1 - np.eye(4, dtype=int))
        few, enough = (replace(spec, params={"slots": int(rows.max()) - less}) for less in (1, 0))
        source, target = np.unravel_index(rows.argmax(), rows.shape)
        reason = f"slots={rows.max() - 1}: rank {source} has {rows.max()} tokens for experts of rank {target}"
        assert algorithm.unsupported(few) == reason and not algorithm.unsupported(enough)
        run_and_compare(algorithm, enough)
        steps = algorithm.steps(enough) or []
        assert len(steps) == 1 and len({send.nbytes for send in steps[0].sends}) <= 2  # rows, and what is told of them
        assert "0 are as many" in algorithm.unsupported(replace(spec, params={"slots": -1}))
    with pytest.raises(ValueError, match="rank 0 has 7 rows for rank 1, of 2"):
        way = token_plan.Way((token_plan.WORLD,), slots=2)
        to_one = np.full((7, 1), 1, np.int64)
        held = token_plan.own_copies(way, 0, to_one, np.ones((7, 1), np.float32))
        token_plan.Planner(way, Layout(1, 2), 0, 1, held).outgoing(token_plan.WORLD)
