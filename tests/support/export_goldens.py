"""A profile that has everything, and its exports; `python -m tests.support.export_goldens` writes the golden files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from commbench.export import export
from commbench.export.source import ExportSource
from commbench.profile import AlgorithmConfig, Choice, Evidence, Profile, Refused, Scope
from tests.conftest import REPOSITORY

GOLDEN = REPOSITORY / "tests/data/exports"
HOSTILE = 'it\'s $(touch pwned) `touch pwned` "$HOME" \\ \\n\n# no comment\nunset PATH; -x *'
MIB = 1 << 20

EVIDENCE = Evidence(
    size_bytes=MIB,
    dtype="bf16",
    default="direct",
    default_us=101.5,
    chosen_us=80.25,
    ratio=1.26,
    low=1.21,
    high=1.33,
    interval_of="launches",
    pairs=12,
    p=0.0021,
    apparent=1.004,
    candidates=7,
    run="20260301T101500Z-tune-1a2b3c",
    verdict="confirmed",
)
NCCL = Scope(
    id="h200-2x8",
    transport="nccl",
    nodes=2,
    ranks_per_node=8,
    versions={"torch": "2.13.0", "nccl": "2.28.9"},
    gpu="NVIDIA H200",
    env={
        "NCCL_ALGO": "Ring;AllReduce:NVLSTree",
        "NCCL_PROTO": "Simple",
        "NCCL_MIN_NCHANNELS": "16",
        "NCCL_MAX_NCHANNELS": "16",
        "NCCL_IB_HCA": "^mlx5_4,mlx5_5",
        "NCCL_P2P_NET_CHUNKSIZE": "unset",
        "OMP_NUM_THREADS": "4",
    },
    binding="pci",
)
GLOO = Scope(id="anywhere", transport="gloo", nodes=None, ranks_per_node=None, env={"NOTE": HOSTILE})
MASKS = Scope(
    id="masks",
    transport="mpi",
    nodes=1,
    ranks_per_node=2,
    binding="explicit",
    cpu_masks="0-3,8;4-7",
    env={"UCX_TLS": "unset", "UCX_IB_SL": "1"},
)
SCOPES = {
    scope.id: scope
    for scope in (
        NCCL,
        GLOO,
        MASKS,
        dataclasses.replace(MASKS, id="masks-of-cpus", binding_memory=False),
        dataclasses.replace(NCCL, id="h200-cpus", binding_memory=False, env={"NCCL_ALGO": "Ring"}),
    )
}


def choice(
    scope: str, collective: str, algorithm: str, first: int = 0, last: int | None = None, **params: int
) -> Choice:
    return Choice(
        scope=scope, collective=collective, min_bytes=first, max_bytes=last, algorithm=algorithm, params=params
    )


def sample() -> Profile:
    """Every field has a value that is not its default somewhere."""
    packets = choice(NCCL.id, "all_to_all", "symm_store", 0, 65535, ctas=8, packet_bytes=16)
    pieces = choice(NCCL.id, "all_to_all", "2d_pipelined", 4 * MIB, chunks=4)
    summed = choice(NCCL.id, "all_reduce", "direct")
    choices = [
        dataclasses.replace(
            packets, buffers="symmetric", on_plain=AlgorithmConfig(algorithm="direct"), scratch_bytes=4096
        ),
        choice(NCCL.id, "all_to_all", "direct", 65536, 4 * MIB - 1),
        dataclasses.replace(pieces, evidence=[EVIDENCE]),
        dataclasses.replace(choice(NCCL.id, "all_to_all", "direct"), buffers="registered", captured=True),
        dataclasses.replace(summed, max_bytes=MIB, arguments={"op": "sum"}),
        dataclasses.replace(summed, min_bytes=MIB + 1, arguments={"op": "sum"}),
        choice(NCCL.id, "all_gather", "direct"),
        *(choice(id, "all_to_all", "bruck") for id in SCOPES if id != NCCL.id),
        dataclasses.replace(
            choice(GLOO.id, "tp_all_to_all", "drop_gather"), arguments={"tp": 4, "tp_input": "replicated"}
        ),
    ]
    slower = Refused(
        scope=NCCL.id,
        collective="all_to_all",
        label="bruck",
        sizes=[MIB, 4 * MIB],
        why="slower",
        reason="0.71x at 1 MiB",
    )
    return Profile(
        scopes=list(SCOPES.values()),
        choices=choices,
        refused=[slower],
        created="2026-03-01T10:15:00Z",
        commbench_version="0.1.0",
        machine="2 x 8 NVIDIA H200",
        command=["commbench", "tune", "gpu", "budget=8m"],
        seconds=431.5,
    )


EXPORTS = {
    "profile.json": ("json", ""),
    "nccl.env": ("env", NCCL.id),
    "hostile.env": ("env", GLOO.id),
    "nccl.conf": ("nccl-conf", NCCL.id),
    "nothing.conf": ("nccl-conf", GLOO.id),
    "tuner.csv": ("nccl-tuner", NCCL.id),
    "no-tuner.csv": ("nccl-tuner", "h200-cpus"),
    **{
        f"{kind}-{id}.sh": (kind, id)
        for kind in ("mpiexec", "srun", "torchrun")
        for id in SCOPES
        if kind != "torchrun" or SCOPES[id].transport != "mpi"
    },
}


def golden(name: str) -> str:
    """What is exported now."""
    kind, scope = EXPORTS[name]
    return export(kind, ExportSource(sample(), Path("/profiles/moe's.json"), scope, python="python3")).text


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name in EXPORTS:
        (GOLDEN / name).write_text(golden(name))
