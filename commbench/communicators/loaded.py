"""A profile as programs load it. No torch is imported before a communicator is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from commbench.algorithms import outside
from commbench.profile import Profile, file

if TYPE_CHECKING:
    import torch.distributed as dist
    from torch.distributed.device_mesh import DeviceMesh

    from commbench.communicators.communicator import Communicator


@dataclass(frozen=True, slots=True)
class LoadedProfile:
    profile: Profile
    name: str = "the profile"  # by which errors and `explain` call it

    def communicator(
        self, group: dist.ProcessGroup | DeviceMesh | None = None, *, allow_mismatch: bool = False
    ) -> Communicator:
        """Make a communicator of `group`, None for all ranks, that uses the profile's choices. Collective.

        Raises `OutOfScope` on all ranks, with the differences listed, where the profile was made for another set-up;
        `allow_mismatch` takes the nearest scope of the same transport all the same.
        """
        from commbench.communicators.create import make

        return make(group, self.profile, self.name, allow_mismatch=allow_mismatch)


def load(path: str | Path, *, algorithms: Sequence[str] = ()) -> LoadedProfile:
    """Read a profile, after the files of algorithms from outside that it may use.

    Raises `UsageError` where there is no such file, `CorruptFile` where it holds no profile.
    """
    for word in algorithms:
        outside.load(word)
    return LoadedProfile(file.load(Path(path)), str(path))
