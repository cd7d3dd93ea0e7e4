"""From words to a plan and a run folder: what every kind of sweep does before its first launch."""

from __future__ import annotations

import functools
import itertools
import os
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

import commbench
from commbench import algorithms, fabric, launch, transports, variables
from commbench.algorithms import outside
from commbench.console import Console
from commbench.errors import CommbenchError, EnvironmentProblem, UsageError
from commbench.files import write_atomically
from commbench.launch import placement, slurm
from commbench.launch.job import Job
from commbench.machine import describe, gpus, metadata, sysfs
from commbench.measure import proof
from commbench.rank_info import RankInfo
from commbench.records import FORMAT_VERSION, Fabric, PlannedCase, network_note
from commbench.run_folder import RunFolder, timestamp
from commbench.serialise import as_dict
from commbench.sweep import config, parts, plan, recipes
from commbench.sweep.keys import KEYS, add_parameters, typed_algorithm
from commbench.units import format_seconds, format_size

EMULATING = ("local", "mpiexec")  # launchers whose ranks an emulated fabric can hold


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepRequest:
    """Holds the command line of `commbench sweep`."""

    words: tuple[str, ...] = ()
    out: Path = Path("results")
    resume: Path | None = None
    retry_failed: bool = False
    dry_run: bool = False
    show_config: bool = False
    launcher: str = ""  # "": each transport's own
    allow_env: tuple[str, ...] = ()  # variables that load code, from a recipe or a run to go on with
    format: str = "table"
    columns: str = ""  # of a table: "" those that fit, "all", or names with commas between
    plots: bool = True
    quiet: bool = False
    verbose: bool = False


def refuse_code(request: SweepRequest, configs: Sequence[config.SweepConfig]) -> None:
    """Raise `UsageError` where the recipe, which others may have written, sets variables that load code.

    What is typed is the user's own.
    """
    typed = {word.removeprefix("env.").partition("=")[0] for word in request.words if word.startswith("env.")}
    for item in configs:
        for name, values in item.env.items():
            for value in values if name not in typed else ():
                variables.refuse_code({name: value}, f"the recipe {item.recipe}", request.allow_env)


def configure(
    words: Sequence[str], forced: Mapping[str, Any] | None = None, *, with_parts: bool = True
) -> tuple[str, list[config.SweepConfig]]:
    """Return the recipe's name and validated configs: one per combination of group choices, and part of the recipe.

    `forced` values take the place of the recipe's, but not of the user's own. `with_parts`: ranks may be started here
    in several ways, so that a recipe may have parts.
    """
    with_parts = with_parts and forced is None
    traced = bool(words) and recipes.is_trace(words[0])
    named = traced or (bool(words) and (recipes.is_file(words[0]) or "=" not in words[0]))
    recipe, rest = (words[0], list(words[1:])) if named else ("quick", list(words))
    overrides = recipes.parse_overrides(rest)
    for loaded in outside.of_environment():
        add_parameters(loaded)
    if "algorithm" in overrides.values:
        overrides.values["algorithm"] = [typed_algorithm(value) for value in overrides.values["algorithm"]]
    prove(outside.loaded())
    if recipe == "quick" and _on_gpus(overrides.values.get("transport")):
        recipe = "quick_gpu"
    composed = recipes.compose(recipe, overrides)
    if forced is None and not traced and not {"layout", "nodes", "ranks_per_node"} & {*overrides.values}:
        default = KEYS["transport"].default
        forced = _gpu_layout(overrides.values.get("transport") or [item.get("transport", default) for item in composed])
    if "layout" not in overrides.values:  # else that is what the user means; it is compared with the ranks there are
        for key, value in (forced or {}).items():
            overrides.values.setdefault(key, [value])
    split = [part for item in composed for part in parts.of_recipe(item, overrides, wanted=with_parts)]
    return recipe, [config.build(recipe, one.keys, one.overrides, part=not one.alone) for one in split]


def prove(wanted: Sequence[outside.OutsideAlgorithm]) -> None:
    """Raise `UsageError` where an algorithm from outside gives a wrong result, or does other than it declares."""
    for one in wanted:
        if wrong := _first_wrong(one):
            raise UsageError(f"{one.name} is not proved: {wrong}", hint=f"commbench prove {shlex.quote(one.word)}")


