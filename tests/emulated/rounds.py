"""Rounds of runs on emulated fabrics that must leave nothing behind."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tests.conftest import PATIENCE_S
from tests.support.kill_and_resume import GONE_WITHIN_S, choose, family
from tests.support.leftovers import Watch

VICTIMS = ("parent", "launcher", "rank", "group")


def rank_at_work(out: Path, rank: int) -> psutil.Process:
    """The process of a rank of the one launch, once its first case has begun: before, a launch is tried again."""
    deadline = time.monotonic() + PATIENCE_S
    while not any('"begin"' in path.read_text() for path in out.glob("2*/logs/*/events.jsonl")):
        assert time.monotonic() < deadline, "no case has begun"
        time.sleep(0.05)
    (told,) = out.glob(f"2*/logs/*/rank-{rank}.json")
    return psutil.Process(json.loads(told.read_text())["pid"])


def round_of(seed: int, out: Path, words: list[str], *, kill: bool, longest_s: float) -> str:
    """One sweep, killed at a random moment or not; asserts that nothing of it is left 10 s after its end."""
    rng = random.Random(seed)
    random.seed(seed)
    out.mkdir()
    command = [sys.executable, "-m", "commbench", "sweep", *words, "--out", str(out), "--no-plots"]
    about = f"seed {seed}: not killed"
    with Watch(out.with_name(f"{out.name}-tmp")) as watch:
        sweep = subprocess.Popen(command, env=watch.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if kill:
            victim, delay = rng.choice(VICTIMS), rng.uniform(0.3, longest_s)
            time.sleep(delay)
            about = f"seed {seed}: {victim} killed after {delay:.2f} s"
            ranks = [json.loads(path.read_text())["pid"] for path in out.glob("2*/logs/*/rank-*.json")]
            alive = [psutil.Process(pid) for pid in ranks if psutil.pid_exists(pid)]
            chosen = [rng.choice(alive)] if victim == "rank" and alive else choose(victim, family(str(out)), sweep.pid)
            for process in chosen:
                try:
                    process.send_signal(signal.SIGKILL)
                except psutil.NoSuchProcess:
                    continue
        code = sweep.wait(timeout=PATIENCE_S)
        assert kill or code == 0, about
        ended = time.monotonic()
        while left := watch.left():
            assert time.monotonic() - ended < GONE_WITHIN_S, f"{about}: left behind: {left}"
            time.sleep(0.05)
    return f"{about}, all gone after {time.monotonic() - ended:.1f} s"
