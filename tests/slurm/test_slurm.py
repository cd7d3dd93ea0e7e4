"""Real sweeps under whatever Slurm answers here; `local.sh` makes one of this machine.

Where nodes are several machines, the folder of the tests must be shared between them: pytest --basetemp=DIR.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from commbench.launch import slurm
from tests.conftest import PATIENCE_S, environment, only_run, rows_of

SWEEP = (sys.executable, "-m", "commbench", "sweep", "quick", "--no-plots", "--format", "json")
TINY = ("algorithm=direct", "sizes.min=1K", "sizes.max=8K", "sizes.factor=8", "cap=0.2")
SETUP = ("transport=gloo", "nodes=2", "ranks_per_node=2")
SIZE = ("--nodes=2", "--ntasks=4", "--ntasks-per-node=2")
LONG = ("algorithm=direct", "sizes.min=1K", "sizes.max=1K", "iters=1000000", "cap=1000", "launches=1")


def why_not() -> str:
    """Why there is no Slurm to test with, or ""."""
    if "SLURM_JOB_ID" in os.environ:
        return "inside an allocation already: run these tests on a login node"
    if shutil.which("sinfo") is None:
        return "Slurm is not installed: see tests/slurm/local.sh"
    answer = subprocess.run(
        ["sinfo", "--noheader", "--Node", "--states=idle", "--format=%N"], capture_output=True, text=True, check=False
    )
    if answer.returncode:
        return f"Slurm does not answer: {answer.stderr.strip().rpartition(chr(10))[2]}"
    idle = len(set(answer.stdout.split()))
    return "" if idle >= 2 else f"{idle} of Slurm's nodes are idle, two are needed"


@pytest.fixture(autouse=True)
def there_is_a_slurm() -> None:
    if reason := why_not():
        pytest.skip(reason)


def run(*words: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, cwd=cwd, env=environment(**env), capture_output=True, text=True, timeout=240, check=False
    )


def check_rows(done: subprocess.CompletedProcess[str], launches: int) -> None:
    assert done.returncode == 0, done.stderr
    rows = rows_of(done)
    assert [(row["status"], row["ranks"], row["nodes"], row["launches"]) for row in rows] == [
        ("ok", 4, 2, launches)
    ] * 2


def test_a_job_for_each_launch(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    done = run(*SWEEP, *TINY, *SETUP, "launches=2", "--launcher", "slurm", cwd=tmp_path)
    check_rows(done, 2)
    records = [json.loads(path.read_text()) for path in tmp_path.glob("results/2*/logs/*/job.json")]
    assert [record["state"] for record in records] == ["COMPLETED"] * 2
    assert len({record["job_id"] for record in records}) == 2


def test_steps_of_one_allocation(tmp_path: Path) -> None:
    allocate = ("salloc", "--nodes=2", "--ntasks-per-node=2")
    done = run(*allocate, *SWEEP, *TINY, *SETUP, "launches=2", "--launcher", "slurm", cwd=tmp_path)
    check_rows(done, 2)
    (first, *_) = tmp_path.glob("results/2*/logs/*/rank-3.json")
    assert json.loads(first.read_text())["launcher"] == "slurm"


def test_joined_ranks(tmp_path: Path) -> None:
    check_rows(run("srun", *SIZE, *SWEEP, *TINY, "transport=gloo", cwd=tmp_path), 1)


def test_ranks_on_a_terminal_are_joined(tmp_path: Path) -> None:
    said = on_terminal(["srun", "--pty", *SIZE, *SWEEP, *TINY, "transport=gloo"], tmp_path)
    assert said.count('"status":"ok"') == 2, said


def test_a_prompt_in_a_step_is_no_rank(tmp_path: Path) -> None:
    """Of srun --pty -n 4 bash only the first shell stays; a command that is typed there starts ranks of its own."""
    typed = shlex.join([*SWEEP, *TINY, *SETUP, "launches=1"])
    said = on_terminal(["srun", "--pty", *SIZE, "bash", "--norc"], tmp_path, f"{typed}; exit\n")
    assert said.count('"status":"ok"') == 2 and "not all ranks" not in said, said
    (record, *_) = tmp_path.glob("results/2*/logs/*/rank-3.json")
    assert json.loads(record.read_text())["launcher"] == "slurm"  # on the nodes of the allocation


def on_terminal(words: list[str], cwd: Path, typed: str = "") -> str:
    """What a command prints on a terminal, and what it is told there."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(cwd)
        os.execvpe(words[0], words, environment())
    os.write(terminal, typed.encode())
    said = b""
    with contextlib.suppress(OSError):  # the end of a terminal is an error
        while more := os.read(terminal, 4096):
            said += more
    os.waitpid(child, 0)
    os.close(terminal)
    return said.decode()