@functools.cache
def _first_wrong(one: outside.OutsideAlgorithm) -> str:
    return proof.first_wrong(algorithms.get(*one.key))


def takes_parts(request: SweepRequest) -> bool:
    """Return whether a recipe's parts can be started: on this machine, which is not one of several that Slurm gave."""
    return request.launcher in ("", *EMULATING) and slurm.allocated_nodes(os.environ) < 2


def _on_gpus(asked: Sequence[Any] | None) -> bool:
    """Return whether a recipe for any machine should use GPUs: the transports are those that the user names, if any."""
    return asked == ["nccl"] or (asked is None and gpus.count(os.environ) > 1 and not transports.missing("nccl"))


def _gpu_layout(names: Sequence[Any]) -> dict[str, int]:
    """Return a layout of one rank for each GPU of this machine, where all transports need GPUs and there are some."""
    count = gpus.count(os.environ)
    known = [name for name in names if isinstance(name, str) and name in transports.TABLE]
    everywhere = bool(names) and len(known) == len(names) and all(transports.entry(name).gpus for name in known)
    return {"nodes": 1, "ranks_per_node": count} if everywhere and count else {}


_HERE = ("local", "torchrun")  # launchers that start all ranks on this machine
_ELSEWHERE = ("slurm", "print")  # launchers whose ranks are on other hosts than the one that asks


def _default_launcher(name: str, configs: Sequence[config.SweepConfig]) -> str:
    """Return the transport's own launcher; Slurm's where that would leave nodes of the allocation unused."""
    able = transports.entry(name).launchers
    mine = [item for item in configs if name in item.transport]
    spread = any(item.most_nodes > 1 for item in mine) and not any("emulated" in item.fabric for item in mine)
    unused = able[0] in _HERE and slurm.allocated_nodes(os.environ) > 1
    return "slurm" if spread and unused and "slurm" in able else able[0]


def note_declared(planned: Sequence[PlannedCase], launchers: Mapping[str, str], console: Console) -> None:
    """Say before anything is measured that nodes will be declared, where a launcher starts all ranks here."""
    setups = [item.case.setup for item in planned if not item.skip]
    on_one = [one for one in setups if one.nodes > 1 and not one.emulated and launchers[one.transport] in _HERE]
    if on_one:
        fabric_kind = Fabric.VIRTUAL if all(one.virtual_hosts for one in on_one) else Fabric.DECLARED
        console.note(network_note(fabric_kind))


def choose_launchers(
    request: SweepRequest, configs: Sequence[config.SweepConfig], console: Console, *, joined: bool = False
) -> tuple[dict[str, str], list[config.SweepConfig]]:
    """Return the launcher of each transport, and the configs without those that cannot run here, which are named."""
    launchers: dict[str, str] = {}
    lacking: dict[str, str] = {}
    for name in dict.fromkeys(name for item in configs for name in item.transport):
        able = transports.entry(name).launchers
        launcher = request.launcher or _default_launcher(name, configs)
        try:
            transports.check(name, elsewhere=launcher in _ELSEWHERE and not joined)
            if launcher not in able:
                raise UsageError(
                    f"transport {name} does not run under --launcher {launcher}", hint=f"use {' or '.join(able)}"
                )
            launch.get(launcher).check()
        except CommbenchError as error:
            lacking[name] = f"{error}; {error.hint}"
            problem = error
        else:
            launchers[name] = launcher
    reasons = list(dict.fromkeys(lacking.values()))
    if not launchers and len(reasons) == 1:
        raise problem
    if not launchers:
        raise EnvironmentProblem("none of the transports can run here", hint=" | ".join(reasons))
    for reason in lacking.values():
        console.note(f"left out: {reason}")
    kept = [replace(item, transport=[name for name in item.transport if name in launchers]) for item in configs]
    return launchers, _possible([item for item in kept if item.transport], console)


