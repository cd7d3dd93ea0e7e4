"""Planted wrong results: every fault in every algorithm is caught, before or after timing, and has no numbers."""

from __future__ import annotations

import dataclasses
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from commbench import algorithms, collectives
from commbench.algorithms.base import Bound, BoundBase
from commbench.launch.job import Job
from commbench.layout import Layout
from commbench.measure import verify
from commbench.measure.rank import run
from commbench.rank_info import RankInfo
from commbench.records import Case, Measurement, Policy, Setup, Status
from commbench.run_folder import RunFolder
from commbench.transports.base import Array, Comm, Done, Work
from commbench.transports.scripted.transport import Scripted, ScriptedComm
from tests.conftest import ThreadRanks, in_threads

POLICY = Policy(warmup=2, iters=6, samples_min=5, samples_max=50, precision=0.05, cap_s=1.0, launches=1)
KINDS = ("flip", "swap", "stale", "untouched")
LAYOUTS = ((2, 2), (3, 2), (2, 3), (2, 4))


def measure(tmp_path: Path, case: Case, faults: list[dict[str, Any]]) -> tuple[Measurement, RunFolder]:
    """One case on thread ranks, as a launch would measure it."""
    setup = dataclasses.replace(case.setup, script=json.dumps({"faults": faults}))
    case = dataclasses.replace(case, setup=setup)
    folder = RunFolder.create(tmp_path, "test")
    job = Job(run_dir=str(folder.path), attempt="a", launch=0, setup=setup, cases=(case,))
    job.save()
    size = setup.layout.ranks
    shared = ThreadRanks(size)

    def rank(index: int) -> None:
        info = RankInfo(rank=index, size=size, local_rank=index, local_size=size, launcher="threads")
        run(job, info, shared=shared)

    in_threads(size, rank)
    (measurement,) = folder.measurements()
    return measurement, folder


def case_of(algorithm: str, layout: tuple[int, int], mode: str = "isolated", blocks: int = 4, **other: Any) -> Case:
    found = algorithms.get("all_to_all", algorithm)
    return Case(
        setup=Setup(transport="scripted", nodes=layout[0], ranks_per_node=layout[1]),
        collective="all_to_all",
        algorithm=algorithm,
        params={key: default for key, (default, _) in found.params.items()},
        mode=mode,
        buffers="plain",
        cache=other.get("cache", "warm"),
        dtype=other.get("dtype", "fp32"),
        size_bytes=layout[0] * layout[1] * 16 * blocks,
        seed=11,
        policy=POLICY,
    )


def planted() -> list[tuple[str, str, int]]:
    """50: each kind in each algorithm three times, and two more."""
    names = algorithms.names("all_to_all")
    every = [(kind, name, number) for kind in KINDS for name in names for number in range(3)]
    return [*every, ("flip", "direct", 3), ("swap", "bruck", 3)]


@pytest.mark.parametrize(("kind", "algorithm", "number"), planted())
def test_a_wrong_result_is_never_timed(tmp_path: Path, kind: str, algorithm: str, number: int) -> None:
    rng = random.Random(f"{kind}{algorithm}{number}")
    layout = rng.choice(LAYOUTS)
    case = case_of(algorithm, layout, rng.choice(("isolated", "pipelined")), rng.randint(4, 12))
    # From the first operation, or from one inside the timing loop, whose first calls are warm-ups.
    per_call = len(algorithms.get("all_to_all", algorithm).steps(case.spec))
    start = 0 if number == 0 else per_call * rng.randint(2, 9)
    fault = {"kind": kind, "rank": rng.randrange(layout[0] * layout[1]), "from_op": start}
    measurement, folder = measure(tmp_path, case, [fault])
    assert measurement.status is Status.WRONG_RESULT
    when = (
        r"before timing: rank .* after (the first|the second|warm-up) call"
        if number == 0 or case.mode == "isolated"
        else ""
    )
    timed = r"while timing: rank .* after timed call" if case.mode == "isolated" else "after timing: rank"
    assert re.match(when if number == 0 else "|".join(filter(None, [when, timed])), measurement.reason), (
        measurement.reason
    )
    assert measurement.wrong and measurement.wrong > 0
    assert measurement.time_us is None and measurement.samples == 0
    assert not list((folder.path / "samples").iterdir()), "samples of a wrong result were kept"


