"""Run folders, damaged in every way that a disk, an editor or a copy could: no command ends in a traceback, and nothing
that was damaged is read as if it were whole.

python -m tests.bench.damage            800 damages, and what became of them
python -m tests.bench.damage 200 7      so many, from another seed
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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commbench.cli import _main
from commbench.serialise import seal, unseal
from commbench.sweep import runner

KINDS = ("flip", "cut", "drop", "double", "type", "key", "nest", "number", "empty", "bytes")
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


@dataclass(frozen=True)
class Outcome:
    kind: str
    file: str
    command: str
    code: int | None  # None: a traceback
    told: str
    silent: bool = False


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
        code, told = _called([word.replace("RUN", str(copy)) for word in command.split()])
        silent = kind == "flip" and code in (0, 1) and Path(file).name not in told
        return Outcome(kind, f"{target.folder.name}/{file}: {what}", command, code, told, silent)
    finally:
        shutil.rmtree(copy)


def _called(words: list[str]) -> tuple[int | None, str]:
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = _main(words)
    except BaseException:
        return None, traceback.format_exc()
    told = err.getvalue()
    return (None if "Traceback" in told else code), told


def damages(targets: list[Target], count: int, seed: int, room: Path) -> Iterator[Outcome]:
    """Damage every file of every target in turn, in every way, read by every command that reads it."""
    chance = random.Random(seed)
    plan = [(target, file, kind) for target in targets for file in target.files for kind in KINDS]
    chance.shuffle(plan)
    for number in range(count):
        target, file, kind = plan[number % len(plan)]
        yield run(target, file, kind, chance.choice(target.files[file]), chance, room)


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
    _main(["sweep", "quick", "transport=scripted", *words, "--out", str(parent / name), "--no-plots", "-q"])
    (made,) = (parent / name).glob("2*")
    folder = made.rename(parent / f"{name}-run")
    resume, plot, both = "sweep --resume RUN --no-plots", "plot RUN --out RUN/plots", "compare RUN RUN"
    files = {
        "run.json": (resume, plot, both, "model RUN", "stragglers RUN"),
        "plan.jsonl": (resume, plot, both, "model RUN", "stragglers RUN"),
        "measurements.jsonl": (resume, plot, both, "model RUN", "stragglers RUN"),
        "cases.jsonl": (resume, plot, both, "model RUN"),
    }
    samples = {str(path.relative_to(folder)): (resume, both) for path in (folder / "samples").glob("*.jsonl")}
    return Target(folder, {**files, **samples})


def without_checksums(target: Target, name: str) -> Target:
    """The same as an earlier version wrote it."""
    folder = Path(shutil.copytree(target.folder, target.folder.with_name(name)))
    for file in target.files:
        path = folder / file
        lines = path.read_bytes().splitlines() if path.suffix == ".jsonl" else [path.read_bytes()]
        path.write_bytes(b"".join(unseal(line) + b"\n" for line in lines))
    about = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**about, "format_version": 5}))
    return Target(folder, target.files)


def main() -> None:
    count, seed = (int(word) for word in (sys.argv[1:] + ["800", "18"][len(sys.argv[1:]) :])[:2])
    with tempfile.TemporaryDirectory() as name:
        parent = Path(name)
        made = sweep(parent, "sealed", "launches=2", "iters=6", "sizes.min=1K", "sizes.max=8K")
        runner.Sweep.run = runner.Sweep.finish_skipped  # type: ignore[method-assign] # a resume measures nothing here
        targets = [made, without_checksums(made, "old")]
        room = parent / "room"
        room.mkdir()
        outcomes = []
        for outcome in damages(targets, count, seed, room):
            outcomes.append(outcome)
            if outcome.code is None or (outcome.silent and "sealed" in outcome.file):
                print(f"{outcome.kind}: {outcome.file}: {outcome.command}\n{outcome.told}", flush=True)
        for target in targets:
            print(f"\n{target.folder.name}")
            print(summary([one for one in outcomes if one.file.startswith(f"{target.folder.name}/")]), flush=True)


if __name__ == "__main__":
    main()
