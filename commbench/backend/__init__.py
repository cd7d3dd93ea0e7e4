"""The profile, and the recorder, under torch.distributed: for programs that hold nothing of ours.

    import commbench.backend
    torch.distributed.init_process_group("commbench")

makes groups of gloo, and of nccl where there are GPUs, whose calls go by the profile of `COMMBENCH_PROFILE`. Programs
that shall not change a word get the same by `commbench exec`, which sets `COMMBENCH_BACKEND`:
docs/guide/any-program.md.

`group` is a process group around torch's own one, `install` puts it in the place of those that a program asks for,
`profiled` makes calls by the profile, `observer` is what a recorder implements.
"""

from __future__ import annotations

import torch.distributed as dist

from commbench.backend.group import WrappedGroup
from commbench.backend.named import NAME, create
from commbench.errors import UsageError

if dist.is_available():
    dist.Backend.register_backend(NAME, create, extended_api=True, devices=["cpu", "cuda"])


def explain(group: dist.ProcessGroup | None = None) -> str:
    """Return in words what goes by the profile in a group (None: all ranks), and why what does not.

    Raises `UsageError` where the group is one of torch's own.
    """
    wrapped = dist.group.WORLD if group is None else group
    if not isinstance(wrapped, WrappedGroup):
        raise UsageError(
            "this process group is torch's own: commbench does nothing in it",
            hint="start the program with `commbench exec`, or call init_process_group('commbench')",
        )
    return "no profile" if wrapped.profiled is None else wrapped.profiled.explain()
