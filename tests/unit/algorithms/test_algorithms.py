"""Every algorithm of every collective gives the right result on every layout, and moves exactly what it declares."""

from __future__ import annotations

import dataclasses
import json
import random
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from commbench import algorithms, collectives
from commbench.algorithms.base import Algorithm
from commbench.collectives.base import Collective
from commbench.collectives.tp_all_to_all import group_block_bytes
from commbench.layout import Layout
from commbench.links import LinkRate, least_time
from commbench.measure import proof
from commbench.measure.proof import LAYOUTS, all_before
from commbench.spec import DTYPES, Send, Spec, traffic_split
from commbench.transports.scripted.mesh import thread_meshes
from commbench.transports.scripted.transport import Scripted

FEW_LAYOUTS = [(1, 2), (1, 3), (2, 2), (1, 5)]


def spec_of(
    algorithm: Algorithm, nodes: int, per_node: int, *, asked: dict[str, Any] | None = None, **more: Any
) -> Spec:
    """A spec with every default, but for `asked` of the collective, and `params`, `dtype` and `in_place`."""
    layout = Layout(nodes, per_node)
    collective = collectives.get(algorithm.collective)
    defaults = {key: item.default for key, item in collective.arguments.items() if item.default is not None}
    asked_bytes = more.pop("size_bytes", layout.ranks * 16 * 5)
    size, arguments = collective.settle(asked_bytes, layout, {**defaults, **algorithm.demands, **(asked or {})})
    params = {key: default for key, (default, _) in algorithm.params.items()} | more.pop("params", {})
    return Spec(
        collective=algorithm.collective,
        size_bytes=size,
        layout=layout,
        params=params,
        arguments=arguments,
        buffers="symmetric" if algorithm.one_sided else "plain",
        **{"dtype": "fp32", **more},
    )


# Of those that route tokens see test_routed.py: what is said of their sizes and splits here is nothing to them.
UNROUTED = [algorithm for algorithm in algorithms.TABLE.values() if not collectives.get(algorithm.collective).routed]
# Those in which all ranks exchange alike.
ALIKE = [algorithm for algorithm in UNROUTED if algorithm.collective not in ("reshard", "host_copy")]


def spec_or_skip(algorithm: Algorithm, nodes: int, per_node: int, **more: Any) -> Spec:
    """`spec_of`, where the collective and the algorithm can do it."""
    try:
        spec = spec_of(algorithm, nodes, per_node, **more)
    except ValueError as reason:
        pytest.skip(str(reason))
    if reason := algorithm.unsupported(spec):
        pytest.skip(reason)
    return spec


def chunked(algorithm: Algorithm) -> list[dict[str, Any]]:
    """Every number of chunks that is tried."""
    return [{"params": {"chunks": chunks}} for chunks in (1, 2, 3, 5, 7)] if "chunks" in algorithm.params else [{}]


def variants() -> list[Any]:
    found: list[tuple[Algorithm, dict[str, Any]]] = [(a, {}) for a in UNROUTED]
    for collective in ("all_to_all", "all_to_allv"):
        pairwise = algorithms.get(collective, "pairwise")
        found += [(pairwise, {"params": {"window": 2}}), (pairwise, {"params": {"window": 100}})]
        store = algorithms.get(collective, "symm_store")
        found += [(store, {"params": {"packet_bytes": 0}}), (store, {"params": {"ctas": 3}})]
    sums = algorithms.get("all_reduce", "2d")
    found += [(sums, {"params": params}) for params in ({"leaders": 1}, {"rounds": 2}, {"leaders": 1, "rounds": 2})]
    return [pytest.param(a, more, id=f"{a.collective}-{a.name}-{json.dumps(more)}") for a, more in found]


