"""`commbench record`: runs a program, or reads what torch wrote of one: what it sent and how long it waited."""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from commbench import variables
from commbench.console import Console
from commbench.errors import EXIT_INTERRUPTED, EXIT_OK, CommbenchError, EnvironmentProblem, UsageError
from commbench.launch import foreign
from commbench.launch.foreign import Cluster
from commbench.output.answer import traced
from commbench.output.grid import folded, refolded
from commbench.record import describe, folder, recipe
from commbench.record.consolidate import consolidate
from commbench.record.exchanges import exchanges
from commbench.record.folder import Recording
from commbench.record.imports import files
from commbench.record.trace import ProgramTrace
from commbench.run_folder import RunFolder, timestamp
from commbench.sweep import foreign_keys
from commbench.sweep.recipes import parse_overrides

_OF_FILES = ("nodes", "ranks_per_node")  # what the files may not know


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordRequest:
    """Holds the command line of `commbench record`."""

    words: tuple[str, ...]
    program: tuple[str, ...] | None
    out: Path | None
    format: str = "table"
    anonymous: bool = False
    plots: bool = True
    quiet: bool = False
    reads_files: bool = False  # words are files of torch's own, not keys alone


def run(request: RecordRequest) -> int:
    """Return the program's exit code; 2 where nothing was recorded. Raises `CommbenchError` before it is started."""
    if request.reads_files:
        return _read_files(request)
    if request.program is None:
        raise UsageError("which program?", hint="commbench record --out TRACE -- torchrun --nproc-per-node=2 train.py")
    said = foreign_keys.read(request.words)
    env = _one_each(said.env)
    foreign.check(request.program, said.cluster, variables.applied(os.environ, env))
    about: dict[str, Any] = {
        "created": timestamp(),
        "anonymous": request.anonymous,
        "command": [] if request.anonymous else list(request.program),
        "fabric": _fabric(said.cluster),
    }
    out = request.out or RunFolder.create(Path("results"), "record", parts=()).path
    recording = folder.begin(out, **about)
    console = Console(quiet=request.quiet, verbose=False)
    env |= {
        variables.BACKEND: "record",
        variables.RECORD: str(out.resolve()),
        variables.RECORD_SALT: secrets.token_hex(8) if request.anonymous else "",
    }
    try:
        # What is data here are our lines: the program's go beside them where somebody reads those.
        output = sys.stderr.fileno() if request.format == "json" else None
        end = foreign.run(request.program, env=env, cluster=said.cluster, log=output, hold=recording.lock.descriptor)
        code = end.code
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except CommbenchError:
        folder.abandon(recording)
        raise
    return _finish(request, recording, code, console)


def _one_each(env: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return the variables of the program. Raises `UsageError` for several values of one."""
    for name, values in env.items():
        if len(values) != 1:
            raise UsageError(f"env.{name} takes one value, not {len(values)}", hint="record once for each")
    return {name: values[0] for name, values in env.items()}


def _fabric(cluster: Cluster | None) -> dict[str, str | int]:
    """Return the keys with which a sweep makes the same cluster."""
    if cluster is None:
        return {}
    values = {name: value for name, value in asdict(cluster.emulated).items() if name != "nodes"}
    empty = {"intra_link": "none", "slow_link": "none"}
    return {"fabric": "emulated", **{name: value or empty.get(name, value) for name, value in values.items()}}


def _finish(request: RecordRequest, recording: Recording, code: int, console: Console) -> int:
    """Make the trace, and say what is in it."""
    records = recording.records()
    if not records:
        folder.abandon(recording)
        if code != EXIT_OK:
            console.error(f"the program ended with exit code {code} before any rank had called a collective")
            return code
        raise EnvironmentProblem(
            "nothing was recorded: no process of the program made a process group of torch.distributed",
            hint="is it a torch program, in an environment where commbench is installed? commbench doctor says "
            "whether torch loads it; TORCH_DEVICE_BACKEND_AUTOLOAD=0 turns that off",
        )
    status = "finished" if code == EXIT_OK else "unfinished"
    trace = consolidate(records, **recording.about, status=status, exit_code=code)
    _write(request, recording, trace, console)
    return code


def _read_files(request: RecordRequest) -> int:
    """Make a trace of what torch's profiler or its observer has written of a program."""
    if request.program is not None:
        raise UsageError("--import reads files, and starts no program", hint="leave out -- and what follows")
    keys = [word for word in request.words if word.startswith(tuple(f"{name}=" for name in _OF_FILES))]
    paths = [Path(word) for word in request.words if word not in keys]
    if not paths:
        raise UsageError("which files?", hint="commbench record --import rank-*.json.gz --out TRACE")
    values = dict(word.split("=", 1) for word in keys)
    layout = {name: foreign_keys.KEYS[name].read(name, parse_overrides([f"{name}={text}"]).values[name][0])
              for name, text in values.items()}  # fmt: skip
    about: dict[str, Any] = {"created": timestamp(), "anonymous": request.anonymous}
    made = files.read(paths, layout.get("nodes"), layout.get("ranks_per_node"), **about)
    console = Console(quiet=request.quiet, verbose=False)
    for note in made.notes:
        console.note(note)
    out = request.out or RunFolder.create(Path("results"), "record", parts=()).path
    _write(request, folder.begin(out, **about), made.trace, console)
    return EXIT_OK


def _write(request: RecordRequest, recording: Recording, trace: ProgramTrace, console: Console) -> None:
    """Write the trace, and say what is in it."""
    folder.finish(recording, trace, recipe.text(trace, recipe.sent_cases(trace)))
    if request.out is None:
        RunFolder(recording.path).link_latest()
    found = exchanges(trace)
    answer = traced.answer(trace, found, recording.path)
    if request.format == "json":
        for line in describe.rows(found):
            sys.stdout.write(json.dumps(line) + "\n")
        last = {
            "answer": str(answer), "next": answer.command, **asdict(traced.waits(trace, found)),
            "trace": str(recording.path), "ranks": trace.ranks, "exit_code": trace.exit_code,
        }  # fmt: skip
        sys.stdout.write(json.dumps(last) + "\n")
    else:
        sys.stdout.write("\n".join([*_fitting(describe.table(trace, found)), *answer.lines()]) + "\n")
    sys.stdout.flush()
    if code := trace.exit_code:
        console.error(f"the program ended with exit code {code}{_until(trace)}; the trace has what was recorded")
    if request.plots:
        _draw(recording.path, console)
    console.note(f"trace: {recording.path}")


def _fitting(lines: Sequence[str]) -> list[str]:
    """Return the lines, those that the terminal has no room for on several."""
    return [part for line in lines for part in (folded(line, "", "    ") if line[:1] != "#" else refolded([line]))]


def _until(trace: ProgramTrace) -> str:
    """Return which ranks ended before others, by their steps; "" where all got as far."""
    counts = {rank: trace.step_count(rank) for rank in range(trace.ranks)}
    last = max(counts.values())
    early = [f"{rank} after {count}" for rank, count in counts.items() if count < last]
    return f": of {last} steps, rank {', '.join(early[:4])}{', ..' if len(early) > 4 else ''}" if early else ""


def _draw(path: Path, console: Console) -> None:
    from commbench.commands.plot import draw_trace

    try:
        for picture in draw_trace([path], None):
            console.note(f"plot: {picture}")
    except (OSError, ValueError) as error:
        console.note(f"no plot: {error}")
