"""A group of gloo that a program's own traffic never meets.

gloo matches messages between two ranks by their tags, in the order in which they are posted, and the algorithms' have
the tag of everybody's. A program that has posted a receive of its own would get one of theirs. So they have connections
of their own, made beside torch's tables of groups, in which one more on some ranks alone would change the names of the
groups that the program makes next.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed import distributed_c10d

from commbench.transports.existing_group import JoinedGloo
from commbench.transports.gloo import GlooComm


class PrivateGroups:
    """The groups that were made beside one of the program's, to be closed with it."""

    def __init__(self, group: dist.ProcessGroup, ranks: Sequence[int]) -> None:
        """Make nothing yet. `group` is torch's own, `ranks` are its ranks in the world."""
        backend: Any = group._get_backend(torch.device("cpu"))
        backend = getattr(backend, "wrapped_pg", backend)  # under TORCH_DISTRIBUTED_DEBUG=DETAIL
        self._store, self._timeout = group.get_group_store(), backend.options._timeout
        self._ranks = list(ranks)
        self._me = self._ranks[group.rank()]
        self._made: list[dist.ProcessGroup] = []

    def make(self, members: Sequence[int] | None = None) -> dist.ProcessGroup:
        """Return a new group of `members`, ranks of the program's group; None: all of them. Collective for these."""
        ranks = [self._ranks[rank] for rank in members] if members is not None else self._ranks
        name = f"commbench/{'_'.join(map(str, ranks))}/{len(self._made)}"
        store = PrefixStore(name, self._store)
        group = dist.ProcessGroup(store, ranks.index(self._me), len(ranks))
        gloo = dist.ProcessGroupGloo(store, group.rank(), len(ranks), timeout=self._timeout)
        gloo._set_sequence_number_for_group()
        group._set_default_backend(dist.ProcessGroup.BackendType.GLOO)
        group._register_backend(torch.device("cpu"), dist.ProcessGroup.BackendType.GLOO, gloo)
        group._set_group_name(name)  # type: ignore[arg-type]
        self._made.append(group)
        enter(group, ranks, "gloo", "cpu:gloo", store)
        return group

    def joined(self, group: dist.ProcessGroup) -> JoinedGloo:
        """Return the transport over `group`, whose sub-groups are made here too."""
        return JoinedGloo(group, functools.partial(_PrivateComm, self.make))  # type: ignore[arg-type]

    def close(self) -> None:
        while self._made:
            group = self._made.pop()
            leave(group)
            group.shutdown()


class _PrivateComm(GlooComm):
    def __init__(
        self,
        make: Callable[[Sequence[int]], dist.ProcessGroup],
        group: dist.ProcessGroup,
        device: torch.device,
        members: Sequence[int] | None = None,
    ) -> None:
        super().__init__(group, device)
        self._make = make
        self._members = range(self.size) if members is None else members  # ranks of the program's group

    def _new_group(self, mine: Sequence[int]) -> dist.ProcessGroup:
        return self._make([self._members[rank] for rank in mine])

    def _of(self, group: dist.ProcessGroup, ranks: Sequence[int]) -> GlooComm:
        return _PrivateComm(self._make, group, self._device, [self._members[rank] for rank in ranks])


def enter(group: dist.ProcessGroup, ranks: Sequence[int], backend: str, config: str, store: Store) -> None:
    """Let torch's functions know a group, but no name of it, which would count."""
    world = distributed_c10d._world
    world.pg_map[group] = backend, store
    world.pg_backend_config[group] = config
    world.pg_group_ranks[group] = {rank: at for at, rank in enumerate(ranks)}


def leave(group: dist.ProcessGroup) -> None:
    """Undo `enter`; what torch has cleared before stays so."""
    world = distributed_c10d._world
    world.pg_map.pop(group, None)
    world.pg_backend_config.pop(group, None)
    world.pg_group_ranks.pop(group, None)
