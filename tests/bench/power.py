"""What tuning finds, and what it takes for a gain where there is none: tunings of 4 sizes, 100 or more of each kind.

(A quarter of an hour. What is done is kept in results/power.jsonl, and a second start goes on from there.)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from commbench.records import Case
from tests.bench.shares import wilson
from tests.support.planted_tunings import NOISE, Ruled, region, tune

FILE = Path("results/power.jsonl")
COUNT = 100
SIZES = ("nodes=1", "ranks_per_node=2", "sizes.min=4K", "sizes.max=256K", "sizes.factor=4")
STARTS = (*SIZES, "env.FOO=a,b")


def gaining(gain: float) -> Callable[[Case], float]:
    """Return the rule by which `bruck` is faster by `gain`, and all else takes as long."""
    return lambda case: 100.0 / (1 + gain if case.label == "bruck" else 1.0)


# What is planted: kind, words, noise of a case in a launch, gain of `bruck`, and the most pairs.
KINDS = [
    *(("gain", SIZES, 0.1, 0.1, pairs) for pairs in (10, 30, 60)),
    ("gain", SIZES, 0.05, 0.1, 60),
    *(("nothing", SIZES, noise, 0.0, 60) for noise in (0.1, 0.25)),
    *(("start", STARTS, 0.25, gain, pairs) for gain in (0.0, 0.3) for pairs in (10, 60)),
]


def main() -> None:
    FILE.parent.mkdir(exist_ok=True)
    lines = [json.loads(line) for line in FILE.read_text().splitlines()] if FILE.exists() else []
    known = {(*line["key"],): line for line in lines}
    with open(FILE, "a") as file:
        for kind, words, noise, gain, pairs in KINDS:
            group = []
            for seed in range(COUNT):
                key = kind, noise, gain, pairs, seed
                if key not in known:
                    known[key] = {"key": key, **_tuning(words, noise, gain, pairs, seed)}
                    file.write(json.dumps(known[key]) + "\n")
                    file.flush()
                group.append(known[key])
            print(_line(group), flush=True)


def _tuning(words: Sequence[str], noise: float, gain: float, pairs: int, seed: int) -> dict[str, Any]:
    NOISE["case_noise"] = noise
    measurer = Ruled(gaining(gain), seed)
    tuned = tune(measurer, region(*words), pairs=(10, pairs))
    evidence = [(choice.label, one) for choice in tuned.choices for one in choice.evidence]
    return {
        "found": sum(one.confirmed and label == "bruck" for label, one in evidence),
        "other": any(one.confirmed and (label != "bruck" or not gain) for label, one in evidence),
        "start": tuned.scope.env.get("FOO") == "b",
        "control": tuned.control.passed > 0,
        "pairs": [one.pairs for _, one in evidence],
        "measurements": sum(
            case.policy.launches for stage, cases in measurer.stages if stage.startswith("confirm") for case in cases
        ),
    }


def _line(group: Sequence[dict[str, Any]]) -> str:
    kind, noise, gain, most, _ = group[0]["key"]
    sizes = sum(len(one["pairs"]) for one in group)
    found = sum(one["found"] for one in group)
    words = [f"{name} {sum(one[name] for one in group)} ({wilson(sum(one[name] for one in group), len(group))})"
             for name in ("other", "start", "control")]  # fmt: skip
    return (
        f"{kind}, noise {noise:g}, gain {gain:g}, up to {most} pairs: {len(group)} tunings; "
        f"found at {found} of {sizes} sizes ({wilson(found, sizes)}), "
        f"{sum(sum(one['pairs']) for one in group) / sizes:.1f} pairs, "
        f"{sum(one['measurements'] for one in group) / len(group):.0f} measurements; {', '.join(words)}"
    )


if __name__ == "__main__":
    main()
