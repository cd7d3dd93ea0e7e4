"""Somebody else's program: it has the variables that it shall have, and nothing of it is left, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from commbench.emulated import Emulated
from commbench.errors import CommbenchError, EnvironmentProblem
from commbench.launch import foreign, foreign_tree
from commbench.launch.foreign import Cluster, ProgramEnd
from commbench.processes.process import Process
from tests.conftest import environment

# Starts a process in a session of its own, which outlives its parent, and says which it is.
DAEMON = "setsid sh -c 'echo $$ > daemon; exec sleep 600' & while [ ! -s daemon ]; do sleep 0.01; done; "
CLUSTER = Cluster(emulated=Emulated(nodes=2, link="1gbit"), ranks_per_node=2)


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(foreign, "_LEFT_S", 0.2)


def shell(text: str, **more: object) -> ProgramEnd:
    return foreign.run(["sh", "-c", text], log=Path("log"), **more)  # type: ignore[arg-type]


def started() -> bool:
    """Return whether the daemon has written its number: the file is there a moment before."""
    return Path("daemon").exists() and Path("daemon").read_text().endswith("\n")


def gone(name: str = "daemon") -> bool:
    """Whether the process that wrote its number into a file has ended, or does within a moment."""
    for _ in range(500):
        stat = Path(f"/proc/{Path(name).read_text().strip()}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] in "ZX":
            return True
        time.sleep(0.02)
    return False


def test_it_has_our_environment_with_what_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALREADY", "there")
    monkeypatch.setenv("LOST", "there")
    monkeypatch.setenv("PYTHONPATH", "/its own")
    Path("log").write_text("before\n")
    ended = shell(
        'echo "$ALREADY ${LOST-none} $NEW $PYTHONPATH"; echo err >&2; exit 3', env={"NEW": "a b", "LOST": "unset"}
    )
    assert (ended.code, ended.timed_out) == (3, False) and 0 < ended.seconds < 60
    assert Path("log").read_text() == "before\nthere none a b /its own\nerr\n"


def test_what_it_leaves_running_is_ended() -> None:
    assert shell(DAEMON + "kill -9 $$").code == 128 + signal.SIGKILL
    assert gone()


def test_one_that_takes_too_long_is_asked_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    wait = subprocess.Popen.wait

    def until_it_runs(process: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        """An hour is over as soon as the program is there: a busy machine may take any time to start it."""
        if timeout != 3600.0:
            return wait(process, timeout)
        while not started():
            time.sleep(0.01)
        raise subprocess.TimeoutExpired("sh", timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", until_it_runs)
    ended = shell("trap 'echo saved; exit 7' TERM; " + DAEMON + "sleep 600 & wait", timeout_s=3600.0)
    assert ended.timed_out and Path("log").read_text().endswith("saved\n")
    assert gone()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_handed_on_and_interrupts(number: signal.Signals) -> None:
    before = signal.getsignal(number)

    def ask() -> None:
        while not started():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=ask)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        shell(f"trap 'echo {number.name}; exit 0' {number.name[3:]}; " + DAEMON + "sleep 600 & wait")
    thread.join()
    assert Path("log").read_text().endswith(f"{number.name}\n") and gone()  # after "Terminated" of a short sleep
    assert signal.getsignal(number) == before


def test_a_signal_during_the_start_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    start = subprocess.Popen

    def slow(*words: object, **more: object) -> object:
        """The program runs, and the signal comes, before its start has returned, as on a busy machine."""
        process = start(*words, **more)  # type: ignore[call-overload]
        while not started():
            time.sleep(0.01)
        signal.raise_signal(signal.SIGTERM)
        return process

    monkeypatch.setattr(subprocess, "Popen", slow)
    with pytest.raises(KeyboardInterrupt):
        shell("trap 'echo told; exit 0' TERM; " + DAEMON + "sleep 600 & wait")
    assert Path("log").read_text().endswith("told\n") and gone()


def test_a_launcher_that_is_interrupted_while_it_starts_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    start, begun = subprocess.Popen, []

    def slow(*words: object, **more: object) -> object:
        begun.append(start(*words, **more))  # type: ignore[call-overload]
        signal.raise_signal(signal.SIGINT)
        return begun[0]

    monkeypatch.setattr(subprocess, "Popen", slow)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored where tests run in the background
    with pytest.raises(KeyboardInterrupt):
        Process(["sleep", "600"], os.environ, Path("log"))
    signal.signal(signal.SIGINT, before)
    assert begun[0].returncode == -signal.SIGKILL


def test_what_ignores_a_signal_is_killed_by_the_next() -> None:
    def ask() -> None:
        while not started():
            time.sleep(0.01)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.3)

    thread = threading.Thread(target=ask)
    thread.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        shell("trap '' TERM; " + DAEMON + "wait")
    thread.join()
    assert gone() and time.monotonic() - began < foreign_tree.END_S


def test_nothing_is_left_of_one_whose_commbench_is_killed() -> None:
    code = "import sys; from commbench.launch import foreign; foreign.run(['sh', '-c', sys.argv[1]])"
    ours = subprocess.Popen(
        [sys.executable, "-c", code, DAEMON + "echo $$ > main; trap '' TERM; wait"], env=environment()
    )
    while not (Path("main").exists() and Path("main").read_text().endswith("\n")):
        assert ours.poll() is None
        time.sleep(0.02)
    ours.kill()
    ours.wait()
    assert gone() and gone("main")


def test_a_lock_is_held_as_long_as_it_runs() -> None:
    reading, writing = os.pipe()
    with open(reading, "rb") as file:
        shell("echo > ran", hold=writing)
        os.close(writing)
        assert file.read() == b"" and Path("ran").exists()  # nobody else has it open any more


def test_the_variables_of_a_node() -> None:
    own = CLUSTER.variables(1)
    assert own["PET_NNODES"] == "2" and own["PET_NODE_RANK"] == "1" and own["PET_NPROC_PER_NODE"] == "2"
    assert own["PET_RDZV_ENDPOINT"] == f"{own['MASTER_ADDR']}:{own['MASTER_PORT']}" == "10.78.0.1:29500"
    assert own["GLOO_SOCKET_IFNAME"] == "net0"


WRONG = [
    ([], None, "there is no program to run", "after --"),
    ([""], None, "an empty word names no program", "a program"),
    (["no-such-program"], None, "it is in no folder of PATH (", "no shell"),
    (["./no-such-program"], None, "there is no such file", "no shell"),
    (["./text"], None, "Permission denied", "may be executed"),
    (["./broken"], None, "Exec format error", "sh ./broken"),
    (["true"], Cluster(emulated=Emulated(nodes=65, link="1gbit"), ranks_per_node=1), "nodes=65", "2 to 64 nodes"),
    (["torchrun", "--standalone", "x.py"], CLUSTER, "--standalone makes a world of its own", "PET_NNODES"),
    ([sys.executable, "-m", "torch.distributed.run", "--rdzv-backend=c10d", "x.py"], CLUSTER, "--rdzv-backend", "PET_"),
]


@pytest.mark.parametrize(("command", "cluster", "said", "hint"), WRONG, ids=[case[2] for case in WRONG])
def test_a_wrong_use_has_one_error(
    command: list[str], cluster: Cluster | None, said: str, hint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, mode in (("text", 0o644), ("broken", 0o755), ("torchrun", 0o755)):
        Path(name).write_text("neither\n")
        Path(name).chmod(mode)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(CommbenchError) as raised:
        foreign.run(command, cluster=cluster)
    assert said in str(raised.value) and hint in raised.value.hint


def test_options_of_the_program_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "_possible", lambda emulated: None)
    foreign.check([sys.executable, "-m", "torch.distributed.run", "x.py", "--standalone"], CLUSTER, os.environ)


def test_without_namespaces_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "_possible", foreign.fabric.check)
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(EnvironmentProblem, match="network namespaces"):
        foreign.check(["true"], CLUSTER, os.environ)