def asked_variants() -> list[Any]:
    """What else a collective can be asked, and in place, on few layouts."""
    found: list[tuple[Algorithm, dict[str, Any]]] = []
    for name in algorithms.names("all_to_allv"):
        for asked in ({"splits": "linear"}, {"splits": "zipf", "alpha": 1.5}, {"splits": "zipf", "alpha": 9.0}):
            found.append((algorithms.get("all_to_allv", name), {"asked": asked, "size_bytes": 4000}))
    for collective in ("all_reduce", "reduce_scatter"):
        direct = algorithms.get(collective, "direct")
        found += [(direct, {"asked": {"op": op}, "dtype": "int32"}) for op in ("sum", "prod", "min", "max")]
        found += [(direct, {"dtype": dtype}) for dtype in ("fp32", "fp16", "bf16", "uint8")]
    for collective in ("all_gather", "all_reduce", "reduce_scatter", "broadcast"):
        found.append((algorithms.get(collective, "direct"), {"in_place": True}))
    found.append((algorithms.get("broadcast", "direct"), {"asked": {"root": 1}}))
    return [pytest.param(a, more, id=f"{a.collective}-{a.name}-{json.dumps(more)}") for a, more in found]


@pytest.mark.parametrize(("nodes", "per_node"), LAYOUTS)
@pytest.mark.parametrize(("algorithm", "more"), variants())
def test_right_result_and_exactly_the_declared_messages(
    algorithm: Algorithm, more: dict[str, Any], nodes: int, per_node: int
) -> None:
    run_and_compare(algorithm, spec_or_skip(algorithm, nodes, per_node, **more))


