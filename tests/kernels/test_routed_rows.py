"""Rows of tokens in torch: made, compared, copied and added up as numpy does it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from commbench import data
from commbench.spec import DTYPES
from commbench.transports.cuda.device import BlockGenerator
from commbench.transports.device import HostGenerator
from commbench.transports.rows import HostRows, Term
from commbench.transports.torch_rows import TorchRows


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_rows_that_are_fixed_or_sums_are_those_of_the_host(dtype: str) -> None:
    rng, rows, width = np.random.default_rng(0), 5, 96
    shifts, weights = rng.integers(-1, 8, (rows, 3)), np.ldexp(np.float32(1), -rng.integers(0, 3, (rows, 3)))
    sums = data.Sums(rng.integers(-3, 4, (1 << 16) + 200).astype(np.float32), shifts, weights, dtype)
    fixed = rng.integers(0, 256, (3, 8)).astype(np.uint8)
    words = data.words(7, rows)
    runs = [
        data.Run(0, rows, width, 0, width, words, sums=sums),
        data.Run(rows * width, 2, 4, 0, 4, words[:2]),
        data.Run(rows * width + 8, 3, 8, 0, 8, words[:0], fixed=fixed),
    ]
    pattern = data.Pattern.of_runs(runs, DTYPES[dtype])
    on_device, host = BlockGenerator(torch.device("cpu")), HostGenerator()
    right, array = pattern.whole(9), torch.zeros(pattern.nbytes, dtype=torch.uint8)
    assert (right[-24:] == fixed.ravel()).all() and not np.array_equal(right, pattern.whole(8))
    for invert in (True, False):
        on_device.fill(array, pattern, 9, invert=invert)
        assert np.array_equal(array.numpy(), ~right if invert else right)
    for place in (2, rows * width + 5, pattern.nbytes - 1):
        array[place] ^= 1
        (seen,) = on_device.read([on_device.compare(array, pattern, 9)])
        assert seen == host.compare(array, pattern, 9)
    assert seen.elements == 3


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_torch_adds_rows_up_as_numpy_does(dtype: str) -> None:
    """Terms of several origins, with and without weights, more than a piece of rows, and some that no term has."""
    rng, count = np.random.default_rng(1), 150
    origins = [data.encode(rng.integers(-3, 4, 200 * 16), dtype).reshape(200, -1) for _ in range(2)]
    row = origins[0].shape[1]
    terms = [
        Term(
            0,
            rng.integers(0, count - 9, 300),
            rng.integers(0, 200, 300),
            np.ldexp(np.float32(1), -rng.integers(0, 3, 300)),
        ),
        Term(1, np.arange(count - 9), rng.integers(0, 200, count - 9), None),
    ]
    for given in (terms, [Term(1, rng.permutation(count), rng.integers(0, 200, count), None)], terms[1:], []):
        out, of_torch = np.full((count, row), 7, np.uint8), torch.full((count, row), 9, dtype=torch.uint8)
        HostRows().add(out, origins, HostRows().sums(count, given), dtype)
        rows = TorchRows(torch.device("cpu"))
        rows.add(of_torch, [torch.from_numpy(origin) for origin in origins], rows.sums(count, given), dtype)
        assert np.array_equal(out, of_torch.numpy())
        assert not given or len(given[0].to) == count or not out[-9:].any()
