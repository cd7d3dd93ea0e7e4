"""Which rank am I? One pure function of an environment mapping, and one table of what each launcher sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from commbench.errors import EnvironmentProblem


@dataclass(frozen=True, slots=True, kw_only=True)
class RankInfo:
    """A process's place in the job; `local_size` is the number of ranks on its host."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    launcher: str
    # How to find the other ranks: "env://" (MASTER_ADDR, MASTER_PORT), or the path of a file that they share.
    rendezvous: str = "env://"


# launcher -> variable that marks it, then the variables of rank, size, local rank, local size. First match wins.
LAUNCHERS: dict[str, tuple[str, str, str, str, str]] = {
    "torchrun": ("TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
}


def detect(environ: Mapping[str, str]) -> RankInfo | None:
    """This process's rank under the launcher that started it, or None if none did.

    Raises `EnvironmentProblem` where the launcher's mark is there but its variables are missing or are no numbers.
    """
    for launcher, (mark, *names) in LAUNCHERS.items():
        if mark not in environ:
            continue
        values = []
        for name in names:
            text = environ.get(name)
            if text is None or not text.isdigit():
                raise EnvironmentProblem(
                    f"{mark} is set, so {launcher} seems to have started this process, but {name} is {text!r}",
                    hint=f"start through {launcher}, or unset {mark}",
                )
            values.append(int(text))
        rank, size, local_rank, local_size = values
        if not rank < size or not local_rank < local_size <= size:
            raise EnvironmentProblem(
                f"{launcher} says rank {rank} of {size}, local rank {local_rank} of {local_size}, which cannot be",
                hint="look for variables left over from another launcher",
            )
        return RankInfo(rank=rank, size=size, local_rank=local_rank, local_size=local_size, launcher=launcher)
    return None
