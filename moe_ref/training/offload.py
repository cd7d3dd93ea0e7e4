"""Activations in the host's memory from the forward pass to the backward one: KARMA's swapping, for all blocks alike.

torch's own hooks copy them (`torch.autograd.graph.save_on_cpu`), into pinned memory where there is a GPU. Parameters,
which are there in any case, and small tensors stay.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu

_SMALL_BYTES = 1 << 16  # below, a copy costs more than the memory is worth


def around(what: str, model: nn.Module) -> AbstractContextManager[object]:
    """Return what a forward pass runs in, for the key `offload`: "none" or "activations"."""
    return nullcontext() if what == "none" else activations(model)


def activations(model: nn.Module) -> save_on_cpu:
    """Return a context: what autograd saves inside of it waits on the host."""
    hooks = save_on_cpu(pin_memory=torch.cuda.is_available())
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    pack, unpack = hooks.pack_hook, hooks.unpack_hook

    def pack_some(tensor: Tensor) -> Any:
        stays = tensor.nbytes < _SMALL_BYTES or tensor.untyped_storage().data_ptr() in parameters
        return tensor if stays else pack(tensor)

    def unpack_some(packed: Any) -> Tensor:
        found: Tensor = packed if isinstance(packed, Tensor) else unpack(packed)
        return found

    hooks.pack_hook, hooks.unpack_hook = pack_some, unpack_some
    return hooks
