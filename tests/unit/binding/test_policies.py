"""Which CPUs and memory each rank shall have: policies on machines made by hand, keys, plans and what is told."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from commbench.analysis import ratios
from commbench.binding import affinity, policies
from commbench.binding.policies import Placement, parse_masks, placements
from commbench.errors import EnvironmentProblem, UsageError
from commbench.launch import job_script, placement
from commbench.launch.job import Job
from commbench.machine import gpus
from commbench.machine.machine import Machine, NumaNode, PciDevice
from commbench.output import parquet, table
from commbench.plots.settings import BINDING_SETTINGS, file_words, title_words
from commbench.records import Case, Row, Setup
from commbench.serialise import as_dict, from_dict
from commbench.sweep import prepare
from commbench.sweep.plan import expand
from tests.conftest import commbench, environment, here, rows_of
from tests.support.fake_runs import folder, measured, planned

GI = 1 << 30
SMALL = ("algorithm=direct", "nodes=1", "ranks_per_node=2", "sizes.min=1K", "sizes.max=1K")


def machine(
    nodes: int, cores: int, gpu_nodes: tuple[int | None, ...] = (), nic_nodes: tuple[int | None, ...] = (), **more: Any
) -> Machine:
    """`cores` CPUs on each node; distances grow with that of the indices."""
    made = tuple(
        NumaNode(
            index=index,
            cpus=tuple(range(index * cores, (index + 1) * cores)),
            memory_bytes=64 * GI,
            distances=tuple(10 + 2 * abs(index - other) for other in range(nodes)),
        )
        for index in range(nodes)
    )
    devices = [
        tuple(
            PciDevice(kind=kind, name=f"{name}{i}", pci_bus_id=f"0000:{16 * bus + i:02x}:00.0", numa_node=node)
            for i, node in enumerate(where)
        )
        for kind, name, bus, where in (("gpu", "GPU", 1, gpu_nodes), ("nic", "mlx5_", 8, nic_nodes))
    ]
    values = {"nodes": made, "gpus": devices[0], "nics": devices[1], **more}
    return Machine(cpus=tuple(cpu for node in made for cpu in node.cpus), **values)


# 4 NUMA nodes x 24 cores; GPUs (0,1) on node 1, (2,3) on 0, (4,5) on 3, (6,7) on 2.
NDV4 = machine(4, 24, gpu_nodes=(1, 1, 0, 0, 3, 3, 2, 2), nic_nodes=(1, 1, 0, 0, 3, 3, 2, 2))
DGX = machine(2, 56, gpu_nodes=(0, 0, 0, 0, 1, 1, 1, 1))
PC = machine(1, 8, gpu_nodes=(None,), nic_nodes=(None,))


def nodes_of(on: Machine, policy: str, ranks: int, **more: Any) -> list[int]:
    """The node of each rank's CPUs, which are all of that node's, and its memory."""
    values = {"allowed": on.cpus, "devices": on.gpus, **more}
    found = []
    for place in placements(on, policy, ranks, **values):
        (node,) = place.memory_nodes or ()
        assert place.cpus == on.node(node).cpus
        found.append(node)
    return found


@pytest.mark.parametrize(
    ("policy", "expected", "right"),
    [
        ("pci", [1, 1, 0, 0, 3, 3, 2, 2], 8),
        ("round_robin", [0, 1, 2, 3, 0, 1, 2, 3], 2),
        ("block", [0, 0, 1, 1, 2, 2, 3, 3], 0),
        ("worst", [3, 3, 3, 3, 0, 0, 0, 0], 0),
    ],
)
def test_ndv4(policy: str, expected: list[int], right: int) -> None:
    """Tutel's formulas put 2 and 0 of 8 ranks beside their GPUs."""
    found = nodes_of(NDV4, policy, 8)
    assert found == expected
    assert sum(node == gpu.numa_node for node, gpu in zip(found, NDV4.gpus, strict=True)) == right


