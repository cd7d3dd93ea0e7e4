"""The backend `commbench`, for programs that may change a word: init_process_group("commbench")."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore

from commbench.backend.group import WrappedGroup
from commbench.backend.install import find_store_of_inner
from commbench.backend.start import of_environment

NAME = "commbench"


def create(options: Any, backend_options: Any = None) -> dist.ProcessGroup:
    """Return a group of gloo for tensors on CPUs, and of nccl for those on GPUs. torch calls this, with its options."""
    rank, size, store, timeout = options.group_rank, options.group_size, options.store, options.timeout
    kinds = dist.ProcessGroup.BackendType
    group = dist.ProcessGroup(store, rank, size)
    on_gpus = torch.cuda.is_available() and dist.is_nccl_available()
    group._set_default_backend(kinds.NCCL if on_gpus else kinds.GLOO)
    gloo = dist.ProcessGroupGloo(PrefixStore("cpu/", store), rank, size, timeout=timeout)
    gloo._set_sequence_number_for_group()
    group._register_backend(torch.device("cpu"), kinds.GLOO, gloo)
    if on_gpus:
        chosen = dist.ProcessGroupNCCL.Options() if backend_options is None else backend_options
        chosen._timeout = timeout
        chosen.global_ranks_in_group, chosen.group_name = options.global_ranks_in_group, options.group_id
        nccl = dist.ProcessGroupNCCL(PrefixStore("cuda/", store), rank, size, chosen)
        nccl._set_sequence_number_for_group()
        group._register_backend(torch.device("cuda"), kinds.NCCL, nccl)
    group._set_group_name(options.group_id)
    wrapped = WrappedGroup(group, of_environment())
    find_store_of_inner()
    return wrapped
