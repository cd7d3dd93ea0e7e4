"""1,000 injected faults, each followed by a resume: nothing lost, nothing measured twice, nothing left, no traceback.

    python -m tests.bench.faults FOLDER [--workers 2] [--only PROGRAM/KIND] [--first N]

Needs root, unshare, and a C compiler for the clock. A line of FOLDER/*.jsonl is a fault; those that are there are not
made again, so it can be killed and started again. Each worker has a PID namespace, a /tmp and a /dev/shm of its own:
whatever is in there after a run, the run has left. Runs are forked from a warm process.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import json
import mmap
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

_SUPPORT = Path(__file__).resolve().parent.parent / "support"
_REPOSITORY = _SUPPORT.parent.parent
_GONE_WITHIN_S, _ENDS_WITHIN_S = 20.0, 240.0
_NOT_OURS = "hydra_hwloc_xmlfile_"  # which a killed mpiexec of MPICH leaves in TMPDIR: see tests.support.leftovers
_ROOM = "size=64m"
_KINDS_OF_KILLS = ("parent", "rank", "launcher", "group")
_SWEEP = ("sweep", "quick", "launches=2", "iters=6", "nodes=1", "ranks_per_node=2", "algorithm=direct,pairwise",
          "-b", "4K", "-e", "32K", "-f", "8", "--no-plots", "--format", "json")  # fmt: skip
_TRAIN = ("train", "tiny", "layers=1", "width=16", "heads=2", "hidden=16", "experts=2", "top_k=1", "context=16",
          "batch=4", "val_sequences=4", "steps=12", "save_every=3", "warmup=1", "ranks_per_node=2",
          "breakdown_steps=0", "--no-plots", "--format", "json")  # fmt: skip
_LARGE = ["-b", "1M", "-e", "4M", "-f", "4"]  # so that buffers are asked of the kernel
_STEPS = 12
PROGRAMS: dict[str, tuple[str, ...]] = {
    "scripted": (*_SWEEP, "transport=scripted"),
    "gloo": (*_SWEEP, "transport=gloo"),
    "mpi": (*_SWEEP, "transport=mpi"),
    "train": _TRAIN,
}
# What runs import, here and not by each of them.
_LOADED = ("commbench.analysis.ratios", "commbench.commands.sweep", "commbench.commands.train",
           "commbench.sweep.resume", "commbench.output.parquet", "commbench.transports.gloo",
           "commbench.transports.scripted.transport", "moe_ref.training.rank")  # fmt: skip
# How many of each: by program and kind.
PLANNED = {
    "scripted": {"kill": 240, "SIGTERM": 60, "SIGINT": 60, "hang": 40, "memory": 60, "torn": 90, "disk": 130,
                 "output": 40, "clock": 60, "damage": 60},
    "gloo": {"kill": 40, "SIGTERM": 10, "SIGINT": 5, "hang": 5, "memory": 10, "torn": 10, "disk": 20},
    "mpi": {"kill": 20, "SIGTERM": 5, "memory": 5, "disk": 10},
    "train": {"kill": 30, "SIGTERM": 10, "hang": 2, "memory": 5, "torn": 8, "disk": 15, "clock": 5},
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Fault:
    seed: int
    program: str
    kind: str


def planned() -> list[Fault]:
    """Return all faults in a mixed order, so that a part of them is a fair part."""
    pairs = [(program, kind) for program, kinds in PLANNED.items() for kind, n in kinds.items() for _ in range(n)]
    faults = [Fault(seed, *pair) for seed, pair in enumerate(pairs)]
    random.Random(0).shuffle(faults)
    return faults


class Failed(Exception):
    """What should not be."""


class Clock:
    """The seconds by which CLOCK_REALTIME is off in every process that has loaded the library."""

    def __init__(self, path: Path) -> None:
        with open(path, "r+b") as file:
            self._page = mmap.mmap(file.fileno(), 8)

    def step(self, seconds: int) -> None:
        self._page[:] = struct.pack("q", seconds)


class Injected:
    """One run in a folder of its own, what is done to it, and what is there afterwards."""

    def __init__(self, fault: Fault, folder: Path, duration_s: float, clock: Clock) -> None:
        self.fault = fault
        self.out = folder / "out"
        self.errors = folder / "stderr.txt"
        self.rng = random.Random(fault.seed)
        self.delay = self.rng.uniform(0.0, 1.1 * duration_s)
        self.clock = clock
        self.words = list(PROGRAMS[fault.program])
        if fault.program == "scripted":
            script = folder / "script.json"
            script.write_text('{"pace_us": 1000}')
            self.words.append(f"script={script}")
        self.words += {"hang": ["timeout=4"], "memory": [] if fault.program == "train" else _LARGE}.get(fault.kind, [])
        self.what = fault.kind
        self.codes = {0}  # with which the run may end
        self.before: list[dict[str, Any]] = []
        self.out.mkdir()

    def start(self, *words: str, **options: Any) -> subprocess.Popen[Any]:
        from tests.support import forked_command

        with open(self.errors, "ab") as errors:
            streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": errors, **options}
            return forked_command.start(*words, cwd=self.out, start_new_session=True, **streams)

    def wait(self, process: subprocess.Popen[Any]) -> int:
        try:
            code = process.wait(_ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            raise Failed(f"no end within {_ENDS_WITHIN_S:.0f} s") from None
        until = time.monotonic() + _GONE_WITHIN_S
        while left := others():
            if time.monotonic() > until:
                raise Failed(f"processes are left: {[p.cmdline()[-3:] for p in left]}")
            time.sleep(0.02)
        said = self.said()
        if "Traceback" in said or "Exception ignored" in said:
            raise Failed(f"a traceback: {said[-3000:]}")
        return code

    def said(self) -> str:
        return self.errors.read_text(errors="replace")

    def run(self) -> Path | None:
        found = [path for path in (self.out / "results").glob("*") if not path.is_symlink()]
        return found[0] if found else None


def others() -> list[psutil.Process]:
    """Processes of this namespace but for this one; those that have ended are reaped."""
    with contextlib.suppress(ChildProcessError):
        for process in psutil.process_iter():
            if process.pid != os.getpid() and process.status() == psutil.STATUS_ZOMBIE and process.ppid() == 1:
                os.waitpid(process.pid, os.WNOHANG)
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def choose(victim: str, parent: int) -> list[psutil.Process]:
    """Return who is struck; all of them where there is no such process now."""
    alive = others()
    by_parent: dict[int, list[psutil.Process]] = {}
    for process in alive:
        with contextlib.suppress(psutil.Error):
            by_parent.setdefault(process.ppid(), []).append(process)
    launchers = by_parent.get(parent, [])
    leaves = [p for p in alive if p.pid != parent and p not in launchers and p.pid not in by_parent]
    wanted = {
        "parent": [p for p in alive if p.pid == parent],
        "launcher": launchers,
        "rank": leaves and [random.choice(leaves)],
        "group": alive,
    }[victim]
    return wanted or alive


def send(processes: list[psutil.Process], number: int) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)


def begun(it: Injected, process: subprocess.Popen[Any]) -> None:
    """Wait until ranks are at work: before that they are given a minute, whatever they do."""
    until = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < until:
        if (run := it.run()) and any(b'"begin"' in p.read_bytes() for p in run.glob("logs/*/events.jsonl")):
            return
        time.sleep(0.02)


# What is done to a run. Each returns the exit code.


def kill(it: Injected) -> int:
    victim = it.rng.choice(_KINDS_OF_KILLS)
    it.what, it.codes = f"kill -9 of the {victim}", {0, 1, -9}
    process = it.start(*it.words)
    time.sleep(it.delay)
    send(choose(victim, process.pid), signal.SIGKILL)
    return it.wait(process)


def terminate(it: Injected) -> int:
    number = signal.Signals[it.fault.kind]
    whom = it.rng.choice(["parent", "group"])
    it.what, it.codes = f"{number.name} to the {whom}", {0, 1, 130, -number}
    process = it.start(*it.words)
    time.sleep(it.delay)
    send(choose(whom, process.pid), number)
    return it.wait(process)


def hang(it: Injected) -> int:
    it.what, it.codes = "SIGSTOP of a rank", {0, 1}
    process = it.start(*it.words)
    begun(it, process)
    time.sleep(it.rng.uniform(0, 0.3))
    stopped = choose("rank", process.pid)
    if all(p.pid == process.pid for p in stopped):  # it is over but for the parent
        return it.wait(process)
    send([p for p in stopped if p.pid != process.pid], signal.SIGSTOP)
    if it.rng.random() < 0.3:
        it.what += ", SIGCONT"
        time.sleep(it.rng.uniform(0.1, 2))
        send(stopped, signal.SIGCONT)
    return it.wait(process)


def memory(it: Injected) -> int:
    it.what, it.codes = "RLIMIT_AS of a rank", {0, 1}
    process = it.start(*it.words)
    begun(it, process)
    time.sleep(it.rng.uniform(0, 0.5))
    for victim in choose("rank", process.pid):
        if victim.pid != process.pid:
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                limit = victim.memory_info().vms + it.rng.choice([0, 1 << 20, 1 << 22])
                resource.prlimit(victim.pid, resource.RLIMIT_AS, (limit, limit))
    return it.wait(process)


def torn(it: Injected) -> int:
    code = kill_group(it)
    run = it.run()
    files = sorted(run.glob("**/*.json*"), key=lambda path: path.stat().st_mtime_ns) if run else []
    kept = [path for path in files if "logs" not in path.parts and path.name not in ("plan.jsonl", "run.json")]
    # Each line is on disk before the next one is written, so of what is kept the newest file alone can be torn.
    for path in [*kept[-1:], *(path for path in files if "logs" in path.parts)]:
        data = path.read_bytes()
        if path.suffix == ".jsonl" and data and it.rng.random() < 0.8:
            last = data[data[:-1].rfind(b"\n") + 1 :]
            path.write_bytes(data[: len(data) - it.rng.randrange(len(last))])
    return code


def kill_group(it: Injected) -> int:
    it.what, it.codes = f"{it.fault.kind} files", {0, -9}
    process = it.start(*it.words)
    time.sleep(it.delay)
    send(choose("group", process.pid), signal.SIGKILL)
    return it.wait(process)


def disk(it: Injected) -> int:
    it.codes = {0, 1, 2}
    from_start = it.rng.random() < 0.5
    most = {"train": 900}.get(it.fault.program, 260)
    size = it.rng.randrange(16, most) if from_start else 16 * 1024
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", it.out], check=True)
    it.what = f"a disk of {size} KiB" if from_start else "a disk that becomes full"
    process = it.start(*it.words)
    if not from_start:
        time.sleep(it.delay)
        fill(it.out / "filler")
    code = it.wait(process)
    (it.out / "filler").unlink(missing_ok=True)
    subprocess.run(["mount", "-o", f"remount,{_ROOM}", it.out], check=True)
    run = it.run()
    if code == 2 and run and (run / "run.json").exists():
        said = it.said()
        if "--resume" not in said or str(run.name) not in said:
            raise Failed(f"no word of how to go on: {said[-500:]}")
        if left := temporaries(it):
            raise Failed(f"temporaries after a full disk: {left}")
    return code


def fill(path: Path) -> None:
    with contextlib.suppress(OSError), open(path, "ab", buffering=0) as file:
        while True:
            file.write(b"\0" * 4096)


def output(it: Injected) -> int:
    where = it.rng.choice(["stdout", "stderr", "stdout and stderr"])
    what = it.rng.choice(["/dev/full", "a closed pipe"])
    it.what = f"{where} is {what}"
    reading, target = os.pipe()
    if what == "/dev/full":
        target = os.open(what, os.O_WRONLY)
    os.close(reading)
    process = it.start(*it.words, **{name: target for name in ("stdout", "stderr") if name in where})
    os.close(target)
    return it.wait(process)


def clock(it: Injected) -> int:
    seconds = int(it.rng.choice([-1, 1]) * 10 ** it.rng.uniform(0, 7.5))
    also = it.rng.random() < 0.5
    it.what = f"the clock steps by {seconds} s" + (", kill -9 of the group" if also else "")
    it.codes = {0, -9} if also else {0}
    process = it.start(*it.words)
    time.sleep(it.delay / 2)
    it.clock.step(seconds)
    if also:
        time.sleep(it.delay / 2)
        send(choose("group", process.pid), signal.SIGKILL)
    return it.wait(process)


def damage(it: Injected) -> int:
    code = kill_group(it)
    run = it.run()
    files = sorted(path for path in run.rglob("*") if path.is_file() and path.stat().st_size) if run else []
    if files:
        path = it.rng.choice(files)
        data = bytearray(path.read_bytes())
        place = it.rng.randrange(len(data))
        match it.rng.choice(["flip", "cut", "gone", "garbage"]):
            case "flip":
                data[place] ^= 1 << it.rng.randrange(8)
                path.write_bytes(data)
            case "cut":
                path.write_bytes(data[:place])
            case "gone":
                path.unlink()
            case "garbage":
                path.write_bytes(it.rng.randbytes(len(data)))
        it.what = f"damaged {path.relative_to(run) if run else ''}"
    return code


KINDS: dict[str, Callable[[Injected], int]] = {
    "kill": kill, "SIGTERM": terminate, "SIGINT": terminate, "hang": hang, "memory": memory, "torn": torn,
    "disk": disk, "output": output, "clock": clock, "damage": damage,
}  # fmt: skip


def temporaries(it: Injected) -> list[str]:
    """Return what is a temporary by its name, below the run or beside it."""
    names = [path for path in (it.out / "results").rglob("*") if path.name.startswith(".latest")]
    names += [path for path in (it.out / "results").rglob("*") if path.name.endswith(".tmp")]
    names += [path for kind in ("rendezvous", "session") for path in it.out.glob(f"results/*/logs/*/{kind}")]
    return sorted(str(path.relative_to(it.out)) for path in names)


def left_outside() -> list[str]:
    folders = (Path(os.environ["TMPDIR"]), Path("/dev/shm"))
    return [str(p) for folder in folders for p in folder.iterdir() if not p.name.startswith(_NOT_OURS)]


def lines(path: Path) -> list[dict[str, Any]]:
    """Whole lines only, as a reader of the run folder sees them."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def check_sweep(it: Injected, run: Path, before: list[dict[str, Any]]) -> str:
    after, plan = lines(run / "measurements.jsonl"), lines(run / "plan.jsonl")
    if it.fault.kind != "damage" and after[: len(before)] != before:
        raise Failed("a finished measurement was changed")
    done = Counter((line["case_id"], line["launch"]) for line in after if line["status"] == "ok")
    launches = max(line["case"]["policy"]["launches"] for line in plan)
    wanted = {(line["case_id"], launch) for line in plan for launch in range(launches)}
    if set(done) != wanted:
        raise Failed(f"{len(wanted - set(done))} measurements are lost")
    twice = [key for key, count in done.items() if count > 1]
    if twice and it.fault.kind not in ("damage", "torn"):  # where samples are torn, a measurement is none
        raise Failed(f"measured twice: {twice}")
    rows = {line["case_id"]: line["status"] for line in lines(run / "cases.jsonl")}
    if set(rows) != {line["case_id"] for line in plan} or set(rows.values()) != {"ok"}:
        raise Failed(f"rows: {Counter(rows.values())}, planned {len(plan)}")
    return f"{sum(line['status'] == 'ok' for line in before)} of {len(wanted)} were there"


