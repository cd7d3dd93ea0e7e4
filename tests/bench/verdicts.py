"""Verdicts where nothing differs, and where something does: tables and comparisons of 24 cases, 400 of each kind.

(Ten minutes. What is done is kept in results/verdicts.jsonl, and a second start goes on from there.)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from commbench import stats
from tests.bench.shares import wilson
from tests.support.planted_verdicts import VERDICTS, comparison, table

FILE = Path("results/verdicts.jsonl")
COUNT = 400
NOISE = 0.05
EFFECT = 0.1
THRESHOLD = 0.05


def main() -> None:
    FILE.parent.mkdir(exist_ok=True)
    lines = [json.loads(line) for line in FILE.read_text().splitlines()] if FILE.exists() else []
    known = {(line["kind"], line["launches"], line["effect"], line["seed"]): line for line in lines}
    with open(FILE, "a") as file:
        for kind, rule in (("table", _table), ("comparison", _comparison)):
            for launches in (6, 12):
                for effect in (0.0, EFFECT):
                    group = []
                    for seed in range(COUNT):
                        key = kind, launches, effect, seed
                        if key not in known:
                            known[key] = {**dict(zip(("kind", "launches", "effect", "seed"), key, strict=True)),
                                          **rule(seed, launches, effect)}  # fmt: skip
                            file.write(json.dumps(known[key]) + "\n")
                            file.flush()
                        group.append(known[key])
                    print(_line(group), flush=True)


def _line(group: Sequence[dict[str, Any]]) -> str:
    first = group[0]
    counts = {name: sum(bool(one[name]) for one in group) for name in list(first)[4:]}
    shares = ", ".join(f"{name} {count} ({wilson(count, len(group))})" for name, count in counts.items())
    return f"{first['kind']}, {first['launches']} launches, effect {first['effect']:g}: of {len(group)}: {shares}"


def _table(seed: int, launches: int, effect: float) -> dict[str, int]:
    speedups, better = table(seed, launches=launches, noise=NOISE, gain=effect)
    others = [one for one in speedups.values() if one is not better and one.pairs is not None]
    alone = [stats.verdict(one.speedup_low, one.speedup_high) in VERDICTS for one in others]
    false = [one.verdict in VERDICTS for one in others]
    if not effect:
        alone.append(stats.verdict(better.speedup_low, better.speedup_high) in VERDICTS)
        false.append(better.verdict in VERDICTS)
    return {"false by intervals alone": sum(alone), "false": sum(false), "found": better.verdict == "faster"}


def _comparison(seed: int, launches: int, effect: float) -> dict[str, int]:
    found = comparison(seed, launches=launches, noise=NOISE, loss=effect)
    others = found[1:] if effect else found
    return {
        "false by intervals alone": sum(stats.verdict(one.low, one.high) in VERDICTS for one in others),
        "false": sum(one.verdict in VERDICTS for one in others),
        "found": found[0].verdict == "slower",
        "regressed by interval and ratio alone": sum(
            stats.verdict(one.low, one.high) == "slower" and 1 / one.ratio > 1 + THRESHOLD for one in found
        ),
        "regressed": sum(one.regressed(THRESHOLD) for one in found),
    }


if __name__ == "__main__":
    main()
