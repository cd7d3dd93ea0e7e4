"""What a run of 100,000 cases and 20,000 measurements costs to plan, go on with, end, draw and compare.

python -m tests.bench.size              makes such a run in a temporary folder, then each stage in a process of its own
python -m tests.bench.size resume plot  some of the stages
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

WORDS = (
    *("quick", "transport=scripted", "algorithm=all", "layout=2x4,1x8,4x2", "dtype=fp32,bf16,uint8,int32,fp16"),
    *("mode=isolated,pipelined", "cache=warm,cold", "sizes.min=64K", "sizes.max=64M", "sizes.factor=1.0206"),
    "launches=2",
)
CASES, SAMPLES, WARMUPS = 10_000, 50, 3  # measured ones, in two launches each
_WITHIN_S = 1200.0


@dataclass(frozen=True)
class Stage:
    run: Callable[[Path], object]
    what: str


def plan(folder: Path) -> None:
    from commbench.cli import _main

    _main(["sweep", *WORDS, "--dry-run"])


def create(folder: Path, out: Path | None = None) -> Path:
    """Plan, and write the plan."""
    from commbench.console import Console
    from commbench.sweep import prepare

    with tempfile.TemporaryDirectory() as parent:
        request = prepare.SweepRequest(words=WORDS, out=out or Path(parent))
        recipe, configs = prepare.configure(request.words)
        launchers, configs = prepare.choose_launchers(request, configs, Console(quiet=True))
        return prepare.create(request, recipe, configs, prepare.expand(configs), launchers).path


def resume(folder: Path) -> object:
    """All that comes before the first launch."""
    from commbench.console import Console
    from commbench.sweep import prepare
    from commbench.sweep.resume import resume

    return resume(prepare.SweepRequest(resume=folder), Console(quiet=True))


def finish(folder: Path) -> None:
    """What a sweep does after its last launch: samples.parquet, results.parquet, the table, the plots."""
    from commbench.commands.sweep import _draw
    from commbench.console import Console
    from commbench.output import writers
    from commbench.run_folder import RunFolder
    from commbench.sweep import prepare, session
    from commbench.sweep.resume import resume

    console = Console(quiet=True)
    request = prepare.SweepRequest(resume=folder)
    opened, sweep = resume(request, console)
    assert isinstance(opened, RunFolder)
    reporter = session.ConsoleReporter(console, writers.writer("table", ""))
    session.finish(request, opened, sweep, reporter, console, _draw)


def command(*words: str) -> Callable[[Path], None]:
    def run(folder: Path) -> None:
        from commbench.cli import _main

        _main([word.replace("RUN", str(folder)) for word in words])

    return run


STAGES = {
    "plan": Stage(plan, "sweep --dry-run"),
    "create": Stage(create, "plan, and write the plan"),
    "resume": Stage(resume, "sweep --resume, up to its first launch"),
    "finish": Stage(finish, "the same, and all that follows the last launch"),
    "plot": Stage(command("plot", "RUN", "--out", "RUN/drawn"), "plot"),
    "compare": Stage(command("compare", "RUN", "RUN"), "compare with itself"),
    "stragglers": Stage(command("stragglers", "RUN"), "stragglers"),
    "model": Stage(command("model", "RUN"), "model"),
}


def make(parent: Path) -> Path:
    """Make the run of a sweep that was stopped after `CASES` of its cases."""
    from commbench.analysis.summary import Samples, row, skipped_row
    from commbench.records import Measurement, Status
    from commbench.run_folder import RunFolder
    from commbench.serialise import seal
    from commbench.sweep import plan as planning
    from commbench.sweep import prepare

    folder = RunFolder(create(parent, parent))
    _, configs = prepare.configure(WORDS)
    planned = prepare.expand(configs)
    chance = np.random.default_rng(18)
    cases = [item.case for item in planned if not item.skip]
    measured = {case.case_id: case for case in cases[: CASES // 2] + cases[-CASES // 2 :]}
    made: dict[str, list[Measurement]] = {}
    for launch in planning.launches(planned, seed=0):
        attempt = f"{launch.index:03d}-{launch.setup.key[:6]}-0"
        (folder.path / "logs" / attempt).mkdir()
        with open(folder.samples_path(attempt), "a") as samples:
            for order, case in enumerate(case for case in launch.cases if case.case_id in measured):
                times = (10 + case.size_bytes / 1e4) * chance.lognormal(0, 0.1, (SAMPLES + WARMUPS, 8))
                warmups, timed = times[:WARMUPS].round(3).tolist(), times[WARMUPS:].round(3).tolist()
                line = {"case_id": case.case_id, "launch": launch.index, "warmup_us": warmups, "time_us": timed,
                        "host_us": timed}  # fmt: skip
                samples.write(seal(json.dumps(line, separators=(",", ":"))) + "\n")
                measurement = Measurement(
                    case_id=case.case_id, launch=launch.index, attempt=attempt, order=order, status=Status.OK,
                    warmup=WARMUPS, samples=SAMPLES, calls_per_sample=1,
                    time_us=float(np.median(times[WARMUPS:].max(axis=1))), host_us=1.0, skew_us=0.5,
                    stop_reason="precision", fabric="declared",
                )  # fmt: skip
                made.setdefault(case.case_id, []).append(measurement)

    os.fsync = lambda descriptor: None  # of this process: nobody kills it
    for measurements in made.values():
        for measurement in measurements:
            folder.append_measurement(measurement)
    of_run = Samples(folder)
    for item in planned:
        if item.skip:
            folder.append_row(skipped_row(item.case, item.skip))
        elif of_case := made.get(item.case.case_id):
            folder.append_row(row(item.case, of_case, of_run))
    return folder.path


def child(name: str, folder: Path) -> None:
    """Run one stage with its words to nowhere, and say what it took."""
    stdout = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    begin = time.monotonic()
    try:
        STAGES[name].run(folder)
    finally:
        mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        took = {"s": time.monotonic() - begin, "cpu_s": time.process_time(), "mib": mib}
        os.write(stdout, json.dumps(took).encode())


def main(names: list[str] | None = None) -> None:
    wanted = names or list(STAGES)
    kept = os.environ.get("COMMBENCH_SIZE_RUN")
    with tempfile.TemporaryDirectory() as parent:
        begin = time.monotonic()
        folder = Path(kept) if kept else make(Path(parent))
        mib = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20
        print(f"{folder.name}: {mib:.0f} MiB, made in {time.monotonic() - begin:.0f} s", flush=True)
        print(f"{'stage':<12}{'seconds':>9}{'of CPU':>8}{'peak MiB':>10}   what", flush=True)
        for name in wanted:
            words = [sys.executable, "-m", "tests.bench.size", "child", name, str(folder)]
            try:
                done = subprocess.run(words, capture_output=True, text=True, timeout=_WITHIN_S, check=False)
            except subprocess.TimeoutExpired:
                print(f"{name:<12}{f'> {_WITHIN_S:.0f}':>9}{'-':>8}{'-':>10}   {STAGES[name].what}", flush=True)
                continue
            took = json.loads(done.stdout or "{}")
            said = "" if done.returncode == 0 else "; failed: " + (done.stderr.strip().splitlines() or ["?"])[-1]
            print(
                f"{name:<12}{took['s']:>9.1f}{took['cpu_s']:>8.1f}{took['mib']:>10.0f}   {STAGES[name].what}{said}",
                flush=True,
            )
            shutil.rmtree(folder / "drawn", ignore_errors=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2], Path(sys.argv[3]))
    elif sys.argv[1:2] == ["make"]:
        print(make(Path(sys.argv[2])))
    else:
        main(sys.argv[1:])
