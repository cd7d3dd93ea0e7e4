"""Ways to dispatch on one GPU: kernels beside their references, and each way beside the oracle."""

from __future__ import annotations

import itertools
import os

import pytest

from commbench.machine import gpus

if gpus.count(os.environ) < 1:
    pytest.skip("needs a GPU", allow_module_level=True)

import torch

from moe_ref import fused
from tests.kernels.rows import compare
from tests.moe.test_dispatch import CAPACITIES, made, moved

WAYS = ("sparse", "fused")


def needs_triton() -> None:
    if reason := fused.unsupported(torch.device("cuda")):
        pytest.skip(f"needs {reason}")


def test_the_kernels_are_their_references() -> None:
    needs_triton()
    fp32, fp64, halves = torch.float32, torch.float64, (torch.float16, torch.bfloat16)
    dtypes = [(fp32, fp32), (fp64, fp64), (fp32, fp64), *itertools.product(halves, (fp32, fp64))]
    assert compare("cuda", [*dtypes, *((half, half) for half in halves)]) == 9 * 20


@pytest.mark.parametrize("name", CAPACITIES)
@pytest.mark.parametrize("way", WAYS)
def test_equal_to_the_oracle(way: str, name: str) -> None:
    if way == "fused":
        needs_triton()
    for tokens, k, padded in itertools.product((16, 13, 1, 0), (1, 2, 4), (False, True)):
        route, x_TD = made(CAPACITIES[name], tokens=tokens, k=k, padded=padded, skewed=True, device="cuda")
        for ours, oracle in zip(moved(way, route(), x_TD), moved("loop", route(), x_TD), strict=True):
            torch.testing.assert_close(ours, oracle, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("weights", [torch.float32, None])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("way", WAYS)
def test_halves_are_good_to_their_bits(way: str, dtype: torch.dtype, weights: torch.dtype | None) -> None:
    """Where `sparse` takes the gradient of the weights from tensor cores. The oracle is in fp64."""
    if way == "fused":
        needs_triton()
    route, x_TD = made(CAPACITIES["overflow"], tokens=64, k=2, padded=True, skewed=False, device="cuda")
    x_TD = x_TD.to(dtype)
    routing = route()
    object.__setattr__(routing, "weights_TK", routing.weights_TK.detach().to(weights or dtype).requires_grad_())
    for ours, oracle in zip(moved(way, routing, x_TD), moved("loop", route(), x_TD.double()), strict=True):
        far = float((ours.double() - oracle).norm() / oracle.norm())
        assert far < 4 * torch.finfo(dtype).eps
