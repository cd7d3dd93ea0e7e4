"""A sweep of every collective, algorithm and split, and what has to come out of it, whatever carries the messages."""

from __future__ import annotations

import subprocess

from commbench import algorithms, collectives
from commbench.spec import DTYPES
from tests.conftest import first, rows_of

# Every collective, algorithm and split, in place where that is defined.
EVERYTHING = (
    *("sweep", "quick", "collective=all", "algorithm=all", "in_place=false,true"),
    *("splits=even,linear,zipf", "root=1", "chunks=1,3", "-b", "4K", "-e", "4K", "launches=1", "iters=1", "warmup=1"),
    *("--no-plots", "--format", "json", "--quiet"),
)
EVERY_DTYPE = f"dtype={','.join(DTYPES)}"
# One dtype of each size on one layout, and one dtype on the others: what only moves data sees bytes.
FEW_OF_EVERYTHING = [
    ("nodes=2", "ranks_per_node=2", "dtype=fp32,bf16,uint8"),
    ("nodes=1", "ranks_per_node=2", "dtype=uint8"),
    ("nodes=1", "ranks_per_node=3", "dtype=fp32"),
    ("nodes=1", "ranks_per_node=5", "dtype=int32"),
]
OF_EVERYTHING = first(4, [*FEW_OF_EVERYTHING, *((*layout, EVERY_DTYPE) for *layout, _ in FEW_OF_EVERYTHING)])
# Why a case may be skipped.
FINE_TO_SKIP = (
    *("is not defined in place", "two levels need", "are one tensor-parallel group"),
    *("mpi cannot do reduce_scatter on", "mpi cannot do all_reduce on", "mpi cannot do tp_all_to_all on"),
)


# What needs several nodes.
ON_NODES = (
    *("all_to_all 2d", "all_to_allv 2d", "tp_all_to_all"),
    *("all_gather 2d", "all_reduce 2d", "reduce_scatter 2d"),
)


def check_everything(result: subprocess.CompletedProcess[str]) -> None:
    """All that was not skipped for a known reason came out right."""
    assert result.returncode == 0, result.stderr
    rows = rows_of(result)
    wrong = [row for row in rows if row["status"] not in ("ok", "skipped")]
    assert not wrong, wrong[:3]
    odd = {row["reason"] for row in rows if row["status"] == "skipped"}
    assert not {reason for reason in odd if not any(text in reason for text in FINE_TO_SKIP)}
    ok = [row for row in rows if row["status"] == "ok"]
    ways = {(row["collective"], row["algorithm"]) for row in ok}
    nodes = rows[0]["nodes"]
    on_hosts = [
        way for way, algorithm in algorithms.TABLE.items() if not algorithm.one_sided and way[0] in collectives.EVERY
    ]
    assert ways == {(of, name) for of, name in on_hosts if nodes > 1 or not f"{of} {name}".startswith(ON_NODES)}
    splits = {row["arguments"]["splits"] for row in ok if row["collective"] == "all_to_allv"}
    assert splits == {"even", "linear", "zipf"}
    assert {row["collective"] for row in ok if row["in_place"]} == {
        "all_gather", "all_reduce", "reduce_scatter", "broadcast"
    }  # fmt: skip
    assert {row["dtype"] for row in ok} == {row["dtype"] for row in rows}