@pytest.mark.parametrize("dtype", ["uint8", "bf16", "fp32"])
@pytest.mark.parametrize("algorithm", [pytest.param(a, id=f"{a.collective}-{a.name}") for a in ALIKE])
def test_blocks_below_16_bytes(algorithm: Algorithm, dtype: str) -> None:
    """OSU's first rows, and nccl-tests' all_reduce of 8 B."""
    collective, ran = collectives.get(algorithm.collective), 0
    for part in (1, 2, 4, 8):
        nodes = 1 if algorithm.one_sided else 2
        spec = spec_of(algorithm, nodes, 4 // nodes, size_bytes=4 * part, dtype=dtype)
        assert spec.size_bytes == 4 * part or algorithm.collective == "all_to_allv"
        reason = collective.unsupported(spec)
        assert not reason or (part < spec.itemsize and reason.endswith(f"not a whole number of {dtype}"))
        if spec.size_bytes and not (reason or algorithm.unsupported(spec)):
            run_and_compare(algorithm, spec)
            ran += 1
    if not ran and algorithm.collective != "all_to_allv":  # whose rows have 16 bytes where nothing says
        assert "not a whole number of units of" in algorithm.unsupported(spec)


@pytest.mark.parametrize(("nodes", "per_node"), [(n, m) for n in range(2, 9) for m in range(2, 16 // n + 1)])
def test_2d_gives_the_same_as_direct_on_every_layout_up_to_16_ranks(nodes: int, per_node: int) -> None:
    """Seven units of 16 bytes in a block: chunks of unequal size."""
    for name in ("2d_intra_first", "2d_inter_first", "2d_pipelined"):
        algorithm = algorithms.get("all_to_all", name)
        for more in chunked(algorithm):
            run_and_compare(algorithm, spec_of(algorithm, nodes, per_node, size_bytes=nodes * per_node * 112, **more))
    rng, ranks = random.Random(nodes * 16 + per_node), nodes * per_node
    matrix = [[rng.choice((0, 0, 4, 16, 100)) for _ in range(ranks)] for _ in range(ranks)]
    matrix[rng.randrange(ranks)] = [0] * ranks
    matrix[0][0] = 8
    for name in ("2d_intra_first", "2d_inter_first"):
        algorithm = algorithms.get("all_to_allv", name)
        for asked in ({"splits": "linear"}, {"splits": "matrix", "matrix": json.dumps(matrix)}):
            run_and_compare(algorithm, spec_of(algorithm, nodes, per_node, asked=asked, size_bytes=8000))


@pytest.mark.parametrize(
    ("nodes", "per_node", "tp"),
    [(1, 4, 2), (2, 2, 2), (1, 6, 2), (1, 6, 3), (2, 3, 3), (3, 3, 3), (2, 4, 2), (2, 4, 4), (5, 2, 2), (2, 6, 3)],
)  # fmt: skip
@pytest.mark.parametrize("name", algorithms.names("tp_all_to_all"))
def test_tensor_parallel_groups_of_any_size(name: str, nodes: int, per_node: int, tp: int) -> None:
    algorithm = algorithms.get("tp_all_to_all", name)
    for more in chunked(algorithm):
        spec = spec_of(algorithm, nodes, per_node, asked={"tp": tp}, size_bytes=nodes * per_node * 112, **more)
        run_and_compare(algorithm, spec)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["drop_reduce_scatter", "all_reduce_drop"])
def test_partial_sums_in_every_dtype(name: str, dtype: str) -> None:
    algorithm = algorithms.get("tp_all_to_all", name)
    for more in chunked(algorithm)[:3]:
        run_and_compare(algorithm, spec_of(algorithm, 2, 3, dtype=dtype, size_bytes=6 * 112, **more))


@pytest.mark.parametrize(
    ("collective", "name", "chunks", "reason"),
    [
        ("all_to_all", "2d_pipelined", 0, "chunks=0: there must be at least one"),
        ("all_to_all", "2d_pipelined", 1000, "chunks=1000: a block of 256 B has 16 units of 16 B to share out"),
        (
            "tp_all_to_all",
            "drop_gather_pipelined",
            17,
            "chunks=17: a block of 512 B has 16 units of 32 B to share out",
        ),
        ("tp_all_to_all", "drop_reduce_scatter", 17, "chunks=17: a block of 512 B has 16 units of 32 B to share out"),
    ],
)
def test_chunks_without_data_are_refused(collective: str, name: str, chunks: int, reason: str) -> None:
    algorithm = algorithms.get(collective, name)
    assert algorithm.unsupported(spec_of(algorithm, 2, 2, size_bytes=1024, params={"chunks": chunks})) == reason
    if chunks > 16:
        run_and_compare(algorithm, spec_of(algorithm, 2, 2, size_bytes=1024, params={"chunks": 16}))


def test_pipelines_declare_what_is_in_flight_together() -> None:
    """The exchange between nodes of chunk 1 needs nothing of chunk 2 inside them, and the other way round."""
    pairs = {"2d_pipelined": ("inter-1", "intra-2"), "drop_gather_pipelined": ("exchange-2", "gather-1")}
    pairs |= {"drop_reduce_scatter": ("exchange-1", "scatter-2")}
    for algorithm in algorithms.TABLE.values():
        if algorithm.name not in pairs:
            continue
        steps = algorithm.steps(spec_of(algorithm, 2, 2, size_bytes=4096, params={"chunks": 4})) or []
        before = all_before(steps)
        one, other = pairs.pop(algorithm.name)
        assert one not in before[other] and other not in before[one]
        assert {step.chunk for step in steps} == {0, 1, 2, 3}
    assert not pairs


@pytest.mark.parametrize(("nodes", "per_node"), FEW_LAYOUTS)
@pytest.mark.parametrize(("algorithm", "more"), asked_variants())
def test_whatever_a_collective_is_asked(algorithm: Algorithm, more: dict[str, Any], nodes: int, per_node: int) -> None:
    run_and_compare(algorithm, spec_of(algorithm, nodes, per_node, **more))


def run_and_compare(algorithm: Algorithm, spec: Spec) -> None:
    assert proof.examine(algorithm, spec) == []


@pytest.mark.parametrize("algorithm", algorithms.TABLE.values(), ids=lambda a: f"{a.collective}-{a.name}")
def test_steps_form_a_dag_of_foreign_messages(algorithm: Algorithm) -> None:
    spec = spec_of(algorithm, 3, 2)
    known: set[str] = set()
    for step in algorithm.steps(spec) or []:
        assert set(step.after) <= known, "a step may only come after steps that are declared before it"
        assert step.name not in known
        known.add(step.name)
        assert all(send.src != send.dst and send.nbytes > 0 for send in step.sends)


@st.composite
def any_spec(draw: st.DrawFn) -> tuple[Algorithm, Spec, int]:
    """Any algorithm that declares its messages, on any layout, of any size and splits, and the size asked for."""
    algorithm = draw(st.sampled_from([a for a in ALIKE if a.steps(spec_of(a, 2, 2)) is not None]))
    nodes, per_node = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    ranks = nodes * per_node
    asked: dict[str, Any] = {}
    if algorithm.collective == "all_to_allv":
        asked["splits"] = draw(st.sampled_from(["even", "linear", "zipf", "matrix"]))
        asked["row_bytes"] = draw(st.sampled_from([4, 16, 1024]))
        if asked["splits"] == "zipf":
            asked["alpha"] = draw(st.floats(0, 4))
            asked["experts"] = ranks * draw(st.integers(1, 3))
        if asked["splits"] == "matrix":
            cells = st.lists(st.integers(0, 5000).map(lambda n: 4 * n), min_size=ranks, max_size=ranks)
            asked["matrix"] = json.dumps(draw(st.lists(cells, min_size=ranks, max_size=ranks)))
    if algorithm.collective == "tp_all_to_all":
        sizes = [tp for tp in range(2, per_node + 1) if per_node % tp == 0 and tp < ranks]
        assume(sizes)
        asked["tp"] = draw(st.sampled_from(sizes))
    most = {"window": 6, "chunks": 6, "leaders": per_node, "rounds": 2}
    params = {key: draw(st.integers(1, most[key])) for key in most if key in algorithm.params}
    size = draw(st.integers(0, 1 << 20))
    return algorithm, spec_of(algorithm, nodes, per_node, asked=asked, params=params, size_bytes=size), size


@given(any_spec())
@settings(max_examples=300, deadline=None)
def test_byte_counts_add_up(drawn: tuple[Algorithm, Spec, int]) -> None:
    """Sizes, splits, buffers, messages and the bound agree with each other, whatever is asked."""
    algorithm, spec, asked = drawn
    collective: Collective = collectives.get(spec.collective)
    ranks = range(spec.ranks)
    inputs = [collective.input_bytes(spec, rank) for rank in ranks]
    outputs = [collective.output_bytes(spec, rank) for rank in ranks]
    if collective.name not in ("all_gather", "reduce_scatter"):  # one copies data, the other combines them
        assert sum(inputs) == sum(outputs)
    alone = spec.collective == "pairs" and spec.ranks == 1
    assert max(*inputs, *outputs) == (0 if alone else spec.size_bytes)
    if spec.arguments.get("splits") != "matrix":
        assert asked - spec.ranks * int(spec.arguments.get("row_bytes", 16)) * spec.ranks < spec.size_bytes <= asked
    if "row_bytes" in spec.arguments:
        assert {value % int(spec.arguments["row_bytes"]) for value in (*inputs, *outputs)} == {0}
    if algorithm.unsupported(spec) or spec.ranks == 1:
        return
    out_of: Counter[int] = Counter()
    into: Counter[int] = Counter()
    steps = algorithm.steps(spec)
    assert steps is not None
    for step in steps:
        if step.name == "counts":
            continue
        for send in step.sends:
            out_of[send.src] += send.nbytes
            into[send.dst] += send.nbytes
    kept = [_kept(spec, rank) for rank in ranks]
    for rank in ranks:
        assert out_of[rank] >= inputs[rank] - kept[rank] and into[rank] >= outputs[rank] - kept[rank]
    rates = {"intra": 8.0, "inter": 0.5}
    busiest = max((n / 8e3 for n in [*out_of.values(), *into.values()]), default=0.0)
    # No algorithm moves less than what the bound says must move, if all links were as fast as the fastest.
    least = least_time(collective.needs(spec), dict.fromkeys(rates, LinkRate(gbps=8.0)), spec.layout)
    fast = least.us if least else 0.0
    assert fast <= busiest + 1e-9
    links = {link: LinkRate(gbps=gbps) for link, gbps in rates.items()}
    slow = least_time(collective.needs(spec), links, spec.layout)
    assert (slow.us if slow else 0.0) >= fast - 1e-9


def _kept(spec: Spec, rank: int) -> int:
    """Bytes that stay where they are."""
    if spec.collective in ("sendrecv", "pairs"):
        return 0
    if spec.collective == "all_to_allv":
        from commbench.collectives import splits

        return int(splits.counts(spec.ranks, spec.arguments)[rank, rank])
    if spec.collective == "tp_all_to_all":
        return group_block_bytes(spec)
    return spec.block_bytes


def test_bruck_takes_log2_rounds_and_pairwise_n_minus_one() -> None:
    bruck, pairwise = algorithms.get("all_to_all", "bruck"), algorithms.get("all_to_all", "pairwise")
    for ranks, rounds in ((2, 1), (3, 2), (4, 2), (5, 3), (8, 3), (9, 4), (16, 4)):
        assert len(bruck.steps(spec_of(bruck, 1, ranks)) or []) == rounds
        assert len(pairwise.steps(spec_of(pairwise, 1, ranks)) or []) == ranks - 1
    assert len(pairwise.steps(spec_of(pairwise, 1, 8, params={"window": 3})) or []) == 3


def test_2d_sends_fewer_and_larger_messages_between_nodes() -> None:
    """The point of 2D (Tutel, section 3.4): N nodes of m ranks exchange (N-1) messages of m blocks per rank."""
    spec = spec_of(algorithms.get("all_to_all", "direct"), 4, 4)
    layout, block = spec.layout, spec.block_bytes

    def inter(name: str) -> list[Send]:
        steps = algorithms.get("all_to_all", name).steps(spec) or []
        return [send for step in steps for send in step.sends if layout.link(send.src, send.dst) == "inter"]

    assert {(len(inter("direct")), send.nbytes) for send in inter("direct")} == {(16 * 12, block)}
    assert {(len(inter("2d_intra_first")), send.nbytes) for send in inter("2d_intra_first")} == {(16 * 3, 4 * block)}
    direct, two_d = traffic_split(inter("direct"), layout), traffic_split(inter("2d_intra_first"), layout)
    assert direct == two_d  # the slow link carries the same bytes


SUMS = [("all_reduce", {"leaders": leaders, "rounds": rounds}) for leaders in (0, 1, 2) for rounds in (1, 2)]
SHARED: list[tuple[str, dict[str, int]]] = [("all_gather", {}), ("reduce_scatter", {}), *SUMS]


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(("nodes", "per_node"), [(2, 2), (2, 3), (3, 2)])
@pytest.mark.parametrize(("collective", "params"), SHARED)
def test_2d_collectives_in_every_dtype_and_in_place(
    collective: str, params: dict[str, int], nodes: int, per_node: int, in_place: bool
) -> None:
    algorithm, ranks = algorithms.get(collective, "2d"), nodes * per_node
    for dtype, size in (("fp32", 7 * 16 * ranks), ("fp16", 4 * ranks), ("bf16", 112 * ranks), ("uint8", ranks)):
        spec = spec_of(algorithm, nodes, per_node, dtype=dtype, size_bytes=size, params=params, in_place=in_place)
        run_and_compare(algorithm, spec)


@pytest.mark.parametrize(("nodes", "per_node"), [(2, 2), (2, 4), (4, 2), (3, 3)])
def test_2d_collectives_send_the_least_that_nodes_must_exchange(nodes: int, per_node: int) -> None:
    """2 (N - 1) / N S of each node for a sum, half of that for a part of one, in few messages for small buffers."""

    def between(collective: str, **params: int) -> tuple[float, int]:
        algorithm = algorithms.get(collective, "2d")
        spec = spec_of(algorithm, nodes, per_node, params=params, size_bytes=nodes * per_node * nodes * 16)
        sends = [send for step in algorithm.steps(spec) or [] for send in step.sends]
        crossing = [send for send in sends if spec.layout.link(send.src, send.dst) == "inter"]
        return sum(send.nbytes for send in crossing) / nodes / spec.size_bytes, len(crossing)

    least, pairs = (nodes - 1) / nodes, nodes * (nodes - 1)
    for collective in ("all_gather", "reduce_scatter"):
        assert between(collective) == (least, pairs * per_node)
    assert between("all_reduce", rounds=2) == (2 * least, 2 * pairs * per_node)
    assert between("all_reduce", rounds=1) == (nodes - 1, pairs * per_node)  # as few on two nodes
    assert between("all_reduce", leaders=1) == (nodes - 1, pairs)


@pytest.mark.parametrize(("nodes", "per_node"), [(2, 2), (3, 2), (4, 2)])
@pytest.mark.parametrize(("collective", "params"), SUMS)
def test_2d_sums_are_the_same_on_all_ranks_and_within_the_bound(
    collective: str, params: dict[str, int], nodes: int, per_node: int
) -> None:
    algorithm, rng = algorithms.get(collective, "2d"), np.random.default_rng(1)
    ranks = nodes * per_node
    inputs = rng.standard_normal((ranks, 301)).astype(np.float32)
    spec = spec_of(algorithm, nodes, per_node, params=params, size_bytes=inputs[0].nbytes)
    spec = dataclasses.replace(spec, size_bytes=inputs[0].nbytes)  # as a program has it, of any number of elements
    outputs = np.zeros_like(inputs)

    def body(transport: Any) -> None:
        rank = transport.rank
        out, inp = outputs[rank].view(np.uint8), inputs[rank].view(np.uint8)
        algorithm.prepare(transport.world, spec).start(out, inp).wait()

    on_threads(spec, body)
    assert {row.tobytes() for row in outputs} == {outputs[0].tobytes()}
    exact, whole = inputs.sum(axis=0, dtype=np.float64), np.abs(inputs).sum(axis=0, dtype=np.float64)
    assert (np.abs(outputs[0] - exact) <= (ranks - 1) * 2.0**-24 * whole).all()


def on_threads(spec: Spec, body: Callable[[Any], None]) -> None:
    """Call `body` with the transport of each rank, which are threads."""
    meshes, errors = thread_meshes(spec.ranks), []

    def run(rank: int) -> None:
        transport = Scripted({"layout": (spec.layout.nodes, spec.layout.ranks_per_node)})
        try:
            transport.attach(meshes[rank])
            body(transport)
        except Exception as error:
            errors.append(error)
        finally:
            meshes[rank].leave()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(spec.ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"leaders": 3}, "leaders=3: a node has 2 ranks"),
        ({"rounds": 3}, "rounds=3: there is one exchange between nodes, or two"),
    ],
)
def test_leaders_and_rounds_that_cannot_be_are_refused(params: dict[str, int], reason: str) -> None:
    algorithm = algorithms.get("all_reduce", "2d")
    assert algorithm.unsupported(spec_of(algorithm, 2, 2, params=params)) == reason


