"""Payloads: bytes on the wire, the error bound, what is no number, and the same bytes from numpy and from torch."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from commbench import payloads
from commbench.data import encode
from commbench.errors import UsageError
from commbench.payloads import Payload, arrays, tensors

TORCH = tensors.KINDS
PAIRS = [
    (payload, dtype)
    for payload, dtype in product(payloads.TABLE.values(), payloads.DTYPES)
    if not payload.unsupported(dtype)
]
SCALED = [pair for pair in PAIRS if pair[0].scale_bytes]
WIDTHS = (1, 5, 32, 33, 128, 160, 200, 1000)
every = pytest.mark.parametrize(("payload", "dtype"), PAIRS, ids=lambda one: getattr(one, "name", one))
scaled = pytest.mark.parametrize(("payload", "dtype"), SCALED, ids=lambda one: getattr(one, "name", one))


def raw(x: torch.Tensor) -> arrays.Bytes:
    return np.asarray(x.contiguous().view(torch.uint8).numpy())


def floats(rows: arrays.Bytes, dtype: str) -> npt.NDArray[np.float64]:
    return np.asarray(torch.from_numpy(rows.copy()).view(TORCH[dtype]).double().numpy())


def drawn(rows: int, values: int, dtype: str, seed: int = 0) -> torch.Tensor:
    """Numbers of many magnitudes."""
    made = torch.Generator().manual_seed(seed)
    powers = torch.randint(-9, 9, (rows, values), generator=made).float()
    return (torch.randn(rows, values, generator=made) * torch.exp2(powers)).to(TORCH[dtype])


def patterns(dtype: str) -> torch.Tensor:
    """Every element that 16 bits can be, or as many of 32 bits, mixed: denormal, infinite, not a number."""
    made = torch.Generator().manual_seed(1)
    if dtype == "fp32":
        return torch.randint(-(2**31), 2**31, (64, 1024), dtype=torch.int64, generator=made).int().view(torch.float32)
    return torch.randperm(1 << 16, generator=made).to(torch.int16).view(TORCH[dtype]).view(64, 1024)


def largest(x: npt.NDArray[np.float64], payload: Payload) -> npt.NDArray[np.float64]:
    """Of each value, the largest magnitude of its block."""
    found = np.empty_like(x)
    for start in range(0, x.shape[1], payload.block):
        part = np.abs(x[:, start : start + payload.block])
        found[:, start : start + payload.block] = part.max(axis=1, keepdims=True)
    return found


@pytest.mark.parametrize(
    ("name", "values", "nbytes"),
    # 7168 values as in DeepEP: 56 scales of 4 bytes; OCP MX: 224 of 1 byte
    [("bf16", 7168, 14336), ("fp8", 7168, 7392), ("mxfp8", 7168, 7392), ("int8", 7168, 7392),
     ("fp8", 1, 16), ("fp8", 130, 144), ("mxfp8", 130, 144), ("mxfp8", 1024, 1056), ("int8", 1024, 1056)],
)  # fmt: skip
def test_bytes_of_a_row_are_those_of_codes_and_scales(name: str, values: int, nbytes: int) -> None:
    assert payloads.TABLE[name].row_bytes(values) == nbytes


@every
def test_numpy_and_torch_make_the_same_bytes_of_everything(payload: Payload, dtype: str) -> None:
    inputs = [patterns(dtype), *(drawn(3, values, dtype, values) for values in WIDTHS)]
    for x in inputs:
        wire = arrays.quantise(raw(x), dtype, payload)
        assert np.array_equal(wire, tensors.quantise(x, payload).numpy())
        there = floats(arrays.dequantise(wire, x.shape[1], dtype, payload), dtype)
        also = tensors.dequantise(torch.from_numpy(wire), x.shape[1], x.dtype, payload).double().numpy()
        assert np.array_equal(there, also, equal_nan=True)
        assert np.array_equal(np.signbit(there)[~np.isnan(there)], np.signbit(also)[~np.isnan(also)])


def test_e4m3_rounds_as_torch_does_every_bf16_number() -> None:
    every_one = torch.arange(1 << 16).to(torch.int16).view(torch.bfloat16).float()
    finite = every_one[every_one.isfinite()]
    expected = finite.clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    assert np.array_equal(arrays._e4m3(finite.numpy()), expected)
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    assert np.array_equal(arrays._E4M3, codes, equal_nan=True)


@every
def test_no_value_is_off_by_more_than_half_a_step(payload: Payload, dtype: str) -> None:
    for values in WIDTHS:
        x = drawn(64, values, dtype)
        sent, there = floats(raw(x), dtype), floats(arrays.round_trip(raw(x), dtype, payload), dtype)
        off = np.abs(there - sent) / np.maximum(largest(sent, payload), payload.floor(dtype))
        assert off.max() <= payload.error(dtype), values


@scaled
def test_the_bound_is_reached_nearly(payload: Payload, dtype: str) -> None:
    """A bound that is twice as large as what can be would say nothing."""
    x = drawn(4096, 128, "fp32").to(TORCH[dtype])
    sent, there = floats(raw(x), dtype), floats(arrays.round_trip(raw(x), dtype, payload), dtype)
    assert (np.abs(there - sent) / largest(sent, payload)).max() > 0.8 * payload.half_step


@every
def test_blocks_of_zeros_and_the_smallest_numbers_arrive_as_such(payload: Payload, dtype: str) -> None:
    x = torch.zeros(2, 300, dtype=TORCH[dtype])
    x[1, ::2] = torch.finfo(x.dtype).smallest_normal / 4 if dtype == "fp16" else 2.0**-130
    there = floats(arrays.round_trip(raw(x), dtype, payload), dtype)
    assert not there[0].any()
    off = np.abs(there[1] - floats(raw(x), dtype)[1])
    assert off.max() <= payload.error(dtype) * payload.floor(dtype)


@every
def test_the_largest_numbers_stay_finite(payload: Payload, dtype: str) -> None:
    if payload.name == "bf16":
        pytest.skip("bf16 rounds as everywhere: what is beyond its largest number is infinite")
    x = torch.full((1, 200), torch.finfo(TORCH[dtype]).max, dtype=TORCH[dtype])
    x[0, ::2] *= -1
    for there in (
        floats(arrays.round_trip(raw(x), dtype, payload), dtype),
        tensors.dequantise(tensors.quantise(x, payload), 200, x.dtype, payload).double().numpy(),
    ):
        assert np.isfinite(there).all()
        assert np.abs(there / floats(raw(x), dtype) - 1).max() <= payload.error(dtype)


@scaled
@pytest.mark.parametrize("odd", [float("inf"), float("-inf"), float("nan")])
def test_a_block_with_no_number_arrives_as_none_and_its_neighbours_do_not_notice(
    payload: Payload, dtype: str, odd: float
) -> None:
    x = drawn(2, 3 * payload.block, dtype)
    x[1, payload.block + 3] = odd
    there = floats(arrays.round_trip(raw(x), dtype, payload), dtype)
    lost = np.zeros(there.shape, bool)
    lost[1, payload.block : 2 * payload.block] = True
    assert np.array_equal(np.isnan(there), lost)
    assert np.isfinite(there[~lost]).all()


@every
def test_what_is_there_is_overwritten_and_padding_is_zero(payload: Payload, dtype: str) -> None:
    x = drawn(3, 130, dtype)
    for made in (
        arrays.quantise(raw(x), dtype, payload, np.full((3, payload.row_bytes(130)), 0xAB, np.uint8)),
        tensors.quantise(x, payload, torch.full((3, payload.row_bytes(130)), 0xAB, dtype=torch.uint8)).numpy(),
    ):
        assert np.array_equal(made, arrays.quantise(raw(x), dtype, payload))
        assert all(not made[:, gap].any() for gap in payload.padding(130))


@scaled
def test_a_sign_changes_nothing_else(payload: Payload, dtype: str) -> None:
    x = drawn(4, 256, dtype)
    there = floats(arrays.round_trip(raw(x), dtype, payload), dtype)
    assert np.array_equal(floats(arrays.round_trip(raw(-x), dtype, payload), dtype), -there)


@pytest.mark.parametrize("tile", [1, 128, 300])
def test_the_size_of_tiles_changes_nothing(monkeypatch: pytest.MonkeyPatch, tile: int) -> None:
    x = drawn(5, 700, "bf16")
    expected = {name: arrays.quantise(raw(x), "bf16", payload) for name, payload in payloads.TABLE.items()}
    monkeypatch.setattr(arrays, "_AT_ONCE", tile)
    monkeypatch.setattr(tensors, "_AT_ONCE_CPU", tile)
    for name, payload in payloads.TABLE.items():
        assert np.array_equal(arrays.quantise(raw(x), "bf16", payload), expected[name])
        assert np.array_equal(tensors.quantise(x, payload).numpy(), expected[name])


def test_no_rows_and_no_values_are_fine() -> None:
    for payload, shape in product(payloads.TABLE.values(), ((0, 64), (3, 0), (0, 0))):
        x = torch.empty(shape, dtype=torch.bfloat16)
        assert np.array_equal(arrays.quantise(np.empty((shape[0], shape[1] * 2), np.uint8), "bf16", payload),
                              tensors.quantise(x, payload).numpy())  # fmt: skip


def test_what_cannot_travel_so_is_refused_in_words() -> None:
    int8, bf16 = payloads.TABLE["int8"], payloads.TABLE["bf16"]
    assert "int32" in int8.unsupported("int32")
    assert "uint8" in payloads.TABLE["fp8"].unsupported("uint8")
    assert "saves no byte" in bf16.unsupported("fp16")
    assert payloads.get("none") is None
    with pytest.raises(UsageError, match="int4"):
        payloads.get("int4")


def test_bf16_of_bf16_is_what_it_is() -> None:
    x: Any = patterns("bf16")
    bf16 = payloads.TABLE["bf16"]
    assert not bf16.changes("bf16") and bf16.error("bf16") == 0
    assert np.array_equal(arrays.round_trip(raw(x), "bf16", bf16), raw(x))
    whole = encode(np.arange(-128, 128), "bf16").reshape(1, -1)
    assert np.array_equal(arrays.quantise(whole, "bf16", bf16), whole)


@every
def test_what_has_arrived_travels_again_as_it_is(payload: Payload, dtype: str) -> None:
    """Numbers of all magnitudes, and blocks whose largest is at, above and below each step of a scale."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(400, 200)) * np.exp2(rng.uniform(-10, 10, (400, 1)))
    x[:200, ::32] = (448 + rng.uniform(-40, 40, (200, 1))) * np.exp2(rng.integers(-6, 6, (200, 1)))
    rows = raw(torch.from_numpy(x).to(TORCH[dtype]))
    once = arrays.round_trip(rows, dtype, payload)
    assert np.array_equal(arrays.round_trip(once, dtype, payload), once)
    assert np.array_equal(once, rows) == (payload.name == dtype)
