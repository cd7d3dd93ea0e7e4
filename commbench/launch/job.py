"""The job of a launch: what the parent writes to disk, as order.json, and every rank reads."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from commbench.binding.policies import Placement
from commbench.fabric.network import INTERFACES
from commbench.files import write_atomically
from commbench.records import Case, Setup
from commbench.serialise import STORED_AS, as_dict, from_dict

RANKS_END_S = 15.0  # how long to wait for ranks of a killed launch
STARTS_WITHIN_S = 60.0  # importing torch from a slow disk takes its time, whatever a case may take
# Files of a launch's folder, an object a line: what rank 0 is at, ranks that raised, ranks that ended without a word.
EVENTS, FAILURES, EXITS = "events.jsonl", "failures.jsonl", "exits.jsonl"
TRACE_DOING = "doing: "  # how a line begins that says what a rank was at, in the trace that it leaves if it hangs


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    run_dir: str
    attempt: str
    launch: int
    setup: Setup = field(metadata={STORED_AS: "outer"})
    cases: tuple[Case, ...]
    timeout_s: float = 120.0  # without progress
    parent_pid: int = 0
    host: str = ""  # of the sweep, for whose ranks it has worked out the places, by local rank
    placements: tuple[Placement, ...] = ()
    parent_started: str = ""  # "" where no parent on this host watches (a joined launch)
    program: str = ""  # a module to import by its name and run in place of cases: see commbench.measure.rank.run
    before: str = ""  # a module whose `run(job, info)` every rank calls first, before it is bound or connected
    tokens: tuple[str, ...] = ()  # by which ranks that somebody else started know that it is theirs
    settings: dict[str, Any] = field(default_factory=dict)  # of the program, as JSON has them
    algorithms: tuple[dict[str, str], ...] = ()  # from outside: files to load, as `OutsideAlgorithm` has them

    @property
    def folder(self) -> Path:
        """Return where the logs and events of this launch are."""
        return Path(self.run_dir) / "logs" / self.attempt

    @property
    def transport_options(self) -> dict[str, Any]:
        layout = self.setup.layout
        return {
            "script": self.setup.script,
            "layout": (layout.nodes, layout.ranks_per_node),
            "seed": self.cases[0].seed if self.cases else 0,
            "launch": self.launch,
            "virtual_hosts": self.setup.virtual_hosts,
            "interfaces": INTERFACES if self.setup.emulated else None,
        }

    def to_json(self) -> str:
        return json.dumps({**as_dict(self), "cases": [as_dict(case) for case in self.cases]})

    @staticmethod
    def from_json(text: str) -> Job:
        raw = json.loads(text)
        raw["cases"] = tuple(from_dict(Case, case) for case in raw["cases"])
        raw["setup"] = from_dict(Setup, raw.pop("outer"))
        raw["tokens"] = tuple(raw.get("tokens", ()))
        raw["algorithms"] = tuple(raw.get("algorithms", ()))
        raw["placements"] = tuple(_placement(place) for place in raw["placements"])
        return Job(**raw)

    def save(self) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "order.json"
        write_atomically(path, self.to_json(), 0o600)  # ranks do what is in it, with the variables that it has
        return path

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Job:
        return Job.from_json(Path(path).read_text())


def _placement(raw: dict[str, Any]) -> Placement:
    nodes = raw["memory_nodes"]
    return Placement(
        cpus=tuple(raw["cpus"]),
        memory_nodes=None if nodes is None else tuple(nodes),
        why=raw["why"],
        gpu=raw["gpu"],
    )
