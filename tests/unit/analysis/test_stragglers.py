"""Who is named, on what evidence, and who is not: on matrices by rule, and on seeded runs of the scripted transport."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commbench import algorithms, collectives
from commbench.analysis.stragglers import ranks, suspects
from commbench.analysis.stragglers.search import Search, Straggler
from commbench.analysis.summary import Samples
from commbench.commands import stragglers
from commbench.errors import UsageError
from commbench.layout import Layout
from commbench.measure import loop
from commbench.records import Case, Measurement, Status
from commbench.run_folder import RunFolder
from commbench.serialise import as_dict
from commbench.transports.scripted.mesh import thread_meshes
from commbench.transports.scripted.transport import Scripted
from tests.conftest import first, in_threads
from tests.support import fake_runs

NOISE = {"noise": 0.1, "jitter_us": 2.0, "launch_noise": 0.15}


def matrix(layout: Layout, slow: dict[str, float], seed: int, *, launches: int = 6, noise: float = 0.05) -> Any:
    """10 us inside nodes, 30 between them; `slow`: what `applies` says, and how many times slower."""
    rng = np.random.default_rng(seed)
    n = layout.ranks
    times = np.full((launches, n, n), np.nan)
    for a in range(n):
        for b in range(n):
            if a != b:
                factor = max([factor for name, factor in slow.items() if applies(name, layout, a, b)], default=1.0)
                times[:, a, b] = (10 if layout.link(a, b) == "intra" else 30) * factor
    return times * np.exp(rng.normal(0, noise, times.shape) + rng.normal(0, 0.3, (launches, 1, 1)))


def applies(name: str, layout: Layout, a: int, b: int) -> bool:
    kind, number, way = name.split()
    inter = layout.link(a, b) == "inter"
    if kind == "pair":
        x, y = map(int, number.split("-"))
        return (a, b) == (x, y) or (way == "both" and (a, b) == (y, x))
    k = int(number)
    ends = {"out": [a], "in": [b], "both": [a, b]}[way]
    if kind in ("rank", "rail"):
        return k in ends and (kind == "rank" or inter)
    return (inter or kind == "all") and k in map(layout.node, ends)


def _cells(name: str, layout: Layout) -> int:
    ranks = range(layout.ranks)
    return sum(applies(name, layout, a, b) for a in ranks for b in ranks if a != b)


def named(found: list[Straggler]) -> list[str]:
    return sorted(
        f"{item.kind} {item.about.get('ranks', item.about.get('nodes'))} {item.about['direction']}" for item in found
    )


PLANTED = [
    ((4, 2), {"node 2 both": 3.0}, ["link [2] both"]),
    ((4, 2), {"node 2 out": 3.0}, ["link [2] out"]),
    ((4, 2), {"node 0 in": 1.6}, ["link [0] in"]),
    ((4, 2), {"rank 5 both": 2.0}, ["rank [5] both"]),
    ((4, 2), {"rank 5 in": 2.0}, ["rank [5] in"]),
    ((4, 2), {"rail 5 both": 2.0}, ["link [5] both"]),
    ((4, 2), {"pair 1-6 both": 2.0}, ["link [1, 6] both"]),
    ((4, 2), {"pair 1-6 out": 2.0}, ["link [1, 6] out"]),
    ((4, 2), {"node 2 both": 3.0, "rank 1 both": 2.0}, ["link [2] both", "rank [1] both"]),
    ((4, 2), {"node 2 out": 3.0, "pair 0-1 both": 2.0}, ["link [0, 1] both", "link [2] out"]),
    ((4, 4), {"all 3 both": 2.0}, ["node [3] both"]),
    ((3, 2), {"node 2 both": 3.0}, ["link [2] both"]),
    ((5, 3), {"node 4 in": 1.5, "rank 7 both": 1.7}, ["link [4] in", "rank [7] both"]),
    ((1, 8), {"rank 3 both": 2.0}, ["rank [3] both"]),
    ((6, 1), {"node 3 both": 2.0}, ["link [3] both"]),
    ((2, 4), {"rank 6 out": 2.0}, ["rank [6] out"]),
    ((16, 8), {"rail 77 both": 2.0, "node 3 out": 1.5}, ["link [3] out", "link [77] both"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "slow", "expected"), PLANTED, ids=[f"{s[0]}x{s[1]}-{'+'.join(w)}" for s, w, _ in PLANTED]
)
@pytest.mark.parametrize("launches", [1, 3, 6])
def test_the_culprit_and_nobody_else_is_named(
    shape: tuple[int, int], slow: dict[str, float], expected: list[str], launches: int
) -> None:
    layout = Layout(*shape)
    for seed in range(1 if layout.ranks > 32 else 3):
        search = Search(matrix(layout, slow, seed, launches=launches), layout)
        found = search.run()
        if launches * min(_cells(name, layout) for name in slow) < 6:  # no interval, so nothing certain
            assert search.unclear is not None and set(named([*found, search.unclear])) == set(expected), seed
            continue
        assert named(found) == expected and search.unclear is None, seed
        for item in found:
            assert item.chance < 0.05 and item.launches_slow == launches and item.ratio >= 1.3
            assert item.low is not None and item.high is not None and 1 < item.low <= item.ratio <= item.high
            assert item.interval_of == ("launches" if launches >= 6 else "messages")


@pytest.mark.parametrize("seeds", first(1, [range(8), range(8, 20)]), ids=str)
@pytest.mark.parametrize("noise", [0.02, 0.1, 0.3, 0.8])
@pytest.mark.parametrize("launches", [1, 2, 6])
def test_nobody_is_named_where_all_are_alike(noise: float, launches: int, seeds: range) -> None:
    for seed in seeds:
        for shape in ((4, 2), (2, 4), (1, 4), (1, 3), (2, 2)):
            layout = Layout(*shape)
            found = Search(matrix(layout, {}, seed, launches=launches, noise=noise), layout).run()
            assert not found, (seed, shape)


def test_what_a_slow_rank_has_is_not_named_again() -> None:
    """It is slow to receive, and to a lesser degree to send: that is one culprit."""
    layout = Layout(4, 2)
    times = matrix(layout, {"rank 5 in": 3.0}, 1)
    times[:, 5, :] *= 1.7
    (found,) = Search(times, layout).run()
    assert found.name == "rank 5 (node 2), receiving" and found.other_way == pytest.approx(1.7, rel=0.1)


def test_differences_below_the_least_effect_are_nobodys_fault() -> None:
    layout = Layout(4, 2)
    times = matrix(layout, {"rank 5 both": 1.2}, 1, noise=0.02)
    assert not Search(times, layout).run()
    assert named(Search(times, layout, min_effect=1.1).run()) == ["rank [5] both"]


def test_a_burst_in_one_launch_is_forgiven() -> None:
    layout = Layout(4, 2)
    times = matrix(layout, {}, 1)
    times[2, 0, :] *= 5
    times[4, :, 3] *= 5
    assert not Search(times, layout).run()


def test_two_kinds_of_links_inside_a_node_are_no_stragglers() -> None:
    """Half of the pairs of a node cross its sockets: that is how it is built."""
    layout = Layout(1, 8)
    times = matrix(layout, {}, 1)
    socket = np.arange(8) // 4
    times[:, socket[:, None] != socket[None, :]] *= 1.6
    assert not Search(times, layout).run()


def test_cells_that_nobody_measured_change_nothing() -> None:
    layout = Layout(4, 2)
    times = matrix(layout, {"node 2 both": 3.0}, 1)
    times[1, 3, :] = np.nan
    times[:, 0, 7] = np.nan
    assert named(Search(times, layout).run()) == ["link [2] both"]
    assert not Search(np.full((2, 8, 8), np.nan), layout).run()


def test_suspects_are_counted() -> None:
    for shape in ((1, 4), (3, 1), (4, 2)):
        layout = Layout(*shape)
        every = [*suspects.shared(layout), *suspects.single(layout, range(layout.ranks**2))]
        assert len([item for item in every if item.cells.size]) >= suspects.count(layout)


# Seeded runs of the scripted transport: its ranks are threads, its data and its timing loop those of every sweep.

WORDS = ("nodes=4", "ranks_per_node=2", "algorithm=direct", "warmup=0", "iters=3")
PAIRS = ("collective=pairs", "round=all", "direction=there,back", "sizes.min=4K", "sizes.max=4K", "launches=6", *WORDS)


def scripted_run(
    parent: Path, seed: int, script: dict[str, Any], *words: str, late: dict[int, float] | None = None
) -> RunFolder:
    """As `commbench sweep` leaves it, of cases that all ranks measured in this process.

    `late` multiplies the own times of ranks: they end so much later than what they waited for.
    """
    cases = fake_runs.planned(*words)
    run = RunFolder.create(parent, "made")
    run.write_plan([{"case": as_dict(case), "skip": ""} for case in cases])
    run.write_json("run.json", {"format_version": 4, **fake_runs.ABOUT, "seed": seed})
    measurements = []
    for launch in range(cases[0].policy.launches):
        order = random.Random(f"{seed}/{launch}").sample(cases, len(cases))
        timings = _timings(order, seed, launch, script)
        for place, (case, timing) in enumerate(zip(order, timings, strict=True)):
            for rank, factor in (late or {}).items():
                timing[:, rank] *= factor
            times = timing.tolist()
            line = {"case_id": case.case_id, "launch": launch, "time_us": times, "host_us": times}
            with open(run.samples_path(str(launch)), "a") as file:
                file.write(json.dumps(line) + "\n")
            m = Measurement(case_id=case.case_id, launch=launch, attempt=str(launch), order=place, status=Status.OK,
                            samples=len(timing), calls_per_sample=1, time_us=1.0, time_us_mean=1.0, host_us=0.0,
                            stop_reason="iters", fabric="declared")  # fmt: skip
            run.append_measurement(m)
            measurements.append(m)
    for row in fake_runs.rows_of(cases, measurements, Samples(run)):
        run.append_row(row)
    return run


def _timings(cases: list[Case], seed: int, launch: int, script: dict[str, Any]) -> list[Any]:
    layout = cases[0].setup.layout
    meshes = thread_meshes(layout.ranks)

    def rank(number: int) -> list[Any]:
        options = {"script": json.dumps(script), "layout": (layout.nodes, layout.ranks_per_node)}
        transport = Scripted({**options, "seed": seed, "launch": launch})
        transport.attach(meshes[number])
        taken = []
        for case in cases:
            spec, comm = case.spec, transport.world
            bound = algorithms.get(case.collective, case.algorithm).prepare(comm, spec)
            collective = collectives.get(case.collective)
            sizes = collective.output_bytes(spec, number), collective.input_bytes(spec, number)
            pair = comm.empty(sizes[0]), comm.empty(sizes[1])
            ready = bound.bind([pair])
            timing = loop.measure(transport, ready, case.policy, mode="isolated", observer=loop.Observer())
            taken.append(timing.time_us)
        return taken

    return list(in_threads(layout.ranks, rank)[0])


def asked(run: RunFolder, capsys: pytest.CaptureFixture[str], effect: float = 1.3) -> tuple[int, list[dict[str, Any]]]:
    code = stragglers.run([run.path], "json", effect)
    return code, json.loads(capsys.readouterr().out)["found"]


@pytest.mark.parametrize("seed", first(8, range(20)))
def test_planted_on_the_scripted_transport(seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A slow link and a slow rank of another node: both named, nobody else."""
    rng = random.Random(seed)
    node, other = rng.sample(range(4), 2)
    rank, way = other * 2 + rng.randrange(2), rng.choice(["out", "in", "both"])
    slow = {"slow_links": [{"node": node, "direction": way, "factor": 3}], "slow_ranks": {str(rank): 2.5}}
    code, found = asked(scripted_run(tmp_path, seed, {**NOISE, **slow}, *PAIRS), capsys)
    assert code == 1
    what = {(item["kind"], *item.get("nodes", item.get("ranks")), item["direction"]) for item in found}
    assert what == {("link", node, way), ("rank", rank, "both")}, found


