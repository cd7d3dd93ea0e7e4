"""A machine with too few GPUs is told so before anything is started, and one GPU what it is good for."""

from __future__ import annotations

import pytest

from commbench.errors import EnvironmentProblem
from commbench.sweep import local_gpus, prepare


def has(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr("commbench.machine.gpus.count", lambda environ: count)
    monkeypatch.setattr("commbench.transports.missing", lambda name, **_: "")


def planned(*words: str) -> list[str]:
    """The reasons to skip, of cases that are right elsewhere."""
    _, configs = prepare.configure(["quick_gpu", "launches=1", "algorithm=direct", *words])
    cases = [item for item in prepare.expand(configs) if not item.skip]
    launcher = "slurm" if "slurm" in words else "local"
    return sorted({item.skip for item in local_gpus.check(cases, {"nccl": launcher})})


def test_more_ranks_than_gpus_are_refused_before_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, 4)
    assert planned("ranks_per_node=2,4,8") == ["", "8 ranks and 4 GPUs: each rank needs its own"]
    with pytest.raises(EnvironmentProblem, match="8 ranks and 4 GPUs: each rank needs its own") as raised:
        planned("ranks_per_node=8")
    assert "ranks_per_node=4" in raised.value.hint


def test_ranks_on_virtual_hosts_share_one(monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, 1)
    assert planned("fabric=virtual", "layout=2x1") == [""]
    with pytest.raises(EnvironmentProblem, match="2 ranks and 1 GPU: each") as raised:
        planned("ranks_per_node=2")
    assert "fabric=virtual layout=2x1" in raised.value.hint


@pytest.mark.parametrize(("count", "words", "said"), [(1, "quick", True), (0, "quick", False), (1, "quick_gpu", False)])
def test_one_gpu_that_is_not_used_is_named(count: int, words: str, said: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, count)
    _, configs = prepare.configure([words])
    assert ("the GPU of this machine is not used" in local_gpus.unused(configs)) == said
