"""Payloads of numpy's arrays, which have no bf16 and no e4m3: elements are bytes, and their dtype a word."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from commbench.payloads import E4M3_LARGEST, E8M0_NAN, FP32_NAN, INT8_LARGEST, SMALLEST, Payload, Tile
from commbench.spec import DTYPES

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Words = npt.NDArray[np.uint32]

_AT_ONCE = 1 << 15  # values, so that what is made of them stays in cache
_MOST = {"fp32": 3.4028234663852886e38, "fp16": 65504.0, "bf16": 3.3895313892515355e38}  # of finite elements


def quantise(rows: Bytes, dtype: str, payload: Payload, out: Bytes | None = None) -> Bytes:
    """Return rows of `dtype`, [R, n elements as bytes], as they travel: [R, payload.row_bytes(n)]. out: where to."""
    values = rows.shape[1] // DTYPES[dtype]
    wire = np.empty((len(rows), payload.row_bytes(values)), np.uint8) if out is None else out
    for gap in payload.padding(values):
        wire[:, gap] = 0
    if not payload.changes(dtype):
        wire[:, : rows.shape[1]] = rows
        return wire
    for tile in payload.tiles(len(rows), values, _AT_ONCE):
        x = _widened(rows[tile.rows], dtype, tile.values)
        codes = wire[tile.rows, tile.values.start * payload.code_bytes : tile.values.stop * payload.code_bytes]
        with np.errstate(all="ignore"):  # of blocks with infinity, and what is not a number
            if payload.code == "bf16":
                codes[...] = _narrowed(x, "bf16")
            else:
                codes[...], wire[tile.rows, tile.scales] = _scaled(x, tile, payload)
    return wire


def dequantise(wire: Bytes, values: int, dtype: str, payload: Payload, out: Bytes | None = None) -> Bytes:
    """Return rows as they have travelled, [R, payload.row_bytes(values)], as [R, values elements of `dtype`]."""
    rows = np.empty((len(wire), values * DTYPES[dtype]), np.uint8) if out is None else out
    if not payload.changes(dtype):
        rows[...] = wire[:, : rows.shape[1]]
        return rows
    for tile in payload.tiles(len(wire), values, _AT_ONCE):
        codes = wire[tile.rows, tile.values.start * payload.code_bytes : tile.values.stop * payload.code_bytes]
        place = slice(tile.values.start * DTYPES[dtype], tile.values.stop * DTYPES[dtype])
        with np.errstate(all="ignore"):
            if payload.code == "bf16":
                numbers = _widened(codes, "bf16", slice(0, None))
            else:
                numbers = _unscaled(codes, wire[tile.rows, tile.scales], tile, payload)
                np.clip(numbers, -_MOST[dtype], _MOST[dtype], out=numbers)
            rows[tile.rows, place] = _narrowed(numbers, dtype)
    return rows


def round_trip(rows: Bytes, dtype: str, payload: Payload) -> Bytes:
    """Return what arrives of rows of `dtype`."""
    values = rows.shape[1] // DTYPES[dtype]
    return dequantise(quantise(rows, dtype, payload), values, dtype, payload)


def _scaled(x: Floats, tile: Tile, payload: Payload) -> tuple[Bytes, Bytes]:
    """Return the codes of a tile, and the bytes of its scales."""
    blocks = x.reshape(len(x), -1, tile.length)
    largest = np.abs(blocks).max(axis=2)
    finite = np.isfinite(largest)
    largest = np.maximum(largest, np.float32(SMALLEST))
    if payload.scale_bytes == 1:
        scales = np.where(finite, _exponents(largest), E8M0_NAN).astype(np.uint8)
        # 2^(127 - code), of exponents within fp32's
        inverse = ((np.uint32(254) - np.where(finite, scales, 127).astype(np.uint32)) << 23).view(np.float32)
    else:
        most = np.float32(E4M3_LARGEST if payload.code == "e4m3" else INT8_LARGEST)
        scale = np.asarray(largest / most)
        scale[~finite] = np.array(FP32_NAN, np.uint32).view(np.float32)
        scales, inverse = scale.view(np.uint8), np.asarray(most / largest)
    shifted = np.where(finite[:, :, None], blocks * inverse[:, :, None], np.float32(0))
    codes = _e4m3(shifted) if payload.code == "e4m3" else np.rint(shifted).astype(np.int8).view(np.uint8)
    return codes.reshape(len(x), -1), scales.reshape(len(x), -1)


def _unscaled(codes: Bytes, scales: Bytes, tile: Tile, payload: Payload) -> Floats:
    """Return the numbers of a tile."""
    scales = np.ascontiguousarray(scales)
    if payload.scale_bytes == 1:
        bits = np.where(scales == E8M0_NAN, np.uint32(FP32_NAN), scales.astype(np.uint32) << 23)
        scale = bits.astype(np.uint32).view(np.float32)
    else:
        scale = scales.view(np.float32)
    numbers = _E4M3[codes] if payload.code == "e4m3" else codes.view(np.int8).astype(np.float32)
    product: Floats = (numbers.reshape(len(codes), -1, tile.length) * scale[:, :, None]).reshape(len(codes), -1)
    return product


def _exponents(largest: Floats) -> Words:
    """Return the e8m0 code of the smallest power of 2 by which `largest` is at most 448 = 1.75 x 2^8."""
    bits = largest.view(np.uint32)
    return np.asarray((bits >> 23) - 8 + ((bits & 0x7FFFFF) > 0x600000), np.uint32)


def _e4m3(x: Floats) -> Bytes:
    """Return the nearest e4m3 numbers, of two equally near ones the even one; beyond 448 it is 448."""
    bits = x.view(np.uint32)
    magnitude = bits & 0x7FFFFFFF
    normal = ((magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20) - 960  # 120 less in the exponent
    small = np.rint(np.minimum(np.abs(x), np.float32(1)) * np.float32(512)).astype(np.uint32)  # steps below 2^-6: 2^-9
    codes = np.minimum(np.where(magnitude < 0x3C800000, small, normal), 0x7E)
    return np.asarray(codes | (bits >> 24 & 0x80), np.uint8)


def _numbers_of_e4m3() -> Floats:
    """Return what each code is: sign, 4 bits of exponent with bias 7, 3 bits of fraction; 0x7F and 0xFF are NaN."""
    code = np.arange(256)
    exponent, fraction = code >> 3 & 15, code & 7
    magnitude = np.where(exponent == 0, fraction / 512, (1 + fraction / 8) * 2.0 ** (exponent - 7))
    magnitude[code & 0x7F == 0x7F] = np.nan
    return np.asarray(np.copysign(magnitude, 127.5 - code), np.float32)


_E4M3 = _numbers_of_e4m3()


def _widened(rows: Bytes, dtype: str, values: slice) -> Floats:
    """Return elements of `dtype`, given as bytes, as fp32."""
    stop = None if values.stop is None else values.stop * DTYPES[dtype]
    data = np.ascontiguousarray(rows[:, values.start * DTYPES[dtype] : stop])
    if dtype == "fp32":
        return data.view(np.float32)
    if dtype == "fp16":
        return data.view(np.float16).astype(np.float32)
    return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _narrowed(x: Floats, dtype: str) -> Bytes:
    """Return fp32 as bytes of elements of `dtype`, the nearest ones, ties to even."""
    if dtype == "fp32":
        return np.ascontiguousarray(x).view(np.uint8)
    if dtype == "fp16":
        return x.astype(np.float16).view(np.uint8)
    bits = np.ascontiguousarray(x).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(x), 0x7FC0, rounded).astype(np.uint16).view(np.uint8)
