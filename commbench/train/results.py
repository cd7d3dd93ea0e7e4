"""What a run folder of `commbench train` has in it, for those who draw it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commbench.errors import CorruptFile, UsageError
from commbench.records import NOMINAL
from commbench.run_folder import RunFolder, read_lines
from commbench.serialise import check_types, parse_json
from commbench.train.config import FILES

FORMAT = "train-2"  # of run.json; since 2 lines and whole files have checksums
READABLE = ("train-1", FORMAT)
METRICS, BREAKDOWN, CHECKPOINTS = "metrics.jsonl", "breakdown.jsonl", "checkpoints"
# What a line of metrics.jsonl has, and what those of earlier versions may lack.
_STEP = {"step": int, "loss": float, "tokens_per_s": float}
_STEP_NOW = {
    **dict.fromkeys(("exposed_comm_us", "exposed_comm_min_us", "exposed_moe_us"), float),
    "val_bits_per_byte": float | None,
    "mfu": float | None,
    "profiled": bool,
}
# What run.json and config.json have, of those who draw them, and what they may have.
_ABOUT = dict.fromkeys(("machine_text", "commbench_version", "started"), str)
_ABOUT_TOO = {"status": str, "fabric": str, "entropy": float | None, "env": dict[str, str]}
_CONFIG = {**dict.fromkeys(("recipe", "fabric", "transport"), str), "nodes": int, "ranks_per_node": int}
_SCALARS = dict[str, str | int | float | bool | None]
_BREAKDOWN = {"step": int, "rank": int, "device": str, "step_us": float, "parts": dict[str, float]}
_MOST_KEYS = 6  # that tell runs apart; of more, their recipes do


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """about, config: run.json and config.json. steps: lines of metrics.jsonl.

    breakdown: those of breakdown.jsonl that the last start has written, since each start may have other ranks.
    """

    run_id: str
    about: Mapping[str, Any]
    config: Mapping[str, Any]
    steps: Sequence[Mapping[str, Any]]
    breakdown: Sequence[Mapping[str, Any]]


def is_one(path: Path) -> bool:
    """Whether this is a run folder of a training."""
    if not (path / "run.json").is_file():
        return False
    return RunFolder(path).read_json("run.json").get("format_version") in READABLE


def steps(path: Path) -> list[dict[str, Any]]:
    """Lines of its metrics.jsonl; none before the first step."""
    return list(read_lines(path / METRICS, parse_step))


def parse_step(text: bytes) -> dict[str, Any]:
    """Return a line of metrics.jsonl. Raises `ValueError`."""
    line: dict[str, Any] = parse_json(text)
    check_types(line, _STEP, _STEP_NOW)
    return {"val_bits_per_byte": None, "mfu": None, **line}


def parse_breakdown(text: bytes) -> dict[str, Any]:
    """Return a line of breakdown.jsonl. Raises `ValueError`."""
    line: dict[str, Any] = parse_json(text)
    check_types(line, _BREAKDOWN)
    return line


def saved_step(path: Path) -> int | None:
    """Return the step of its newest whole checkpoint, None where it has none."""
    whole = [int(file.parent.name.removeprefix("step-")) for file in path.glob(f"{CHECKPOINTS}/step-*/manifest.json")]
    return max(whole, default=None)


def read(path: Path) -> Training:
    """Raises `UsageError` for a training that has made no step yet, `CorruptFile` for a damaged folder."""
    folder = RunFolder(path.resolve())
    lines = steps(path)
    if not lines:
        raise UsageError(f"{path} has no step yet", hint="it was stopped, or refused, before its first one: see logs/")
    breakdown = list(read_lines(folder.path / BREAKDOWN, parse_breakdown))
    return Training(
        run_id=folder.run_id,
        about=read_about(folder),
        config=_config(folder),
        steps=lines,
        breakdown=[line for line in breakdown if line.get("start") == breakdown[-1].get("start")],
    )


def read_about(folder: RunFolder) -> dict[str, Any]:
    """Return its run.json. Raises `CorruptFile`."""
    about = folder.read_json("run.json")
    with _whole(folder.path / "run.json"):
        check_types(about, _ABOUT, _ABOUT_TOO)
    return about


def _config(folder: RunFolder) -> dict[str, Any]:
    config = folder.read_json("config.json")
    with _whole(folder.path / "config.json"):
        check_config(config)
    return config


def check_config(config: Mapping[str, Any]) -> None:
    """Raise `ValueError` where this is no config.json of a training, of whichever version."""
    check_types(config, _CONFIG)
    check_types({"config": config}, {"config": _SCALARS})
    if config["nodes"] < 1 or config["ranks_per_node"] < 1:
        raise ValueError(f"{config['nodes']} nodes of {config['ranks_per_node']} ranks, expected 1 at the least")


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise CorruptFile(f"{path}: {error}", hint="the run folder is damaged or was edited: train again") from error


def labels(trainings: Sequence[Training]) -> list[str]:
    """A name for each, by the keys in which they differ; with the run's own where that does not tell them apart."""
    if len(trainings) == 1:
        return [str(trainings[0].config.get("recipe", trainings[0].run_id))]
    keys = [key for key in trainings[0].config if len({_word(key, one.config.get(key)) for one in trainings}) > 1]
    if len(keys) > _MOST_KEYS and "recipe" in keys:
        keys = ["recipe"]
    elif "recipe" in keys and len(keys) > 1:
        keys.remove("recipe")
    names = [_name(one.config, keys[:_MOST_KEYS]) for one in trainings]
    return [label if label and names.count(label) == 1 else f"{label} {one.run_id}".strip()
            for label, one in zip(names, trainings, strict=True)]  # fmt: skip


def ranks_text(config: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """How many ranks, over what; `about` is run.json or ab.json."""
    network = " on an emulated network" if config["fabric"] == "emulated" else ""
    network = f", {NOMINAL[fabric]}" if (fabric := about.get("fabric", "")) in NOMINAL else network
    return f"{config['nodes']}x{config['ranks_per_node']} ranks{network}, {config['transport']}"


def differences(configs: Sequence[Mapping[str, Any]], between: str) -> list[str]:
    """`key=one and two` of each key in which they differ."""
    values = {key: [one.get(key) for one in configs] for one in configs for key in one}
    return [f"{key}={between.join(_words(key, its))}" for key, its in values.items() if any(v != its[0] for v in its)]


def _name(config: Mapping[str, Any], keys: Sequence[str]) -> str:
    """Without what is left to its default, unless all is."""
    typed = [key for key in keys if config.get(key) is not None] or keys
    return " ".join(f"{key}={_word(key, config.get(key))}" for key in typed)


def _words(key: str, values: Sequence[Any]) -> list[str]:
    """Different values by different words: files of one name by their paths."""
    words = [_word(key, value) for value in values]
    return words if len(set(words)) == len(set(values)) else [_word("", value) for value in values]


def _word(key: str, value: Any) -> str:
    if value is None:
        return "default"
    return Path(str(value)).name if key in FILES else str(value)
