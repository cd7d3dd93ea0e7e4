"""Run folders, damaged in every way that a disk, an editor or a copy could: no command ends in a traceback, and nothing
that was damaged is read as if it were whole.

python -m tests.bench.damage                   800 damages, and what became of them
python -m tests.bench.damage 200 7 kept.jsonl   so many, from another seed; those in the file are not done again
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from commbench.ab import run as comparison
from commbench.cli import _main
from commbench.launch import supervise
from commbench.record import folder as record_folder
from commbench.record import recipe
from commbench.serialise import seal, unseal
from commbench.sweep import runner
from tests.support import traces

REFERENCE = Path(__file__).parents[2] / "results" / "reference"
PLOT = "plot RUN --out RUN/plots"
ANYWHERE = ("flip", "cut", "empty", "bytes")  # in text and in other files
KINDS = (*ANYWHERE, "drop", "double", "type", "key", "nest", "number")
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 10**30, 10**400, 1e308, -0.5, "", "x", "../../etc", "\0", [], {}, [[]], [[1, 2], [3]], {"a": {}},
    ["x"], "9" * 5000, "nan", 2**62,
)  # fmt: skip
TEXTS = ("1e999", "-1e999", "NaN", "Infinity", "9" * 5000, "1" + "0" * 400, "0.1e-400")


@dataclass(frozen=True)
class Target:
    """A folder, and its files with the commands that read them. RUN stands for the folder."""

    folder: Path
    files: Mapping[str, tuple[str, ...]]
    sealed: bool = True  # whether its files have checksums


@dataclass(frozen=True)
class Outcome:
    """What became of one damage. code: the command's, None where it ended in a traceback."""

    number: int
    target: str
    kind: str
    what: str
    command: str
    code: int | None
    told: str
    silent: bool = False  # the file was read, with a bit that flipped, and nothing was said of it


def damage(path: Path, kind: str, chance: random.Random) -> str:
    """Damage a file in one place; return what was done. Where there is text to be changed, half of the time with a
    checksum that fits again, as a program would that writes nonsense.
    """
    data = bytearray(path.read_bytes())
    if kind == "flip":
        place, bit = chance.randrange(len(data)), chance.randrange(8)
        data[place] ^= 1 << bit
        path.write_bytes(data)
        return f"bit {bit} of byte {place}"
    if kind == "cut":
        place = chance.randrange(len(data))
        path.write_bytes(data[:place])
        return f"cut at {place}"
    if kind == "empty":
        path.write_bytes(b"")
        return "empty"
    if kind == "bytes":
        place = chance.randrange(len(data))
        data[place : place + 16] = chance.randbytes(16)
        path.write_bytes(data)
        return f"16 bytes at {place}"
    lined = path.suffix == ".jsonl"
    lines = data.decode().splitlines(keepends=True) if lined else [data.decode()]
    number = chance.randrange(len(lines))
    if kind == "drop" and lined:
        del lines[number]
    elif kind == "double" and lined:
        lines.insert(number, lines[number])
    else:
        lines[number] = _changed(lines[number], kind, chance)
    path.write_text("".join(lines))
    return f"line {number + 1}"


def _changed(line: str, kind: str, chance: random.Random) -> str:
    """One value of an object, changed."""
    sealed = chance.random() < 0.5
    text = unseal(line.encode()).decode()
    raw = json.loads(text)
    spots = list(_spots(raw))
    holder, key = chance.choice(spots)
    if kind == "nest":
        depth = chance.choice((50, 900, 5000, 100_000))
        holder[key] = "@"
        text = json.dumps(raw).replace('"@"', "[" * depth + "]" * depth)
    elif kind == "number":
        holder[key] = "@"
        text = json.dumps(raw).replace('"@"', chance.choice(TEXTS))
    else:
        if kind == "key" and isinstance(holder, dict):
            value = holder.pop(key)
            if chance.random() < 0.5:
                holder[f"{key}_"] = value
        else:
            holder[key] = chance.choice(VALUES)
        text = json.dumps(raw, indent=1 if "\n " in line else None)
    return (seal(text) if sealed and text.endswith("}") and len(text) > 2 else text) + "\n"


