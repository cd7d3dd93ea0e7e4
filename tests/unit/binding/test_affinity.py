"""CPUs and memory as this kernel gives them, and what happens where it does not. Each test in a process of its own."""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from commbench.binding import affinity
from commbench.binding.affinity import ActualBinding
from commbench.binding.policies import Placement
from commbench.errors import EnvironmentProblem

CPUS = sorted(os.sched_getaffinity(0))
several = pytest.mark.skipif(len(CPUS) < 2, reason="one CPU: there is nothing to choose")
no_policy = affinity.unsupported_memory_policy()
no_memory = pytest.mark.skipif(bool(no_policy), reason=f"no memory policy: {no_policy}")


def place(*cpus: int, memory: tuple[int, ...] | None = None) -> Placement:
    return Placement(cpus=cpus, memory_nodes=memory, why="a test")


def apart(function: Callable[[], Any]) -> None:
    """In a child, whose CPUs and memory are its own."""
    pid = os.fork()
    if pid == 0:
        try:
            function()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0, "see above"


@several
def test_every_thread_moves_and_later_ones_inherit() -> None:
    def child() -> None:
        stop = threading.Event()
        threads = [threading.Thread(target=stop.wait, daemon=True) for _ in range(3)]
        for thread in threads:
            thread.start()
        found = affinity.apply("explicit", place(CPUS[-1]))
        assert found.cpus == (CPUS[-1],) and found.threads == {str(CPUS[-1]): 4}
        threading.Thread(target=stop.wait, daemon=True).start()
        assert affinity.read().threads == {str(CPUS[-1]): 5}
        assert affinity.limit() == tuple(CPUS) and os.sched_getaffinity(0) == {CPUS[-1]}, "looked at, not changed"
        stop.set()

    apart(child)


@no_memory
def test_memory_is_bound_and_read_back() -> None:
    nodes = affinity.allowed_memory()
    assert nodes

    def child() -> None:
        assert affinity.read().memory == "default" and affinity.unsupported_memory_policy() == ""
        found = affinity.apply("block", place(*CPUS, memory=nodes[:1]))
        assert (found.memory, found.memory_nodes) == ("bind", nodes[:1])
        assert affinity.unsupported_memory_policy() == "" and affinity.read().memory == "bind", "to ask changes nothing"
        assert found.describe()["memory_nodes"] == str(nodes[0])
        with pytest.raises(EnvironmentProblem, match="the kernel refuses: set_mempolicy: Invalid argument"):
            affinity.apply("block", place(*CPUS, memory=(1000,)))  # a node that nobody has

    apart(child)


@several
def test_who_has_been_pinned_is_not_moved() -> None:
    def child() -> None:
        os.sched_setaffinity(0, CPUS[:1])
        with pytest.raises(EnvironmentProblem, match=f"wants CPUs {CPUS[1]} .* pinned to {CPUS[0]}") as e:
            affinity.apply("explicit", place(CPUS[1]))
        assert "mpiexec --bind-to none" in e.value.hint and os.sched_getaffinity(0) == {CPUS[0]}

    apart(child)


@several
@pytest.mark.parametrize("broken", ["_set_cpus", "_set_memory"])
def test_what_was_not_done_is_noticed(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    monkeypatch.setattr(affinity, broken, lambda wanted: "")
    text = r"asked for CPUs \S+, right after .* it is CPUs" if broken == "_set_cpus" else "asked for memory .* default"

    def child() -> None:
        with pytest.raises(EnvironmentProblem, match=text):
            affinity.apply("block", place(CPUS[0], memory=(0,)))

    apart(child)


@several
def test_a_thread_that_wanders_off_is_noticed_but_for_strangers() -> None:
    def child() -> None:
        gone = threading.Event()

        def wander() -> None:
            os.sched_setaffinity(0, CPUS[1:2])
            gone.set()
            time.sleep(60)

        placement = place(CPUS[0])
        affinity.apply("explicit", placement)
        threading.Thread(target=wander, daemon=True).start()
        gone.wait()
        with pytest.raises(EnvironmentProblem, match=f"of 2 threads 1 on CPUs {CPUS[1]}"):
            affinity.check("explicit", placement, affinity.read(), "later")
        affinity.check("explicit", placement, affinity.read(), "later", strangers=True)

    apart(child)


def found(**values: Any) -> ActualBinding:
    return ActualBinding(**{"cpus": (0,), "threads": {"0": 1}, "memory": "bind", "memory_nodes": (1,), **values})


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"memory_nodes": (0,)}, "asked for memory bound to nodes 1, now it is policy bind of nodes 0"),
        ({"memory": "default", "memory_nodes": ()}, "now it is policy default(\\n|$)"),
        ({"memory": "", "reason": "get_mempolicy: EPERM"}, r"the kernel does not say \(get_mempolicy: EPERM\)"),
        ({"cpus": (0, 1), "threads": {"0-1": 1}}, "asked for CPUs 0, now it is CPUs 0-1"),
    ],
)
def test_differences_are_told(values: dict[str, Any], text: str) -> None:
    affinity.check("pci", place(0, memory=(1,)), found(), "now")
    with pytest.raises(EnvironmentProblem, match=text):
        affinity.check("pci", place(0, memory=(1,)), found(**values), "now")


def test_other_processors_are_told_that_memory_cannot_be_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "sparc64")
    assert affinity.unsupported_memory_policy() == "commbench does not know this system call on sparc64"
    assert affinity.read().reason == affinity.unsupported_memory_policy() and affinity.read().memory == ""