def test_two_nodes() -> None:
    assert nodes_of(DGX, "pci", 8) == nodes_of(DGX, "block", 8) == [0, 0, 0, 0, 1, 1, 1, 1]
    assert nodes_of(DGX, "worst", 8) == [1, 1, 1, 1, 0, 0, 0, 0]
    assert nodes_of(DGX, "round_robin", 8) == [0, 1] * 4
    assert nodes_of(DGX, "block", 5) == [0, 0, 0, 1, 1], "filled evenly, and never back to the first"
    assert nodes_of(DGX, "block", 1) == [0]
    assert nodes_of(NDV4, "block", 2) == [0, 2], "fewer ranks than nodes spread out"


def test_one_node_leaves_no_difference_and_says_so() -> None:
    for policy in policies.BY_NODE:
        assert nodes_of(PC, policy, 3) == [0, 0, 0]
    assert "worst means nothing here" in placements(PC, "worst", 1, allowed=PC.cpus)[0].why
    assert str(placements(PC, "pci", 1, allowed=PC.cpus, devices=PC.gpus)[0]) == (
        "CPUs 0-7, memory of node 0: GPU0 is on node 0"
    )


def why(on: Machine, policy: str, ranks: int, **more: Any) -> list[str]:
    return [place.why for place in placements(on, policy, ranks, allowed=on.cpus, **more)]


def test_pci_falls_back_to_a_card_and_then_to_block_and_says_which() -> None:
    assert nodes_of(NDV4, "pci", 4, devices=()) == [0, 1, 2, 3], "no GPUs: spread over the nodes that have a card"
    assert why(NDV4, "pci", 4)[1] == "no GPU; card mlx5_0 is on node 1"
    bare = machine(2, 4, gpu_nodes=(None, None), nic_nodes=(None,))
    assert nodes_of(bare, "pci", 4, devices=()) == [0, 0, 1, 1]
    assert why(bare, "pci", 4)[3] == (
        "no GPU, and no network card tells a node, so block: local rank 3 of 4, filled node after node (2)"
    )
    assert "GPU1 tells no node with CPUs, so block" in why(bare, "pci", 2, devices=bare.gpus)[1]
    card = PciDevice(kind="nic", name="mlx5_9", pci_path=("root1", "switch1", "nic"), numa_node=1, link="InfiniBand")
    lost = PciDevice(kind="gpu", name="GPU0", pci_path=("root1", "switch1", "gpu"))
    other = PciDevice(kind="nic", name="mlx5_0", pci_path=("root0", "nic"), numa_node=0, link="InfiniBand")
    two = dataclasses.replace(bare, nics=(other, card), gpus=(lost,))
    assert nodes_of(two, "pci", 1) == [1]
    assert "nearest card mlx5_9 is on node 1" in why(two, "pci", 1, devices=two.gpus)[0]


def test_nodes_need_not_be_consecutive_nor_have_cpus_or_memory() -> None:
    far = NumaNode(index=8, cpus=(4, 5), memory_bytes=0, distances=(20, 10, 15))
    extra = NumaNode(index=16, cpus=(), memory_bytes=GI, distances=(30, 15, 10))
    odd = Machine(cpus=(0, 1, 4, 5), nodes=(NumaNode(index=0, cpus=(0, 1), memory_bytes=GI), far, extra))
    found = placements(odd, "round_robin", 4, allowed=odd.cpus)
    assert [place.cpus for place in found] == [(0, 1), (4, 5)] * 2
    assert [place.memory_nodes for place in found] == [(0,), (16,)] * 2
    assert "node 8 has no memory, so the nearest that has" in found[1].why
    assert "the distances are unknown" in why(odd, "worst", 1)[0]
    gpu = PciDevice(kind="gpu", name="GPU0", numa_node=16)
    assert "GPU0 tells no node with CPUs, so block" in why(odd, "pci", 1, devices=[gpu])[0]
    with pytest.raises(EnvironmentProblem, match="shows none"):
        placements(Machine(cpus=(0,), nodes=()), "block", 1, allowed=(0,))


