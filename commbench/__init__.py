"""commbench: measure AllToAll honestly, find what is provably better, and hand it to other programs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch.distributed as dist
    from torch.distributed.device_mesh import DeviceMesh

    from commbench.communicators.communicator import Communicator
    from commbench.communicators.loaded import LoadedProfile

__version__ = "0.1.0"


def load_profile(path: str | Path, *, algorithms: Sequence[str] = ()) -> LoadedProfile:
    """A profile that `commbench tune` wrote: `load_profile("profile.json").communicator()`. docs/guide/communicator.md.

    algorithms: files of algorithms from outside that it may use, as "./my.py:Hypercube"; it loads no others.

    Raises `UsageError` where there is no such file, `CorruptFile` where its content is no profile.
    """
    from commbench.communicators.loaded import load

    return load(path, algorithms=algorithms)


def communicator(
    group: dist.ProcessGroup | DeviceMesh | None = None,
    profile: LoadedProfile | str | Path | None = None,
    *,
    allow_mismatch: bool = False,
) -> Communicator:
    """Collective over `group` (None: all ranks): its collectives by `profile`, or by the defaults without one.

    group: a process group of torch, or a mesh of one dimension.
    """
    if profile is None:
        from commbench.communicators.create import make

        return make(group, None, "")
    loaded = load_profile(profile) if isinstance(profile, str | Path) else profile
    return loaded.communicator(group, allow_mismatch=allow_mismatch)


def step() -> None:
    """End a step of this program, where `commbench record` watches it; elsewhere this does nothing.

    Programs without an optimizer of torch say so where their steps end. From the first such call on, optimizers do not
    count.
    """
    recorder = sys.modules.get("commbench.backend.recorder")
    if recorder is not None:
        recorder.step_ended()
