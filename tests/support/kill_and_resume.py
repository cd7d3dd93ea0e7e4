"""kill -9 at a random moment, then resume: what the fault tests and the fault benchmark share."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from tests.conftest import PATIENCE_S, commbench, environment, only_run, rows_of
from tests.support import forked_command

VICTIMS = ("parent", "rank", "launcher", "group")
GONE_WITHIN_S = 10.0


def family(marker: str) -> list[psutil.Process]:
    """Live processes whose command line or folder names `marker`; zombies run no more and do not count."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if any(marker in word for word in (*process.cmdline(), process.cwd())):
                found.append(process)
        except psutil.Error:
            continue
    return found


def choose(victim: str, processes: list[psutil.Process], parent: int) -> list[psutil.Process]:
    """The processes to kill; falls back to all of them where the victim does not exist at this moment."""
    launchers = [p for p in processes if p.pid != parent and _parent_of(p) == parent]
    ranks = [p for p in processes if _parent_of(p) in {launcher.pid for launcher in launchers}]
    wanted = {
        "parent": [p for p in processes if p.pid == parent],
        "launcher": launchers,
        "rank": ranks[:1] if random.random() < 0.5 else ranks[-1:],
        "group": processes,
    }[victim]
    return wanted or processes


def _parent_of(process: psutil.Process) -> int:
    try:
        return process.ppid()
    except psutil.Error:
        return -1


def lines(path: Path) -> list[dict[str, object]]:
    """Whole lines only, as a reader of the run folder sees them."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def kill_and_resume(seed: int, out: Path, words: list[str], *, longest_s: float, fork: bool = False) -> str:
    """One round; returns what was killed and when. Asserts that nothing is lost, doubled or left running.

    fork: the sweep and its resume are forked from this process, which takes seconds less.
    """
    rng = random.Random(seed)
    random.seed(seed)
    victim, delay = rng.choice(VICTIMS), rng.uniform(0.4, longest_s)
    out.mkdir()
    command = ["sweep", *words, "--out", str(out), "--no-plots", "--format", "json"]
    options: dict[str, Any] = {"cwd": out, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    if fork:
        sweep = forked_command.start(*command, start_new_session=True, **options)
    else:
        command = [sys.executable, "-m", "commbench", *command]
        sweep = subprocess.Popen(command, env=environment(), start_new_session=True, **options)
    time.sleep(delay)
    for process in choose(victim, family(str(out)), sweep.pid):
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    killed_at = time.monotonic()
    about = f"seed {seed}: {victim} killed after {delay:.2f} s"
    if victim in ("parent", "group"):
        while left := family(str(out)):
            assert time.monotonic() - killed_at < GONE_WITHIN_S, f"{about}: still alive: {left}"
            time.sleep(0.02)
    sweep.wait(timeout=PATIENCE_S)
    if not any(out.iterdir()):
        return f"{about}, before the run folder was made"
    run = only_run(out)
    before = lines(run / "measurements.jsonl")
    if not (run / "run.json").exists():
        return f"{about}, before the plan was written"
    again = ("sweep", "--resume", str(run), "--retry-failed", "--no-plots", "--format", "json")
    resumed = forked_command.run(*again, cwd=out) if fork else commbench(*again, cwd=out)
    assert resumed.returncode == 0, f"{about}: resume: {resumed.stderr}"
    after = lines(run / "measurements.jsonl")
    plan = lines(run / "plan.jsonl")
    assert after[: len(before)] == before, f"{about}: a finished measurement was lost"
    done = Counter((line["case_id"], line["launch"]) for line in after if line["status"] == "ok")
    launches = max(int(str(line["case"]["policy"]["launches"])) for line in plan)  # type: ignore[index]
    wanted = {(line["case_id"], launch) for line in plan for launch in range(launches)}
    assert set(done) == wanted, f"{about}: measurements are missing"
    assert set(done.values()) == {1}, f"{about}: measured twice: {[key for key, n in done.items() if n > 1]}"
    assert {line["status"] for line in after} <= {"ok", "error"}, f"{about}: a kill is an error, nothing else"
    rows = rows_of(resumed)
    assert Counter(row["case_id"] for row in rows) == Counter(line["case_id"] for line in plan)
    assert {row["status"] for row in rows} == {"ok"}, about
    assert not family(str(out)), f"{about}: processes are left after the resume"
    return f"{about}, {len(before)} of {len(wanted)} measurements were there"