def _possible(configs: Sequence[config.SweepConfig], console: Console) -> list[config.SweepConfig]:
    """Return the configs without parts of a recipe on clusters that cannot be emulated here, which are named."""
    kept = []
    for item in configs:
        clusters = dict.fromkeys(setup.emulated for setup in plan.setups(item)) if item.part else {}
        try:
            for emulated in filter(None, clusters):
                fabric.check(emulated)
        except EnvironmentProblem as problem:
            console.note(f"left out: {emulated}, emulated on this machine: {problem}")
        else:
            kept.append(item)
    return kept


def check_fabrics(planned: Sequence[PlannedCase], launchers: Mapping[str, str]) -> list[PlannedCase]:
    """Make every emulated fabric of the plan once, so that what lacks is reported before anything is measured.

    The plan, with a reason to skip the cases that would not use it. Raises that reason where no case is left.
    """
    problems: dict[str, EnvironmentProblem] = {}  # of set-ups
    setups = {item.case.setup.key: item.case.setup for item in planned if not item.skip}
    for key, setup in setups.items():
        if setup.emulated is None:
            continue
        if (launcher := launchers[setup.transport]) not in EMULATING:
            able = [name for name in transports.entry(setup.transport).launchers if name in EMULATING]
            raise UsageError(
                f"fabric=emulated does not run under {launcher}: its ranks start on this machine, in networks of it",
                hint=f"leave --launcher and other launchers out, or use --launcher {' or '.join(able)}",
            )
        try:
            launch.get(launcher).check_emulated(setup.env)
        except EnvironmentProblem as problem:
            problems[key] = problem
    if problems and len(problems) == len(setups):
        raise next(iter(problems.values()))
    for emulated in dict.fromkeys(setup.emulated for key, setup in setups.items() if key not in problems):
        if emulated is not None:
            fabric.check(emulated)
    reasons = {key: str(problem) for key, problem in problems.items()}
    return [replace(item, skip=item.skip or reasons.get(item.case.setup.key, "")) for item in planned]


def expand(configs: Sequence[config.SweepConfig]) -> list[PlannedCase]:
    planned = plan.expand(configs)
    if all(item.skip for item in planned):
        reasons = sorted({item.skip for item in planned})
        raise UsageError("no case of this sweep can run", hint="; ".join(reasons[:3]))
    return planned


def create(
    request: SweepRequest,
    recipe: str,
    configs: Sequence[config.SweepConfig],
    planned: Sequence[PlannedCase],
    launchers: Mapping[str, str],
    *,
    joined: str = "",
) -> RunFolder:
    """Make the run folder, with all that can be written before the first launch, and take its lock.

    `launchers` is the launcher of each transport; `joined` who started the ranks, if it was not the sweep.
    """
    folder = RunFolder.create(request.out, configs[0].recipe)
    with folder.completed():
        _write_start(folder, request, recipe, configs, planned, launchers, joined=joined)
    folder.link_latest()
    return folder


def _write_start(
    folder: RunFolder,
    request: SweepRequest,
    recipe: str,
    configs: Sequence[config.SweepConfig],
    planned: Sequence[PlannedCase],
    launchers: Mapping[str, str],
    *,
    joined: str,
) -> None:
    folder.lock.take()
    digest = folder.write_plan(
        {"case_id": item.case.case_id, "skip": item.skip, "case": as_dict(item.case)} for item in planned
    )
    machine = metadata.collect()
    write_atomically(folder.path / "config.yaml", show_config(configs))
    folder.write_json("env.json", {"machine": machine, "environment": metadata.environment(os.environ)})
    setups = {item.case.setup.key: item.case.setup for item in planned}
    folder.write_json(
        "topology.json",
        {
            "layouts": [asdict(setup.layout) for setup in setups.values()],
            "machine": describe.dictionary(sysfs.read()),  # of the host that began the run
        },
    )
    folder.write_json(
        "run.json",
        {
            "format_version": FORMAT_VERSION,
            "run_id": folder.run_id,
            "status": "running",
            "recipe": recipe,
            "command": ["commbench", "sweep", *request.words],
            "launchers": dict(launchers),
            "joined": joined,
            "timeout_s": configs[0].timeout,
            "seed": configs[0].seed,
            "link_rate": configs[0].link_rate,
            "plan_digest": digest,
            "commbench_version": commbench.__version__,
            "machine_text": machine_text(machine),
            "started": timestamp(),
            "machine": machine,
            **({"algorithms": [asdict(one) for one in used]} if (used := of_outside(planned)) else {}),
        },
    )


