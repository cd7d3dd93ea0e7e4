"""The rounds in which pairs of ranks meet, the plan of them, and the matrix that is made of their samples."""

from __future__ import annotations

import csv
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from commbench.analysis import pair_matrices
from commbench.analysis.pair_matrices import LaunchSamples
from commbench.collectives import pairs
from commbench.errors import UsageError
from commbench.layout import Layout
from commbench.run_folder import RunFolder
from commbench.sweep import prepare
from commbench.sweep.plan import expand
from tests.conftest import here, only_run
from tests.support.fake_runs import folder, measured, planned

LAYOUTS = [(n, m) for n in range(1, 8) for m in range(1, 7) if n * m > 1] + [(16, 8), (9, 8)]
PAIRS = ("collective=pairs", "algorithm=direct", "round=all", "-b=4K")


@pytest.mark.parametrize(("nodes", "m"), LAYOUTS)
@pytest.mark.parametrize("schedule", pairs.SCHEDULES)
def test_all_pairs_meet_once_and_nobody_is_in_two_places(nodes: int, m: int, schedule: str) -> None:
    layout = Layout(nodes, m)
    count = pairs.rounds(schedule, layout)
    met: Counter[frozenset[int]] = Counter()
    for number in range(count):
        meeting = pairs.meetings(schedule, layout, number)
        ranks = [rank for pair in meeting for rank in pair]
        assert len(set(ranks)) == len(ranks) and all(0 <= rank < layout.ranks for rank in ranks)
        assert schedule == "tournament" or len(meeting) == 1
        met.update(map(frozenset, meeting))
    n = layout.ranks
    assert set(met.values()) == {1} and len(met) == n * (n - 1) // 2
    assert count in ((n - 1, n) if schedule == "tournament" else (n * (n - 1) // 2,))


@pytest.mark.parametrize(("nodes", "m"), [(4, 2), (2, 4), (8, 8), (5, 2), (6, 3)])
def test_in_a_tournament_whole_nodes_meet(nodes: int, m: int) -> None:
    """So that in all rounds a node's link has the same number of messages in each direction."""
    layout = Layout(nodes, m)
    for number in range(pairs.rounds("tournament", layout)):
        out, into, partner = Counter[int](), Counter[int](), dict[int, set[int]]()
        for src, dst in pairs.meetings("tournament", layout, number):
            a, b = layout.node(src), layout.node(dst)
            partner.setdefault(a, set()).add(b)
            partner.setdefault(b, set()).add(a)
            if a != b:
                out[a] += 1
                into[b] += 1
        assert all(len(nodes_met) == 1 for nodes_met in partner.values())
        assert {*out.values(), *into.values()} <= {m // 2, m - m // 2}


def test_a_call_moves_one_message_each_way_it_is_asked() -> None:
    (case,) = planned("collective=pairs", "nodes=1", "ranks_per_node=3", "round=1", "sizes.min=64", "sizes.max=64")
    spec = case.spec
    ((src, dst),) = pairs.directed(spec)
    collective = pairs.Pairs()
    sizes = [(collective.input_bytes(spec, rank), collective.output_bytes(spec, rank)) for rank in range(3)]
    assert sizes[src] == (64, 0) and sizes[dst] == (0, 64) and sorted(sizes)[0] == (0, 0)
    assert pairs.peers(spec, src) == (dst, None)


def test_all_rounds_are_cases_and_a_round_that_is_not_there_is_skipped() -> None:
    words = ("sizes.min=1K", "sizes.max=1M", "sizes.factor=1024", "direction=there,back", "nodes=4", "ranks_per_node=2")
    cases = planned("collective=pairs", "algorithm=direct", "round=all", *words)
    assert len(cases) == 7 * 2 * 2 and {case.arguments["round"] for case in cases} == set(range(7))
    _, configs = prepare.configure(["quick", "transport=scripted", "collective=pairs", "round=3,7", *words])
    assert {item.skip for item in expand(configs)} == {"", "round=7: in a layout of 4x2 the rounds are 0 .. 6"}
    for wrong, message in (
        ("round=some", "round is 'some'"),
        ("round=-1", "round is -1"),
        ("schedule=x", "unknown sched"),
    ):
        with pytest.raises(UsageError, match=message):
            prepare.configure(["quick", "transport=scripted", "collective=pairs", wrong])


def item_of(times: list[float], begins: list[float] | None, direction: str) -> list[tuple[int, int, float]]:
    words = ("collective=pairs", "nodes=1", "ranks_per_node=2", "round=0", f"direction={direction}", "sizes.max=1K")
    (case,) = planned(*words)
    item = LaunchSamples(
        case=case, launch=("r", "0"), time_us=np.array([times]), begin_us=None if begins is None else np.array([begins])
    )
    return [(src, dst, float(found[0])) for src, dst, found in pair_matrices._messages(item)]


def test_who_waits_for_a_late_partner_is_not_slow() -> None:
    """Rank 0 sends; the receiver left the barrier 50 us before it, and its own time holds the wait."""
    assert item_of([10.0, 62.0], [50.0, 0.0], "there") == [(0, 1, 12.0)]
    assert item_of([10.0, 62.0], None, "there") == [(0, 1, 62.0)]
    assert item_of([10.0, 62.0], [50.0, 0.0], "both") == [(0, 1, 12.0), (1, 0, 10.0)]


def test_what_a_launch_measured_after_a_crash_is_a_launch_of_its_own(tmp_path: Path) -> None:
    """What slowed the one process group says nothing of the other."""
    words = ("nodes=1", "ranks_per_node=3", "sizes.min=4K", "sizes.max=4K", "launches=2")
    cases = planned("collective=pairs", "algorithm=direct", "round=all", *words)
    made = measured(cases, lambda case: 100.0)
    crashed = [replace(m, attempt="001-after") if m.launch == 1 and m.order else m for m in made]
    for name, measurements, groups in (("whole", made, 2), ("crashed", crashed, 3)):
        run, _ = folder(tmp_path / name, cases, measurements, 6)
        launches = [item.launch for item in pair_matrices.read_launches(run)]
        assert len(launches) == 2 * len(cases) and len(set(launches)) == groups


def test_a_sweep_leaves_the_matrix_as_files_and_pictures(tmp_path: Path, write_script: object) -> None:
    words = ("transport=scripted", "nodes=2", "ranks_per_node=2", "-b", "1K", "-e", "1K", "launches=2", "iters=3")
    done = here("sweep", "pairs", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("# size  round  time_us") == 2 and done.stdout.count("# pairs schedule=tournament") == 2
    run = only_run(tmp_path / "results")
    with open(run / "pairs.csv") as file:
        lines = list(csv.DictReader(file))
    assert {(line["src"], line["dst"]) for line in lines} == {
        (str(a), str(b)) for a in range(4) for b in range(4) if a != b
    }
    by_link = {line["link"]: float(line["time_us"]) for line in lines}
    assert by_link["inter"] == pytest.approx(10 + 1.024, abs=0.01) and by_link["intra"] == pytest.approx(2.1, abs=0.01)
    (matrix,) = (json.loads(line) for line in (run / "pairs.json").read_text().splitlines())
    assert matrix["time_us"][0][0] is None and matrix["time_us"][0][3] == pytest.approx(11.02, abs=0.01)
    (picture,) = (run / "plots").glob("*.png")
    assert picture.name.startswith("pairs-schedule-tournament-scripted-2x2")
    again = here("plot", str(run), "--out", str(tmp_path / "drawn"), cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert {path.suffix for path in (tmp_path / "drawn").iterdir()} == {".png", ".svg", ".csv", ".json"}
    (made,) = pair_matrices.of_runs([RunFolder.open(run)])
    assert made.launches == 2 and np.isfinite(made.median_us).sum() == 12
    two = pair_matrices.of_runs([RunFolder.open(run), RunFolder.open(run)])
    assert len(two) == 1, "the same set-up in two runs is one matrix"
