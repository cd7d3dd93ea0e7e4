"""check.json: what a check was asked and has found, in its run folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from commbench.analysis.stragglers.search import MIN_EFFECT
from commbench.errors import UsageError
from commbench.run_folder import RunFolder
from commbench.serialise import check_types, from_dict

NAME = "check.json"
FORMAT = "commbench-check"
# History of the format:
# 1  first version
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a check was asked, kept for whoever goes on with it."""

    budget_s: float
    launches: int | None = None  # that are typed; None: as many as the budget allows
    effect: float = MIN_EFFECT
    against: str = ""  # the run of an earlier check
    machines: dict[str, dict[str, Any]] = field(default_factory=dict)  # recorded ones, by node


def begin(folder: RunFolder, asked: Asked) -> None:
    """Keep what is asked."""
    write(folder, asked, 0.0, {})


def is_one(path: Path) -> bool:
    """Return whether a run folder is that of a check."""
    return (path / NAME).is_file()


def read(folder: RunFolder) -> tuple[Asked, float, dict[str, Any]]:
    """Return what was asked, the seconds spent so far, and what was found: {} before the end. Raises `UsageError`."""
    if not is_one(folder.path):
        raise UsageError(f"{folder.path} is a sweep, and no check", hint="commbench sweep --resume goes on with it")
    found = folder.read_json(NAME)
    if (found.get("format"), found.get("format_version")) != (FORMAT, FORMAT_VERSION):
        raise UsageError(f"{folder.path / NAME} has format {found.get('format_version')}, this commbench reads "
                         f"{FORMAT_VERSION}", hint="use the commbench version that wrote it")  # fmt: skip
    try:
        check_types(found, {"asked": dict[str, Any], "spent_s": float, "found": dict[str, Any]})
        asked = from_dict(Asked, found["asked"])
    except (ValueError, TypeError) as error:
        raise UsageError(f"{folder.path / NAME}: {error}", hint="it was edited: start a new check") from error
    return asked, float(found["spent_s"]), found["found"]


def write(folder: RunFolder, asked: Asked, spent_s: float, found: Mapping[str, Any]) -> None:
    """Write what is asked, the seconds spent so far, and what was found."""
    folder.write_json(NAME, {"format": FORMAT, "format_version": FORMAT_VERSION, "asked": asdict(asked),
                             "spent_s": round(spent_s, 3), "found": dict(found)})  # fmt: skip