@pytest.mark.parametrize("algorithm", algorithms.names("all_to_all"))
def test_a_library_that_stops_writing_only_while_it_is_timed_is_caught(tmp_path: Path, algorithm: str) -> None:
    """The checks before and after see it work: only the poison under the timed calls tells."""
    case = case_of(algorithm, (2, 2))
    per_call = len(algorithms.get("all_to_all", algorithm).steps(case.spec))
    timed = {"from_op": (2 + POLICY.warmup) * per_call, "to_op": (2 + POLICY.warmup + 6) * per_call}
    measurement, _ = measure(tmp_path, case, [{"kind": "untouched", "rank": 1, **timed}])
    assert (measurement.status, measurement.reason[:12]) == (Status.WRONG_RESULT, "while timing")


@pytest.mark.parametrize("cache", ["warm", "cold"])
@pytest.mark.parametrize("call", [1, 4, 6])
@pytest.mark.parametrize("kind", KINDS)
def test_one_wrong_call_of_six_is_named(
    tmp_path: Path, kind: str, call: int, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its number, and that of the call whose data are there."""
    monkeypatch.setattr("commbench.machine.memory.last_level_cache_bytes", lambda: 900)  # 4 pairs
    case = case_of("direct", (2, 2), cache=cache)
    first = 2 + POLICY.warmup + call - 1
    fault = {"kind": kind, "rank": 1, "from_op": first, "to_op": first + 1}
    measurement, _ = measure(tmp_path, case, [fault])
    assert measurement.status is Status.WRONG_RESULT
    assert re.match(rf"while timing: rank 1 has \d+ wrong elements? after timed call {call}, ", measurement.reason)
    before = f"timed call {call - 1}" if call > 1 else "warm-up call 2"
    said = {"stale": f"in {before}", "swap": f"in timed call {call}", "untouched": "nothing was written there"}
    assert measurement.reason.endswith(said.get(kind, "no rank's data"))


@pytest.mark.parametrize("warmup", [0, 2])
def test_what_is_checked_is_said(tmp_path: Path, warmup: int) -> None:
    case = case_of("direct", (2, 2))
    case = dataclasses.replace(case, policy=dataclasses.replace(POLICY, warmup=warmup))
    measurement, _ = measure(tmp_path / "isolated", case, [])
    assert (measurement.checked_calls, measurement.samples) == (6, 6)
    measurement, _ = measure(tmp_path / "pipelined", dataclasses.replace(case, mode="pipelined"), [])
    assert (measurement.checked_calls, measurement.buffer_pairs) == (2 * (1 + 16), 2)


def test_a_random_half_is_checked_where_it_takes_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same calls on all ranks, and a fault of every call is seen in them."""
    clock = iter(range(1 << 40))
    monkeypatch.setattr(Scripted, "aside", lambda self: next(clock) * 1000.0)  # 1 ms or more each time
    policy = dataclasses.replace(POLICY, iters=None, samples_min=100, precision=0.0, samples_max=100, cap_s=0.02)
    case = dataclasses.replace(case_of("direct", (2, 2)), policy=policy)
    measurement, _ = measure(tmp_path / "right", case, [])
    assert measurement.status is Status.OK and measurement.samples == 100
    assert measurement.checked_calls is not None and 25 <= measurement.checked_calls <= 75
    fault = {"kind": "flip", "rank": 1, "from_op": 60}
    measurement, _ = measure(tmp_path / "wrong", case, [fault])
    assert measurement.status is Status.WRONG_RESULT
    number = re.match(r"while timing: .* after timed call (\d+), ", measurement.reason)
    assert number and 57 <= int(number[1]) <= 75


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("flip", r"rank 1 has 1 wrong element after the first call, the first of them in byte \d+ of block (\d), "
                 r"which is rank \1's; what is there is no rank's data"),
        ("swap", r"rank 1 has \d+ wrong elements after the first call, .* of block (\d), which is rank \1's; "
                 r"it holds what rank (?!\1)\d had for rank 1 in the first call"),
        ("untouched", r"rank 1 has \d+ wrong elements after the first call, the first of them in byte 0 of block (\d), "
                      r"which is rank \1's; nothing was written there"),
    ],
)  # fmt: skip
def test_a_wrong_result_says_whose_data_are_where(tmp_path: Path, kind: str, text: str) -> None:
    fault = {"kind": kind, "rank": 1, "from_op": 0}
    measurement, _ = measure(tmp_path, case_of("direct", (2, 2)), [fault])
    assert re.fullmatch(f"before timing: {text}", measurement.reason), measurement.reason