@pytest.mark.parametrize("seed", first(8, range(20)))
def test_healthy_on_the_scripted_transport(seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert asked(scripted_run(tmp_path, seed, NOISE, *PAIRS), capsys) == (0, [])


def test_one_slow_pair_on_the_scripted_transport(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slow = {"slow_links": [{"from": 1, "to": 6, "factor": 3}]}
    code, found = asked(scripted_run(tmp_path, 1, {**NOISE, **slow}, *PAIRS), capsys)
    assert code == 1 and [(item["ranks"], item["direction"]) for item in found] == [([1, 6], "out")]
    assert found[0]["time_us"]["inter"] / found[0]["usual_us"]["inter"] == pytest.approx(found[0]["ratio"], rel=0.1)


def test_two_sizes_name_a_culprit_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for word in PAIRS if not word.startswith("sizes")]
    sizes = ("sizes.min=1K", "sizes.max=4K", "sizes.factor=4")
    run = scripted_run(tmp_path, 1, {**NOISE, "slow_ranks": {"3": 3}}, *words, *sizes)
    code, found = asked(run, capsys)
    assert code == 1 and len(found) == 1 and found[0]["ranks"] == [3] and len(found[0]["also"]) == 1
    assert stragglers.run([run.path], "text", 1.3) == 1
    out = capsys.readouterr().out
    assert out.count("SLOW RANK  rank 3 (node 1)") == 1 and out.count("the same as elsewhere: rank 3") == 1


# Samples of other sweeps.


def test_a_rank_stands_out_in_any_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("collective=all_gather,all_to_all", "sizes.min=1K", "sizes.max=4K", "sizes.factor=4", "launches=6")
    healthy = scripted_run(tmp_path / "a", 1, NOISE, *words, *WORDS)
    assert asked(healthy, capsys) == (0, [])
    slow = scripted_run(tmp_path / "b", 1, NOISE, *words, *WORDS, late={6: 1.6})
    code, found = asked(slow, capsys)
    assert code == 1 and [(item["kind"], item["ranks"]) for item in found] == [("rank", [6])]
    assert found[0]["slowest_share"] > 0.9 and found[0]["interval_of"] == "launches"
    stragglers.run([slow.path], "text", 1.3)
    out = capsys.readouterr().out
    assert "SLOW RANK  rank 6 (node 3)" in out and "of samples, 12 % by chance" in out


def test_what_ranks_do_differently_is_no_evidence() -> None:
    """A root, and uneven parts, make some rank slower in every healthy system."""
    for words in (
        ("collective=broadcast",),
        ("collective=sendrecv",),
        ("collective=all_to_allv", "splits=zipf"),
        ("ranks_per_node=1",),
    ):
        (case, *_) = fake_runs.planned("nodes=2", "ranks_per_node=4", "algorithm=direct", "sizes.max=1K", *words)
        times = np.ones((10, case.setup.layout.ranks))
        times[:, 0] = 5
        assert not ranks.gather([ranks.LaunchSamples(case=case, launch=("r", "0"), time_us=times)])


def test_nothing_to_judge_by_is_an_error(tmp_path: Path) -> None:
    cases = fake_runs.planned("nodes=1", "ranks_per_node=2", "algorithm=direct", "sizes.max=1K", "launches=1")
    run, _ = fake_runs.folder(tmp_path, cases, fake_runs.measured(cases, lambda case: 10.0), samples=6)
    run.write_json("run.json", {"format_version": 4, **fake_runs.ABOUT})
    with pytest.raises(UsageError, match="nothing to judge") as caught:
        stragglers.run([run.path], "text", 1.3)
    assert "commbench sweep pairs transport=scripted nodes=1 ranks_per_node=2;" in caught.value.hint
    with pytest.raises(UsageError, match="effect is 1"):
        stragglers.run([run.path], "text", 1.0)
