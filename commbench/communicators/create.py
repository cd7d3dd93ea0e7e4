"""How a communicator comes to be: ranks find out where they are and agree on the scope, all of them or none."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from commbench.communicators.communicator import Communicator
from commbench.communicators.explain import CommunicatorInfo
from commbench.communicators.select import Chooser
from commbench.errors import CommbenchError, EnvironmentProblem, UsageError
from commbench.layout import Layout
from commbench.machine import metadata
from commbench.profile import Profile, Scope, file, scope
from commbench.profile.scope import Here, OutOfScope
from commbench.profile.table import Table
from commbench.records import Fabric
from commbench.transports.existing_group import JoinedGloo, join, library_group, transport_of
from commbench.transports.gloo import gather
from commbench.variables import FABRIC

_ERRORS: dict[str, type[CommbenchError]] = {"OutOfScope": OutOfScope, "UsageError": UsageError}
Votes = Callable[[Sequence[float]], npt.NDArray[np.float64]]


def make(
    group: dist.ProcessGroup | DeviceMesh | None,
    profile: Profile | None,
    name: str,
    *,
    allow_mismatch: bool = False,
    of_program: bool = True,
    gloo: Callable[[dist.ProcessGroup], JoinedGloo] = JoinedGloo,
) -> Communicator:
    """Make the communicator of `group`, None for all ranks. What is wrong on one rank is raised on all. Collective.

    `group`: a mesh of one dimension has one.
    `of_program`: the program asks for it, and not a backend below one that knows nothing of commbench.
    `gloo`: how a group of gloo is joined.
    """
    if not dist.is_available() or not dist.is_initialized():
        raise EnvironmentProblem(
            "torch.distributed is not initialised, so there are no ranks to communicate with",
            hint="call torch.distributed.init_process_group('gloo'), or 'nccl', first; start with torchrun",
        )
    if isinstance(group, DeviceMesh):
        if group.ndim != 1:
            raise UsageError(
                f"a mesh of dimensions {group.mesh_dim_names or group.ndim} has no one group",
                hint='name the dimension: mesh["ep"]',
            )
        group = group.get_group()
    group = dist.group.WORLD if group is None else group
    if group is None or not isinstance(group, dist.ProcessGroup):  # torch gives those outside a number
        raise UsageError(
            f"this process is not a rank of the group {group!r}",
            hint="only the members of a group make its communicator",
        )
    group = library_group(group)
    ranks = dist.get_process_group_ranks(group)
    if ranks != sorted(ranks):
        raise UsageError(
            f"the group's ranks are not in ascending order: {ranks}",
            hint="torch sorts those of its sub-groups: sort them",
        )
    transport_name = transport_of(group)
    votes = votes_over(group, transport_name)
    hosts = gather_or_raise(votes, lambda: _facts(profile))
    if len({fact["profile"] for fact in hosts}) > 1:
        digests = ", ".join(fact["profile"] for fact in hosts)
        raise UsageError(f"the ranks have different profiles: digests {digests}", hint="give all ranks the same file")
    layout, note = layout_of([fact["host"] for fact in hosts])
    transport = join(group, transport_name, one_host=len({fact["host"] for fact in hosts}) == 1, gloo=gloo)
    machines = len({fact["machine"] for fact in hosts})
    here = Here(
        transport=transport_name,
        nodes=layout.nodes,
        ranks_per_node=layout.ranks_per_node,
        versions=transport.versions(),
        gpu=transport.gpu(),
        environ=dict(os.environ),
        between=Fabric.between(
            layout.nodes, machines, emulated=FABRIC in os.environ, virtual="NCCL_HOSTID" in os.environ
        ),
    )
    info = CommunicatorInfo(here=here, layout=layout, machines=machines, note=note, profile=name if profile else "")
    table = None
    if profile is not None:
        scope_ids = gather_or_raise(
            votes,
            lambda: _matching(profile, here, note, name, allow_mismatch=allow_mismatch, of_program=of_program).id,
        )
        if len({*scope_ids}) > 1:
            raise OutOfScope(
                f"the ranks are in different scopes of {name}: {', '.join(scope_ids)}",
                hint="start all ranks with the same environment, binding and versions",
            )
        info.scope = profile.scope(scope_ids[0])
        info.differences = scope.differences(info.scope, here)
        table = Table(profile, scope_ids[0])
    return Communicator(transport, layout, Chooser(transport_name, layout, table), info)


def _matching(profile: Profile, here: Here, note: str, name: str, **how: bool) -> Scope:
    try:
        return scope.matching(profile, here, name=name, **how)
    except OutOfScope as error:
        raise OutOfScope(f"{error}{f'; {note}' if note else ''}", hint=error.hint) from None


def votes_over(group: dist.ProcessGroup, transport: str) -> Votes:
    device = torch.device("cuda", torch.cuda.current_device()) if transport == "nccl" else None
    return functools.partial(gather, group, dist.get_world_size(group), device=device)


def _facts(profile: Profile | None) -> dict[str, str]:
    digest = "none" if profile is None else hashlib.sha256(file.dump(profile).encode()).hexdigest()[:12]
    return {"host": host_id(), "machine": metadata.machine_id(), "profile": digest}


def host_id() -> str:
    """Return an id that ranks of one node share, and no others.

    A network namespace is a node of its own, as the nodes of an emulated cluster are, and so is what NCCL is told to
    take for one.
    """
    parts = [platform.node(), os.environ.get("NCCL_HOSTID", "")]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/net"):
        try:
            parts.append(str(Path(path).stat().st_ino) if path.endswith("net") else Path(path).read_text().strip())
        except OSError:  # not on Linux
            parts.append("")
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]


def layout_of(hosts: Sequence[str]) -> tuple[Layout, str]:
    """Return the layout of ranks on `hosts`, and why it is not what one might expect; "" if it is.

    Ranks that are not in blocks of equal length on their hosts get a layout of one rank a node: right for every
    algorithm, and good for those that look at nodes not at all.
    """
    runs = [len(list(run)) for _, run in groupby(hosts)]
    if len(runs) == len({*hosts}) and len({*runs}) == 1:
        return Layout(len(runs), runs[0]), ""
    counts = sorted(hosts.count(host) for host in {*hosts})
    why = (
        f"the {len(hosts)} ranks are on {len(counts)} hosts"
        + (f" with {', '.join(map(str, counts))} ranks each" if len({*counts}) > 1 else ", not in consecutive blocks")
        + f", so each counts as a node of its own ({len(hosts)} x 1)"
    )
    return Layout(len(hosts), 1), why


def gather_or_raise(votes: Votes, compute: Callable[[], Any]) -> list[Any]:
    """Return what `compute` gives on each rank. What it raises on any rank is raised on all. Collective."""
    own: Exception | None = None
    try:
        text = json.dumps({"value": compute()})
    except CommbenchError as error:
        own = error
        text = json.dumps({"error": str(error), "hint": error.hint, "kind": type(error).__name__})
    except Exception as error:
        own = error
        text = json.dumps({"error": f"{type(error).__name__}: {error}", "hint": "see that rank's log", "kind": ""})
    answers = [json.loads(answer) for answer in _texts(votes, text)]
    for rank, answer in enumerate(answers):
        if "error" in answer:
            if isinstance(own, CommbenchError):
                raise own
            kind = _ERRORS.get(answer["kind"], EnvironmentProblem)
            raise kind(f"rank {rank}: {answer['error']}", hint=answer["hint"]) from own
    return [answer["value"] for answer in answers]


def _texts(votes: Votes, text: str) -> list[str]:
    """Return every rank's text, over votes, which are numbers: no pickle, and nothing but the group is needed."""
    mine = text.encode()
    lengths = votes([float(len(mine))])[:, 0].astype(int)
    padded = np.zeros(int(lengths.max()), dtype=np.uint8)
    padded[: len(mine)] = np.frombuffer(mine, dtype=np.uint8)
    table = votes(padded.astype(np.float64).tolist()).astype(np.uint8)
    return [row[:length].tobytes().decode() for row, length in zip(table, lengths, strict=True)]
