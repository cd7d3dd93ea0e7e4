"""Advice on a layer in words: what it sends, what to measure, what is likely best, and the lines to paste."""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict

from commbench.find.layer import LayerShape, likely
from commbench.units import format_size

_UNMEASURED = "a rule of thumb until it is measured"
_CHUNKS = 4  # a schedule in chunks sends so small a part at once


def sizes(shape: LayerShape) -> list[int]:
    """Return the sizes to measure: the whole exchange, and its halves and quarters, which chunked schedules send."""
    return [shape.size_bytes // part for part in (_CHUNKS, 2, 1) if shape.block_bytes >= 16 * part or part == 1]


def commands(shape: LayerShape, *, gpus: bool) -> list[str]:
    """Return command lines to paste. gpus: whether this machine has some; else nodes are emulated."""
    emulated = " fabric=emulated" if shape.nodes > 1 and not gpus else ""
    where = f"transport={'nccl' if gpus else 'gloo'}{emulated} nodes={shape.nodes} ranks_per_node={shape.per_node}"
    measured = sizes(shape)
    swept = f"-b {measured[0]} -e {measured[-1]} -f 2 -d {shape.dtype}"
    what = f"collective={shape.collective}{' algorithm=all' if shape.dropless else ''}"
    tuned = f"collective={shape.collective}"
    row = f" row_bytes={shape.size_bytes // shape.rows}" if shape.dropless else ""
    return [
        f"commbench tune quick {tuned}{row} {where} {swept} budget=10m --out p.json",
        f"commbench sweep quick {what}{row} {where} {swept} launches=12",
    ]


def code(shape: LayerShape) -> list[str]:
    """Return lines of a program that runs such a layer by the profile."""
    capacity = '"dropless"' if shape.dropless else f'"tutel", factor={shape.capacity_factor:g}'
    return [
        "import commbench",
        "from moe_ref import FFN, Capacity, DistributedMoE, Gate, GateConfig",
        'comm = commbench.communicator(profile="p.json")    # or of the process group of the ep ranks',
        f"config = GateConfig(experts={shape.experts}, top_k={shape.top_k}, capacity=Capacity({capacity}))",
        f"experts = FFN({shape.experts // shape.ep}, {shape.model_dim}, {4 * shape.model_dim})    # hidden: your own",
        f"layer = DistributedMoE(Gate({shape.model_dim}, config), experts, comm)",
    ]


def as_json(shape: LayerShape, *, gpus: bool) -> str:
    """Return all of it as one JSON object. Bytes are of one rank."""
    said = {
        "layer": asdict(shape),
        "collective": shape.collective,
        "size_bytes": shape.size_bytes,
        "block_bytes": shape.block_bytes,
        "inter_bytes": shape.inter_bytes,
        "intra_bytes": shape.intra_bytes,
        "exchanges_per_step": shape.exchanges,
        "bytes_per_step": shape.exchanges * shape.size_bytes,
        "sizes": sizes(shape),
        "likely": {**asdict(likely(shape)), "measured": False},
        "commands": commands(shape, gpus=gpus),
        "code": code(shape),
    }
    return json.dumps(said) + "\n"


def text(shape: LayerShape, width: int, *, gpus: bool) -> str:
    """Return one screen for people, in lines of `width` letters but for what is to be pasted."""
    found = likely(shape)
    rows = f"{shape.tokens} x {shape.top_k} tokens" if shape.dropless else f"{shape.experts} x {shape.slots} slots"
    best = found.algorithm or "open"
    what = [
        f"One exchange: {shape.collective} of {format_size(shape.size_bytes)} on each rank ({rows} of "
        f"{format_size(shape.size_bytes // shape.rows)}), {format_size(shape.block_bytes)} to each of {shape.ep} ranks"
        f"{' if tokens are even' if shape.dropless else ''}. "
        f"To other nodes {format_size(shape.inter_bytes)}, inside the node {format_size(shape.intra_bytes)}, the rest "
        "stays.",
        f"One step: {shape.exchanges} exchanges, there and back, forward and backward"
        f"{f', in {shape.layers} layers' if shape.layers > 1 else ''}: "
        f"{format_size(shape.exchanges * shape.size_bytes)} of each rank."
        f"{' Ranks tell each other counts first, a small exchange more a pass.' if shape.dropless else ''}",
        f"Sizes to measure: {', '.join(map(format_size, sizes(shape)))}: the whole exchange, and what a schedule in "
        "2 or 4 chunks sends.",
        f"Likely best: {best}, {_UNMEASURED}. {found.reason[0].upper()}{found.reason[1:]}.",
    ]
    lines = []
    for paragraph in what:
        lines += textwrap.wrap(paragraph, width, break_on_hyphens=False)
    lines += ["", "Find out what is faster here, and keep it in a profile; or look at all of them:"]
    lines += [part for line in commands(shape, gpus=gpus) for part in _pasted(line, width)]
    if not gpus:
        lines.append("This machine has no GPU: on one with GPUs type transport=nccl, without fabric=emulated.")
    lines += ["", "Use the profile (in a layer of your own: comm.all_to_all(out, inp)):"]
    lines += [f"  {line}" for line in code(shape)]
    return "\n".join(lines) + "\n"


def _pasted(line: str, width: int) -> list[str]:
    """Return a command as lines that a shell takes as one."""
    parts = textwrap.wrap(line, width - 6, break_long_words=False, break_on_hyphens=False)
    last = len(parts) - 1
    return [("      " if at else "  ") + part + (" \\" if at < last else "") for at, part in enumerate(parts)]
