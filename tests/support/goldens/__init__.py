"""What must not change by itself: plans, keys, dry runs, a tuned profile, losses.

`python -m tests.support.goldens` writes them. They were recorded before modules moved
into folders of stages, on a machine that `recorded_machine` plays.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

from commbench import fabric, transports
from commbench.binding import affinity
from commbench.commands import sweep
from commbench.launch import mpiexec, placement
from commbench.machine import cgroup, gpus, sysfs
from commbench.profile import Profile
from commbench.profile import file as profile_file
from commbench.serialise import as_dict
from commbench.sweep import prepare, recipes
from commbench.train import config
from tests.conftest import REPOSITORY, here
from tests.support import machines
from tests.support.planted_tunings import Ruled, region, tune

FOLDER = REPOSITORY / "tests/data/goldens"
SWEEPS = sorted(path.stem for path in (recipes.root() / "recipe").glob("*.yaml"))
TRAININGS = sorted(path.stem for path in (recipes.root() / "train").glob("*.yaml"))
WHOLE_PLANS = ("quick", "tensor_parallel")  # of the others the digest, as they are long
# Schedule -> what a training is told besides, over two ranks.
SCHEDULES = {
    "sequential": (),
    "pipelined": ("chunks=2",),
    "tensor_parallel": ("tp=2",),
}


@contextlib.contextmanager
def recorded_machine(name: str = "ndv4") -> Iterator[None]:
    """A machine with that topology and no GPU that torch can use, on which every launcher and fabric is to be had."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        machine = sysfs.read(machines.unpack(name, Path(folder)))
        for target, attribute, value in (
            (placement, "_machine", lambda: machine),
            (os, "sched_getaffinity", lambda pid: set(machine.cpus)),
            (cgroup, "cpu_quota", lambda system: None),
            (affinity, "allowed_memory", lambda: None),
            (affinity, "unsupported_memory_policy", lambda: ""),
            (gpus, "count", lambda environ: 0),
            (gpus, "visible", lambda environ: []),
            (transports, "check", lambda name, elsewhere=False: None),
            (fabric, "check", lambda emulated: None),
            (mpiexec, "check_emulated", lambda env: None),
        ):
            stack.enter_context(mock.patch.object(target, attribute, value))
        yield


def sweep_keys(recipe: str) -> str:
    with recorded_machine():
        return prepare.show_config(prepare.configure([recipe])[1])


def training_keys(recipe: str) -> str:
    return "".join(f"{key}: {json.dumps(value)}\n" for key, value in asdict(config.compose([recipe])[0]).items())


def plan(recipe: str) -> str:
    """The lines of plan.jsonl, or their number and digest."""
    with recorded_machine():
        planned = prepare.expand(prepare.configure([recipe])[1])
    lines = [
        json.dumps({"case_id": item.case.case_id, "skip": item.skip, "case": as_dict(item.case)}) for item in planned
    ]
    text = "\n".join(lines) + "\n"
    return text if recipe in WHOLE_PLANS else f"{len(lines)} {hashlib.sha256(text.encode()).hexdigest()}\n"


def dry_run(recipe: str) -> str:
    """Interpreter, mpiexec and modules have no name."""
    out = io.StringIO()
    with recorded_machine(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        sweep.run(prepare.SweepRequest(words=(recipe,), dry_run=True))
    text = re.sub(r"(?<=\s)/\S+/(python|mpiexec)[\w.]*(?=\s)", r"\1", out.getvalue())
    return re.sub(r"(?<=-m )commbench[\w.]*", "MODULE", text)


def planted_profile() -> str:
    """What a tuning finds where `pairwise window=2` is faster from 16 KiB up, and `bruck` at 4 KiB."""

    def rule(case: object) -> float:
        size, label = case.size_bytes, case.label  # type: ignore[attr-defined]
        return 80.0 if label == ("bruck" if size <= 4096 else "pairwise window=2") else 100.0

    where = region("nodes=1", "ranks_per_node=2", "sizes.min=4K", "sizes.max=64K", "sizes.factor=4")
    tuned = tune(Ruled(rule, 3), where)
    profile = Profile(
        scopes=[tuned.scope], choices=tuned.choices, refused=tuned.refused, created="2026-11-30T00:00:00Z"
    )
    text = re.sub(r'"digest": "\w+"', '"digest": "DIGEST"', profile_file.dump(profile))
    # The last digits of exp() are those of the processor.
    return re.sub(r"\d+\.\d{9,}", lambda number: f"{float(number[0]):.9g}", text)


def training_words(schedule: str) -> list[str]:
    """Of a training of a few fp64 steps over two ranks."""
    return [
        *("train", "tiny", "dtype=fp64", "steps=4", "warmup=2", "batch=8", "layers=2", "width=32", "hidden=48"),
        *("context=32", "val_sequences=4", "experts=4", "ranks_per_node=2", "save_every=0", "val_every=4"),
        *(f"schedule={schedule}", *SCHEDULES[schedule], "--format", "json", "--quiet", "--no-plots"),
    ]


TEXTS: dict[str, tuple[Any, ...]] = {
    **{f"sweep-{name}.yaml": (sweep_keys, name) for name in SWEEPS},
    **{f"train-{name}.txt": (training_keys, name) for name in TRAININGS},
    **{f"plan-{name}.jsonl": (plan, name) for name in SWEEPS},
    **{f"dry-run-{name}.txt": (dry_run, name) for name in SWEEPS},
    "planted-profile.json": (planted_profile,),
}


def text(name: str) -> str:
    """What it is now."""
    make, *words = TEXTS[name]
    return make(*words)


def losses(name: str, parent: Path) -> list[float]:
    """Of a few steps under a schedule, in fp64."""
    done = here(*training_words(name), "--out", str(parent), cwd=parent)
    assert done.returncode == 0, done.stderr
    return [json.loads(line)["loss"] for line in done.stdout.splitlines() if "loss" in line]
