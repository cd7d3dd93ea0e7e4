"""The communicator without ranks: choices, what a call touches, and that nothing is imported before it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

import commbench
from commbench.communicators.select import PEER, Ask, Chooser
from commbench.errors import EnvironmentProblem, UsageError
from commbench.layout import Layout
from commbench.profile import Choice, Evidence
from commbench.profile.table import Table
from tests.conftest import PATIENCE_S, REPOSITORY, environment
from tests.support import profiles


def chooser(*choices: Choice, transport: str = "nccl", layout: tuple[int, int] = (1, 4)) -> Chooser:
    table = Table(profiles.profile(*choices, transport=transport), "s")
    return Chooser(transport, Layout(*layout), table)


def ask(size: int, collective: str = "all_to_all", **more: Any) -> Ask:
    return Ask(collective, "uint8", size, **more)


STORE = profiles.choice(
    "all_to_all", "symm_store", 0, 4095, buffers="symmetric", on_plain=profiles.config("all_to_all", "bruck")
)
REST = profiles.choice("all_to_all", "pairwise", 4096)


@pytest.mark.parametrize(
    ("asked", "label", "why"),
    [
        (ask(64), "bruck", "the profile's choice on plain memory"),
        (ask(64, out=PEER), "symm_store", "the profile's choice for 0 .. 4095 B"),
        (ask(4095, out=PEER, inp=PEER), "symm_store", "the profile's choice"),
        (ask(64, out="symmetric", inp="symmetric"), "bruck", "not from empty()"),
        (ask(4096), "pairwise window=1", "the profile's choice for 4096 .. up B"),
        (ask(1 << 40, out=PEER), "pairwise window=1", "the profile's choice"),
        (ask(64, "all_gather"), "direct", "the profile has nothing for all_gather: the default"),
    ],
)
def test_sizes_and_memory_decide(asked: Ask, label: str, why: str) -> None:
    chosen = chooser(STORE, REST).choose(asked)
    assert chosen.config.label.startswith(label)
    assert why in chosen.why
    assert chosen.spec.buffers == ("symmetric" if chosen.algorithm.one_sided else "plain")


def test_what_cannot_be_done_falls_back_with_the_reason() -> None:
    two = chooser(profiles.choice("all_to_all", "2d_intra_first"), layout=(1, 4)).choose(ask(64))
    assert two.config.label == "direct" and "two levels need at least 2 nodes" in two.why
    here = chooser(STORE, REST, transport="gloo").choose(ask(64, out=PEER))
    assert here.why.startswith("symm_store ctas=0 packet_bytes=262144 cannot do this: no rank reaches the memory")
    assert here.why.endswith("; the default") and here.config.label == "direct"
    partial = (("tp", 2), ("tp_input", "partial"))
    tp = Chooser("gloo", Layout(2, 2), None)
    assert tp.choose(ask(256, "tp_all_to_all", arguments=partial)).config.label == "all_reduce_drop"
    assert (
        tp.choose(ask(256, "tp_all_to_all", arguments=(("tp", 2), ("tp_input", "replicated")))).config.label
        == "drop_gather"
    )
    odd = tp.choose(ask(260, "tp_all_to_all", arguments=(("tp", 2), ("tp_input", "replicated"))))
    assert odd.config.label == "duplicated"
    with pytest.raises(UsageError, match="no algorithm can do tp_all_to_all tp=2 tp_input=partial of 260 B") as caught:
        tp.choose(ask(260, "tp_all_to_all", arguments=partial))
    assert "all_reduce_drop: a block of 130 B is not a whole number" in caught.value.hint


def test_arguments_and_graphs_have_choices_of_their_own() -> None:
    tp = {"tp": 2, "tp_input": "replicated"}
    made = chooser(
        profiles.choice("tp_all_to_all", "duplicated", arguments=tp),
        profiles.choice("all_reduce", "direct"),
        profiles.choice("all_to_all", "bruck"),
        profiles.choice("all_to_all", "direct", captured=True),
        layout=(2, 4),
    )
    assert made.choose(ask(256, "tp_all_to_all", arguments=tuple(tp.items()))).config.label == "duplicated"
    other = made.choose(ask(256, "tp_all_to_all", arguments=(("tp", 4), ("tp_input", "replicated"))))
    assert other.config.label == "drop_gather" and "nothing for tp_all_to_all tp=4" in other.why
    assert "choice for all sizes" in made.choose(ask(64, "all_reduce", arguments=(("op", "sum"),))).why
    assert "nothing for all_reduce op=max" in made.choose(ask(64, "all_reduce", arguments=(("op", "max"),))).why
    assert made.choose(ask(64)).config.label == "bruck" and made.choose(ask(64, captured=True)).config.label == "direct"
    assert made.captures("all_to_all") and not made.captures("all_reduce") and not made.captures("all_gather")


def test_uneven_exchanges_are_chosen_by_the_whole_matrix() -> None:
    made = chooser(
        profiles.choice("all_to_allv", "pairwise", 0, 999, arguments={"splits": "zipf", "alpha": 1.2}),
        profiles.choice("all_to_allv", "direct", 1000, arguments={"splits": "zipf", "alpha": 1.2}),
        layout=(1, 2),
    )
    assert "without matrix=" in made.choose(ask(0, "all_to_allv")).why
    known = ((8, 4), (4, 16))
    chosen = made.choose(ask(20, "all_to_allv", matrix=known))
    assert chosen.config.label == "pairwise window=1"
    assert chosen.spec.arguments["matrix"] == "[[8, 4], [4, 16]]"
    assert made.choose(ask(1000, "all_to_allv", matrix=known)).config.label == "direct"


def test_no_torch_before_a_communicator_is_made() -> None:
    words = (
        "import sys, commbench; assert not {'torch', 'numpy'} & sys.modules.keys();"
        "import commbench.communicators.loaded, commbench.communicators.select, commbench.communicators.explain;"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-c", words], check=True, env=environment(REPOSITORY / "kernels"), timeout=PATIENCE_S
    )


def test_without_a_process_group_it_says_what_to_do() -> None:
    pytest.importorskip("torch")
    with pytest.raises(EnvironmentProblem, match="not initialised") as caught:
        commbench.communicator()
    assert "init_process_group" in caught.value.hint


# What a call touches

watched: list[str] = []
watching = False


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    if watching:
        watched.append(event)


@pytest.fixture(scope="module")
def hook() -> None:
    sys.addaudithook(watch)  # for good: they cannot be taken back


def observed(call: Callable[[], object]) -> list[str]:
    """What the interpreter audits (files, sockets, processes, imports), and the locks that are taken."""
    global watching

    def profile(frame: Any, event: str, argument: Any) -> None:
        if event == "c_call" and ("acquire" in argument.__name__ or "lock" in type(argument.__self__).__name__.lower()):
            watched.append(f"lock: {argument!r}")

    watched.clear()
    sys.setprofile(profile)
    watching = True
    try:
        call()
    finally:
        watching = False
        sys.setprofile(None)
    return [event for event in watched if not event.startswith(("sys.", "builtins.id", "object."))]


def test_choosing_and_calling_open_nothing_and_lock_nothing(hook: None) -> None:
    torch = pytest.importorskip("torch")
    from tests.support import idle_communicator

    comm = idle_communicator.communicator(idle_communicator.Idle())
    out, inp = torch.empty(64), torch.empty(64)
    for _ in range(3):
        comm.all_to_all(out, inp)
    assert comm._calls.seen
    made = chooser(STORE, REST)
    assert not observed(lambda: made.choose(ask(64)))
    assert not observed(lambda: comm.all_to_all(out, inp))  # seen
    fresh = torch.empty(64), torch.empty(64)
    assert not observed(lambda: comm.all_to_all(*fresh))
    assert not observed(lambda: comm.all_to_allv(torch.empty(4, 2), torch.empty(4, 2), [1] * 4, [1] * 4))
    # What would be seen if it were there.
    import threading

    lock = threading.Lock()
    assert observed(lambda: lock.acquire() and lock.release())
    assert observed(lambda: open("/dev/null").close())


def test_no_module_of_the_way_of_a_call_knows_locks() -> None:
    """A `with` statement's lock would not be seen above."""
    for path in [*REPOSITORY.glob("commbench/communicators/*.py"), REPOSITORY / "commbench/profile/table.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {"threading", "_thread", "multiprocessing", "queue", "asyncio", "fcntl"} & {*names}, path


def test_evidence_is_told_with_the_choice() -> None:
    from commbench.communicators.explain import CommunicatorInfo, explain
    from commbench.profile.scope import Here

    kept = Evidence(
        size_bytes=65536, dtype="fp32", default="direct", default_us=10.0, chosen_us=10.0, ratio=1.0, low=None,
        high=None, interval_of=None, pairs=3, p=None, apparent=None, candidates=2, run="r",
        verdict="no gain was confirmed",
    )  # fmt: skip
    made = chooser(profiles.choice("all_to_all", "bruck", evidence=[profiles.EVIDENCE, kept]))
    here = Here(transport="nccl", nodes=1, ranks_per_node=4, versions={"nccl": "2.28.9"}, gpu="H200")
    seen = {asked: made.choose(asked) for asked in (ask(64), ask(65536), ask(1 << 20))}
    told = explain(CommunicatorInfo(here=here, layout=Layout(1, 4)), seen)
    assert told.splitlines()[:2] == ["here: nccl (nccl 2.28.9), H200, 1 node x 4 ranks", "profile: none"]
    assert told.count("bruck 1.50 times as fast as direct (1.40 .. 1.60, 12 pairs) at 4 KiB: 150 -> 100 us") == 1
    assert told.count("(no interval, 3 pairs) at 64 KiB: 10 -> 10 us; no gain was confirmed") == 2
