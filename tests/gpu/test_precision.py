"""Counts, sums and means over many tokens in narrow dtypes, on one GPU: additions there are by atomics."""

from __future__ import annotations

import os

import pytest

from commbench.machine import gpus

if gpus.count(os.environ) < 1:
    pytest.skip("needs a GPU", allow_module_level=True)

import torch

from tests.moe.test_precision import DTYPES, SIZES, check_biases, check_counts, check_losses


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("experts", "k"), SIZES)
def test_losses(experts: int, k: int, dtype: torch.dtype) -> None:
    check_losses(experts, k, dtype, "cuda")


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_of_biases(dtype: torch.dtype, autocast: bool) -> None:
    check_biases(dtype, "cuda", autocast=autocast and dtype != torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_counts(dtype: torch.dtype) -> None:
    check_counts(dtype, "cuda")
