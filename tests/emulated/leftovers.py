"""What an emulated fabric could leave behind, and rounds of runs that must leave none of it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tests.conftest import environment
from tests.support.kill_and_resume import GONE_WITHIN_S, choose, family

VICTIMS = ("parent", "launcher", "rank", "group")


def namespaces() -> set[str]:
    """Network namespaces that some process is in, or holds open."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        for link in (process / "ns/net", *_descriptors(process)):
            try:
                target = str(link.readlink())
            except OSError:
                continue
            if target.startswith("net:["):
                found.add(target)
    return found


def _descriptors(process: Path) -> list[Path]:
    try:
        return list((process / "fd").iterdir())
    except OSError:
        return []


def traces() -> dict[str, set[str]]:
    """Everything outside the run folder: namespaces, interfaces, named namespaces, shared memory, temporary files."""
    folders = {name: Path(name) for name in ("/run/netns", "/dev/shm", "/tmp")}
    return {
        "namespaces": namespaces(),
        "interfaces": {line.split(":")[0].strip() for line in Path("/proc/net/dev").read_text().splitlines()[2:]},
        **{name: {path.name for path in folder.iterdir()} for name, folder in folders.items() if folder.is_dir()},
    }


def rank_at_work(out: Path, rank: int) -> psutil.Process:
    """The process of a rank of the one launch, once its first case has begun: before, a launch is tried again."""
    deadline = time.monotonic() + 60
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
    before = traces()
    command = [sys.executable, "-m", "commbench", "sweep", *words, "--out", str(out), "--no-plots"]
    sweep = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    about = f"seed {seed}: not killed"
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
    code = sweep.wait(timeout=120)
    assert kill or code == 0, about
    ended = time.monotonic()
    while left := _left(before, out):
        assert time.monotonic() - ended < GONE_WITHIN_S, f"{about}: left behind: {left}"
        time.sleep(0.05)
    return f"{about}, all gone after {time.monotonic() - ended:.1f} s"


def _left(before: dict[str, set[str]], out: Path) -> dict[str, set[str]]:
    now = traces()
    left = {name: now[name] - before[name] for name in now}
    if os.path.commonpath([out, "/tmp"]) == "/tmp":
        left["/tmp"] -= {out.relative_to("/tmp").parts[0]}
    left["processes"] = {str(process.pid) for process in family(str(out))}
    return {name: items for name, items in left.items() if items}
