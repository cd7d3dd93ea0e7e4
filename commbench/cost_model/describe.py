"""A fitted setting in words."""

from __future__ import annotations

from commbench.cost_model.costs import TCP_WAITS_US, Fitted
from commbench.cost_model.forms import BURST, VOLUME
from commbench.units import format_size

MEANINGS = {
    "step_us": "each step of an algorithm",
    "alpha_intra_us": "a message inside a node",
    "beta_intra_us_per_kib": "a KiB inside a node",
    "alpha_inter_us": "a message between nodes",
    "beta_inter_us_per_kib": "a KiB between nodes",
    "reply_inter_us": "a message that goes the other way",
    "reply_inter_us_per_kib": "a KiB that goes the other way",
    "cpu_rank_us": "processors: each rank that takes part in a step",
    "cpu_message_us": "processors: each message",
    "cpu_us_per_kib": "processors: each KiB",
    "burst_us": "what a link that has rested carries at once",
    "volume_inter_us_per_kib": "a KiB between nodes more, of much in a step",
    "call_us": "each call, beside its steps",
}


def _parts(fitted: Fitted) -> str:
    where = {"intra": "inside nodes", "inter": "between nodes"}
    parts = [f"{r2:.4f} {where[link]}" for link, r2 in fitted.r2_by_link.items()] if len(fitted.r2_by_link) > 1 else []
    if fitted.r2_possible is not None:
        parts.append(f"launches differ so much that about {fitted.r2_possible:.4f} can be reached")
    return f" ({'; '.join(parts)})" if parts else ""


def lines(fitted: Fitted) -> list[str]:
    of = "left out" if any(fitted.left_out.values()) else "fitted, as none could be left out"
    texts = [
        f"{fitted.text}: {fitted.form.describe()}",
        f"  {fitted.observations} cases, {fitted.points} of them different; a new case is within "
        f"{100 * 1.96 * fitted.spread:.0f} % for 95 % of those {of}",
        f"  r2 {fitted.r2:.4f}{_parts(fitted)}",
    ]
    width = max(len(MEANINGS[name]) for name in fitted.costs)
    for name, value in fitted.costs.items():
        unit = "us per KiB" if name.endswith("kib") else "us"
        if name in fitted.unknown:
            texts.append(f"  {MEANINGS[name]:<{width}}  not measured")
            continue
        if name == BURST:
            texts.append(f"  {MEANINGS[name]:<{width}}  {value:10.4g} us, as the fabric declares")
            continue
        low, high = fitted.intervals[name]
        rate = f" ({1.024 / value:.3g} GB/s)" if name.startswith("beta") and value > 0 else ""
        rate = f" ({1.024 / fitted.kib_between_us()[0]:.3g} GB/s)" if name == VOLUME and value > 0 else rate
        texts.append(f"  {MEANINGS[name]:<{width}}  {value:10.4g} {unit} [{low:.4g}, {high:.4g}]{rate}")
    if fitted.skews.by_ranks:
        each = ", ".join(f"{ranks} ranks {us:.4g} us" for ranks, us in fitted.skews.by_ranks.items())
        texts.append(f"  ranks begin apart, as measured: {each}")
    for scale, errors in fitted.left_out.items():
        if errors:
            each = ", ".join(f"{value} {100 * error:.1f} %" for value, error in errors.items())
            texts.append(f"  median error of each {scale} that was left out: {each}")
    scales = fitted.scales
    texts.append(
        f"  measured up to {format_size(scales.size_bytes)}, messages of {format_size(scales.message_bytes)}, "
        f"{scales.ranks} ranks"
    )
    if (missed := fitted.misfit) is not None:
        texts.append(
            f"  what the form misses: {100 * missed.common:.0f} % of all ways, {100 * missed.own:.0f} % of each way's "
            f"own; another in {missed.size_reach:g} octaves of size, {missed.layout_reach:g} of nodes or ranks per node"
        )
    if fitted.form.burst:
        texts.append(f"  no call is predicted whose interval reaches {TCP_WAITS_US / 1e3:.0f} ms: TCP sends again then")
    if fitted.lacks:
        texts.append(f"  a calibration has also: {'; '.join(fitted.lacks)}: commbench sweep calibration")
    if not fitted.usable:
        texts.append(f"  these costs explain {100 * max(0.0, fitted.r2):.0f} % of what was measured: do not use them")
    if fitted.mixed:
        named = ", ".join(fitted.mixed)
        texts.append(f"  cannot be told apart, as they only come together in what was measured: {named}")
    return [*texts, *(f"  {note}" for note in fitted.notes)]
