"""Payloads of torch's tensors, on a CPU or a GPU: the same bytes as `payloads.arrays` makes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from commbench.payloads import E4M3_LARGEST, E8M0_NAN, FP32_NAN, INT8_LARGEST, SMALLEST, Payload, Tile

KINDS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
DTYPES = {kind: dtype for dtype, kind in KINDS.items()}
_BF16_NAN = 0x7FC0  # which torch's own conversion makes in some places only
_AT_ONCE_CPU, _AT_ONCE_GPU = 1 << 16, 1 << 26  # values: what stays in cache, and what memory has room for


def quantise(x: Tensor, payload: Payload, out: Tensor | None = None) -> Tensor:
    """Return rows as they travel, uint8 [R, payload.row_bytes(n)]. x: [R, n], the last dimension dense. out: where to.

    Its rounding has no gradient.
    """
    x = x.detach()
    rows, values = x.shape
    wire = x.new_empty(rows, payload.row_bytes(values), dtype=torch.uint8) if out is None else out
    for gap in payload.padding(values):
        wire[:, gap] = 0
    if not payload.changes(DTYPES[x.dtype]):
        wire[:, : values * x.itemsize] = x.view(torch.uint8)
        return wire
    for tile in payload.tiles(rows, values, _at_once(x)):
        part = x[tile.rows, tile.values]
        codes = wire[tile.rows, tile.values.start * payload.code_bytes : tile.values.stop * payload.code_bytes]
        if payload.code == "bf16":
            halves = part.bfloat16().view(torch.int16)
            codes.copy_(torch.where(part == part, halves, _BF16_NAN).view(torch.uint8))
        else:
            _scale(part.float(), codes, wire[tile.rows, tile.scales], tile, payload)
    return wire


def dequantise(wire: Tensor, values: int, dtype: torch.dtype, payload: Payload, out: Tensor | None = None) -> Tensor:
    """Return rows as they have travelled, uint8 [R, payload.row_bytes(values)], as [R, values] of `dtype`."""
    rows, most = len(wire), torch.finfo(dtype).max
    x = wire.new_empty(rows, values, dtype=dtype) if out is None else out
    if not payload.changes(DTYPES[dtype]):
        x.view(torch.uint8).copy_(wire[:, : values * x.itemsize])
        return x
    for tile in payload.tiles(rows, values, _at_once(wire)):
        codes = wire[tile.rows, tile.values.start * payload.code_bytes : tile.values.stop * payload.code_bytes]
        if payload.code == "bf16":
            x[tile.rows, tile.values] = codes.contiguous().view(torch.bfloat16)
        else:
            numbers = _unscale(codes, wire[tile.rows, tile.scales].contiguous(), tile, payload)
            x[tile.rows, tile.values] = numbers.clamp_(-most, most)
    return x


def _scale(x: Tensor, codes: Tensor, scales: Tensor, tile: Tile, payload: Payload) -> None:
    """Write the codes of a tile of fp32, and the bytes of its scales."""
    blocks = x.view(len(x), -1, tile.length)
    largest = blocks.abs().amax(2)
    finite = largest.isfinite()
    largest = largest.clamp_(min=SMALLEST)
    if payload.scale_bytes == 1:
        bits = largest.view(torch.int32)
        exponents = (bits >> 23) - 8 + ((bits & 0x7FFFFF) > 0x600000)
        scales.copy_(torch.where(finite, exponents, E8M0_NAN))
        inverse = ((254 - torch.where(finite, exponents, 127)) << 23).view(torch.float32)
    else:
        # Tensors, as torch divides by a number, and a number by a tensor, by way of the reciprocal: that rounds twice.
        most = largest.new_tensor(E4M3_LARGEST if payload.code == "e4m3" else INT8_LARGEST)
        scales.copy_(torch.where(finite, largest / most, math.nan).view(torch.uint8))
        inverse = most / largest
    shifted = blocks * inverse[:, :, None]
    if payload.code == "e4m3":
        made = shifted.clamp_(-E4M3_LARGEST, E4M3_LARGEST).to(torch.float8_e4m3fn)
    else:
        made = shifted.round_().to(torch.int8)
    codes.copy_((made.view(torch.uint8) & finite.to(torch.uint8).mul_(0xFF)[:, :, None]).flatten(1))


def _unscale(codes: Tensor, scales: Tensor, tile: Tile, payload: Payload) -> Tensor:
    """Return the numbers of a tile."""
    if payload.scale_bytes == 1:
        exponents = scales.to(torch.int32)
        scale = torch.where(exponents == E8M0_NAN, FP32_NAN, exponents << 23).view(torch.float32)
    else:
        scale = scales.view(torch.float32)
    whole = codes.contiguous().view(torch.int8)
    if payload.code == "e4m3":
        # As fp16, whose exponent has a bit more and is 8 less: torch's own conversion takes four times as long.
        numbers = (whole.to(torch.int16) << 7 & -0x4001).view(torch.float16).float().mul_(256)
    else:
        numbers = whole.float()
    return (numbers.view(len(codes), -1, tile.length) * scale[:, :, None]).flatten(1)


def _at_once(x: Tensor) -> int:
    return _AT_ONCE_CPU if x.device.type == "cpu" else _AT_ONCE_GPU