@pytest.mark.parametrize("package", [algorithms, collectives], ids=["algorithms", "collectives"])
def test_a_file_without_a_table_line_is_noticed(package: Any) -> None:
    from pathlib import Path

    files = {path.stem for path in Path(package.__file__).parent.glob("*.py")} - {
        "__init__",
        "base",
        "chunks",
        "counts_inside",
        "meshes",
        "reshard_plan",
        "splits",
        "routing",
        "routing_trace",
        "outside",
        "payload",
        "quantised",
        "token_counts",
        "token_exchange",
        "token_plan",
    }
    assert files == {type(item).__module__.rpartition(".")[2] for item in package.TABLE.values()}


def test_each_adjoint_is_a_collective_with_the_traffic_turned_round() -> None:
    for collective in collectives.TABLE.values():
        if collective.name == "broadcast":  # its adjoint, reduce, is not measured here
            assert collective.adjoint == "reduce"
            continue
        back = collectives.get(collective.adjoint)
        turned = {"direction": "back"} if collective.name == "pairs" else {}
        if collective.name == "reshard":  # there and back between the same two meshes
            turned = {"src": "dp2@2", "dst": "tp2@0"}
        cached = {"counts": "cached"}  # gradients are those of rows, whose routing all ranks know
        spec, other = (
            spec_of(
                algorithms.get(c.name, algorithms.names(c.name)[0]),
                2,
                2,
                asked=cached if "counts" in c.arguments else asked,
            )
            for c, asked in ((collective, {}), (back, turned))
        )
        for rank in range(4):
            assert collective.input_bytes(spec, rank) == back.output_bytes(other, rank)
            assert collective.output_bytes(spec, rank) == back.input_bytes(other, rank)
