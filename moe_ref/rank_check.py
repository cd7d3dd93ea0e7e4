"""Whether ranks agree on what a pass is like, asked before it: where they do not, a pass hangs or is silently wrong."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from commbench.communicators.base import CommLike
from commbench.errors import UsageError
from moe_ref.gate import Gate

_LEFT_BITS = 1  # a digest without its sign bit is an int64


def check(
    comm: CommLike, gate: Gate, x_TD: Tensor, *, equal_tokens: bool, send_dtype: torch.dtype | None, schedule: str
) -> None:
    """Raise `UsageError`, the same on all ranks, that names the first rank that differs from rank 0, and in what.

    Collective over `comm`: an all_gather of a number for each thing that must be equal: the mode, whether tokens need a
    gradient, dtypes, the schedule, the gate's settings and its weights, and T where all ranks bring the same.
    """
    things: dict[str, Any] = {
        "mode": "training" if gate.training else "evaluation",
        "gradient": f"tokens {'with' if x_TD.requires_grad and torch.is_grad_enabled() else 'without'} gradient",
        "dtype": f"tokens of {x_TD.dtype}",
        "autocast": f"sent as {send_dtype or 'they are'}",
        "schedule": schedule,
        "settings of the gate": json.dumps(asdict(gate.config), sort_keys=True),
        "weights of the gate": _digest_of(gate),
    }
    if equal_tokens:
        things["tokens"] = f"{len(x_TD)} tokens"
    own_N = torch.tensor([_number(value) for value in things.values()], dtype=torch.int64, device=comm.device)
    all_WN = own_N.new_empty((comm.size, len(own_N)))
    comm.all_gather(all_WN.view(-1), own_N)
    differs_WN = (all_WN != all_WN[0]).tolist()
    for rank, row in enumerate(differs_WN):
        if any(row):
            names = [name for name, differs in zip(things, row, strict=True) if differs]
            raise UsageError(
                f"rank {rank} differs from rank 0 in {', '.join(names)}; here: "
                + "; ".join(f"{name}: {_short(things[name])}" for name in names),
                hint="all ranks of a layer call it alike, with the same gate (docs/guide/moe.md, Over ranks)",
            )


def _digest_of(gate: Gate) -> str:
    digest = hashlib.sha256()
    for name, value in gate.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().to("cpu").contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _number(value: str) -> int:
    return int.from_bytes(hashlib.sha256(value.encode()).digest()[:8], "big") >> _LEFT_BITS


def _short(value: str) -> str:
    return value if len(value) <= 80 else f"{value[:77]}..."
