"""On one GPU: payloads are the same bytes as on a CPU, and the same numbers come back."""

from __future__ import annotations

import os

import pytest

from commbench.machine import gpus

if gpus.count(os.environ) < 1:
    pytest.skip("needs a GPU", allow_module_level=True)

import numpy as np
import torch

from commbench.payloads import Payload, arrays, tensors
from tests.unit.payloads.test_payloads import WIDTHS, drawn, every, floats, patterns, raw


@every
def test_a_gpu_makes_the_bytes_of_a_cpu(payload: Payload, dtype: str) -> None:
    for x in (patterns(dtype), *(drawn(3, values, dtype, values) for values in (*WIDTHS, 7168))):
        wire = arrays.quantise(raw(x), dtype, payload)
        assert np.array_equal(wire, tensors.quantise(x.cuda(), payload).cpu().numpy())
        there = floats(arrays.dequantise(wire, x.shape[1], dtype, payload), dtype)
        also = tensors.dequantise(torch.from_numpy(wire).cuda(), x.shape[1], x.dtype, payload).cpu()
        assert np.array_equal(there, also.double().numpy(), equal_nan=True)
