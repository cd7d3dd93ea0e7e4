"""Groups that a program asks torch for become wrapped ones: `init_process_group`, `new_group`, meshes and the like.

torch makes all of them in one function, after which the new group is entered in several tables; there the wrapped one
takes its place. What the program sees of it, `get_backend` first, is what torch wrote down for the group it asked for.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import _SymmetricMemory
from torch.distributed import distributed_c10d

from commbench.backend.group import WrappedGroup
from commbench.backend.source import ProfileSource
from commbench.transports import plain_groups

_MAKE = "_new_process_group_helper"


def install(prepare: Callable[[], ProfileSource | None]) -> None:
    """Wrap the groups that are made from now on, each by what `prepare` returns. A second call changes nothing."""
    made = getattr(distributed_c10d, _MAKE)
    if hasattr(made, "__wrapped__"):
        return

    @functools.wraps(made)
    def make(*given: Any, **named: Any) -> Any:
        group, store = made(*given, **named)
        if type(group) is dist.ProcessGroup and not plain_groups.wanted():
            group = replace(group, prepare())
        return group, store

    setattr(distributed_c10d, _MAKE, make)


def replace(group: dist.ProcessGroup, source: ProfileSource | None) -> WrappedGroup:
    """Return a wrapped group, which stands for `group` in all of torch's tables."""
    wrapped, world = WrappedGroup(group, source), distributed_c10d._world
    tables: list[dict[dist.ProcessGroup, Any]] = [
        getattr(world, name) for name in ("pg_map", "pg_names", "pg_group_ranks", "pg_backend_config", "pg_to_tag")
    ]
    for table in tables:
        if group in table:
            table[wrapped] = table.pop(group)
    for groups in world.tags_to_pg.values():
        groups[:] = [wrapped if each is group else each for each in groups]
    _register(group.group_name, wrapped)
    find_store_of_inner()
    return wrapped


def find_store_of_inner() -> None:
    """Let torch's symmetric memory find the inner group's store by a wrapped one's name. A second call does nothing.

    Memory is shared over the store of the group that has the name, and torch makes a Python group without a store; none
    is looked for in time (torch 2.11: the process ends by SIGSEGV). So the inner group has the name during the call.
    What C++ does later with that memory and name finds it shared already.
    """
    share = _SymmetricMemory.rendezvous
    if hasattr(share, "__wrapped__"):
        return

    @functools.wraps(share)
    def rendezvous(tensor: torch.Tensor, group_name: Any = None) -> Any:
        group = _registered(group_name)
        if group_name is None or not isinstance(group, WrappedGroup):
            return share(tensor, group_name)
        _register(group_name, group.inner)
        try:
            return share(tensor, group_name)
        finally:
            _register(group_name, group)

    _SymmetricMemory.rendezvous = staticmethod(rendezvous)  # type: ignore[method-assign]


def _registered(name: Any) -> dist.ProcessGroup | None:
    """Return the group that torch knows by a name, if there is one."""
    if name is None:
        return None
    with contextlib.suppress(RuntimeError):
        return torch._C._distributed_c10d._resolve_process_group(name)
    return None


def _register(name: Any, group: dist.ProcessGroup) -> None:
    torch._C._distributed_c10d._unregister_process_group(name)
    torch._C._distributed_c10d._register_process_group(name, group)
