"""On one GPU: data that it makes and compares without the host waiting."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from commbench.machine import gpus

if gpus.count(os.environ) < 1:
    pytest.skip("needs a GPU", allow_module_level=True)

import torch

from commbench import data
from commbench.collectives.reductions import combined_pool
from commbench.spec import DTYPES
from commbench.transports.cuda.device import BlockGenerator
from commbench.transports.device import HostGenerator

MIB = 1 << 20
SIZES = [(16,), (48, 0, 20), (12345 * 4,) * 3, (data.CHUNK_BYTES,) * 8, (3 * MIB + 12, 3 * MIB + 12), (65 * MIB,)]


@pytest.fixture
def no_waiting() -> Iterator[Callable[[bool], None]]:
    """Says from when on the host must not wait for the GPU."""
    yield lambda wanted: torch.cuda.set_sync_debug_mode("error" if wanted else "default")
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("kind", ["moved", *DTYPES])
def test_the_gpu_makes_and_compares_what_the_host_would(
    sizes: tuple[int, ...], kind: str, no_waiting: Callable[[bool], None]
) -> None:
    itemsize = DTYPES.get(kind, 4)
    pool = None if kind == "moved" else combined_pool(kind, "sum", ranks=3, largest=max(sizes))
    pattern = data.Pattern([data.Block(key, nbytes) for key, nbytes in enumerate(sizes)], itemsize, pool)
    made, host, nbytes = BlockGenerator(torch.device("cuda", 0)), HostGenerator(), sum(sizes)
    array = torch.zeros(nbytes, dtype=torch.uint8, device="cuda")
    made.fill(array, pattern, 1, invert=False)  # the pool and the words go there with the first one
    torch.cuda.synchronize()
    no_waiting(True)
    made.fill(array, pattern, 9, invert=True)
    poisoned = made.compare(array, pattern, 9)
    made.fill(array, pattern, 9, invert=False)
    same, of_another_call = made.compare(array, pattern, 9), made.compare(array, pattern, 8)
    no_waiting(False)
    right = pattern.whole(9)
    assert np.array_equal(array.cpu().numpy(), right)
    assert [found.elements for found in made.read([poisoned, same])] == [nbytes // itemsize, 0]
    assert made.read([of_another_call]) == [host.compare(right, pattern, 8)]
    for place in (nbytes // 2, nbytes - 1):
        array[place] ^= 1
    (seen,) = made.read([made.compare(array, pattern, 9)])
    assert seen == host.compare(array.cpu().numpy(), pattern, 9) and 1 <= seen.elements <= 2
