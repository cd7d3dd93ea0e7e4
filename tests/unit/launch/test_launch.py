"""Which rank am I, and what is run to start ranks: pure functions against recorded environments and commands."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from commbench import launch
from commbench.errors import EnvironmentProblem, UsageError
from commbench.launch.job import Job
from commbench.processes.orphans import is_alive, start_time
from commbench.processes.process import Process, rank_environment
from commbench.rank_info import detect
from commbench.records import Setup
from commbench.sweep.plan import expand
from tests.conftest import PATIENCE_S

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none", "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
    "GROUP_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500",
}  # fmt: skip


def test_torchrun_is_detected() -> None:
    rank = detect(TORCHRUN)
    assert rank is not None
    assert (rank.rank, rank.size, rank.local_rank, rank.local_size, rank.launcher) == (3, 4, 1, 2, "torchrun")


@pytest.mark.parametrize("environ", [{}, {"RANK": "0"}, {"SLURM_PROCID": "0"}, {"MASTER_ADDR": "x"}])
def test_nothing_is_detected_without_a_launchers_mark(environ: dict[str, str]) -> None:
    assert detect(environ) is None


@pytest.mark.parametrize("change", [{"RANK": "4"}, {"RANK": "x"}, {"LOCAL_WORLD_SIZE": "8"}, {"WORLD_SIZE": None}])
def test_what_cannot_be_is_refused(change: dict[str, str | None]) -> None:
    environ = {key: value for key, value in {**TORCHRUN, **change}.items() if value is not None}
    with pytest.raises(EnvironmentProblem, match="torchrun"):
        detect(environ)


def job() -> Job:
    from commbench.sweep.prepare import configure

    cases = tuple(item.case for item in expand(configure(["quick", "transport=scripted"])[1]))
    setup = Setup(transport="scripted", nodes=2, ranks_per_node=2)
    return Job(run_dir="RUN", attempt="000-abc-0", launch=0, setup=setup, cases=cases, parent_pid=1, parent_started="5")


def test_commands_are_recorded() -> None:
    path = Path("RUN/logs/x/order.json")
    assert launch.get("local").command(path, job()) == [sys.executable, "-m", "commbench.measure.fork", str(path)]
    assert launch.get("torchrun").command(path, job()) == [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts=0", "--monitor-interval=0.1",
        "--nproc-per-node=4", "-m", "commbench.measure.rank", str(path),
    ]  # fmt: skip
    with pytest.raises(UsageError, match="unknown launcher 'mpirun'"):
        launch.get("mpirun")


def test_torchruns_own_account_of_a_failure() -> None:
    """Its summary lists every rank: those that it ended itself (-15) and those that raised (1) are not the cause."""
    entry = (
        "[{0}]:\n  time      : now\n  host      : h\n  rank      : {0} (local_rank: {0})\n  exitcode  : {1} (pid: 5)\n"
    )
    explain = launch.get("torchrun").explain
    assert explain(entry.format(0, 1) + entry.format(1, -15) + entry.format(2, -9)) == "rank 2 was killed by signal 9"
    assert explain(entry.format(0, -15) + entry.format(3, 7)) == "rank 3 exited with code 7"
    assert explain(entry.format(0, 1)) == "" == explain("nothing of the kind")


def test_a_job_survives_its_file() -> None:
    assert Job.from_json(job().to_json()) == job()


def test_ranks_inherit_the_environment_plus_the_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_MODULE", "loaded")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    environment = rank_environment({"NCCL_ALGO": "x"})
    assert (environment["SOME_MODULE"], environment["NCCL_ALGO"], environment["OMP_NUM_THREADS"]) == (
        "loaded",
        "x",
        "1",
    )
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert rank_environment({})["OMP_NUM_THREADS"] == "8"


def test_a_process_is_named_by_pid_and_start() -> None:
    me = os.getpid()
    assert is_alive(me, start_time(me)) and not is_alive(me, "12") and not is_alive(me, "")
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    began = start_time(child.pid)
    while start_time(child.pid):  # until it is a zombie: dead, though not reaped
        time.sleep(0.01)
    assert not is_alive(child.pid, began)
    child.wait()


def test_killing_a_process_takes_its_whole_family(tmp_path: Path) -> None:
    sleep = "import time; time.sleep(60)"
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', '{sleep}']); {sleep}"
    process = Process([sys.executable, "-c", code], os.environ, tmp_path / "log")
    import psutil

    launcher = psutil.Process(process._process.pid)
    while not launcher.children():
        time.sleep(0.01)
    (child,) = launcher.children()
    process.kill()
    assert process.ended() and not child.is_running()


def test_children_die_with_their_parent(tmp_path: Path) -> None:
    """The kernel ends the launcher when the sweep is killed, without anybody's help."""
    code = (
        "import os, sys, time\nfrom pathlib import Path\nfrom commbench.processes.process import Process\n"
        "p = Process([sys.executable, '-c', 'import time; time.sleep(60)'], os.environ, Path(sys.argv[1]))\n"
        "print(p._process.pid, flush=True)\ntime.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    began = start_time(child)
    assert began
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + PATIENCE_S
    while is_alive(child, began):
        assert time.monotonic() < deadline
        time.sleep(0.01)