def _spots(raw: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of a value: (what holds it, key or index)."""
    for key, value in list(raw.items()) if isinstance(raw, dict) else list(enumerate(raw)):
        yield raw, key
        if isinstance(value, dict | list):
            yield from _spots(value)


def run(target: Target, file: str, kind: str, command: str, chance: random.Random, room: Path) -> Outcome:
    """Damage one file of a copy, and read it by one command, in this process."""
    copy = room / target.folder.name
    shutil.copytree(target.folder, copy, symlinks=True)
    try:
        what = damage(copy / file, kind, chance)
        code, told, opened = _called([word.replace("RUN", str(copy)) for word in command.split()])
        silent = kind == "flip" and code in (0, 1) and str(copy / file) in opened and Path(file).name not in told
        return Outcome(0, target.folder.name, kind, f"{file}: {what}", command, code, told, silent)
    finally:
        shutil.rmtree(copy)


_OPENED: list[str] = []  # files, by the running command
_RUNNING: list[str] = []  # its words


def hear(event: str, arguments: tuple[Any, ...]) -> None:
    """Note what the running command opens: for `sys.addaudithook`."""
    if event == "open" and _RUNNING:
        _OPENED.append(str(arguments[0]))


def _called(words: list[str]) -> tuple[int | None, str, set[str]]:
    """Return the exit code, what was said, and the files that were opened."""
    out, err = io.StringIO(), io.StringIO()
    out.buffer = io.BytesIO()  # type: ignore[attr-defined] # an export goes there
    _OPENED.clear()
    _RUNNING[:] = words
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = _main(words)
    except BaseException:
        return None, traceback.format_exc(), set(_OPENED)
    finally:
        _RUNNING.clear()
    told = err.getvalue()
    return (None if "Traceback" in told else code), told, set(_OPENED)


def damages(targets: list[Target], numbers: Iterable[int], seed: int, room: Path) -> Iterator[Outcome]:
    """Damage every file of every target in turn, in every way, read by the commands that read it in turn."""
    plan = [
        (target, file, kind, command)
        for target in targets
        for file, commands in target.files.items()
        for command in commands
        for kind in (ANYWHERE if file.endswith(".parquet") else KINDS)
    ]
    random.Random(seed).shuffle(plan)
    for number in numbers:
        target, file, kind, command = plan[number % len(plan)]
        yield replace(run(target, file, kind, command, random.Random(f"{seed}/{number}"), room), number=number)


def summary(outcomes: list[Outcome]) -> str:
    """A table by kind of damage."""
    lines = [f"{'damage':<8}{'count':>7}{'refused':>9}{'read':>6}{'silent':>8}{'traceback':>11}"]
    for kind in (*KINDS, ""):
        mine = [one for one in outcomes if kind in ("", one.kind)]
        codes = Counter(
            "traceback" if one.code is None else "read" if one.code in (0, 1) else "refused" for one in mine
        )
        silent = sum(one.silent for one in mine)
        lines.append(f"{kind or 'all':<8}{len(mine):>7}{codes['refused']:>9}{codes['read']:>6}{silent:>8}"
                     f"{codes['traceback']:>11}")  # fmt: skip
    return "\n".join(lines)


def sweep(parent: Path, name: str, *words: str) -> Target:
    """A sweep over scripted ranks, whose every file some command reads."""
    folder = _made(parent, name, "sweep", "quick", "transport=scripted", *words, "--no-plots", "-q")
    resume, plot, both = "sweep --resume RUN --no-plots", "plot RUN --out RUN/plots", "compare RUN RUN"
    files = {
        "run.json": (resume, plot, both, "model RUN", "stragglers RUN"),
        "plan.jsonl": (resume, both, "model RUN", "stragglers RUN"),
        "measurements.jsonl": (resume, both, "model RUN", "stragglers RUN"),
        "cases.jsonl": (resume, plot, both, "model RUN"),
    }
    samples = {str(path.relative_to(folder)): (resume, both) for path in (folder / "samples").glob("*.jsonl")}
    return Target(folder, {**files, **samples})


def training(parent: Path, name: str) -> Target:
    """A training of one rank, with a checkpoint."""
    words = (
        "tiny layers=1 width=16 heads=2 hidden=16 context=32 experts=2 nodes=1 ranks_per_node=1 steps=4 save_every=2"
    )
    folder = _made(parent, name, "train", *words.split(), "--no-plots", "-q")
    resume, plot = "train --resume RUN steps=6 --no-plots", PLOT
    return Target(folder, dict.fromkeys(("run.json", "config.json", "metrics.jsonl"), (resume, plot)))


def programs(parent: Path, name: str) -> Target:
    """Two arms of a program."""
    folder = _made(parent, name, "ab", "env.X=a,b", "rounds=2", "--no-plots", "-q", then=("--", "true"))
    return Target(folder, dict.fromkeys(("ab.json", "launches.jsonl"), (PLOT, "ab --resume RUN --no-plots")))


def trace(parent: Path, name: str) -> Target:
    """A trace of a program, which has no checksums."""
    made = traces.planted()
    recording = record_folder.begin(parent / name)
    record_folder.finish(recording, made, recipe.text(made, recipe.sent_cases(made)))
    commands = (PLOT, "sweep RUN --dry-run", "tune RUN --dry-run")
    return Target(parent / name, dict.fromkeys(("trace.json", "calls.parquet", "steps.parquet"), commands), False)


def profile(parent: Path, name: str) -> Target:
    """A profile of the references, with evidence."""
    (parent / name).mkdir()
    shutil.copy(REFERENCE / "tuned-2xH200" / "profile.json", parent / name)
    formats = ("env", "json", "torchrun", "nccl-tuner")
    commands = (*(f"export RUN/profile.json --format {one}" for one in formats), "train profile=RUN/profile.json")
    return Target(parent / name, {"profile.json": commands}, False)


def before(parent: Path, name: str, folder: str, commands: Mapping[str, tuple[str, ...]]) -> Target:
    """A folder of the references, which earlier versions wrote, without checksums."""
    return Target(Path(shutil.copytree(REFERENCE / folder, parent / name)), commands, False)


def without_checksums(target: Target, name: str) -> Target:
    """The same as an earlier version wrote it."""
    folder = Path(shutil.copytree(target.folder, target.folder.with_name(name)))
    for file in target.files:
        path = folder / file
        lines = path.read_bytes().splitlines() if path.suffix == ".jsonl" else [path.read_bytes()]
        path.write_bytes(b"".join(unseal(line) + b"\n" for line in lines))
    about = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**about, "format_version": 5}))
    return Target(folder, target.files, False)


def _made(parent: Path, name: str, *words: str, then: tuple[str, ...] = ()) -> Path:
    """Run a command that makes a folder, and give that its name."""
    quiet = io.StringIO()
    with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        code = _main([*words, "--out", str(parent / "fresh"), *then])
    assert code == 0, quiet.getvalue()
    (made,) = (parent / "fresh").glob("2*")
    return made.rename(parent / name)


def all_targets(parent: Path) -> list[Target]:
    made = sweep(parent, "sweep", "launches=2", "iters=6", "sizes.min=1K", "sizes.max=8K")
    trained = ("config.json", "run.json", "metrics.jsonl", "breakdown.jsonl")
    ab = before(
        parent, "train-ab", "train_ab-2x4-2cpu/tuned_over_default", {"ab.json": (PLOT,), "launches.jsonl": (PLOT,)}
    )
    old = before(parent, "old-train", "train-table1-H100/sparse", dict.fromkeys(trained, (PLOT,)))
    return [
        *(made, without_checksums(made, "old-sweep"), training(parent, "train"), old, ab),
        *(programs(parent, "ab"), trace(parent, "trace"), profile(parent, "profile")),
    ]


def measure_nothing() -> None:
    """From now on a command that goes on with a run reads all that it needs, and then starts nothing."""

    def stopped(*arguments: object) -> None:
        raise KeyboardInterrupt

    runner.Sweep.run = runner.Sweep.finish_skipped  # type: ignore[method-assign]
    supervise.watch = stopped  # type: ignore[assignment]
    comparison.ProgramComparison._measure = stopped  # type: ignore[method-assign, assignment]


def main() -> None:
    count, seed = (int(word) for word in (sys.argv[1:] + ["800", "18"][len(sys.argv[1:]) :])[:2])
    kept = Path(sys.argv[3]) if len(sys.argv) > 3 else None
    outcomes = [Outcome(**json.loads(line)) for line in kept.read_text().splitlines()] if kept and kept.exists() else []
    known = {one.number for one in outcomes}
    with tempfile.TemporaryDirectory() as name:
        targets = all_targets(Path(name))
        measure_nothing()
        sys.addaudithook(hear)
        room = Path(name, "room")
        room.mkdir()
        sealed = {target.folder.name for target in targets if target.sealed}
        for outcome in damages(targets, [number for number in range(count) if number not in known], seed, room):
            outcomes.append(outcome)
            if kept:
                with open(kept, "a") as file:
                    file.write(json.dumps(asdict(outcome)) + "\n")
            if outcome.code is None or (outcome.silent and outcome.target in sealed):
                what = f"{outcome.target}/{outcome.what}: {outcome.command}"
                print(f"{outcome.number} {outcome.kind}: {what}\n{outcome.told}", flush=True)
    for title, wanted in (("with checksums", True), ("without", False)):
        print(f"\n{title}\n" + summary([one for one in outcomes if (one.target in sealed) == wanted]), flush=True)


if __name__ == "__main__":
    main()
