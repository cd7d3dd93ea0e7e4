"""Somebody else's program, here or on an emulated cluster: started with variables of ours, and ended whole.

The one way in which commands run what stands after `--`.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from commbench import fabric, variables
from commbench.emulated import MOST_NODES, Emulated
from commbench.errors import EnvironmentProblem, UsageError
from commbench.fabric import network
from commbench.launch.foreign_tree import STUB, Order, Report
from commbench.processes.orphans import die_with_parent

_PORT = 29_500  # of the rendezvous on node 0, in a network that nobody else is in
_LEFT_S = 2.0  # what a program that has ended has left may go on so long, as to send off a log
_OWN_WORLD = ("--standalone", "--nnodes", "--node-rank", "--node_rank", "--rdzv", "--master")  # of torchrun


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """An emulated cluster, on each node of which the program runs once and starts so many ranks."""

    emulated: Emulated
    ranks_per_node: int

    def __str__(self) -> str:
        return f"{self.emulated.nodes} nodes x {self.ranks_per_node} ranks, emulated: {self.emulated}"

    def variables(self, node: int) -> dict[str, str]:
        """Return what a program on this node is told: torchrun reads PET_*, others MASTER_*.

        Rendezvous goes over the link that is not shaped, data over those that are.
        """
        host, data = network.control_address(0), network.DATA + "0"
        return {
            "PET_NNODES": str(self.emulated.nodes),
            "PET_NODE_RANK": str(node),
            "PET_NPROC_PER_NODE": str(self.ranks_per_node),
            "PET_RDZV_BACKEND": "static",
            "PET_RDZV_ENDPOINT": f"{host}:{_PORT}",
            "MASTER_ADDR": host,
            "MASTER_PORT": str(_PORT),
            "GLOO_SOCKET_IFNAME": data,
            "NCCL_SOCKET_IFNAME": data,
            "TP_SOCKET_IFNAME": data,
            variables.FABRIC: str(self.emulated),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramEnd:
    """What became of a program. code: 128 + N where signal N ended it; on a cluster, of the node that failed first.

    seconds: from its start to its end, without the start of what is around it.
    """

    code: int
    seconds: float
    node: int = 0
    timed_out: bool = False


def run(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cluster: Cluster | None = None,
    log: Path | int | None = None,
    timeout_s: float | None = None,
    hold: int | None = None,
) -> ProgramEnd:
    """Run a program to its end, in this process's environment with `env` (`unset`: without the variable).

    log: takes its output, both streams, at the end of what is there, or is a descriptor; None: they are ours.
    timeout_s: after which it is ended. hold: a descriptor that stays open as long as anything of the program runs, for
    a lock.

    Ctrl-C and SIGTERM are handed on; whatever has not ended 10 s later, or at the next of them, is killed. Then
    `KeyboardInterrupt` is raised. Nothing that the program started is left when this returns or raises, nor when this
    process is killed. Raises `CommbenchError` where the program cannot be started, as `check` does.
    """
    environment = variables.applied(os.environ, env or {})
    check(command, cluster, environment)
    reading, report = os.pipe()
    nodes = [cluster.variables(node) for node in range(cluster.emulated.nodes)] if cluster else [{}]
    emulated = cluster.emulated.to_json() if cluster else ""
    order = Order(command=command, report=report, emulated=emulated, nodes=nodes, left_s=_LEFT_S)
    words = [sys.executable, "-I", "-c", STUB, json.dumps(sys.path), json.dumps(asdict(order))]
    kept = [report] if hold is None else [report, hold]
    with open(reading, "rb") as answer:
        try:
            code, timed_out = _supervise(words, environment, log, timeout_s, kept)
        finally:
            os.close(report)
        text = answer.read()
    if not text:  # it was killed itself
        return ProgramEnd(code=code if code > 0 else 128 - code, seconds=0.0, timed_out=timed_out)
    said = Report(**json.loads(text))
    if said.errno:
        raise cannot_start(command[0], OSError(said.errno, os.strerror(said.errno)), environment)
    if said.error:
        raise EnvironmentProblem(said.error, hint=said.hint)
    return ProgramEnd(code=said.code, seconds=said.seconds, node=said.node, timed_out=timed_out)


def _supervise(
    words: list[str], environment: Mapping[str, str], log: Path | int | None, timeout_s: float | None, kept: list[int]
) -> tuple[int, bool]:
    """Return the code of the process above the program, and whether it was ended as it took too long."""
    sys.stdout.flush()
    timed_out = False
    with contextlib.ExitStack() as stack:
        asked = stack.enter_context(_Asked())
        output = stack.enter_context(open(log, "ab")) if isinstance(log, Path) else log
        process = subprocess.Popen(
            words,
            env=dict(environment),
            stdin=subprocess.DEVNULL if _is_terminal(0) else None,  # whose signals, and letters, are ours
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=_end_with_us,
            pass_fds=kept,
        )
        while True:
            try:
                with asked.raising():
                    code = process.wait(None if asked.all or timed_out else timeout_s)
                break
            except KeyboardInterrupt:
                for number in asked.new():
                    process.send_signal(number)
            except subprocess.TimeoutExpired:
                timed_out = True
                process.send_signal(signal.SIGTERM)
        if asked.all:
            raise KeyboardInterrupt
    return code, timed_out


def _end_with_us() -> None:
    die_with_parent(signal.SIGTERM)


class _Asked:
    """Ctrl-C and SIGTERM, noted whenever they come, but raised as `KeyboardInterrupt` only where that is awaited.

    On a busy machine a program may run before its start has returned here: a signal that broke the start off would
    leave it without anybody who ends it.
    """

    def __init__(self) -> None:
        self.all: list[int] = []
        self._handed_on = 0
        self._raises = False

    def __enter__(self) -> _Asked:
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.all.append(number)
        if self._raises:
            self._raises = False
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def raising(self) -> Iterator[None]:
        """Raise within this block what comes, and at once what has come since `new` was called last."""
        self._raises = True
        try:
            if len(self.all) > self._handed_on:
                raise KeyboardInterrupt
            yield
        finally:
            self._raises = False

    def new(self) -> list[int]:
        """Return the signals that have come since this was called last."""
        begin, self._handed_on = self._handed_on, len(self.all)
        return self.all[begin : self._handed_on]


def _is_terminal(descriptor: int) -> bool:
    try:
        return os.isatty(descriptor)
    except OSError:
        return False


def check(command: Sequence[str], cluster: Cluster | None, environment: Mapping[str, str]) -> None:
    """Raise `UsageError` for what is no program, `EnvironmentProblem` where this machine can make no such cluster."""
    check_program(command, environment)
    if cluster is None:
        return
    nodes = cluster.emulated.nodes
    if not 2 <= nodes <= MOST_NODES:
        raise UsageError(f"nodes={nodes}", hint=f"an emulated cluster has 2 to {MOST_NODES} nodes")
    _check_torchrun(command)
    _possible(cluster.emulated)


_possible = functools.cache(fabric.check)  # once for each: it takes half a second


def _check_torchrun(command: Sequence[str]) -> None:
    """Raise `UsageError` where torchrun is told to make another world than that of the cluster."""
    words = list(command)
    if Path(words[0]).name == "torchrun":
        words = words[1:]
    elif "torch.distributed.run" in words:
        words = words[words.index("torch.distributed.run") + 1 :]
    else:
        return
    for word in words:
        if not word.startswith("-"):  # the program, or the value of an option; what follows may be its own
            return
        if word.startswith(_OWN_WORLD):
            raise UsageError(
                f"{word} makes a world of its own on each node of the cluster",
                hint="leave it out: nodes and rendezvous are handed over by PET_NNODES, PET_NODE_RANK and PET_RDZV_*",
            )


def check_program(command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Raise `UsageError` where nothing can be started: no words, no such file, or none that may be executed."""
    if not command:
        raise UsageError("there is no program to run", hint="give it after --, as in: -- torchrun train.py")
    if not command[0]:
        raise UsageError("cannot start '': an empty word names no program", hint="give a program and its arguments")
    if shutil.which(command[0], path=environment.get("PATH", os.defpath)) is None:
        denied = "/" in command[0] and Path(command[0]).exists()
        number = errno.EACCES if denied else errno.ENOENT
        raise cannot_start(command[0], OSError(number, os.strerror(number)), environment)


def cannot_start(program: str, error: OSError, environment: Mapping[str, str]) -> UsageError:
    """Return what to say where the kernel does not start a program."""
    path = environment.get("PATH", os.defpath)
    if error.errno == errno.ENOENT:
        if found := shutil.which(program, path=path):
            return UsageError(f"cannot start {program!r}: the interpreter that {found} names is missing")
        where = "there is no such file" if "/" in program else f"it is in no folder of PATH ({path})"
        return UsageError(
            f"cannot start {program!r}: {where}", hint="give a program and its arguments; no shell reads them"
        )
    hint = "give a file that may be executed, or its interpreter before it"
    if error.errno == errno.ENOEXEC:
        hint = f"no program of this machine, nor a script with #!; try: sh {shlex.quote(program)}"
    return UsageError(f"cannot start {program!r}: {error.strerror}", hint=hint)
