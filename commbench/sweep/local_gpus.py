"""Whether this machine has the GPUs that a sweep needs, said before anything is started."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

from commbench import transports
from commbench.errors import EnvironmentProblem
from commbench.machine import gpus
from commbench.records import PlannedCase
from commbench.sweep.config import SweepConfig

_HERE = ("local", "torchrun")  # launchers that start all ranks on this machine
_SHARED = "transport=nccl fabric=virtual layout=2x1"  # NCCL takes two hosts' ranks on one GPU


def check(planned: Sequence[PlannedCase], launchers: Mapping[str, str]) -> list[PlannedCase]:
    """Return the plan, with a reason to skip cases of more ranks than this machine has GPUs.

    On virtual hosts ranks may share one. Raises `EnvironmentProblem` with that reason where no case is left.
    """
    count = gpus.count(os.environ)
    if not count:  # a transport that needs one says so itself
        return list(planned)
    found = []
    for item in planned:
        setup = item.case.setup
        needs = transports.entry(setup.transport).gpus and launchers[setup.transport] in _HERE
        few = needs and not setup.virtual_hosts and setup.layout.ranks > count
        reason = f"{setup.layout.ranks} ranks and {count} GPU{'s' * (count != 1)}: each rank needs its own"
        found.append(replace(item, skip=reason) if few and not item.skip else item)
    refused = next((after.skip for before, after in zip(planned, found, strict=True) if after is not before), "")
    if refused and all(item.skip for item in found):
        hint = f"ranks_per_node={count}, or see CUDA_VISIBLE_DEVICES" if count > 1 else f"ranks may share it: {_SHARED}"
        raise EnvironmentProblem(refused, hint=hint)
    return found


def unused(configs: Sequence[SweepConfig]) -> str:
    """Say that a GPU of this machine is not used, and what to type; "" where none is, or all are."""
    asked = {name for item in configs for name in item.transport}
    count = gpus.count(os.environ)
    if count != 1 or any(transports.entry(name).gpus for name in asked) or transports.missing("nccl"):
        return ""
    return f"the GPU of this machine is not used, since an exchange needs two; two ranks may share it: {_SHARED}"
