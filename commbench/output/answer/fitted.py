"""The answer of `commbench model`: what a message and its bytes cost, and how far the model can be believed."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from commbench.cost_model.costs import Fitted
from commbench.cost_model.forms import VOLUME
from commbench.cost_model.model import Model
from commbench.output.answer import words
from commbench.output.answer.claims import Answer

_GOOD = 0.25  # a new case within this part of its prediction: good enough to choose by
_LINKS = {"intra": "inside a node", "inter": "between nodes"}


def answer(model: Model, paths: Sequence[str], out: str | None) -> Answer:
    """Return the costs in words. paths: the runs; out: the file that the model was written to."""
    settings = list(model.settings.values())
    sentences = [f"{fitted.text}: {_costs(fitted)}" for fitted in settings]
    sentences += model.notes
    for fitted in settings:
        if not fitted.usable:
            sentences.append(f"{fitted.text}: the costs explain {100 * max(0.0, fitted.r2):.0f} % of what was "
                             "measured: do not use them")  # fmt: skip
    spread = max(1.96 * fitted.spread for fitted in settings)
    mixed = [name for fitted in settings for name in fitted.mixed]
    lacks = list(dict.fromkeys(lack for fitted in settings for lack in fitted.lacks))
    if lacks or mixed or spread > _GOOD:
        step = (
            f"measure what is missing: {'; '.join(lacks)}" if lacks else "measure more launches, or a quieter machine"
        )
        return Answer(
            sentences=sentences, step=f"{step}; then fit all runs together", command="commbench sweep calibration"
        )
    if out is None:
        runs = shlex.join(["commbench", "model", *paths, "--out", "costs.json"])
        return Answer(sentences=sentences, step="keep it as a file", command=runs)
    return Answer(
        sentences=sentences, step=f"use it: commbench train ab .. costs={shlex.quote(out)} predicts its ratio"
    )


def _costs(fitted: Fitted) -> str:
    """`a message between nodes takes 12.1 us [11.0-13.2] and moves 0.12 GB/s; a new case is within 9 % (95 %)`."""
    parts = []
    for link, where in _LINKS.items():
        said = []
        for name, verb in ((f"alpha_{link}_us", "takes"), (f"beta_{link}_us_per_kib", "moves")):
            value = fitted.costs.get(name)
            if value is None or name in fitted.unknown:
                continue
            low, high = fitted.intervals[name]
            if link == "inter" and verb == "moves" and VOLUME in fitted.costs:
                value, low, high = fitted.kib_between_us()
            if verb == "takes":
                said.append(f"takes {words.time_interval(value, low, high)}")
            elif value > 0:
                ends = f" [{1.024 / high:.3g}-{1.024 / low:.3g}]" if low > 0 else ""
                said.append(f"moves {1.024 / value:.3g} GB/s{ends}")
        parts += [f"a message {where} {' and '.join(said)}"] if said else []
    within = f"95 % of new cases are within {100 * 1.96 * fitted.spread:.0f} % of it"
    return ", ".join([*parts, within])
