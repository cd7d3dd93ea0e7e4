"""Parts of a recipe: set-ups beside each other, and what is typed comes first."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from commbench import fabric
from commbench.console import Console
from commbench.errors import EnvironmentProblem, UsageError
from commbench.machine import cgroup
from commbench.sweep import plan, prepare
from commbench.sweep.prepare import SweepRequest

LOCAL, CLUSTER = "1 node x 2 ranks", "2 nodes x 2 ranks, emulated: 1gbit links, 30000 B per packet"
PEERS = "bruck direct pairwise"


@pytest.fixture(autouse=True)
def two_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setattr(cgroup, "cpu_quota", lambda system: None)


def measured(*words: str, **how: Any) -> dict[str, str]:
    """Set-up -> its algorithms."""
    found: dict[str, set[str]] = {}
    for item in plan.expand(prepare.configure(["quick", *words], **how)[1]):
        found.setdefault(str(item.case.setup), set()).add(item.case.algorithm)
    return {setup: " ".join(sorted(names)) for setup, names in found.items()}


def test_quick_has_a_cpu_for_each_rank_and_a_cluster_for_2d() -> None:
    assert measured() == {
        f"gloo, {LOCAL}": PEERS,
        f"mpi, {LOCAL}": PEERS,
        f"gloo, {CLUSTER}": "2d_intra_first direct",
    }


@pytest.mark.parametrize(
    "words, parts",
    [
        ("transport=gloo", {f"gloo, {LOCAL}": PEERS, f"gloo, {CLUSTER}": "2d_intra_first direct"}),
        ("transport=mpi", {f"mpi, {LOCAL}": PEERS}),
        ("transport=mpi algorithm=bruck", {f"mpi, {LOCAL}": "bruck"}),
        ("algorithm=2d_intra_first", {f"gloo, {CLUSTER}": "2d_intra_first"}),
        ("collective=all_reduce transport=gloo", {f"gloo, {LOCAL}": "direct", f"gloo, {CLUSTER}": "direct"}),
    ],
)
def test_what_is_typed_narrows_parts(words: str, parts: dict[str, str]) -> None:
    assert measured(*words.split()) == parts


@pytest.mark.parametrize(
    "words, setup",
    [
        ("transport=scripted", "scripted, 2 nodes x 2 ranks"),
        ("transport=gloo algorithm=direct,2d_pipelined", "gloo, 2 nodes x 2 ranks"),
        ("transport=gloo nodes=2", "gloo, 2 nodes x 2 ranks"),
        ("transport=gloo layout=4x4", "gloo, 4 nodes x 4 ranks"),
        ("transport=gloo fabric=emulated nodes=4 ranks_per_node=4 link=1gbit message_overhead=30000 "
         "collective=all_to_all algorithm=direct,2d_intra_first",
         "gloo, 4 nodes x 4 ranks, emulated: 1gbit links, 30000 B per packet"),
    ],
)  # fmt: skip
def test_a_layout_a_fabric_or_what_no_part_has_is_the_recipe_alone(words: str, setup: str) -> None:
    assert list(measured(*words.split())) == [setup]


def test_sizes_and_stops_hold_in_all_parts() -> None:
    cases = [item.case for item in plan.expand(prepare.configure(["quick", "sizes.max=32M", "cap=1", "window=2"])[1])]
    by_setup = {str(case.setup): case for case in cases if case.size_bytes == 32 << 20}
    assert len(by_setup) == 3 and {case.policy.cap_s for case in cases} == {1}


def test_who_starts_ranks_otherwise_has_no_parts() -> None:
    both = ("gloo", "mpi")
    assert measured(with_parts=False) == {f"{name}, 2 nodes x 2 ranks": f"2d_intra_first {PEERS}" for name in both}
    assert set(measured(forced={"nodes": 1, "ranks_per_node": 4})) == {f"{name}, 1 node x 4 ranks" for name in both}
    assert prepare.takes_parts(SweepRequest()) and not prepare.takes_parts(SweepRequest(launcher="torchrun"))


def test_where_no_cluster_can_be_emulated_the_rest_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(emulated: object) -> None:
        raise EnvironmentProblem("no network namespaces here", hint="be root")

    monkeypatch.setattr(fabric, "check", refuse)
    _, configs = prepare.configure(["quick", "transport=gloo"])
    _, kept = prepare.choose_launchers(SweepRequest(), configs, Console())
    assert [str(setup) for item in kept for setup in plan.setups(item)] == [f"gloo, {LOCAL}"]
    assert "left out: 1gbit links, 30000 B per packet, emulated on this machine: no network namespaces" in (
        " ".join(capsys.readouterr().err.split())
    )


@pytest.mark.parametrize("cpus, quota, ranks", [(1, None, 2), (2, None, 2), (3, None, 3), (64, None, 4), (64, 2.5, 2)])
def test_ranks_for_cpus(cpus: int, quota: float | None, ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cpus)))
    monkeypatch.setattr(cgroup, "cpu_quota", lambda system: quota)
    _, (config,) = prepare.configure(["alltoall", "ranks_per_node=cpus"])
    assert config.ranks_per_node == [ranks]


@pytest.mark.parametrize(
    "parts, said", [("3", "parts is 3"), ("[4]", "parts is [4]"), ("[{speed: 1}]", "unknown key 'speed'")]
)
def test_what_are_no_parts(parts: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"parts: {parts}\n")
    with pytest.raises(UsageError, match=said.replace("[", r"\[")):
        prepare.configure([str(path)])
