"""Launches of a program, as a folder keeps them, and what their logs say."""

from __future__ import annotations

import itertools
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commbench.ab import pairs
from commbench.errors import CorruptFile, UsageError
from commbench.launch.foreign import ProgramEnd
from commbench.run_folder import RunFolder, read_lines
from commbench.serialise import check_types, from_dict, parse_json
from commbench.units import format_seconds

FORMAT = "program-1"  # of a folder; one of `commbench train ab` has none
LAUNCHES = "launches.jsonl"
_RATIO = {"ratio": float, "low": float | None, "high": float | None}
# What `ab.json` has: from the beginning, and with the first round.
_ABOUT = {
    **dict.fromkeys(("folder", "commbench_version", "machine_text", "started"), str),
    "request": dict[str, Any],
}
_REQUEST = {**dict.fromkeys(("words", "profiles", "program", "allow_env"), list[str]), "metric": str}
_ANSWER = {
    **dict.fromkeys(("answer", "title", "compared", "unit", "fabric"), str),
    "metric_used": str | None,
    "said": list[str],
    "spent_s": float,
    "control": dict[str, float | None] | None,
}
_MOST_SAID = 20  # lines of commbench in a log


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramLaunch:
    """One launch of one arm. value: the median over `steps`; cost: less is better; null where it failed.

    seconds: the program's; took_s: with what is around it. error: why it has no value. log: its file's name.
    """

    arm: str
    round: int
    value: float
    cost: float
    steps: int
    seconds: float
    took_s: float
    log: str
    started: str


def is_one(path: Path) -> bool:
    """Return whether a folder with an `ab.json` is of programs, not of `commbench train ab`."""
    return RunFolder(path).read_json("ab.json").get("format") == FORMAT


def read(path: Path) -> tuple[dict[str, Any], list[ProgramLaunch]]:
    """Return `ab.json` and the launches of a folder. Raises `CommbenchError` where it is none, or damaged."""
    if not (path / "ab.json").is_file():
        raise UsageError(f"no comparison in {str(path)!r}", hint="give the folder that commbench ab printed")
    about = RunFolder(path).read_json("ab.json")
    if about.get("format") != FORMAT:
        raise UsageError(f"{path} is not a comparison of programs of this version",
                         hint="commbench plot draws those of commbench train ab")  # fmt: skip
    try:
        check_types(about, _ABOUT, _ANSWER)
        check_types(about["request"], _REQUEST)
    except ValueError as error:
        raise CorruptFile(f"{path / 'ab.json'}: {error}", hint="it is damaged, or was edited: measure again") from error
    return about, [one for one in read_lines(path / LAUNCHES, _launch) if one is not None]


def read_answer(path: Path) -> tuple[dict[str, Any], list[ProgramLaunch]]:
    """Return `ab.json` and the launches of whole rounds. Raises `CommbenchError` where there is no answer yet."""
    about, made = read(path)
    whole = [one for both in pairs.whole(made) for one in both]
    if not whole or about.get("ratio") is None:
        raise UsageError(f"{path} has no whole round yet", hint=f"commbench ab --resume {path}")
    try:
        check_types(about, {**_ANSWER, **_RATIO})
        check_types(about["control"] or dict.fromkeys(_RATIO, 1.0), _RATIO)
    except ValueError as error:
        raise CorruptFile(f"{path / 'ab.json'}: {error}", hint=f"commbench ab --resume {path} makes it anew") from error
    return about, whole


def _launch(line: bytes) -> ProgramLaunch | None:
    """Return a launch of launches.jsonl, None for one that failed."""
    raw = parse_json(line)
    check_types(raw, {})
    if raw.pop("error", ""):
        return None
    launch = from_dict(ProgramLaunch, raw)
    if launch.cost <= 0:
        raise ValueError(f"field 'cost' is {launch.cost}, expected one above 0")
    return launch


def why(ended: ProgramEnd, log: Path, timeout_s: float) -> str:
    """Return why a launch has failed, "" where it has not."""
    if ended.timed_out:
        return f"it did not end within {format_seconds(timeout_s)} ({log.name})"
    if not ended.code:
        return ""
    number = ended.code - 128
    named = signal.Signals(number).name if number in [*signal.Signals] else ""
    text = f"exit code {ended.code}{f' ({named})' if named else ''}"
    last = next((line for line in reversed(_tail(log)) if line.strip()), "")
    return f"{text} ({log.name}{': ' + last.strip()[:200] if last else ''})"


def said(log: Path) -> list[str]:
    """Return the lines of commbench in the output of a program."""
    with open(log, "rb") as file:
        lines = (line.decode("utf-8", "replace").rpartition("commbench: ") for line in file if b"commbench: " in line)
        return list(itertools.islice(dict.fromkeys(text.strip() for _, _, text in lines), _MOST_SAID))


def _tail(log: Path) -> list[str]:
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        return file.read().decode("utf-8", "replace").splitlines()
