"""The process above somebody else's program: starts it, once or in each node of an emulated cluster, and ends it whole.

`[sys.executable, "-I", "-c", STUB, PATH, ORDER]`, as `commbench.launch.foreign` starts it: its environment is the
program's. It adopts whatever the program leaves behind, and hears of the end of commbench itself from the kernel. So
nothing is left, however either of them ends.
"""

from __future__ import annotations

import errno
import json
import math
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from commbench.emulated import Emulated
from commbench.errors import CommbenchError
from commbench.fabric import namespaces
from commbench.processes import descendants
from commbench.processes.orphans import die_with_parent

END_S = 10.0  # from the request to end until the program is killed: time to save something
_PEERS_S = 10.0  # from the first node that failed to the end of the others, which may wait for it in vain
_KILLED_S = 5.0  # in which the kernel ends what is killed, unless it is stuck in the kernel itself
_POLL_S = 0.05
_HURRY = 2  # requests to end, of which the second means at once
# What our own interpreter imports is found where its parent found it, whatever the program's PYTHONPATH is.
STUB = f"import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); from {__name__} import main; main()"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is to be started. report: the descriptor on which one `Report` goes back."""

    command: Sequence[str]
    report: int
    emulated: str = ""  # JSON of an `Emulated`
    nodes: Sequence[Mapping[str, str]] = ({},)  # variables of each node's program, above those that all have
    left_s: float  # how long what a program leaves running may go on


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """code: of the program, that of the node which failed first; 128 + N where signal N ended it.

    seconds: from its start to its end, without ours. errno, error: why it could not be started, 0 and "" where it was.
    """

    code: int = 0
    node: int = 0
    seconds: float = 0.0
    errno: int = 0
    error: str = ""
    hint: str = ""


def main() -> None:
    """Run the order that the first word is, and end with the program's code."""
    order = Order(**json.loads(sys.argv[1]))
    parent = os.getppid()
    report = _run(order, parent)
    os.write(order.report, json.dumps(asdict(report)).encode())
    sys.exit(report.code)


def _run(order: Order, parent: int) -> Report:
    signals = _Signals()
    descendants.adopt()
    try:
        networks = namespaces.build(Emulated.from_json(order.emulated)) if order.emulated else [-1]
        die_with_parent(signal.SIGTERM)  # a change of rights may have taken it back
        if os.getppid() != parent:
            return Report(code=128 + signal.SIGTERM)
        began = time.monotonic()
        zipped = zip(order.nodes, networks, strict=True)
        nodes = {_start(order.command, own, network): number for number, (own, network) in enumerate(zipped)}
    except CommbenchError as error:
        return Report(code=error.exit_code, error=str(error), hint=error.hint)
    except OSError as error:
        return Report(code=2, errno=error.errno or errno.EIO)
    report = _wait(nodes, signals)
    seconds = time.monotonic() - began
    _end_what_is_left(signals, order.left_s)
    return Report(code=report.code, node=report.node, seconds=seconds)


class _Signals:
    """Wakes up for the end of a child, and counts how often somebody asks for the end of all."""

    def __init__(self) -> None:
        self._awake, wake = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(self._awake, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        self.asked: list[int] = []
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda received, _: self.asked.append(received))
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def wait(self, seconds: float | None) -> None:
        """Return when something has happened, or after that long."""
        if select.select([self._awake], [], [], seconds)[0]:
            os.read(self._awake, 4096)


def _start(command: Sequence[str], own: Mapping[str, str], network: int) -> int:
    """Start the program, in a network if it has a descriptor; return its pid, which is its process group's too."""

    def prepare() -> None:
        if network >= 0:
            namespaces.enter(f"/proc/self/fd/{network}")
        die_with_parent()

    environment = {**os.environ, **own}
    process = subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=prepare)
    process.returncode = 0  # it is reaped with all the others: this object shall not try
    return process.pid


def _wait(nodes: dict[int, int], signals: _Signals) -> Report:
    """Wait until the program has ended on all nodes, or has had its time to do so."""
    report, deadline, told = Report(), math.inf, False
    while nodes and len(signals.asked) < _HURRY and time.monotonic() < deadline:
        signals.wait(None if deadline == math.inf else max(0.0, deadline - time.monotonic()))
        for pid, status in descendants.reap().items():
            node = nodes.pop(pid, None)
            code = os.waitstatus_to_exitcode(status)
            if node is not None and code and not report.code:
                report = Report(code=code if code > 0 else 128 - code, node=node)
                deadline = min(deadline, time.monotonic() + _PEERS_S)
        if signals.asked and not told:
            told, deadline = True, time.monotonic() + END_S
            descendants.send(signal.Signals(signals.asked[0]))
    if nodes and not report.code:
        return Report(code=128 + signal.SIGKILL, node=min(nodes.values()))
    return report


def _end_what_is_left(signals: _Signals, left_s: float) -> None:
    """Let what the program has left end by itself, then ask it to, then kill it; at once where there is a hurry."""
    if not signals.asked and _gone(left_s, lambda: bool(signals.asked)):
        return
    if len(signals.asked) < _HURRY:
        descendants.send(signal.SIGTERM)
        if _gone(left_s, lambda: len(signals.asked) >= _HURRY):
            return
    deadline = time.monotonic() + _KILLED_S
    while descendants.alive() and time.monotonic() < deadline:  # one that is forked meanwhile is seen next time
        descendants.send(signal.SIGKILL)
        _gone(_POLL_S, lambda: False)


def _gone(within_s: float, hurry: Callable[[], bool]) -> bool:
    """Return whether no descendant runs any more, after waiting for that; sooner where there is a hurry."""
    deadline = time.monotonic() + within_s
    descendants.reap()
    while descendants.alive():
        if hurry() or time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_S)
        descendants.reap()
    return True
