"""What trainings show, as titles of their pictures. One launch each: they say what was measured, and claim nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from commbench.output.answer import words

ONCE = "one launch each: nothing is proven"
_ALIKE = 1.005  # losses, the largest over the least
_PARTS = {"a2a": "all-to-all", "ffn": "FFN"}  # by what they are called in a sentence


def of_losses(first: float, last: float, steps: int, held_out: float | None) -> str:
    """Return how the loss of one training went, in bits a byte, from its first step to its last."""
    went = "falls" if last < first else "does not fall"
    held = "" if held_out is None else f"; {digits(held_out)} on text that it does not learn from"
    return f"Loss {went}: {digits(first)} to {digits(last)} bits a byte in {words.count(steps, 'step')}{held}"


def of_several_losses(losses: Sequence[float], step: int) -> str:
    """Return the losses of several trainings at the last step that all of them have."""
    least, most = min(losses), max(losses)
    at = f"bits a byte at step {step}, which all have"
    if most <= least * _ALIKE:
        return f"The same loss: {digits(most)} {at}"
    return f"Loss {digits(least)} to {digits(most)} {at}"


def of_throughputs(by_name: Mapping[str, float], mfu_percent: float | None) -> str:
    """Return the median tokens per second of trainings, and how far apart they are. mfu_percent: of a single one."""
    (best, most), *others = sorted(by_name.items(), key=lambda item: -item[1])
    if not others:
        peak = "" if mfu_percent is None else f", {digits(mfu_percent)} % of peak"
        return f"{digits(most)} tokens a second{peak}"
    factors = words.ratios([most / rate for _, rate in others], None, None)
    beside = others[0][0] if len(others) == 1 else "the others"
    return f"{best} has {factors} the throughput of {beside}; {ONCE}"


def of_breakdowns(shares: Sequence[Mapping[str, float]]) -> str:
    """Return the largest part of a step, and what the all-to-all takes. shares: percent by part, of each run."""
    parts = {part: sum(run.get(part, 0.0) for run in shares) for run in shares for part in run}
    largest = max(parts, key=lambda part: parts[part])
    shown = [largest] + (["a2a"] if largest != "a2a" and parts.get("a2a") else [])
    return f"Of a step {words.listed([_share(part, shares) for part in shown])}"


def _share(part: str, shares: Sequence[Mapping[str, float]]) -> str:
    """`27 to 36 % is experts`."""
    of_runs = [run.get(part, 0.0) for run in shares]
    ends = [f"{share:.0f}" for share in (min(of_runs), max(of_runs))]
    return f"{' to '.join(dict.fromkeys(ends))} % is {_PARTS.get(part, part)}"


def digits(value: float) -> str:
    """Return three digits, or all that are before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