@pytest.mark.parametrize(("others", "text"), [((2,), "rank 2 has"), ((2, 3), "ranks 2, 3 have")])
def test_other_ranks_with_wrong_results_are_named(tmp_path: Path, others: tuple[int, ...], text: str) -> None:
    faults = [{"kind": "flip", "rank": rank, "from_op": 0} for rank in (1, *others)]
    measurement, _ = measure(tmp_path, case_of("direct", (2, 2)), faults)
    assert measurement.reason.endswith(f"; {text} wrong elements too")


def test_a_stale_result_names_the_call_that_it_is_of(tmp_path: Path) -> None:
    fault = {"kind": "stale", "rank": 2, "from_op": 1}
    measurement, _ = measure(tmp_path, case_of("direct", (2, 2)), [fault])
    where = r"rank 2 has \d+ wrong elements after the second call, the first of them in byte 0 of block (\d)"
    whose = r"which is rank \1's; it holds what rank \1 had for rank 2 in the first call"
    assert re.fullmatch(f"before timing: {where}, {whose}", measurement.reason), measurement.reason


def test_in_groups_ranks_are_those_of_the_world(tmp_path: Path) -> None:
    case = dataclasses.replace(case_of("direct", (2, 2)), groups="blocks:2")
    measurement, _ = measure(tmp_path, case, [{"kind": "untouched", "rank": 3, "from_op": 0}])
    assert re.search(r": rank 3 has .* which is rank [23]'s; nothing was written there", measurement.reason)


def case_of_any(collective: str, algorithm: str, **other: Any) -> Case:
    found = collectives.get(collective)
    defaults = {key: item.default for key, item in found.arguments.items() if item.default is not None}
    groups = other.pop("groups", "world")
    layout = Layout(2, 2).within(groups)
    demands = algorithms.get(collective, algorithm).demands
    asked = {**defaults, **demands, **other.pop("arguments", {})}
    size, arguments = found.settle(layout.ranks * 16 * 8, layout, asked)
    return dataclasses.replace(
        case_of("direct", (2, 2), **other), collective=collective, algorithm=algorithm, arguments=dict(arguments),
        size_bytes=size, groups=groups, in_place=other.get("in_place", False),
        params={key: default for key, (default, _) in algorithms.get(collective, algorithm).params.items()},
    )  # fmt: skip


class Short(BoundBase):
    """Copies all but the first element, from this call on."""

    def __init__(self, comm: Comm, since: int) -> None:
        self._comm, self._since, self._calls = comm, since, 0

    def start(self, out: Array, inp: Array) -> Work:
        self._calls += 1
        short = 4 if self._calls > self._since else 0
        return self._comm.copy(out[short:], inp[short:])


