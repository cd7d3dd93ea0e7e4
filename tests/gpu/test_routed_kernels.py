"""Kernels of a dispatch and a combine on one GPU, by several ranks that share it: every byte."""

from __future__ import annotations

import os

import pytest

from commbench.machine import gpus

if gpus.count(os.environ) < 1:
    pytest.skip("needs a GPU", allow_module_level=True)

import torch

from tests.support.routed_gpu import OnGpu
from tests.support.routed_ranks import RoutedRanks, sabotaged, specs_of

if torch.cuda.get_device_capability() < (8, 0):
    pytest.skip("needs the bf16 of compute capability 8.0", allow_module_level=True)


@pytest.mark.parametrize("slots", [False, True])
@pytest.mark.parametrize("output", ["expert", "rank"])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_a_dispatch(ranks: int, output: str, slots: bool) -> None:
    for tokens, top_k, blocks, counts in ((13, 3, 3, "device"), (300, 1, 16, "device"), (257, 8, 32, "cached")):
        gpu, asked = OnGpu(), {"output": output, "counts": counts, "experts": 8 * ranks, "model_dim": 1032}
        specs = specs_of("dispatch", ranks, tokens=tokens, top_k=top_k, **asked)
        assert gpu.wrong(RoutedRanks(specs, gpu.place, slots=slots, blocks=blocks), 20) == 0


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("slots", [False, True])
@pytest.mark.parametrize("output", ["expert", "rank"])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_a_combine(ranks: int, output: str, slots: bool, dtype: str) -> None:
    for tokens, top_k, blocks in ((13, 3, 3), (300, 1, 16), (257, 8, 32)):
        gpu, asked = OnGpu(), {"output": output, "dtype": dtype, "experts": 8 * ranks, "model_dim": 1032}
        specs = specs_of("combine", ranks, tokens=tokens, top_k=top_k, **asked)
        assert gpu.wrong(RoutedRanks(specs, gpu.place, slots=slots, blocks=blocks), 20) == 0


def test_planted_mistakes_are_seen() -> None:
    struck = 0
    for number in range(500):
        gpu = OnGpu()
        ranks = sabotaged(number, gpu.place)
        wrong = gpu.wrong(ranks, 3)
        struck += ranks.struck
        assert wrong or not ranks.struck, number
        assert ranks.struck or not wrong, number
    assert struck > 450
