"""Slurm: a step of the allocation that the sweep runs in or, outside of any, a job for each launch.

The step is srun itself. The job is submitted, and waited for, by a child process: see `slurm_job`. What a site wants to
be told besides, partition, account, qos and so on, are sbatch's own variables: SBATCH_PARTITION, SBATCH_TIMELIMIT, ...

Nothing of a launch outlives its sweep for long. srun ends its step even when it is killed, unless its helper is killed
too: for that there is `cancel`. A job has a heartbeat, as nobody may be left to cancel it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from commbench.errors import EnvironmentProblem
from commbench.launch.job import Job
from commbench.layout import Layout

_ANSWER_S = 60.0  # how long Slurm's programs may take
_RAISED = 1  # exit code of a rank that has told itself what happened
_OURS = 0xFFFFFFF0  # numbers of steps from here on are Slurm's own: the batch script, the shell of salloc
# For every step. Ranks keep the affinity of the allocation, and are numbered node by node, as the layout says.
STEP = ("--distribution=block", "--cpu-bind=none", "--kill-on-bad-exit=1", "--export=ALL")


def check() -> None:
    """Raise `EnvironmentProblem` where no launch could start."""
    inside = "SLURM_JOB_ID" in os.environ
    program = "srun" if inside else "sbatch"
    if shutil.which(program) is None:
        raise EnvironmentProblem(
            f"--launcher slurm needs Slurm's {program}, which is not on PATH",
            hint="run on a login node of the cluster, or write a job script: commbench sweep ... --launcher print",
        )
    if not inside and importlib.util.find_spec("submitit") is None:
        raise EnvironmentProblem(
            "--launcher slurm submits jobs through submitit, which is not installed",
            hint="pip install 'commbench[slurm]', or run the sweep inside an allocation of salloc or sbatch",
        )


def allocated_nodes(environ: Mapping[str, str]) -> int:
    """Return the nodes of the allocation that this process is in, 0 outside of any."""
    text = environ.get("SLURM_JOB_NUM_NODES") or environ.get("SLURM_NNODES", "")
    return int(text) if "SLURM_JOB_ID" in environ and text.isdecimal() else 0


def command(job_path: Path, job: Job) -> list[str]:
    if "SLURM_JOB_ID" not in os.environ:
        return [sys.executable, "-m", "commbench.launch.slurm_job", str(job_path)]
    # The shell of `srun --pty` is a step that holds the resources which ours needs; that of salloc holds none.
    inside_step = int(os.environ.get("SLURM_STEP_ID", _OURS)) < _OURS
    return [
        "srun",
        f"--job-name={job_name(job_path.parent)}",
        *step_size(job.setup.layout),
        *STEP,
        *(["--overlap"] if inside_step else []),
        *worker(job_path),
    ]


def step_size(layout: Layout) -> list[str]:
    return [f"--nodes={layout.nodes}", f"--ntasks={layout.ranks}", f"--ntasks-per-node={layout.ranks_per_node}"]


def worker(job_path: Path) -> list[str]:
    return [sys.executable, "-m", "commbench.measure.rank", str(job_path)]


def job_name(launch_folder: Path) -> str:
    """Return the name of the step or job of a launch, by which people and `cancel` find it."""
    return f"commbench-{launch_folder.parent.parent.name}-{launch_folder.name}"


_NUMBER = re.compile(r"\d+(_\d+)?")  # of a job, or of one in an array
_ENDED_BY_SLURM = re.compile(r"forcing job termination|Terminating StepId|\*\*\* (?:STEP|JOB) .* CANCELLED")
_TASK = re.compile(r"srun: error: \S+: tasks? (\S+): (.+)")
_CODE = re.compile(r"Exited with exit code (\d+)")
_DUE = re.compile(r"\*\*\* (?:STEP|JOB) .* DUE TO (.+?) \*\*\*")
_ERROR = re.compile(r"^((?:srun|sbatch|slurmstepd[^:\s]*): (?:error|fatal): .+|Slurm job .+)$", re.MULTILINE)


def explain(log: str) -> str:
    """Return which rank ended hard, by srun's account, or why Slurm ended or never began the launch, else "".

    What srun says of tasks after it began to end them is its own doing.
    """
    first = _ENDED_BY_SLURM.search(log)
    match = _TASK.search(log, 0, first.start() if first else len(log))
    if match:
        ranks = f"rank{'s' if re.search('[-,]', match[1]) else ''} {match[1]}"
        code = _CODE.match(match[2])
        if code is None:
            return f"{ranks} ended: {match[2]}"
        return f"{ranks} exited with code {code[1]}" if int(code[1]) > _RAISED else ""
    if match := _DUE.search(log):
        return f"Slurm ended the launch: {match[1].lower()}"
    match = _ERROR.search(log)
    return match[1] if match else ""


def cancel(launch_folder: Path) -> None:
    """End what Slurm still runs of a launch. Nothing happens if that is nothing, or Slurm cannot be asked.

    A number counts only where Slurm's own job or step has the name of this launch: the folder may be somebody else's.
    """
    record = record_path(launch_folder)
    if record.exists():
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
            about = json.loads(record.read_text())
            if "state" not in about and _NUMBER.fullmatch(about["job_id"]):  # else it is over
                _cancel(launch_folder, f"--jobs={about['job_id']}")
    elif job := os.environ.get("SLURM_JOB_ID"):
        _cancel(launch_folder, "--steps", f"--jobs={job}")


def _cancel(launch_folder: Path, *which: str) -> None:
    """End those of the jobs or steps that have the name of the launch."""
    for line in ask("squeue", *which, "--noheader", "--format=%i %j").split("\n"):
        number, _, name = line.strip().partition(" ")
        if name == job_name(launch_folder):
            ask("scancel", number)


def record_path(launch_folder: Path) -> Path:
    return launch_folder / "job.json"


def ask(*words: str) -> str:
    """Return what one of Slurm's programs answers, be it an error; "" if it does not."""
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_ANSWER_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr


def rendezvous(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the four variables by which ranks of torch meet (`env://`), for a task of a step that the user started.

    An address that is set already stays. Else it is the first node, with a port that differs between steps, below
    those that Linux gives to outgoing connections: they begin at 32768.
    """
    size = environ.get("SLURM_STEP_NUM_TASKS") or environ["SLURM_NTASKS"]
    place = {"RANK": environ["SLURM_PROCID"], "WORLD_SIZE": size}
    if "MASTER_ADDR" in environ and "MASTER_PORT" in environ:
        return {**place, "MASTER_ADDR": environ["MASTER_ADDR"], "MASTER_PORT": environ["MASTER_PORT"]}
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST", "")
    hosts = expand_hosts(nodes)
    if not hosts:
        raise EnvironmentProblem(
            f"the ranks cannot find each other: Slurm's list of nodes is {nodes!r}",
            hint="set MASTER_ADDR and MASTER_PORT where srun is started",
        )
    job, step = (int(environ.get(name, "0")) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return {**place, "MASTER_ADDR": hosts[0], "MASTER_PORT": str(20000 + (31 * job + step) % 9000)}


def expand_hosts(nodes: str) -> list[str]:
    """Return the names in a list of Slurm's: `node[01-03,7],x1` is node01, node02, node03, node7, x1."""
    hosts: list[str] = []
    for item in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", nodes):
        parts = re.split(r"\[([^\]]*)\]", item)  # text, list, text, list, ..., text
        choices = [_numbers(part) if place % 2 else [part] for place, part in enumerate(parts)]
        hosts += ["".join(words) for words in itertools.product(*choices)]
    return hosts


def _numbers(text: str) -> list[str]:
    """Read a list of numbers: `01-03,7` is 01, 02, 03, 7."""
    numbers = []
    for item in text.split(","):
        low, _, high = item.partition("-")
        numbers += [f"{number:0{len(low)}}" for number in range(int(low), int(high or low) + 1)]
    return numbers