@pytest.mark.parametrize(("since", "said"), [(0, "before timing"), (4, "while timing")])
@pytest.mark.parametrize("way", ["h2d", "d2h"])
def test_a_copy_to_or_from_the_host_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, since: int, said: str
) -> None:
    found = algorithms.get("host_copy", "direct")
    case = case_of_any("host_copy", "direct", dtype="int32", arguments={"way": way})
    right, _ = measure(tmp_path / "right", case, [])
    assert right.status is Status.OK
    monkeypatch.setattr(type(found), "prepare", lambda self, comm, spec: Short(comm, since))
    wrong, _ = measure(tmp_path / "wrong", case, [])
    assert wrong.status is Status.WRONG_RESULT and wrong.reason.startswith(said)


SUMMED_BY_LIBRARY = [("all_reduce", "direct"), ("reduce_scatter", "direct"), ("combine", "all_gather")]


def planted_in_all() -> list[tuple[str, str, str]]:
    """Contributions to a reduction may come in any order: the library's own, of combine=all_gather too.

    Wrong counts have a test of their own, and so has host_copy, where nothing comes from another rank.
    """
    return [
        (collective, algorithm, kind)
        for collective, algorithm in algorithms.TABLE
        if collective != "host_copy"
        for kind in ("swap", "stale", "untouched")
        if not (kind == "swap" and (collective, algorithm) in SUMMED_BY_LIBRARY) and algorithm != "counts_first"
    ]


# Operations of a call, by step, where no steps are declared; those without a name are only counted.
OPERATIONS = {"all_reduce_drop": ["", "", ""]}
OPERATIONS_ROUTED = {("dispatch", "all_gather"): ["rows", "told"], ("combine", "all_gather"): ["rows"]}


@pytest.mark.parametrize(("collective", "algorithm", "kind"), planted_in_all())
def test_every_collective_is_checked(tmp_path: Path, collective: str, algorithm: str, kind: str) -> None:
    """Before timing, and in the timed calls alone. Of dispatch and combine: in each hop of rows by itself, as well.

    Their faults begin with a warm-up call: nothing can be planned with numbers that never came, and the buffers of the
    second call are new. Counts, and what is told apart from rows, are left out: they do not fit, or change nothing.
    """
    found = collectives.get(collective)
    case = case_of_any(collective, algorithm, dtype="int32" if "int32" in found.dtypes else "fp32")
    steps = algorithms.get(collective, algorithm).steps(case.spec)
    known = OPERATIONS_ROUTED.get((collective, algorithm), OPERATIONS.get(algorithm, [""]))
    names = [step.name for step in steps] if steps else known
    hops = [{"step": name} for name in names if not name.startswith(("counts_", "told"))] if found.routed else [{}]
    for number, hop in enumerate(hops):
        fault = {"kind": kind, "rank": 3 if collective == "reshard" else 1, **hop}  # one that receives
        first = 2 * len(names) if found.routed else 0
        measurement, _ = measure(tmp_path / f"first{number}", case, [{**fault, "from_op": first}])
        assert (measurement.status, measurement.reason[:13]) == (Status.WRONG_RESULT, "before timing"), hop
        later = {**fault, "from_op": (2 + POLICY.warmup) * len(names)}
        measurement, _ = measure(tmp_path / f"later{number}", case, [later])
        assert (measurement.status, measurement.reason[:12]) == (Status.WRONG_RESULT, "while timing"), hop


