"""Comparisons of two identical arms, and of arms that differ, by `commbench ab` itself and by its rule alone.

(Twenty minutes, most of it launches. What is done is kept in results/ab-bench.jsonl, and a second start goes on.)
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from commbench import stats
from commbench.ab.pairs import CANDIDATE, LOOKED_AT, MOST_ROUNDS
from commbench.ab.turns import TurnLimits, Turns
from tests.conftest import environment

FILE = Path("results/ab-bench.jsonl")
# A launch is up to 10 % slower than another one, a step up to 3 %: 4 % apart are the launches of a pair.
PROGRAM = "L=$((X * (10000 + RANDOM % 1000))); for i in 1 2 3 4 5 6; do echo took $((L + X * (RANDOM % 300))) us; done"
ARMS = {"the same": "100,100", "1.15x": "115,100"}  # X of both
WAYS = {"rounds=10": ("rounds=10",), "until it is known": ("resolve=0.05",)}
REAL, SCRIPTED, LOOKS = 20, 1000, 40_000
NOISE = (0.02, 0.05)  # of the logarithm of a launch's time
GAINS = (1.0, 1.02, 1.05, 1.1, 1.15)


@dataclass(frozen=True, slots=True)
class ScriptedLaunch:
    arm: str
    round: int
    cost: float


def main() -> None:
    print(f"looks after every round up to {MOST_ROUNDS}: {100 * false_looks():.2f} % of {LOOKS} see a difference")
    FILE.parent.mkdir(exist_ok=True)
    lines = [json.loads(line) for line in FILE.read_text().splitlines()] if FILE.exists() else []
    known = {(line["kind"], line["arms"], line["way"], line["seed"]): line for line in lines}
    with open(FILE, "a") as file:
        for kind, arms, way, count in cases():
            group = []
            for seed in range(count):
                key = kind, arms, way, seed
                if key not in known:
                    found = _real(arms, way) if kind == "real" else _scripted(arms, way, seed)
                    known[key] = {**dict(zip(("kind", "arms", "way", "seed"), key, strict=True)), **found}
                    file.write(json.dumps(known[key]) + "\n")
                    file.flush()
                group.append(known[key])
            print(_line(group), flush=True)


def cases() -> list[tuple[str, str, str, int]]:
    """Kind, arms, way to stop, how often."""
    scripted = [("scripted", f"{gain:g}x at {100 * noise:g} %", way, SCRIPTED)
                for noise in NOISE for way in ("rounds=10", "until it is known") for gain in GAINS]  # fmt: skip
    return [*scripted, *(("real", arms, way, REAL) for arms in ARMS for way in WAYS)]


def _line(group: Sequence[dict[str, Any]]) -> str:
    first = group[0]
    words = [one["verdict"] for one in group]
    counts = ", ".join(f"{word} {words.count(word)}" for word in sorted({*words}))
    rounds = np.median([one["rounds"] for one in group])
    return f"{first['kind']}, {first['arms']}, {first['way']}: of {len(group)}: {counts}; {rounds:g} rounds"


def _real(arms: str, way: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        words = ["ab", f"env.X={ARMS[arms]}", *WAYS[way], "--metric", "took ([0-9]+)", "--format", "json", "--no-plots"]
        command = [sys.executable, "-m", "commbench", *words, "--", "bash", "-c", PROGRAM]
        done = subprocess.run(
            command, cwd=folder, env=environment(), check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        found = json.loads(done.stdout)
    return {name: found[name] for name in ("verdict", "rounds", "ratio", "low", "high", "resolves", "stopped")}


def _scripted(arms: str, way: str, seed: int) -> dict[str, Any]:
    gain, noise = (float(part.strip(" x%")) for part in arms.split("at"))
    rng = np.random.default_rng(seed)

    def launch(arm: str, number: int) -> ScriptedLaunch:
        return ScriptedLaunch(arm, number, math.exp(rng.normal(0, noise / 100)) / (gain if arm == CANDIDATE else 1.0))

    limits = TurnLimits(rounds=10) if way == "rounds=10" else TurnLimits()
    turns = Turns(limits, launch, lambda paired: None, clock=lambda: 0.0)
    stopped = turns.run()
    paired = turns.paired
    assert paired is not None
    return {"verdict": str(paired.verdict), "rounds": paired.rounds, "ratio": round(paired.ratio.value, 4),
            "stopped": str(stopped)}  # fmt: skip


def false_looks() -> float:
    """Return in which part of comparisons without a difference an interval leaves out 1 at any round."""
    rng = np.random.default_rng(1)
    out = np.zeros(LOOKS, dtype=bool)
    data = rng.standard_normal((LOOKS, MOST_ROUNDS))
    for rounds in range(6, MOST_ROUNDS + 1):
        part = data[:, :rounds]
        ranks = np.argsort(np.argsort(np.abs(part), axis=1), axis=1) + 1
        above = (ranks * (part > 0)).sum(axis=1)
        out |= np.minimum(above, rounds * (rounds + 1) // 2 - above) < stats._signed_rank_depth(rounds, LOOKED_AT)
    return float(out.mean())
