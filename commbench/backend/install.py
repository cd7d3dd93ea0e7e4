"""Groups that a program asks torch for become wrapped ones: `init_process_group`, `new_group`, meshes and the like.

torch makes all of them in one function, after which the new group is entered in several tables; there the wrapped one
takes its place. What the program sees of it, `get_backend` first, is what torch wrote down for the group it asked for.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from commbench.backend.group import WrappedGroup

_MAKE = "_new_process_group_helper"
_PLAIN = threading.local()


def install(prepare: Callable[[], None]) -> None:
    """Wrap the groups that are made from now on, each after `prepare`. A second call changes nothing."""
    made = getattr(distributed_c10d, _MAKE)
    if hasattr(made, "__wrapped__"):
        return

    @functools.wraps(made)
    def make(*given: Any, **named: Any) -> Any:
        group, store = made(*given, **named)
        if type(group) is dist.ProcessGroup and not getattr(_PLAIN, "depth", 0):
            prepare()
            group = replace(group)
        return group, store

    setattr(distributed_c10d, _MAKE, make)


@contextmanager
def plain_groups() -> Iterator[None]:
    """Groups that this thread makes inside are torch's own."""
    _PLAIN.depth = getattr(_PLAIN, "depth", 0) + 1
    try:
        yield
    finally:
        _PLAIN.depth -= 1


def replace(group: dist.ProcessGroup) -> WrappedGroup:
    """Return a wrapped group, which stands for `group` in all of torch's tables."""
    wrapped, world = WrappedGroup(group), distributed_c10d._world
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
    return wrapped