def of_outside(planned: Sequence[PlannedCase]) -> list[outside.OutsideAlgorithm]:
    """Return the algorithms from outside that a plan measures."""
    return outside.loaded({(item.case.collective, item.case.algorithm) for item in planned})


def machine_text(machine: Mapping[str, Any]) -> str:
    """Return one line for captions: `AMD EPYC, 2 CPUs, x86_64, 2 x NVIDIA H200, Python 3.11.7, torch 2.13.0`."""
    words = [machine["cpu"] or "unknown CPU", f"{machine['cpus']} CPUs", machine["machine"]]
    models = Counter(gpu["name"] for gpu in machine.get("gpus") or ())
    words += [f"{count} x {name}" for name, count in models.items()]
    words.append(f"Python {machine['python']}")
    if version := machine["packages"].get("torch"):
        words.append(f"torch {version}")
    return ", ".join(words)


def show_config(configs: Sequence[config.SweepConfig]) -> str:
    text: str = yaml.safe_dump_all([item.as_keys() for item in configs], sort_keys=False)
    # Hydra would read ${...} in a value as a reference.
    return "# @package _global_\n" + text.replace("${", "\\${")


def show_plan(request: SweepRequest, planned: Sequence[PlannedCase], launchers: Mapping[str, str]) -> None:
    if request.format == "json":
        import json

        for item in planned:
            line = {"case_id": item.case.case_id, "skip": item.skip, **as_dict(item.case)}
            sys.stdout.write(json.dumps(line) + "\n")
        return
    lines = plan.describe(planned)
    skipped: dict[str, int] = {}
    for item in planned:
        if item.skip:
            skipped[item.skip] = skipped.get(item.skip, 0) + 1
    lines += [f"skipped: {count} x {reason}" for reason, count in skipped.items()]
    runnable = [item.case for item in planned if not item.skip]
    most = max(case.size_bytes * case.setup.layout.ranks * 2 for case in runnable)
    lines.append(f"largest case: {format_size(most)} of buffers on all ranks together")
    setups = {case.setup.key: case.setup for case in runnable}
    if any(setup.binding != "none" for setup in setups.values()):
        bindings = (placement.describe(setup, launchers[setup.transport]) for setup in setups.values())
        lines += dict.fromkeys(itertools.chain.from_iterable(bindings))
    seconds = format_seconds(plan.estimate_s(planned))
    lines.append(f"time: about {seconds} if every measurement uses its cap; single calls near the cap take longer")
    for first in {item.setup.transport: item for item in runnable}.values():
        job = Job(run_dir="RUN", attempt="LAUNCH", launch=0, setup=first.setup, cases=(first,))
        words = launch.get(launchers[first.setup.transport]).command(Path("RUN/logs/LAUNCH/order.json"), job)
        words = fabric.wrap(words, first.setup.emulated) if first.setup.emulated else words
        lines.append(f"each launch over {first.setup.transport} runs: {shlex.join(words)}")
    sys.stdout.write("\n".join(lines) + "\n")


def show_script(request: SweepRequest, planned: Sequence[PlannedCase]) -> None:
    """Print the sweep as a job script: `commbench sweep ... --launcher print > job.sh`."""
    from commbench.launch import job_script

    plain = SweepRequest()
    options = ["--out", str(request.out)] if request.out != plain.out else []
    options += ["--format", request.format] if request.format != plain.format else []
    options += ["--columns", request.columns] if request.columns != plain.columns else []
    options += [] if request.plots else ["--no-plots"]
    setups = {item.case.setup.key: item.case.setup for item in planned if not item.skip}
    text = job_script.text(request.words, list(setups.values()), seconds=plan.estimate_s(planned), options=options)
    sys.stdout.write(text)


def layout_of(rank: RankInfo) -> dict[str, int]:
    """Return the layout that a launcher's environment implies, as keys."""
    return {"nodes": rank.size // rank.local_size, "ranks_per_node": rank.local_size}
