"""DDP and FSDP around a layer over two GPUs: as over gloo, and FSDP of the first kind, which needs GPUs."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from commbench import transports
from commbench.machine import gpus

if gpus.count(os.environ) < 2:
    pytest.skip("needs two GPUs", allow_module_level=True)
if reason := transports.missing("nccl"):
    pytest.skip(reason, allow_module_level=True)

import commbench
from commbench.communicators.communicator import Communicator
from tests.gloo.test_data_parallel import CASES, Model, tokens
from tests.support.ranks import on_ranks


def first_fsdp(comm: Communicator) -> None:
    import torch
    from torch.distributed.fsdp import FullyShardedDataParallel

    from commbench.errors import UsageError

    for whole in (True, False):
        model = Model(comm)
        y = model(tokens(comm)).detach()
        wrapped = FullyShardedDataParallel(
            model, use_orig_params=whole, ignored_states=[block.experts for block in model.blocks]
        )
        torch.testing.assert_close(wrapped(tokens(comm)).detach(), y, rtol=1e-12, atol=1e-12)
        with pytest.raises(UsageError, match=r"FSDP manages .* ranks 0, 1"):
            FullyShardedDataParallel(Model(comm), use_orig_params=whole)(tokens(comm))


@pytest.mark.parametrize("case", [*CASES, first_fsdp])
def test_wrappers(case: Callable[[Communicator], None]) -> None:
    def rank(transport: Any) -> None:
        with commbench.communicator() as comm:
            case(comm)

    on_ranks("nccl", 2, rank)
