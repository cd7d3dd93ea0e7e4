"""What differs between nodes: less of something is named with its factor, the rest is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from commbench.check import differences, node_facts
from commbench.check.differences import NodeFacts
from commbench.errors import UsageError
from tests.support import machines

ALIKE: dict[str, Any] = {"kernel": "6.8.0", "driver": "550", "gpu_max_clock_mhz": 1980, "packages": {"torch": "2.13"}}


def recorded(folder: Path, slow: int, **changes: tuple[str, str]) -> list[NodeFacts]:
    """Three machines from disk, of which one has files with other values: what they end in, and what is there."""
    words = []
    for node in range(3):
        files = machines.tree("ndv4")
        for end, (old, new) in changes.items() if node == slow else ():
            files |= {path: text.replace(old, new) for path, text in files.items() if path.endswith(f"/{end}")}
        words.append(f"node{node}={machines.unpack(files, folder / f'machine {node}')}")
    found = node_facts.recorded(words, 3)
    return [NodeFacts(node=node, machine=machine, metadata=ALIKE) for node, machine in sorted(found.items())]


def test_a_card_of_half_the_rate_is_named_with_its_factor(tmp_path: Path) -> None:
    nodes = recorded(tmp_path, 1, rate=("200 Gb/sec (4X HDR)", "100 Gb/sec (2X HDR)"))
    (slow,) = differences.named(nodes)
    assert (slow.kind, slow.ratio, slow.low, slow.high, slow.about) == ("hardware", 2.0, 2.0, 2.0, {"nodes": [1]})
    assert (
        slow.sentence
        == "node 1's slowest InfiniBand card runs at 100 Gbit/s, other nodes' at 200: 2.00x less [2.00-2.00]"
    )
    assert [line.partition(":")[0] for line in differences.said(nodes)] == ["network cards"]
    assert differences.named(recorded(tmp_path / "alike", 1)) == [] == differences.said(recorded(tmp_path / "b", 1))


def facts(node: int, **metadata: Any) -> NodeFacts:
    return NodeFacts(node=node, machine={"gpus": [], "nics": [{"link": "RoCE", "speed": "down"}]}, metadata=metadata)


def test_versions_that_differ_are_said_and_are_no_fault() -> None:
    nodes = [facts(0, **ALIKE), facts(1, **ALIKE), facts(2, **{**ALIKE, "kernel": "6.5.0"})]
    assert differences.said(nodes) == ["kernel: 6.8.0 on nodes 0 and 1, 6.5.0 on node 2"]
    assert differences.named(nodes) == []


def test_a_lower_clock_is_a_fault_and_of_two_nodes_the_lower_one_has_it() -> None:
    (slow,) = differences.named([facts(0, **ALIKE), facts(1, gpu_max_clock_mhz=990)])
    assert slow.sentence == "node 1's GPUs run at up to 990 MHz, other nodes' at 1980: 2.00x less [2.00-2.00]"
    assert differences.named([facts(0, **ALIKE), facts(1)]) == []  # what nobody knows is no less


def test_a_card_that_is_down_has_no_factor() -> None:
    up = NodeFacts(node=1, machine={"nics": [{"link": "RoCE", "speed": "200 Gbit/s"}]}, metadata={})
    (down,) = differences.named([facts(0), up])
    assert down.ratio is None and down.sentence == "node 0's RoCE cards run at 0 Gbit/s together, other nodes' at 200"


def test_a_machine_may_stand_for_all_nodes_but_some(tmp_path: Path) -> None:
    one, other = (str(machines.unpack(name, tmp_path / name)) for name in ("ndv4", "pc"))
    found = node_facts.recorded([one, f"node2={other}"], 4)
    assert found[0] == found[1] == found[3] != found[2]
    with pytest.raises(UsageError, match="node4"):
        node_facts.recorded([f"node4={one}"], 4)
