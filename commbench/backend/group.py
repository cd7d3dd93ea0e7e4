"""A process group around torch's own one, which stays what it is and makes every call.

It is torch's group for the program: C++ calls it (DDP, functional collectives), Python does, and both end in `inner`.
It has the backends of `inner` registered as its own, so that what torch asks of a group without calling a method that
is written here (its name, its backend for a device, hooks, hashes) is answered as for `inner`.

A method never calls `super()`: torch's trampoline holds the interpreter's lock there, gloo's threads want it while they
hold gloo's own, and the process hangs, once in some thousand calls.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from commbench import variables
from commbench.backend import observer
from commbench.backend.describe import COLLECTIVES, Descriptions
from commbench.backend.observer import CallObserver, GroupInfo
from commbench.backend.private_group import enter, leave
from commbench.backend.profiled import LIBRARY, ProfiledCalls
from commbench.backend.said import say
from commbench.backend.source import ProfileSource

_OWN = {"boxed", "unbox", "rank", "size", "_id", "_pybind11_conduit_v1_", "_register_backend", "_set_default_backend"}


class WrappedGroup(dist.ProcessGroup):
    """torch's process group `inner`, seen on its way. Collective calls are told to the observer, if there is one."""

    def __init__(self, inner: dist.ProcessGroup, source: ProfileSource | None = None) -> None:
        """Wrap `inner`; its calls go by the profile of `source`, if there is one."""
        super().__init__(inner.rank(), inner.size())  # type: ignore[call-arg]  # the one that torch lets be derived
        self.inner = inner
        self._info: GroupInfo | None = None
        self._descriptions: Descriptions | None = None
        self._source = source
        self._profiled: ProfiledCalls | None = None
        self._coalescing = 0
        kinds = dist.ProcessGroup.BackendType
        backends = {device: inner._get_backend(device) for device in inner._device_types}
        names = [backend.name().upper() for backend in backends.values()]
        if inner.name() == "undefined":  # torch forgets it for `cpu:gloo`, once a backend of another name is known
            inner._set_default_backend(getattr(kinds, names[0], kinds.CUSTOM))
        for (device, backend), name in zip(backends.items(), names, strict=True):
            self._register_backend(device, getattr(kinds, name, kinds.CUSTOM), backend)
        self._set_default_backend(getattr(kinds, str(inner.name()).upper(), kinds.CUSTOM))

    @property
    def info(self) -> GroupInfo:
        """Return which group this is. torch registers its ranks after it has made it."""
        if self._info is None:
            world = distributed_c10d._world
            ranks = tuple(world.pg_group_ranks.get(self, range(self.inner.size())))
            self._info = GroupInfo(
                name=str(self.inner.group_name),
                ranks=ranks,
                rank=self.inner.rank(),
                backend=str(world.pg_backend_config.get(self, "")),
                description=str(self.inner.group_desc),
            )
            if observer.current is not None:
                try:
                    observer.current.group_created(self._info)
                except Exception as error:
                    observer.drop(error)
        return self._info

    @property
    def bound_device_id(self) -> torch.device | None:
        return self.inner.bound_device_id

    @bound_device_id.setter
    def bound_device_id(self, device: torch.device | None) -> None:
        self.inner.bound_device_id = device

    @property
    def profiled(self) -> ProfiledCalls | None:
        """Return what makes calls by the profile; None without one."""
        if self._profiled is None and self._source is not None:
            self._profiled = ProfiledCalls(self.library_group, self.info.ranks, self.info.name, self._source)
        return self._profiled

    def library_group(self) -> dist.ProcessGroup:
        """Return torch's own group, and let torch's functions know it."""
        world = distributed_c10d._world
        if self.inner not in world.pg_map:
            devices = {device.type: self.inner._get_backend(device).name() for device in self.inner._device_types}
            config = ",".join(f"{device}:{backend}" for device, backend in devices.items())
            asked, store = world.pg_map[self]
            enter(self.inner, self.info.ranks, config if "commbench" in asked else asked, config, store)
        return self.inner

    def split_group(self, *given: Any, **named: Any) -> Any:
        return self._wrapped(self.inner.split_group(*given, **named))

    def merge_remote_group(self, *given: Any, **named: Any) -> Any:
        return self._wrapped(self.inner.merge_remote_group(*given, **named))

    def shutdown(self) -> None:
        if self.inner._has_hooks():  # torch waits for those of its own class alone
            self.inner._wait_for_pending_works()
        self._let_go()
        self.inner.shutdown()

    def abort(self) -> None:
        self._let_go()
        self.inner.abort()

    def _start_coalescing(self, device: torch.device) -> None:
        self._coalescing += 1  # calls in between are one of the library's
        self.inner._start_coalescing(device)

    def _end_coalescing(self, device: torch.device) -> Any:
        self._coalescing -= 1
        return self.inner._end_coalescing(device)

    def _seen(self, seeing: CallObserver, function: str, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Make a collective call, before the eyes of the observer."""
        try:
            if self._descriptions is None:
                self._descriptions = Descriptions(self.info)
            token = seeing.begin(self._descriptions.of(function, given, named))
        except Exception as error:
            observer.drop(error)
            return self._make(function, given, named)
        try:
            work = self._make(function, given, named)
        except BaseException as error:
            seeing.failed(token, error)
            raise
        try:
            return seeing.end(token, work)
        except Exception as error:
            observer.drop(error)
            return work

    def _make(self, function: str, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Make a call by the profile, if that has a choice of its own for it, else by torch."""
        if self._source is not None and not named and not self._coalescing:
            profiled = self._profiled or self.profiled
            assert profiled is not None
            by_profile = profiled.functions.get(function)
            if by_profile is not None and (work := by_profile(*given)) is not LIBRARY:
                return work
        return getattr(self.inner, function)(*given, **named)

    def _wrapped(self, group: dist.ProcessGroup | None) -> dist.ProcessGroup | None:
        return None if group is None else WrappedGroup(group, self._source)

    def _let_go(self) -> None:
        """Forget what was made for the profile, and that torch's functions know the inner group."""
        if self._profiled is not None:
            if self._profiled.used and self.inner.rank() == 0 and os.environ.get(variables.EXPLAIN) == "1":
                say(self._profiled.explain())
            self._profiled.close()
        self._source = self._profiled = None
        leave(self.inner)


def _collective(name: str) -> Callable[..., Any]:
    def method(self: WrappedGroup, *given: Any, **named: Any) -> Any:
        seeing = observer.current
        return self._make(name, given, named) if seeing is None else self._seen(seeing, name, given, named)

    return method


def _forward(name: str) -> Callable[..., Any]:
    def method(self: WrappedGroup, *given: Any, **named: Any) -> Any:
        return getattr(self.inner, name)(*given, **named)

    return method


for _name in dir(dist.ProcessGroup):
    if _name.startswith("__") or _name in _OWN or _name in WrappedGroup.__dict__:
        continue
    if callable(getattr(dist.ProcessGroup, _name)) and not isinstance(getattr(dist.ProcessGroup, _name), type):
        setattr(WrappedGroup, _name, (_collective if _name in COLLECTIVES else _forward)(_name))
