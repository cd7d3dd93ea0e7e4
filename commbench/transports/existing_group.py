"""Transports over a process group that a program has made itself: what a communicator stands on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from commbench.errors import EnvironmentProblem
from commbench.transports.base import Comm
from commbench.transports.gloo import Gloo, GlooComm


class Joined(Protocol):
    """The part of a `Transport` that a communicator needs, and what only it needs."""

    name: str
    rank: int
    size: int
    world: Comm
    place: torch.device  # where tensors have to be

    def overlap(self, wanted: bool) -> None: ...

    def unsupported(self, buffers: str, *, one_sided: bool) -> str: ...

    def publish(self) -> None: ...

    def withdraw(self) -> None:
        """Forget the buffers that were made since the last time and shall not be published."""
        ...

    def all_gather(self, values: Sequence[float]) -> npt.NDArray[np.float64]: ...

    def is_out_of_memory(self, error: BaseException) -> bool: ...

    def versions(self) -> dict[str, str]: ...

    def gpu(self) -> str:
        """The model, as the driver names it; "" where there is none."""
        ...

    def capturing(self) -> bool:
        """Whether the current stream is being captured into a CUDA graph."""
        ...

    def follow(self, last: int | None) -> int:
        """The current stream's handle. What is enqueued on it from now on comes after the work on the stream `last`."""
        ...

    def mark(self) -> Any:
        """What is on the current stream by now, for `after`; None inside of a capture."""
        ...

    def after(self, mark: Any) -> None:
        """What is enqueued on the current stream from now on comes after `mark`, but not inside of a capture."""
        ...

    def leave(self, *, captured: bool) -> None:
        """Collective: free what was made beside the group, and let go of it.

        `captured`: graphs held calls, and are gone by now.

        A group that something still holds outlives `destroy_process_group`, and its threads meet the end of the
        interpreter, which aborts the process now and then ("terminate called without an active exception").
        """
        ...


class JoinedGloo(Gloo):
    """CPU tensors. Votes go over the group itself: they are taken where nothing is timed."""

    def __init__(self, group: dist.ProcessGroup, comm: type[GlooComm] = GlooComm) -> None:
        super().__init__({})
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.place = torch.device("cpu")
        self.world = comm(group, self.place)
        self._votes = group

    def withdraw(self) -> None:
        return None

    def gpu(self) -> str:
        return ""

    def capturing(self) -> bool:
        return False

    def follow(self, last: int | None) -> int:
        return 0

    def mark(self) -> Any:
        return None

    def after(self, mark: Any) -> None:
        return None

    def leave(self, *, captured: bool) -> None:
        del self.world, self._votes


def transport_of(group: dist.ProcessGroup) -> str:
    """`nccl` where the group has it and there is a GPU, else `gloo`. Raises `EnvironmentProblem` for other backends."""
    config = dist.get_backend_config(group)
    backends = dict(part.split(":", 1) for part in config.split(",") if ":" in part)
    if backends.get("cuda") == "nccl" and torch.cuda.is_available():
        return "nccl"
    if backends.get("cpu") == "gloo":
        return "gloo"
    raise EnvironmentProblem(
        f"the process group's backend is {config!r}",
        hint="commbench knows nccl on GPUs, and gloo: init_process_group('nccl'), or new_group(backend='gloo')",
    )


def library_group(group: dist.ProcessGroup) -> dist.ProcessGroup:
    """Return torch's own group where `group` is one that commbench has wrapped around it."""
    inner = getattr(group, "library_group", None)
    return group if inner is None else inner()


def join(
    group: dist.ProcessGroup, name: str, *, one_host: bool, gloo: Callable[[dist.ProcessGroup], JoinedGloo] = JoinedGloo
) -> Joined:
    """Collective: the transport `name` over `group`. `one_host`: all ranks are on one. `gloo`: how that is joined."""
    if name == "gloo":
        return gloo(group)
    from commbench.transports.existing_nccl_group import JoinedNccl

    return JoinedNccl(group, torch.device("cuda", torch.cuda.current_device()), one_host=one_host)