def check_train(it: Injected, run: Path, before: list[dict[str, Any]]) -> str:
    steps = [line["step"] for line in lines(run / "metrics.jsonl")]
    if steps != list(range(1, _STEPS + 1)):
        raise Failed(f"steps {steps}")
    return f"{len(before)} of {_STEPS} steps were there"


def inject(fault: Fault, folder: Path, duration_s: float, clock: Clock) -> dict[str, Any]:
    """Make one fault, go on with the run, and return its line."""
    random.seed(fault.seed)
    it = Injected(fault, folder, duration_s, clock)
    about: dict[str, Any] = {**dataclasses.asdict(fault), "delay_s": round(it.delay, 3)}
    began = time.monotonic()
    try:
        code = KINDS[fault.kind](it)
        about |= {"what": it.what, "code": code}
        if code not in it.codes:
            raise Failed(f"exit code {code}: {it.said()[-500:]}")
        about["found"] = go_on(it)
        if left := temporaries(it) + left_outside():
            raise Failed(f"left behind: {left}")
    except Failed as error:
        about |= {"what": it.what, "failed": str(error)}
    finally:
        clock.step(0)
        send(others(), signal.SIGKILL)
        while others():
            time.sleep(0.05)
        subprocess.run(["umount", "-q", it.out], check=False, stderr=subprocess.DEVNULL)
    about["seconds"] = round(time.monotonic() - began, 2)
    return about


