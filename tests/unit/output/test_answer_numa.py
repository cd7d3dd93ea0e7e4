"""A sweep over bindings says first that one NUMA node leaves nothing to gain, and says it nowhere else."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commbench.analysis import ratios, so_far
from commbench.analysis.ratios import Speedup
from commbench.analysis.summary import Samples
from commbench.machine import describe, sysfs
from commbench.output.answer.sweep import answer
from commbench.records import Fabric, Row
from commbench.run_folder import RunFolder
from commbench.sweep import session
from tests.conftest import REPOSITORY, here
from tests.support import machines
from tests.support.fake_runs import META, measured, planned, rows_of

NOTHING = "one NUMA node: nothing to gain here"
SMALL = ("algorithm=direct", "nodes=1", "ranks_per_node=2", "launches=8", "sizes.min=1K", "sizes.max=1K")


def made(*words: str) -> tuple[list[Row], dict[str, Speedup]]:
    cases = planned(*SMALL, *words)
    found = measured(cases, lambda case: 100.0, noise=0.05)
    rows = rows_of(cases, found, Samples(RunFolder(Path("/nowhere"))))
    return rows, ratios.compare(cases, found, lambda measurement: np.empty(0))


@pytest.fixture(scope="module")
def policies() -> tuple[list[Row], dict[str, Speedup]]:
    return made("binding=none,pci,worst")


@pytest.mark.parametrize(("name", "nodes"), [("pc", 1), ("dgx", 2), ("ndv4", 4)])
def test_recorded_machines(name: str, nodes: int, policies: Any, tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "run")
    machine = describe.dictionary(sysfs.read(machines.unpack(name, tmp_path / "machine")))
    run.write_json("topology.json", {"machine": machine})
    assert session.numa_nodes(run) == nodes
    rows, compared = policies
    found = answer(rows, compared, {**META, "numa_nodes": nodes})
    assert found.sentences[0].startswith(NOTHING) == (nodes == 1)
    assert ("binding=none" in found.step) == (nodes == 1)


def test_the_recorded_run_on_two_h200() -> None:
    run = RunFolder(REPOSITORY / "results/reference/binding-2xH200")
    rows = list(so_far.of_run(run).rows.values())
    found = answer(rows, ratios.of_run(run, rows), {**run.read_json("run.json"), "numa_nodes": session.numa_nodes(run)})
    assert found.sentences[0] == f"{NOTHING}, as bindings none, pci give every rank the same CPUs"
    assert found.next == "keep binding=none; binding may pay where there are several NUMA nodes"


def test_it_is_not_said_of_what_may_differ(policies: Any, tmp_path: Path) -> None:
    rows, compared = policies
    one = {**META, "numa_nodes": 1}

    def said(rows: list[Row], compared: dict[str, Speedup], about: dict[str, Any]) -> bool:
        return any(NOTHING in sentence for sentence in answer(rows, compared, about).sentences)

    assert said(rows, compared, one)
    assert not said(rows, compared, META), "nobody has looked"
    assert not said(rows, compared, {**one, "launchers": {"scripted": "slurm"}}), "ranks are elsewhere"
    network = [dataclasses.replace(row, nodes=2, fabric=Fabric.REAL) for row in rows]
    assert not said(network, compared, one), "the other host may have more"
    pinned = [dataclasses.replace(row, rank_cpus="0" if row.binding == "none" else "0-1") for row in rows]
    assert not said(pinned, compared, one), "a launcher has pinned what is not bound"
    assert not said(*made("algorithm=direct,bruck", "binding=pci"), one), "bindings were not compared"


def test_masks_may_differ_on_one_node() -> None:
    one = {**META, "numa_nodes": 1}
    found = answer(*made("binding=none,explicit", "cpu_masks=0;1"), one)
    assert NOTHING not in str(found) and "binding=none" not in found.step
    found = answer(*made("binding=none,pci,explicit", "cpu_masks=0;1"), one)
    assert found.sentences[0].startswith(f"{NOTHING}, as bindings none, pci give") and "binding=none" not in found.step


def test_a_topology_that_cannot_be_read_ends_no_run(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "run")
    assert session.numa_nodes(run) == 0
    (run.path / "topology.json").write_text("{")
    assert session.numa_nodes(run) == 0


def test_a_sweep_on_this_machine_says_it_where_it_holds(tmp_path: Path) -> None:
    words = (*SMALL, "launches=1", "iters=3", "transport=scripted", "binding=none,block", "binding_memory=off")
    done = here("sweep", "quick", *words, "--no-plots", "--format", "json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    sentence = json.loads(done.stdout.splitlines()[-1])["answer"]["sentence"]
    assert sentence.startswith(NOTHING) == (len(sysfs.read().nodes) == 1)