def test_counts_first_uses_the_counts_that_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An algorithm that knows the counts beforehand would not notice that other ones came."""
    case = case_of_any("all_to_allv", "counts_first")
    real = ScriptedComm.read
    monkeypatch.setattr(ScriptedComm, "read", lambda self, array: (real(self, array).view("int64") - 16).view("uint8"))
    with pytest.raises(ValueError, match="were expected"):
        measure(tmp_path, case, [])


def test_groups_have_data_of_their_own(tmp_path: Path) -> None:
    case = case_of_any("all_to_all", "direct", groups="rails")
    measurement, _ = measure(tmp_path / "right", case, [])
    assert measurement.status is Status.OK
    seeds = {}

    class Spy(verify.Checker):
        def __init__(self, transport: Any, collective: Any, spec: Any, rank: int, seed: int) -> None:
            super().__init__(transport, collective, spec, rank, seed)
            seeds[transport.rank] = seed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("commbench.measure.verify.Checker", Spy)
        measure(tmp_path / "spied", case, [])
    assert seeds[0] == seeds[2] != seeds[1] == seeds[3]  # rails of 2 nodes x 2: (0, 2) and (1, 3)


@pytest.mark.parametrize("algorithm", algorithms.names("all_to_all"))
def test_without_a_fault_it_is_timed(tmp_path: Path, algorithm: str) -> None:
    measurement, _ = measure(tmp_path, case_of(algorithm, (2, 2)), [])
    assert measurement.status is Status.OK and measurement.wrong == 0 and measurement.samples == 6


@pytest.mark.parametrize("cache", ["warm", "cold"])
def test_rotated_buffers_are_checked_too(tmp_path: Path, cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("commbench.machine.memory.last_level_cache_bytes", lambda: 4096)
    measurement, _ = measure(tmp_path, case_of("direct", (2, 2), cache=cache), [])
    assert measurement.status is Status.OK
    assert measurement.buffer_pairs == (1 if cache == "warm" else 16)


class Lazy(BoundBase):
    """Works while it is checked, and does nothing while it is timed, as a broken graph replay would."""

    def __init__(self, real: Bound, works: Callable[[int], bool]) -> None:
        self._real = real
        self._works = works
        self._calls = -1

    def start(self, out: Any, inp: Any) -> Work:
        self._calls += 1
        return self._real.start(out, inp) if self._works(self._calls) else Done()


@pytest.mark.parametrize("cache", ["warm", "cold"])
@pytest.mark.parametrize(
    "works",
    [
        lambda call: call < 4 or call >= 10,  # two checks, two warm-ups, then six timed calls that do nothing
        lambda call: call != 7,  # one of the timed calls does nothing
    ],
)
def test_calls_that_do_nothing_while_timed_are_caught(
    tmp_path: Path, cache: str, works: Callable[[int], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("commbench.machine.memory.last_level_cache_bytes", lambda: 4096)
    direct = algorithms.get("all_to_all", "direct")
    prepare = direct.prepare
    monkeypatch.setattr(type(direct), "prepare", lambda self, comm, spec: Lazy(prepare(comm, spec), works))
    measurement, _ = measure(tmp_path, case_of("direct", (2, 2), cache=cache), [])
    assert measurement.status is Status.WRONG_RESULT and measurement.time_us is None


def test_cold_buffers_that_cannot_get_past_the_cache_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("commbench.machine.memory.last_level_cache_bytes", lambda: 1 << 30)
    measurement, _ = measure(tmp_path, case_of("direct", (2, 2), cache="cold"), [])
    assert measurement.status is Status.SKIPPED and "cold pairs of 512 B would have to be" in measurement.reason


def test_one_flipped_byte_is_one_wrong_element(tmp_path: Path) -> None:
    measurement, _ = measure(tmp_path, case_of("direct", (1, 2), dtype="fp32"), [{"kind": "flip", "rank": 0}])
    assert measurement.wrong == 1


def test_out_of_memory_on_one_rank_is_agreed_on_by_all(tmp_path: Path) -> None:
    measurement, _ = measure(tmp_path, case_of("bruck", (2, 2)), [{"kind": "out_of_memory", "rank": 3}])
    assert measurement.status is Status.OUT_OF_MEMORY
    assert measurement.reason.startswith("rank 3")


def test_more_than_the_machine_has_is_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("commbench.machine.memory.available_bytes", lambda: 1000)
    measurement, _ = measure(tmp_path, case_of("direct", (2, 2)), [])
    assert measurement.status is Status.OUT_OF_MEMORY
    assert "4 ranks x 512 B on this host, 1000 B available" in measurement.reason
