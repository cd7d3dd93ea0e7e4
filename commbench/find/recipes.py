"""The recipes that come with commbench: a line each with what it needs, or one of them with its plan."""

from __future__ import annotations

import itertools
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from commbench import transports
from commbench.find.words import unknown_name
from commbench.sweep import plan, prepare, recipes
from commbench.train import config as train
from commbench.units import format_seconds

SWEEP, TRAIN = "sweep", "train"
_FOLDERS = {SWEEP: "recipe", TRAIN: "train"}  # of `sweeps/`
_NAMESPACES = "network namespaces"
_EXPLAINED = {_NAMESPACES: f"{_NAMESPACES}: Linux with ip and tc, as root or where user namespaces are allowed"}


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe as its file has it. description: the comment at its head. body: its keys as they are written."""

    name: str
    command: str
    path: Path
    description: str
    body: str

    @property
    def keys(self) -> dict[str, Any]:
        loaded: dict[str, Any] = yaml.safe_load(self.body)
        return loaded

    @property
    def sentence(self) -> str:
        """Return the first sentence of the description, and of a question the answer."""
        first, *rest = re.split(r"(?<=[.?!])\s", self.description)
        return f"{first} {rest[0]}" if first.endswith("?") and rest else first


def read() -> dict[str, Recipe]:
    """Return all recipes by name, those of sweeps first."""
    found = {}
    for command, folder in _FOLDERS.items():
        for path in sorted((recipes.root() / folder).glob("*.yaml"), key=lambda file: file.stem):
            lines = path.read_text(encoding="utf-8").splitlines()
            head = list(itertools.takewhile(lambda line: line.startswith("#"), lines))
            said = " ".join(line.removeprefix("#").strip() for line in head if "@package" not in line)
            found[path.stem] = Recipe(path.stem, command, path, said, "\n".join(lines[len(head) :]).strip())
    return found


def names(command: str) -> list[str]:
    """Return the names of recipes of `sweep`, which are those of `tune`, or of `train`."""
    return [recipe.name for recipe in read().values() if recipe.command == command]


def needs(keys: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return what all of a recipe needs, and what only a part of it needs, which is left out elsewhere."""
    ways = list(_ways(keys))
    every = [need for need in ways[0] if all(need in way for way in ways)]
    some = dict.fromkeys(need for way in ways for need in way if need not in every)
    return every, list(some)


def _ways(keys: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yield what each set-up needs."""
    parts = keys.get("parts")  # of a training it is a number
    for part in parts if isinstance(parts, list) else [{}]:
        merged = {"transport": "gloo", "nodes": 1, "fabric": "real", **keys, **part}
        for name in _list(merged["transport"]):
            for fabric in _list(merged["fabric"]):
                hosts = max(_list(merged["nodes"]))
                gpus = transports.entry(name).gpus
                yield [
                    *(["GPUs"] if gpus else []),
                    *(["MPI"] if name == "mpi" else []),
                    *([_NAMESPACES] if fabric == "emulated" else []),
                    *([f"{hosts} hosts"] if gpus and fabric == "real" and hosts > 1 else []),
                ]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _needs_text(keys: Mapping[str, Any]) -> str:
    every, some = needs(keys)
    whole = f"Needs {', '.join(every)}" if every else "Runs anywhere"
    return f"{whole}; part of it needs {', '.join(some)}." if some else f"{whole}."


def listed(width: int) -> str:
    """Return a paragraph for each recipe: what it is for, and what it needs."""
    head = "commbench recipes NAME shows one: its settings, what it would measure, and how long that takes."
    lines = textwrap.wrap(head, width)
    for command in _FOLDERS:
        typed = "commbench sweep NAME, and commbench tune NAME:" if command == SWEEP else "commbench train NAME:"
        lines += ["", typed]
        for one in (recipe for recipe in read().values() if recipe.command == command):
            start = f"  {one.name}".ljust(25)
            text = f"{one.sentence} {_needs_text(one.keys)}"
            lines += textwrap.wrap(
                text, width, initial_indent=start, subsequent_indent=" " * 25, break_on_hyphens=False
            )
    return "\n".join(lines) + "\n"


def one(name: str, width: int) -> str:
    """Return all of one recipe. Raises `UsageError` for an unknown one."""
    found = read()
    if name not in found:
        raise unknown_name("recipe", name, list(found), "commbench recipes")
    recipe = found[name]
    lines = [f"{name}, a recipe of commbench {'sweep and tune' if recipe.command == SWEEP else 'train'}", ""]
    lines += textwrap.wrap(
        recipe.description, width, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False
    )
    lines += ["", _needs_text(recipe.keys), *(_EXPLAINED[need] for need in _told(recipe))]
    lines += ["", "settings; all others have their defaults (commbench keys):"]
    lines += textwrap.indent(recipe.body, "  ").splitlines()
    lines += ["", *(_sweep_plan(name, width) if recipe.command == SWEEP else _training_plan(name))]
    return "\n".join(lines) + "\n"


def _told(recipe: Recipe) -> list[str]:
    return [need for found in needs(recipe.keys) for need in found if need in _EXPLAINED]


def _sweep_plan(name: str, width: int) -> list[str]:
    """Return what a sweep would measure on this machine, had it all that is needed."""
    _, configs = prepare.configure((name,))
    planned = plan.expand(configs)
    seconds = format_seconds(plan.estimate_s(planned))
    lines = ["what it would measure here, if all that it needs is there:"]
    for line in plan.describe(planned):
        lines += textwrap.wrap(line, width, initial_indent="  ", subsequent_indent="    ")
    return [
        *lines,
        f"  time: about {seconds} if every measurement uses its cap; slow calls take longer",
        "",
        f"type: commbench sweep {name}              measure it",
        f"      commbench tune {name} budget=10m    find what is faster; takes its budget",
    ]


def _training_plan(name: str) -> list[str]:
    config, _ = train.compose((name,))
    return [
        "what it would train:",
        f"  {config.steps} steps of {config.batch} sequences x {config.context} tokens, on {config.nodes} "
        f"node{'s' if config.nodes > 1 else ''} x {config.ranks_per_node} ranks over {config.transport}",
        f"  time: that of {config.steps} steps; 10 of them tell: commbench train {name} steps=10",
        "",
        f"type: commbench train {name}",
    ]
