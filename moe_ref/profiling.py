"""Names for what a profiler sees: which part of a step an operation belongs to.

    with labelled("moe::gate"):
        ...

They show in torch.profiler's traces, and `moe_ref.training.breakdown` adds times up by them.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.profiler import record_function

_NOTHING = nullcontext()


def labelled(name: str) -> AbstractContextManager[object]:
    """Open a range of this name while a profiler runs. Without one it costs a quarter of a microsecond, not ten."""
    if torch.compiler.is_compiling():  # a range would break the graph in two
        return _NOTHING
    # torch.autograd.profiler.record_function asks the dispatcher each time, whether anybody listens or not.
    return record_function(name) if torch.autograd._profiler_enabled() else _NOTHING  # type: ignore[attr-defined]