def test_only_allowed_cpus_and_memory_are_given() -> None:
    half = placements(DGX, "block", 2, allowed=range(28, 84))
    assert [place.cpus for place in half] == [tuple(range(28, 56)), tuple(range(56, 84))]
    assert "28 of the 56 CPUs of node 0 may be used" in half[0].why
    with pytest.raises(EnvironmentProblem, match=r"sends local rank 1 to NUMA node 1 .* none of its CPUs 56-111") as e:
        placements(DGX, "block", 2, allowed=range(10))
    assert "allowed are 0-9" in str(e.value) and "leave binding=block out" in e.value.hint
    with pytest.raises(EnvironmentProblem, match="memory is allowed from 0 only") as e:
        placements(DGX, "block", 2, allowed=DGX.cpus, allowed_memory=(0,))
    assert "binding_memory=off" in e.value.hint
    off = placements(DGX, "block", 2, allowed=DGX.cpus, allowed_memory=(0,), memory=False)
    assert [place.memory_nodes for place in off] == [None, None]
    assert (
        placements(DGX, "none", 2, allowed=(3, 4))
        == [Placement(cpus=(3, 4), memory_nodes=None, why="as it was started")] * 2
    )


def test_masks() -> None:
    places = placements(DGX, "explicit", 2, allowed=DGX.cpus, masks=parse_masks("0-3,55-56; 7"))
    assert [place.cpus for place in places] == [(0, 1, 2, 3, 55, 56), (7,)]
    assert [place.memory_nodes for place in places] == [(0, 1), (0,)]
    assert policies.masks_text(parse_masks("3,1,2;0")) == "1-3;0"
    with pytest.raises(UsageError, match="CPUs 112-113 for local rank 1, but allowed are 0-111"):
        placements(DGX, "explicit", 2, allowed=DGX.cpus, masks=parse_masks("0;110-113"))
    for text in ("", "0;", "a", "0-", "3-1", "0;;1", "0-99999999999"):
        with pytest.raises(UsageError, match="cpu_masks is "):
            parse_masks(text)
    for ranks in (1, 3):
        with pytest.raises(UsageError, match=f"has 2 lists of CPUs, but {ranks} rank"):
            placements(DGX, "explicit", ranks, allowed=DGX.cpus, masks=parse_masks("0;1"))


# Keys and plans.


def test_bindings_are_set_ups_and_cross_with_the_environment() -> None:
    words = ("binding=none,pci,explicit", "cpu_masks=0,2-3;1", "env.NCCL_IGNORE_CPU_AFFINITY=0,1")
    cases = planned(*SMALL, *words)
    assert len({case.setup.key for case in cases}) == len({case.case_id for case in cases}) == 6
    assert {case.setup.binding_text for case in cases} == {"", "binding=pci", "binding=explicit 0,2-3;1"}
    assert "binding=explicit 0,2-3;1, NCCL_IGNORE_CPU_AFFINITY=1" in {
        str(case.setup).split("ranks, ")[-1] for case in cases
    }
    off = planned(*SMALL, "binding=none,block", "binding_memory=off")
    assert [case.setup.binding_text for case in off] == ["", "binding=block CPUs only"]


