"""What to do after a sweep, in words and as a command to paste that runs."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from commbench import algorithms, transports
from commbench.analysis.ratios import Speedup
from commbench.layout import Layout
from commbench.output.answer import words
from commbench.output.answer.claims import FasterRange
from commbench.records import NOMINAL, Row
from commbench.spec import Spec
from commbench.stats import LAUNCHES_FOR_INTERVAL, MINIMUM_GAIN

_CLOSE = 0.05  # intervals so near to 1: whatever differs is not worth more launches
_MORE_LAUNCHES = 12
_EMULATED_ANYWHERE = "gloo"  # MPI needs Open MPI there, and nccl has no emulated network
_VIRTUAL_NETWORK = "scripted"  # the transport that has no machines to be measured between

Step = tuple[str, str]


def after_comparison(
    ratios: Sequence[Speedup],
    undecided: Sequence[Speedup],
    found: Sequence[FasterRange],
    ok: Sequence[Row],
    reason: str,
    meta: Mapping[str, Any],
) -> Step:
    """Return the step of a whole run. ratios: against baselines; undecided: those of set-ups of which nothing is
    proven; reason: why times are disturbed, "" where they are not.
    """
    if all(row.collective == "pairs" for row in ok):
        return "name what is slow", shlex.join(["commbench", "stragglers", _folder(meta)])
    gains = [claim for claim in found if not claim.is_default]
    if smaller := [claim.faster for claim in gains if claim.faster.startswith("payload=")]:
        return "see what it loses in a training, as no profile chooses that", f"commbench train tiny {smaller[-1]}"
    if any(proof.factor >= 1 + MINIMUM_GAIN for claim in gains for proof in claim.proofs):
        return _between_machines(ok, meta) or (
            "confirm it in fresh launches, for a profile", words.command(meta, "tune")
        )  # fmt: skip
    if any((ratio.pairs or 0) < LAUNCHES_FOR_INTERVAL for ratio in ratios):
        return "measure more launches", words.command(meta, "sweep", f"launches={LAUNCHES_FOR_INTERVAL}")
    if not ratios:
        return _beside(ok, meta)
    if gains and all((ratio.speedup_high or math.inf) < 1 + _CLOSE for ratio in ratios):
        return f"what may be gained is below {100 * MINIMUM_GAIN:g} %: keep {ratios[0].baseline}", ""
    if found and not gains and not undecided:
        return "keep the default: it is the fastest", ""
    if _close(undecided or ratios) and not reason:
        return "keep the default: what may be gained is too little", ""
    most = max(ratio.pairs or 0 for ratio in ratios)
    where = "measure again when nothing else runs" if reason else "measure longer"
    return where, words.command(meta, "sweep", f"launches={max(_MORE_LAUNCHES, 2 * most)}", "cap=1")


def _close(ratios: Sequence[Speedup]) -> bool:
    """Return whether all intervals are near to 1."""
    return all(
        ratio.speedup_low is not None and ratio.speedup_low > 1 - _CLOSE
        and ratio.speedup_high is not None and ratio.speedup_high < 1 + _CLOSE
        for ratio in ratios
    )  # fmt: skip


def _folder(meta: Mapping[str, Any]) -> str:
    return str(meta.get("folder") or "results/latest")


def _between_machines(ok: Sequence[Row], meta: Mapping[str, Any]) -> Step | None:
    """Return how to measure a network, where one machine stood for several; None where it did not."""
    named = {row.transport for row in ok}
    if not all(row.fabric in NOMINAL for row in ok) or _VIRTUAL_NETWORK in named:
        return None
    text = "measure it between machines: the same command under srun, mpiexec or torchrun (docs/guide/sweep.md)"
    if meta.get("joined") or named != {_EMULATED_ANYWHERE}:
        return text, ""
    return f"{text}, or emulate them", words.command(meta, "sweep", "fabric=emulated")


def _beside(rows: Sequence[Row], meta: Mapping[str, Any]) -> Step:
    """Return how to get something to compare with: other algorithms, or a later run."""
    collectives, typed = {row.collective for row in rows}, _typed(meta)
    if len(collectives) == 1:
        names = algorithms.names(rows[0].collective)
        able = [name for name in names if any(_can_run(row, name, typed) for row in rows)]
        if len(able) > 1:
            few = max(row.launches for row in rows) < LAUNCHES_FOR_INTERVAL
            more = [f"launches={LAUNCHES_FOR_INTERVAL}"] if few else []
            return "compare algorithms", words.command(meta, "sweep", f"algorithm={','.join(able)}", *more)
    again = shlex.join(["commbench", "compare", _folder(meta), "results/latest"])
    return "keep it, and compare a later run with it", again


def _typed(meta: Mapping[str, Any]) -> set[str]:
    """Return the keys that were typed."""
    return {str(word).partition("=")[0] for word in meta.get("command") or ()}


def _can_run(row: Row, name: str, typed: set[str]) -> bool:
    """Return whether an algorithm can do what a row measured, where the row did it."""
    algorithm, entry = algorithms.get(row.collective, name), transports.entry(row.transport)
    if (algorithm.one_sided and not entry.one_sided) or (algorithm.reduces and row.dtype not in entry.reduces):
        return False
    if any(key in typed and row.arguments.get(key) != value for key, value in algorithm.demands.items()):
        return False
    spec = Spec(
        collective=row.collective, dtype=row.dtype, size_bytes=row.size_bytes, in_place=row.in_place,
        layout=Layout(row.nodes, row.ranks // row.nodes).within(row.groups), buffers=row.buffers,
        params={key: default for key, (default, _) in algorithm.params.items()}, arguments=row.arguments,
    )  # fmt: skip
    return not algorithm.unsupported(spec)