def test_a_printed_script_is_a_job(tmp_path: Path) -> None:
    printed = run(*SWEEP, *TINY, *SETUP, "launches=2", "--launcher", "print", cwd=tmp_path)
    assert printed.returncode == 0, printed.stderr
    script = tmp_path / "job.sh"
    script.write_text(printed.stdout)
    done = run("sbatch", "--wait", "--output=job.out", str(script), cwd=tmp_path)
    output = (tmp_path / "job.out").read_text()
    assert done.returncode == 0, output
    assert "2 cases ok" in output or output.count('"status":"ok"') == 2
    joined = [line for line in printed.stdout.splitlines() if line.startswith("#   srun ")]
    allocated = ("salloc", "--nodes=2", "--ntasks-per-node=2", "bash", "-c")
    for command in joined:
        check_rows(run(*allocated, command.removeprefix("#   "), cwd=tmp_path), 1)
    assert len(joined) == 1


# However a sweep ends, nothing of it stays.


def started(tmp_path: Path, *before: str) -> tuple[subprocess.Popen[bytes], Path]:
    """A long sweep that has begun to measure, and the folder of its launch."""
    words = [*before, *SWEEP, *LONG, *SETUP, "--launcher", "slurm"]
    process = subprocess.Popen(
        words, cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + PATIENCE_S
    while not any('"begin"' in path.read_text() for path in tmp_path.glob("results/2*/logs/*/events.jsonl")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    (folder,) = (only_run(tmp_path / "results") / "logs").iterdir()
    return process, folder


def running(*options: str) -> list[str]:
    listed = subprocess.run(
        ["squeue", "--noheader", "--format=%i %j", *options], capture_output=True, text=True, check=True
    )
    return listed.stdout.splitlines()


def gone(folder: Path, within_s: float, *options: str) -> bool:
    deadline = time.monotonic() + within_s
    while any(slurm.job_name(folder) in line for line in running(*options)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def test_an_interrupted_sweep_takes_its_job_with_it(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    process, folder = started(tmp_path)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert gone(folder, 60)


def test_a_job_ends_when_its_sweep_is_killed(tmp_path: Path) -> None:
    """Nobody is left to cancel it: the heart has stopped."""
    pytest.importorskip("submitit")
    process, folder = started(tmp_path)
    process.kill()
    process.wait()
    assert not gone(folder, 0)
    assert gone(folder, 150)


def test_a_step_ends_when_its_sweep_is_killed(tmp_path: Path) -> None:
    """The shell of the allocation lives on. srun's helper ends the step."""
    own = "read -r line"  # as a person's shell would wait
    sweep = shlex.join([*SWEEP, *LONG, *SETUP, "--launcher", "slurm"])
    shell = f"{sweep} & echo $! > pid; {own}"
    allocation = subprocess.Popen(
        ["salloc", "--nodes=2", "--ntasks-per-node=2", "bash", "-c", shell],
        cwd=tmp_path,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not any('"begin"' in path.read_text() for path in tmp_path.glob("results/2*/logs/*/events.jsonl")):
            assert time.monotonic() < deadline and allocation.poll() is None
            time.sleep(0.1)
        (folder,) = (only_run(tmp_path / "results") / "logs").iterdir()
        assert not gone(folder, 0, "--steps")
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
        assert gone(folder, 60, "--steps")
    finally:
        allocation.communicate(b"\n", timeout=PATIENCE_S)


def test_cancel_ends_a_step_that_lost_its_srun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run/logs/launch"
    folder.mkdir(parents=True)
    name = slurm.job_name(folder)
    step = shlex.join(["srun", f"--job-name={name}", *SIZE, "sleep", "120"])
    job = subprocess.run(
        [
            "sbatch",
            "--parsable",
            "--nodes=2",
            "--ntasks-per-node=2",
            f"--output={tmp_path}/out",
            f"--wrap={step}; true",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    try:
        deadline = time.monotonic() + PATIENCE_S
        while gone(folder, 0, "--steps"):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        monkeypatch.setenv("SLURM_JOB_ID", job)
        slurm.cancel(folder)
        assert gone(folder, 60, "--steps")
    finally:
        subprocess.run(["scancel", job], check=False)


def ranks_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("rank-*.json"))]


def test_a_rank_that_dies_is_named(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    process, folder = started(tmp_path)
    ranks = ranks_of(folder)
    if {rank["host"] for rank in ranks} != {os.uname().nodename}:
        process.send_signal(signal.SIGINT)
        process.wait(60)
        pytest.skip("the ranks are on other machines, where a test cannot kill them")
    os.kill(ranks[2]["pid"], signal.SIGSEGV)
    assert process.wait(120) == 1
    (row,) = map(json.loads, (only_run(tmp_path / "results") / "cases.jsonl").read_text().splitlines())
    assert row["status"] == "error" and row["reason"] == "rank 2 was killed by signal 11 (SIGSEGV)"