def test_what_was_measured_before_there_were_bindings_keeps_its_name() -> None:
    """Ids of two cases as they were in format 4."""
    setup = Setup(transport="gloo", nodes=2, ranks_per_node=2, env={"A": "1"})
    assert setup.key == "67265acb27c1"
    (case,) = planned(*SMALL, "transport=scripted")
    assert case.case_id == "365caa1b6275"
    raw = as_dict(case)
    for name in ("binding", "cpu_masks", "binding_memory"):
        del raw["outer"][name]
    assert from_dict(Case, raw) == case


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("binding=nuna",), "unknown binding 'nuna'"),
        (("binding=explicit",), "binding=explicit needs cpu_masks"),
        (("binding=pci", "cpu_masks=0;1"), "cpu_masks is set, but has no effect"),
        (("binding_memory=off",), "binding_memory is set, but has no effect"),
        (("binding=pci", "binding_memory=maybe"), "binding_memory is 'maybe'"),
        (("binding=explicit", "cpu_masks=0;x"), "cpu_masks is '0;x'"),
    ],
)
def test_what_cannot_be_meant_is_refused(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        planned(*SMALL, *words)


def test_a_runs_config_has_them(tmp_path: Path) -> None:
    words = ("quick", "transport=gloo", *SMALL, "binding=none,explicit", "cpu_masks='0,2;1'", "binding_memory=off")
    path = tmp_path / "again.yaml"
    path.write_text(prepare.show_config(prepare.configure(words)[1]))
    again = [item.case.case_id for item in expand(prepare.configure([str(path)])[1])]
    assert again == [item.case.case_id for item in expand(prepare.configure(words)[1])]


def test_the_job_script_says_the_binding_of_each_set_up() -> None:
    setups = [
        Setup(transport="gloo", nodes=1, ranks_per_node=2),
        Setup(transport="gloo", nodes=1, ranks_per_node=2, binding="explicit", cpu_masks="0;1", binding_memory=False),
    ]
    text = job_script.text(("binding", "binding=none,explicit", "cpu_masks=0;1"), setups, seconds=1, python="python")
    torchrun = [shlex.split(line.strip("# ")) for line in text.splitlines() if "torch.distributed.run" in line]
    assert [words[words.index("sweep") + 1 :] for words in torchrun] == [
        ["binding", "transport=gloo", "nodes=1", "ranks_per_node=2", "binding=none"],
        ["binding", "transport=gloo", "nodes=1", "ranks_per_node=2", "binding=explicit", "cpu_masks=0;1",
         "binding_memory=off"],
    ]  # fmt: skip


# Places of a launch.


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Another machine than this one."""

    def use(made: Machine, allowed: Any = None) -> None:
        monkeypatch.setattr(placement, "_machine", lambda: made)
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(made.cpus if allowed is None else allowed))
        monkeypatch.setattr(affinity, "allowed_memory", lambda: None)
        monkeypatch.setattr(affinity, "unsupported_memory_policy", lambda: "")

    return use


def test_ranks_are_placed_beside_the_gpus_that_they_can_see(on: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    on(NDV4)
    seen = [(f"GPU-{i}", f"0000{gpu.pci_bus_id}".upper()) for i, gpu in enumerate(NDV4.gpus)]
    monkeypatch.setattr(gpus, "visible", lambda environ: seen[::-1] if environ.get("BACK") else seen[:2])
    setup = Setup(transport="nccl", nodes=1, ranks_per_node=2, binding="pci")
    assert [(place.gpu, place.memory_nodes) for place in placement.of_launch(setup, "local")] == [
        ("GPU-0", (1,)), ("GPU-1", (1,))
    ]  # fmt: skip
    back = dataclasses.replace(setup, env={"BACK": "1"})
    assert [(place.gpu, place.memory_nodes) for place in placement.of_launch(back, "local")] == [
        ("GPU-7", (2,)), ("GPU-6", (2,))
    ]  # fmt: skip
    # Virtual hosts: ranks of both nodes share the GPUs.
    shared = dataclasses.replace(setup, nodes=2, virtual_hosts=True, binding="worst")
    assert [place.gpu for place in placement.of_launch(shared, "local")] == ["GPU-0", "GPU-1"] * 2
    seat = placement.RankPlacement("pci", placement.of_launch(setup, "local")[1], strangers=True)
    seat.check_gpu({"uuid": "GPU-1"})
    with pytest.raises(EnvironmentProblem, match="the rank's GPU GPU-1, but CUDA gave it GPU-5") as e:
        seat.check_gpu({"uuid": "GPU-5"})
    assert "CUDA_DEVICE_ORDER" in e.value.hint


def test_an_order_carries_the_places(on: Any) -> None:
    on(DGX)
    (case,) = planned(*SMALL, "transport=scripted", "binding=worst")
    places = tuple(placement.of_launch(case.setup, "local"))
    job = Job(run_dir="r", attempt="a", launch=0, setup=case.setup, cases=(case,), host="h", placements=places)
    assert Job.from_json(job.to_json()) == job and len(places) == 2
    assert placement.of_launch(case.setup, "slurm") == [], "its ranks are elsewhere"


def checked(*words: str, launcher: str = "local", joined: int = 0) -> tuple[list[str], list[str]]:
    """Reasons to skip, and notes."""
    notes: list[str] = []
    _, configs = prepare.configure(["quick", *SMALL, "transport=gloo", *words])
    items = placement.check(expand(configs), {"gloo": launcher, "mpi": launcher}, notes.append, joined=joined)
    return [item.skip for item in items], notes


def test_a_policy_that_a_container_cannot_do_is_skipped_beside_others(on: Any) -> None:
    on(DGX, range(4))
    skips, notes = checked("binding=none,block")
    assert skips[0] == "" and "none of its CPUs 56-111 may be used: allowed are 0-3; give this" in skips[1]
    assert notes == []
    with pytest.raises(EnvironmentProblem, match="allowed are 0-3"):
        checked("binding=block")
    with pytest.raises(UsageError, match="CPU 4 for local rank 1"):
        checked("binding=none,explicit", "cpu_masks=0;4")
    with pytest.raises(UsageError, match="has 3 lists of CPUs, but 2 ranks"):
        checked("binding=none,explicit", "cpu_masks=0;1;2")
    # What other hosts have, ranks there find out.
    assert checked("binding=block", launcher="slurm")[0] == [""]
    assert checked("binding=explicit", "cpu_masks=200;201", launcher="slurm")[0] == [""]


def test_memory_that_cannot_be_bound_is_told_before_anything_starts(on: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    on(PC)
    monkeypatch.setattr(affinity, "unsupported_memory_policy", lambda: "set_mempolicy: Operation not permitted")
    with pytest.raises(EnvironmentProblem, match="the kernel refuses: set_mempolicy: Operation not permitted") as e:
        checked("binding=block")
    assert "binding_memory=off" in e.value.hint
    assert checked("binding=block", "binding_memory=off")[0] == [""]


def test_one_node_is_told_once(on: Any) -> None:
    on(PC)
    _, notes = checked("binding=none,pci,worst")
    assert notes == ["one NUMA node: nothing to gain here: bindings pci, worst all give every rank the same CPUs"]
    assert checked("binding=none,explicit", "cpu_masks=0;1")[1] == checked("binding=none")[1] == []


def test_masks_of_one_host_of_several(on: Any) -> None:
    on(PC)
    words = ("nodes=2", "transport=mpi", "binding=explicit")
    assert checked(*words, "cpu_masks=0;1;2;3", launcher="mpiexec")[0] == [""]
    assert checked(*words, "cpu_masks=0;1", launcher="mpiexec")[0] == [""]
    setup = Setup(transport="mpi", nodes=2, ranks_per_node=2, binding="explicit", cpu_masks="0;1")
    assert placement.of_launch(setup, "mpiexec") == []
    with pytest.raises(UsageError, match="3 lists of CPUs, but 4 ranks"):
        checked(*words, "cpu_masks=0;1;2", launcher="mpiexec")


# Rows, tables, ratios.


def rows_of_three(tmp_path: Path) -> tuple[list[Row], dict[str, ratios.Speedup]]:
    factors = {"none": 1.0, "pci": 0.5, "worst": 2.0}
    cases = planned(*SMALL, "transport=scripted", "binding=worst,none,pci", "launches=10")
    made = [
        dataclasses.replace(m, rank_cpus=["0", "1"], rank_memory=["0"])
        for m in measured(cases, lambda case: 100 * factors[case.setup.binding], drift=0)
    ]
    run, rows = folder(tmp_path, cases, made, samples=1)
    return rows, ratios.of_run(run, rows)


def test_rows_tables_and_ratios_have_it(tmp_path: Path) -> None:
    rows, found = rows_of_three(tmp_path)
    assert {(row.binding, row.rank_cpus, row.rank_memory) for row in rows} == {
        (policy, "0 1", "0") for policy in ("none", "pci", "worst")
    }
    speedups = {row.binding: found[row.case_id].speedup for row in rows}
    assert speedups["none"] is None and speedups["pci"] == pytest.approx(2, rel=0.1)
    assert speedups["worst"] == pytest.approx(0.5, rel=0.1)
    assert {ratio.baseline for ratio in found.values()} == {"binding=none"}
    meta = {"commbench_version": "1", "run_id": "r", "machine_text": "m", "machine": {"affinity": [0]}}
    printed = table.table(rows, meta, found).replace("\n#   ", " ")
    assert printed.count("# vs_binding=none: these are the baseline, binding=none") == 1
    titles = [line for line in printed.splitlines() if line.startswith("# all_to_all over")]
    assert [line.endswith(f", binding={p}") for line, p in zip(titles, ("worst", "none", "pci"), strict=True)] == [
        True, False, True
    ]  # fmt: skip
    frame = parquet.frame(rows, "r", found)
    assert set(frame["binding"]) == {"none", "pci", "worst"}
    words = dict.fromkeys(("transport", "fabric", "dtype", "mode", "env", "what"), "") | {
        "groups": "world", "overlap": "none", "buffers": "plain", "cache": "warm", **BINDING_SETTINGS,
    }  # fmt: skip
    assert title_words(words)["binding"] == file_words(words)["binding"] == ""
    words["binding"] = "pci"
    assert (title_words(words)["binding"], file_words(words)["binding"]) == ("binding=pci", "pci")


def test_ratios_of_bindings_stay_inside_an_environment() -> None:
    words = ("binding=none,pci", "env.NCCL_IGNORE_CPU_AFFINITY=0,1", "launches=10")
    cases = planned(*SMALL, "transport=scripted", *words)
    found = ratios.compare(cases, measured(cases, lambda case: 100.0), lambda m: [])  # type: ignore[arg-type,return-value]
    assert sum(ratio.pairs is None for ratio in found.values()) == 2
    assert {ratio.baseline for ratio in found.values()} == {"binding=none"}


# The command.


def test_a_dry_run_shows_every_place(tmp_path: Path) -> None:
    one = str(min(os.sched_getaffinity(0)))
    words = ("sweep", "quick", *SMALL, "transport=scripted", "binding=none,block,explicit", f"cpu_masks={one};{one}")
    shown = here(*words, "binding_memory=off", "--dry-run", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "binding=none: every rank as it is started\n" in shown.stdout
    assert f"binding=explicit {one};{one} CPUs only, local rank 1: CPUs {one}, memory as it was: list 2" in shown.stdout
    assert shown.stdout.count("binding=block CPUs only, local rank") == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("masks", "message"),
    [("0;60000", "cpu_masks has CPU 60000 for local rank 1"), ("0", "has 1 list of CPUs, but 2 ranks run on this")],
)
def test_bad_masks_end_the_command_and_write_nothing(tmp_path: Path, masks: str, message: str) -> None:
    words = (*SMALL, "transport=scripted", "binding=none,explicit", f"cpu_masks={masks}", "binding_memory=off")
    done = here("sweep", "quick", *words, cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert done.stdout == "" and not list(tmp_path.iterdir())


def test_a_place_that_is_not_taken_makes_no_row(tmp_path: Path) -> None:
    """The rank's code is broken on purpose: it asks the kernel for nothing."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        pytest.skip("one CPU: every rank is where it shall be")
    (tmp_path / "sitecustomize.py").write_text(
        "import os\nos.sched_setaffinity = lambda thread, cpus: None\n"  # what a sandbox may do
    )
    words = (*SMALL, "transport=scripted", "binding=none,explicit", f"cpu_masks={allowed[0]};{allowed[1]}")
    more = ("binding_memory=off", "launches=1", "iters=3", "--no-plots", "--format", "json")
    done = commbench("sweep", "quick", *words, *more, cwd=tmp_path, env=environment(tmp_path))
    rows = {row["binding"]: row for row in rows_of(done)}
    assert done.returncode == 1 and rows["none"]["status"] == "ok"
    broken = rows["explicit"]
    assert (broken["status"], broken["time_us"], broken["rank_cpus"]) == ("error", None, "")
    assert "binding=explicit did not take effect: asked for CPUs" in broken["reason"]
    assert "right after it was set it is CPUs" in broken["reason"]
