"""On one GPU: faults that only some calls have are seen, in every mode."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import pytest

from commbench import transports
from commbench.machine import gpus

if gpus.count(os.environ) < 1:
    pytest.skip("needs a GPU", allow_module_level=True)
if reason := transports.missing("nccl"):
    pytest.skip(reason, allow_module_level=True)


from commbench.records import Status
from commbench.spec import DTYPES
from tests.conftest import here, rows_of
from tests.support import planted_calls
from tests.support.planted_calls import KINDS, Plant
from tests.support.ranks import on_ranks


def outcomes(plants: list[Plant], folder: Path) -> list[list[Any]]:
    (folder / "logs" / "a").mkdir(parents=True)
    found: list[list[Any]] = on_ranks(
        "nccl", 1, lambda made: [outcome for _, outcome in planted_calls.on_rank(made, folder, plants)]
    )
    return found


def test_no_wrong_call_is_timed(tmp_path: Path) -> None:
    plants = [
        Plant(number, "nccl", "isolated", rule, kind, period=7, way=way, ranks=1, cache=cache, size_bytes=size)
        for number, (rule, kind, way, cache, size) in enumerate(
            (rule, kind, way, cache, size)
            for rule in ("period", "single")
            for kind in KINDS
            for way, cache, size in ((0, "warm", 1 << 20), (2, "warm", 4096), (0, "cold", 4 << 20))
        )
    ]
    for plant, (status, reason, struck, _) in zip(plants, outcomes(plants, tmp_path), strict=True):
        assert struck and status == Status.WRONG_RESULT, (plant, status, reason)
        assert reason.startswith("while timing: rank 0 has "), reason


def test_what_is_right_is_timed(tmp_path: Path) -> None:
    plants = [
        Plant(n, "nccl", mode, "none", way=2 * (n // 3 % 2), ranks=1, size_bytes=1 << 12 + 4 * n % 16)
        for n, mode in enumerate(["isolated", "pipelined", "graph"] * 4)
    ]
    for plant, (status, reason, _, checked) in zip(plants, outcomes(plants, tmp_path), strict=True):
        assert status == Status.OK, (plant, reason)
        pairs = 2 if plant.size_bytes < 16 << 20 else 1  # two of 16 MiB are not in the cache together
        assert checked == (planted_calls.SAMPLES["isolated"] if plant.mode == "isolated" else 17 * pairs), plant


def spoilt(transport: Any, folder: Path, plant: Plant, number: int) -> tuple[str, str]:
    """Measure with a graph whose replay of this number leaves a wrong byte in the first buffer of its last call."""
    real, replays = transport.capture, 0

    def capture(calls: Any) -> Any:
        replay, out = real(calls), calls[-1].args[1]

        def counted() -> None:
            nonlocal replays
            replay()
            replays += 1
            if replays == number:
                out[5] ^= 1

        return counted

    transport.capture = capture
    ((_, outcome),) = planted_calls.on_rank(transport, folder, [plant])
    return outcome.status, outcome.reason


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (planted_calls.SAMPLES["graph"], "after the timed calls on pair 2"),
        (planted_calls.SAMPLES["graph"] + 11, "after replay 11"),
    ],
)
def test_a_wrong_replay_of_a_graph_is_seen(tmp_path: Path, number: int, said: str) -> None:
    (tmp_path / "logs" / "a").mkdir(parents=True)
    plant = Plant(1, "nccl", "graph", "none", ranks=1, size_bytes=4096)
    call = functools.partial(spoilt, folder=tmp_path, plant=plant, number=number)
    status, reason = on_ranks("nccl", 1, call)
    assert (
        status == Status.WRONG_RESULT
        and reason.startswith("after timing: rank 0 has 1 wrong element ")
        and said in reason
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_ranks_share_a_gpu(tmp_path: Path, dtype: str) -> None:
    """Virtual hosts: NCCL's network transport, and every collective in every mode.

    What only moves is the same bytes whatever they mean: of one dtype all of it, of the others what adds up.
    """
    what = ("collective=all", "algorithm=all") if dtype == "fp32" else ("collective=all_reduce,reduce_scatter",)
    words = ("fabric=virtual", "nodes=2", "ranks_per_node=1", *what, f"dtype={dtype}")
    words += ("mode=isolated,pipelined,graph", "in_place=false,true", "launches=1", "iters=5", "warmup=1", "--no-plots")
    result = here("sweep", "gpu", *words, "-b", "64K", "-e", "64K", "--format", "json", cwd=tmp_path)
    found = rows_of(result)
    bad = [row for row in found if row["status"] not in ("ok", "skipped")]
    assert not bad and result.returncode == 0, result.stderr
    isolated = [row for row in found if row["status"] == "ok" and row["mode"] == "isolated"]
    assert len(isolated) >= (15 if dtype == "fp32" else 6) and {row["checked_calls"] for row in isolated} == {5}
