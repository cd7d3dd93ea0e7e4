"""Every algorithm gives the right result on every layout, and moves exactly what it declares."""

from __future__ import annotations

import pytest

from commbench import algorithms, check, collectives
from commbench.algorithms.base import Algorithm
from commbench.layout import Layout
from commbench.spec import Send, Spec, traffic_split
from commbench.transports.scripted import Scripted
from tests.conftest import scripted_ranks

LAYOUTS = [(1, 2), (2, 1), (1, 3), (3, 1), (2, 2), (1, 5), (2, 3), (3, 2), (1, 7), (2, 4), (3, 3), (3, 5), (4, 4)]


def spec_of(algorithm: Algorithm, nodes: int, per_node: int, blocks: int = 3, **params: int) -> Spec:
    layout = Layout(nodes, per_node)
    defaults = {key: default for key, (default, _) in algorithm.params.items()}
    return Spec(
        collective=algorithm.collective,
        dtype="fp32",
        size_bytes=layout.ranks * 16 * blocks,
        layout=layout,
        params={**defaults, **params},
    )


def variants() -> list[tuple[Algorithm, dict[str, int]]]:
    found: list[tuple[Algorithm, dict[str, int]]] = [(a, {}) for a in algorithms.TABLE.values()]
    pairwise = algorithms.get("all_to_all", "pairwise")
    return [*found, (pairwise, {"window": 2}), (pairwise, {"window": 100})]


@pytest.mark.parametrize(("nodes", "per_node"), LAYOUTS)
@pytest.mark.parametrize(
    ("algorithm", "params"), variants(), ids=lambda v: getattr(v, "name", None) or str(v or "default")
)
def test_right_result_and_exactly_the_declared_messages(
    algorithm: Algorithm, params: dict[str, int], nodes: int, per_node: int
) -> None:
    spec = spec_of(algorithm, nodes, per_node, **params)
    if reason := algorithm.supports(spec):
        pytest.skip(reason)
    collective = collectives.get(spec.collective)

    def rank(transport: Scripted) -> tuple[int, list[tuple[str, int, int, int]], list[int]]:
        inp, out = transport.world.empty(spec.size_bytes), transport.world.empty(spec.size_bytes)
        transport.allocated.clear()
        bound = algorithm.prepare(transport.world, spec)
        wrong = 0
        for salt in (1, 2):
            check.fill_input(transport, inp, collective, spec, seed=5, salt=salt)
            check.poison(transport, out, collective, spec, seed=5, salt=salt)
            transport.log.clear()
            bound.start(out, inp).wait()
            wrong += check.count_wrong(transport, out, collective, spec, seed=5, salt=salt)
            wrong += not _unchanged(transport, inp, spec, salt)
        bound.close()
        return wrong, list(transport.log), list(transport.allocated)

    results = scripted_ranks(nodes, per_node, rank)
    assert [wrong for wrong, _, _ in results] == [0] * spec.ranks
    seen = sorted(entry for _, log, _ in results for entry in log)
    declared = sorted((step.name, *send) for step in algorithm.steps(spec) for send in step.sends)
    assert seen == declared
    assert {sum(allocated) for _, _, allocated in results} == {algorithm.scratch_bytes(spec)}


def _unchanged(transport: Scripted, inp: object, spec: Spec, salt: int) -> bool:
    """The input is the caller's: no algorithm may write to it."""
    expected = b"".join(
        chunk.tobytes()
        for chunk in collectives.get(spec.collective).input_chunks(spec, transport.rank, seed=5, salt=salt)
    )
    return bytes(transport.download(inp, 0, spec.size_bytes)) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("algorithm", algorithms.TABLE.values(), ids=lambda a: a.name)
def test_steps_form_a_dag_of_foreign_messages(algorithm: Algorithm) -> None:
    spec = spec_of(algorithm, 3, 2)
    known: set[str] = set()
    for step in algorithm.steps(spec):
        assert set(step.after) <= known, "a step may only come after steps that are declared before it"
        assert step.name not in known
        known.add(step.name)
        assert all(send.src != send.dst and send.nbytes > 0 for send in step.sends)


def test_bruck_takes_log2_rounds_and_pairwise_n_minus_one() -> None:
    bruck, pairwise = algorithms.get("all_to_all", "bruck"), algorithms.get("all_to_all", "pairwise")
    for ranks, rounds in ((2, 1), (3, 2), (4, 2), (5, 3), (8, 3), (9, 4), (16, 4)):
        assert len(bruck.steps(spec_of(bruck, 1, ranks))) == rounds
        assert len(pairwise.steps(spec_of(pairwise, 1, ranks))) == ranks - 1
    assert len(pairwise.steps(spec_of(pairwise, 1, 8, window=3))) == 3


def test_2d_sends_fewer_and_larger_messages_between_nodes() -> None:
    """The point of 2D (Tutel, section 3.4): N nodes of m ranks exchange (N-1) messages of m blocks per rank."""
    spec = spec_of(algorithms.get("all_to_all", "direct"), 4, 4)
    layout, block = spec.layout, spec.block_bytes

    def inter(name: str) -> list[Send]:
        steps = algorithms.get("all_to_all", name).steps(spec)
        return [send for step in steps for send in step.sends if layout.link(send.src, send.dst) == "inter"]

    assert {(len(inter("direct")), send.nbytes) for send in inter("direct")} == {(16 * 12, block)}
    assert {(len(inter("2d_intra_first")), send.nbytes) for send in inter("2d_intra_first")} == {(16 * 3, 4 * block)}
    direct, two_d = traffic_split(inter("direct"), layout), traffic_split(inter("2d_intra_first"), layout)
    assert direct == two_d  # the slow link carries the same bytes


def test_a_file_without_a_table_line_is_noticed() -> None:
    from pathlib import Path

    files = {path.stem for path in Path(algorithms.__file__).parent.glob("*.py")} - {"__init__", "base"}
    listed = {type(algorithm).__module__.rpartition(".")[2] for algorithm in algorithms.TABLE.values()}
    assert files == listed