def go_on(it: Injected) -> str:
    """Resume, and compare with what was planned; return what was found."""
    run = it.run()
    if run is None or not (run / "run.json").exists():
        return "before there was a plan"
    train = it.fault.program == "train"
    before = [] if it.fault.kind == "damage" else lines(run / ("metrics.jsonl" if train else "measurements.jsonl"))
    words = [it.words[0], "--resume", str(run), "--no-plots", "--format", "json"]
    if train:
        words.append("timeout=300")  # that of a run which shall hang is short
    it.errors.write_text("")
    code = it.wait(it.start(*words, *([] if train else ["--retry-failed"])))
    said = it.said()
    if it.fault.kind == "damage" and code == 2 and said.count("error:") == said.count("hint:") == 1:
        for name in temporaries(it):  # a folder that is refused is left alone
            shutil.rmtree(it.out / name, ignore_errors=True)
            (it.out / name).unlink(missing_ok=True)
        return f"refused: {said.splitlines()[0][:150]}"
    if code:
        raise Failed(f"the resume ended with {code}: {said[-800:]}")
    return (check_train if train else check_sweep)(it, run, before)


# The workers


def worker(folder: Path, index: int, count: int, only: str, first: int) -> None:
    """Make every `count`-th fault that has not been made yet."""
    for name in _LOADED:
        importlib.import_module(name)
    clock = Clock(Path(os.environ["CLOCK_STEP_FILE"]))
    durations: dict[str, float] = {}
    done = {line["seed"] for path in folder.glob("*.jsonl") for line in lines(path)}
    mine = [fault for fault in planned()[:first] if fault.seed % count == index and fault.seed not in done]
    for fault in mine:
        if only and not f"{fault.program}/{fault.kind}".startswith(only):
            continue
        if fault.program not in durations:
            durations[fault.program] = undisturbed(fault, clock)
        with scratch() as room:
            line = inject(fault, room, durations[fault.program], clock)
        with open(folder / f"worker-{index}.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")


