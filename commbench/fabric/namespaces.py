"""Make an emulated cluster, run a command on it, and let all of it vanish: `python -m commbench.fabric`.

The namespaces have no names; they live as long as a process holds them, so nothing can be left behind, whatever is
killed. The kernel lets root make them, and other users inside a user namespace of their own. Only the standard library
is imported: a process with more than one thread may not enter a user namespace.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from commbench.emulated import Emulated
from commbench.errors import EnvironmentProblem
from commbench.fabric import network, rails
from commbench.fabric.tools import find
from commbench.processes.orphans import die_with_parent

_CLONE_NEWNET, _CLONE_NEWUSER = 0x40000000, 0x10000000
NODES = "COMMBENCH_NODES"  # paths of the nodes' namespaces
_SYSCTL = Path("/proc/sys/net")
_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    die_with_parent()
    parent = os.getppid()
    fabric, command = Emulated.from_json(sys.argv[1]), sys.argv[2:]
    try:
        nodes = build(fabric)
    except EnvironmentProblem as problem:
        sys.stderr.write(json.dumps({"error": str(problem), "hint": problem.hint}) + "\n")
        sys.exit(2)
    die_with_parent()  # a change of rights may have taken it back
    if os.getppid() != parent:
        sys.exit(1)
    if not command:
        return
    paths = ":".join(f"/proc/{os.getpid()}/fd/{descriptor}" for descriptor in nodes)

    def start() -> None:
        # On node 0, as a launcher there would be: where it listens for its ranks, all nodes reach it.
        _call("setns", nodes[0], _CLONE_NEWNET)
        die_with_parent()

    process = subprocess.Popen(command, env={**os.environ, NODES: paths}, preexec_fn=start)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: process.send_signal(received))
    code = process.wait()
    sys.exit(code if code >= 0 else 128 - code)


def build(fabric: Emulated) -> list[int]:
    """Enter a new network namespace that is the switch, and make the nodes: descriptors of their namespaces.

    Raises `EnvironmentProblem` that says what the machine lacks.
    """
    _unshare()
    children = [_Node(fabric, number) for number in range(fabric.hosts)]
    lines = rails if fabric.rails else network
    try:
        for child in children:
            child.answer()
        descriptors = [os.open(f"/proc/{child.pid}/ns/net", os.O_RDONLY) for child in children]
        _batch("ip", lines.switch(fabric, [child.pid for child in children]))
        _batch("tc", lines.switch_shaping(fabric))
        for child in children:
            child.go_on()
        for child in children:
            child.answer()
    finally:
        # First all, then each: a child holds the pipes of those that were made before it.
        for child in children:
            child.let_go()
        for child in children:
            os.waitpid(child.pid, 0)
    return descriptors


class _Node:
    """Forks a process into a namespace of its own, which it sets up once its links are there."""

    def __init__(self, fabric: Emulated, number: int) -> None:
        self._from_child, to_parent = os.pipe()
        from_parent, self._to_child = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            die_with_parent()
            os.close(self._to_child)
            _node_process(fabric, number, from_parent, to_parent)
        os.close(to_parent)
        os.close(from_parent)

    def go_on(self) -> None:
        os.write(self._to_child, b"\n")

    def answer(self) -> None:
        """Wait for the child; raises what it raised."""
        text = b""
        while not text.endswith(b"\n"):
            if not (piece := os.read(self._from_child, 65536)):
                raise EnvironmentProblem("a process that makes a node was killed", hint="try again")
            text += piece
        if problem := json.loads(text):
            raise EnvironmentProblem(problem["error"], hint=problem["hint"])

    def let_go(self) -> None:
        """Let the child end, which it does when it hears no more."""
        os.close(self._to_child)
        os.close(self._from_child)


def _node_process(fabric: Emulated, number: int, from_parent: int, to_parent: int) -> NoReturn:
    def set_up() -> None:
        lines = rails if fabric.rails else network
        _batch("ip", lines.node(fabric, number))
        _batch("tc", lines.node_shaping(fabric, number))
        if network.sprays(fabric):
            _run([find("nft"), "-f", "-"], network.spray(fabric, number))

    def enter_network() -> None:
        _new_network()
        for path, value in network.settings(fabric).items():  # now, as interfaces inherit them when they are made
            _set(path, value)

    def report(action: Callable[[], None]) -> None:
        answer = {}
        try:
            action()
        except EnvironmentProblem as problem:
            answer = {"error": str(problem), "hint": problem.hint}
        except OSError as error:
            answer = {"error": str(_lacking(error)), "hint": _lacking(error).hint}
        except Exception as error:
            answer = {"error": f"node {number}: {type(error).__name__}: {error}", "hint": "this is a defect"}
        os.write(to_parent, json.dumps(answer).encode() + b"\n")

    report(enter_network)
    if os.read(from_parent, 1):
        report(set_up)
    os._exit(0)


def _new_network() -> None:
    # Autoconfiguration would talk over the links.
    _call("unshare", _CLONE_NEWNET)
    _set("ipv6/conf/default/disable_ipv6", "1", needed=False)


def _unshare() -> None:
    """Enter a new network namespace, inside a new user namespace where this user may make no other."""
    user, group = os.geteuid(), os.getegid()
    try:
        _new_network()
        return
    except OSError as error:
        if error.errno != errno.EPERM:
            raise _lacking(error) from error
    try:
        _call("unshare", _CLONE_NEWUSER | _CLONE_NEWNET)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
        _set("ipv6/conf/default/disable_ipv6", "1", needed=False)
    except OSError as error:
        raise _lacking(error) from error


def _lacking(error: OSError) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"this user cannot make network namespaces ({error.strerror}), which fabric=emulated is made of",
        hint="run as root; or let users make them: sysctl kernel.unprivileged_userns_clone=1 (Debian), "
        "kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu), user.max_user_namespaces and "
        "user.max_net_namespaces above 0; in a container: --privileged, or --cap-add SYS_ADMIN --cap-add NET_ADMIN",
    )


def enter(path: str) -> None:
    """Move this thread, and those that it starts from now on, into the network namespace at `path`."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _call("setns", descriptor, _CLONE_NEWNET)
    finally:
        os.close(descriptor)


def _call(name: str, *arguments: int) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _set(path: str, value: str, *, needed: bool = True) -> None:
    setting = _SYSCTL / path
    try:
        if setting.read_text().strip() != value:
            setting.write_text(value)
    except OSError as error:
        if needed:
            raise EnvironmentProblem(
                f"cannot set {setting} to {value}: {error.strerror}",
                hint="in a container /proc/sys is often read-only: run it with --privileged, or use spines=1",
            ) from error


def _batch(tool: str, text: str) -> None:
    _run([find(tool), "-batch", "-"], text)


def _run(command: list[str], text: str) -> None:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = " ".join((done.stderr or done.stdout).split())
        kernel = "a Linux kernel with veth, bridge, sch_tbf (for intra_link sch_htb, for spray nf_tables with numgen)"
        raise EnvironmentProblem(
            f"{Path(command[0]).name} refused a part of the emulated network: {said}",
            hint="it needs the right CAP_NET_ADMIN; in a container: --cap-add SYS_ADMIN --cap-add NET_ADMIN"
            if "not permitted" in said
            else f"it needs {kernel}",
        )
