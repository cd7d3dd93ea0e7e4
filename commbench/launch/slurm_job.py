"""A job of Slurm's for one launch: the process that submits it and waits for it, and what each of its tasks runs.

`python -m commbench.launch.slurm_job ORDER.json` is what `slurm` starts outside of an allocation. It lives on the
host of the sweep; `run_rank` lives in the job.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from commbench.files import write_atomically
from commbench.launch import slurm
from commbench.launch.job import EVENTS, EXITS, Job
from commbench.processes.ended import by_signal
from commbench.processes.orphans import die_with_parent, exit_if_orphaned
from commbench.run_folder import append_line

BEAT_S = 3.0  # between two signs of life, which are also the times at which Slurm is asked
SILENCE_S = 90.0  # after so much silence a job ends itself; network file systems may show a change a minute late
_START_S = 120.0  # of a job's time limit, for the start of its ranks
_TAIL_LINES = 40
_RAISED = 1  # exit code of a rank that has told itself what happened
_ENDED = {  # states that a job does not leave
    *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "DEADLINE"),
    *("OUT_OF_MEMORY", "REVOKED", "GONE"),
}


def main() -> int:
    die_with_parent(signal.SIGTERM)  # upon which the job is cancelled
    job_path = Path(sys.argv[1])
    job = Job.load(job_path)
    exit_if_orphaned(job.parent_pid, job.parent_started)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    _heartbeat(job.folder).touch()
    submitted = _submit(job_path, job)
    if submitted is None:
        return 1
    record = {"job_id": submitted.job_id}
    write_atomically(slurm.record_path(job.folder), json.dumps(record))
    _say(f"Slurm has it as job {submitted.job_id}")
    state = _wait(job, submitted.job_id, stop)
    if state not in _ENDED:
        slurm.cancel(job.folder)
        return 1
    write_atomically(slurm.record_path(job.folder), json.dumps({**record, "state": state}))
    if state == "COMPLETED":
        return 0
    _say(f"Slurm job {submitted.job_id} ended as {state}")
    if submitted.paths.stderr.exists():
        _say("\n".join(submitted.paths.stderr.read_text(errors="replace").splitlines()[-_TAIL_LINES:]))
    return 1


def _submit(job_path: Path, job: Job) -> Any:
    """Return submitit's handle of the new job, or None after saying why there is none."""
    import submitit

    # Settings that a sweep compares arrive as environment variables, so all of them must.
    os.environ.pop("SBATCH_EXPORT", None)
    executor = submitit.AutoExecutor(folder=job.folder / "submitit", cluster="slurm")
    executor.update_parameters(
        name=slurm.job_name(job.folder),
        nodes=job.setup.layout.nodes,
        tasks_per_node=job.setup.layout.ranks_per_node,
        timeout_min=minutes(job),
        slurm_exclusive=True,
        slurm_srun_args=list(slurm.STEP),
        slurm_additional_parameters={"no_requeue": True},  # a benchmark must never restart silently
    )
    try:
        return executor.submit(run_rank, slurm.worker(job_path), str(job.folder))
    except submitit.core.utils.FailedJobError as error:
        _say(str(error))
        return None


def minutes(job: Job) -> int:
    """Return a time limit that no launch should reach: commbench cuts cases that hang itself, and sooner."""
    cases = sum(2 * case.policy.cap_s + 2 for case in job.cases)
    return math.ceil((_START_S + job.timeout_s + cases) / 60)


def _wait(job: Job, job_id: str, stop: threading.Event) -> str:
    """Return the state in which the job ended, or its last one if we are asked to stop. Keeps the heart beating."""
    while True:
        _heartbeat(job.folder).touch()
        answer = slurm.ask("scontrol", "--oneliner", "show", "job", job_id)
        match = re.search(r"\bJobState=(\w+) Reason=(\S+)", answer)
        state, reason = match.groups() if match else ("", "")
        if "Invalid job id" in answer:  # forgotten, minutes after its end
            state = "GONE"
        if state in _ENDED:
            return state
        if state in ("PENDING", "CONFIGURING"):  # for the sweep, which else would take the silence for a hang
            event = {"event": "queued", "job_id": job_id, "state": state, "reason": reason}
            append_line(job.folder / EVENTS, json.dumps(event), durable=False)
        if stop.wait(BEAT_S):
            return state


def _say(text: str) -> None:
    """Write a line into launcher.log."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _heartbeat(launch_folder: Path) -> Path:
    return launch_folder / "heartbeat"


class Heartbeat:
    """Tells whether the process that submitted a job is alive, as seen from the job, on another host.

    It touches a file every `BEAT_S`. Only changes of the file's time count, and the time since the last one is taken
    here: the clocks of two hosts need not agree. The file is opened each time, which makes network file systems ask
    their server instead of answering from memory.
    """

    def __init__(self, launch_folder: Path) -> None:
        self._path = _heartbeat(launch_folder)
        self._last = self._look()
        self._since = time.monotonic()
        self.heard = False

    def silent_s(self) -> float:
        """Return the seconds since the file last changed, or since we began to look."""
        now, seen = time.monotonic(), self._look()
        if seen not in (None, self._last):
            self._last, self._since, self.heard = seen, now, True
        return now - self._since

    def _look(self) -> int | None:
        try:
            with open(self._path, "rb") as file:
                return os.fstat(file.fileno()).st_mtime_ns
        except OSError:
            return None


def run_rank(worker: Sequence[str], folder: str) -> None:
    """Run one rank as a child of this task. Task 0 also ends the job if its sweep is gone.

    A job may come out of the queue long after that, so task 0 lets its rank begin only when it has heard the heart
    beat: the others wait for it, and nothing is measured into a run that somebody else may be going on with.
    """
    task = int(os.environ["SLURM_PROCID"])
    heartbeat = Heartbeat(Path(folder)) if task == 0 else None
    while heartbeat and not heartbeat.heard:
        if heartbeat.silent_s() > SILENCE_S:
            raise SystemExit("the sweep that submitted this job is gone")
        time.sleep(BEAT_S / 3)
    # MPI libraries may find Slurm through an open file (PMI_FD).
    process = subprocess.Popen(worker, close_fds=False)
    if heartbeat:
        threading.Thread(target=_end_when_silent, args=(heartbeat, process), daemon=True).start()
    code = process.wait()
    if code < 0 and -code != signal.SIGTERM:  # that is Slurm, ending the ranks because of another
        _note_exit(folder, task, by_signal(-code))
    elif code > _RAISED:
        _note_exit(folder, task, f"exited with code {code}")
    if code:
        raise SystemExit(1)  # by --kill-on-bad-exit the end of all ranks


def _end_when_silent(heartbeat: Heartbeat, process: subprocess.Popen[bytes]) -> None:
    while heartbeat.silent_s() < SILENCE_S:
        time.sleep(BEAT_S)
    process.kill()


def _note_exit(folder: str, rank: int, what: str) -> None:
    append_line(Path(folder) / EXITS, json.dumps({"rank": rank, "what": what}), durable=False)


if __name__ == "__main__":
    from commbench.launch import slurm_job  # by its name, under which the job imports what submitit wrote down

    sys.exit(slurm_job.main())