def undisturbed(fault: Fault, clock: Clock) -> float:
    """Return how many seconds a run takes to which nothing is done."""
    with scratch() as room:
        it = Injected(dataclasses.replace(fault, kind="none"), room, 0.0, clock)
        began = time.monotonic()
        if code := it.wait(it.start(*it.words)):
            sys.exit(f"an undisturbed {fault.program} ends with {code}: {it.said()}")
        return time.monotonic() - began


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder for a run and its streams, and an empty TMPDIR."""
    room = Path("/tmp/fault")
    temporary = Path("/tmp/fault-tmp")
    for path in (room, temporary):
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
    for path in Path("/dev/shm").iterdir():  # of the run before, which has been told
        path.unlink()
    os.environ["TMPDIR"] = str(temporary)
    yield room


def sealed(arguments: list[str]) -> subprocess.Popen[bytes]:
    """Start a worker in namespaces of its own. The checkout stays where it is, be it below /tmp."""
    return subprocess.Popen(
        [
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--mount-proc",
            "--kill-child",
            sys.executable,
            "-c",
            _ENTER,
            *arguments,
        ]
    )


# Before anything is imported from the checkout, on which the new /tmp would lie.
_ENTER = f"""
import os, subprocess, sys
here, folder = {str(_REPOSITORY)!r}, sys.argv[1]
held = [(path, os.open(path, os.O_PATH)) for path in (here, folder)]
for path in ("/tmp", "/dev/shm"):
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", path], check=True)
for path, number in held:
    if path.startswith("/tmp/"):
        os.makedirs(path)
        source = f"/proc/{{os.getpid()}}/fd/{{number}}"
        subprocess.run(["mount", "--no-canonicalize", "--bind", source, path], check=True)
