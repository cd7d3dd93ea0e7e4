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
    name = group.group_name
    torch._C._distributed_c10d._unregister_process_group(name)
    torch._C._distributed_c10d._register_process_group(name, wrapped)
    tell_symmetric_memory(wrapped)
    return wrapped


def tell_symmetric_memory(wrapped: WrappedGroup) -> None:
    """Give torch's symmetric memory the inner group's store: it looks in the group of that name, where ours has none.

    torch makes a Python group without a store. Its deprecated enabling function does the same, and shall do it no more.
    """
    if not torch.cuda.is_available():
        return
    from torch.distributed import _symmetric_memory

    name, store = wrapped.inner.group_name, wrapped.inner.get_group_store()
    with contextlib.suppress(RuntimeError):  # a group of that name had one, which torch keeps
        _SymmetricMemory.set_group_info(name, wrapped.rank(), wrapped.size(), store)
    _symmetric_memory._group_name_to_store[name] = store