os.chdir(here)
path = os.pathsep.join([here, here + "/kernels"])
variables = {{**os.environ, "PYTHONPATH": path, "LD_PRELOAD": folder + "/clock_step.so"}}
os.execve(sys.executable, [sys.executable, "-m", "tests.bench.faults", *sys.argv[1:]], variables)
"""


def report(folder: Path) -> None:
    made = sorted((line for path in folder.glob("*.jsonl") for line in lines(path)), key=lambda line: line["seed"])
    print(f"{'program':<10}{'fault':<10}{'made':>6}{'failed':>8}{'refused':>9}")
    for program, kinds in PLANNED.items():
        for kind in kinds:
            of = [line for line in made if (line["program"], line["kind"]) == (program, kind)]
            bad = sum("failed" in line for line in of)
            refused = sum(str(line.get("found", "")).startswith("refused") for line in of)
            print(f"{program:<10}{kind:<10}{len(of):>6}{bad:>8}{refused:>9}")
    bad = [line for line in made if "failed" in line]
    print(f"{len(made)} faults, {len(bad)} failed")
    for line in bad:
        print(f"  {line['seed']} {line['program']}/{line['kind']}, {line['what']}: {line['failed'][:1000]}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", default="")
    parser.add_argument("--first", type=int)
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker is not None:
        worker(asked.folder, asked.worker, asked.workers, asked.only, asked.first)
        return
    folder = asked.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "clock_step.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", library, _SUPPORT / "clock_step.c"], check=True)
    processes = []
    for index in range(asked.workers):
        offset = folder / f"clock-{index}"
        offset.write_bytes(bytes(8))
        os.environ["CLOCK_STEP_FILE"] = str(offset)
        words = [str(folder), "--worker", str(index), "--workers", str(asked.workers), "--only", asked.only]
        processes.append(sealed([*words, *(["--first", str(asked.first)] if asked.first else [])]))
    for process in processes:
        process.wait()
    report(folder)


if __name__ == "__main__":
    main()
