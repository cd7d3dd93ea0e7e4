"""Products of rows, sorted by expert, with their expert's weights: for dtypes that torch's grouped product lacks.

grouped_mm            rows of expert e times weight e: [N, O]
grouped_mm_by_weight  for each expert the product of its rows with their gradients: [E, I, O]

How many rows each expert has stays on the device, so that the host does not wait: there are programs for as many tiles
as there can be, and those without one end at once. Sums are in fp32. Beside each stands its reference in plain torch.
Roofline: 2 N I O operations each, at the rate of a large product.

Needs a GPU and triton, and fp16 or bf16, or fp32 (whose products are then in fp32, not TF32). With TRITON_INTERPRET=1
triton runs on a CPU, slowly.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


class ProductTile(NamedTuple):
    """How a kernel cuts its output, and its sum: ROWS x COLUMNS of the output, INNER of the sum at a time."""

    rows: int
    columns: int
    inner: int
    warps: int
    stages: int


WIDE_TILE = ProductTile(128, 256, 64, 8, 4)
WEIGHT_TILE = ProductTile(128, 256, 64, 8, 4)
FP32_TILE = ProductTile(64, 64, 32, 4, 3)


def grouped_mm(rows: Tensor, weight: Tensor, counts: Tensor, tile: ProductTile | None = None) -> Tensor:
    """Multiply rows of expert e, counts[e] in number and sorted by expert, by weight e: [N, O].

    rows: [N, I]. weight: [E, I, O], of any strides. counts: int64 [E], their sum N.
    """
    many, inner = rows.shape
    experts, _, width = weight.shape
    out = rows.new_empty(many, width)
    if not out.numel():
        return out
    tile = tile or (FP32_TILE if rows.dtype == torch.float32 else WIDE_TILE)
    ends = counts.cumsum(0)
    tiles = -(-many // tile.rows) + experts  # as many as there can be: each expert may have one that is not full
    place = torch.empty(tiles, 2, dtype=torch.int64, device=rows.device)
    wide = max(2, 1 << (experts - 1).bit_length())
    _launch(
        "place_tiles", (-(-tiles // 64),), place, ends, experts, tiles, ROWS=tile.rows, TILES=64, WIDE=wide, warps=4
    )
    rows = rows.contiguous()
    _launch("grouped_mm", (tiles * -(-width // tile.columns),), out, rows, weight, place, ends, inner, width,
            *weight.stride(), ROWS=tile.rows, COLUMNS=tile.columns, INNER=tile.inner, EXACT=rows.dtype == torch.float32,
            warps=tile.warps, stages=tile.stages)  # fmt: skip
    return out


def grouped_mm_reference(rows: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """Compute `grouped_mm` in plain torch, one expert after the other."""
    parts = torch.split(rows, counts.tolist())  # waits for the device
    return torch.cat([part @ of_expert for part, of_expert in zip(parts, weight, strict=True)])


def grouped_mm_by_weight(rows: Tensor, grad: Tensor, counts: Tensor, tile: ProductTile | None = None) -> Tensor:
    """Multiply the rows of each expert, transposed, by theirs of `grad`: [E, I, O]; zeros for one without rows.

    rows: [N, I]. grad: [N, O]. counts: int64 [E], their sum N.
    """
    inner, width, experts = rows.shape[1], grad.shape[1], len(counts)
    out = rows.new_empty(experts, inner, width)
    if not out.numel():
        return out
    tile = tile or (FP32_TILE if rows.dtype == torch.float32 else WEIGHT_TILE)
    grid = (-(-inner // tile.rows) * -(-width // tile.columns), experts)
    _launch("grouped_mm_by_weight", grid, out, rows.contiguous(), grad.contiguous(), counts.cumsum(0), inner, width,
            ROWS=tile.rows, COLUMNS=tile.columns, INNER=tile.inner, EXACT=rows.dtype == torch.float32,
            warps=tile.warps, stages=tile.stages)  # fmt: skip
    return out


def grouped_mm_by_weight_reference(rows: Tensor, grad: Tensor, counts: Tensor) -> Tensor:
    """Compute `grouped_mm_by_weight` in plain torch, one expert after the other."""
    lengths = counts.tolist()  # waits for the device
    return torch.stack([x.t() @ y for x, y in zip(*(torch.split(each, lengths) for each in (rows, grad)), strict=True)])


def _launch(name: str, grid: tuple[int, ...], *arguments: Any, warps: int, stages: int = 1, **constants: int) -> None:
    from commbench_kernels import grouped_triton

    with torch.cuda.device_of(arguments[0]):  # type: ignore[no-untyped-call]
        getattr(grouped_triton, name)[grid](*arguments, **constants, num_warps=warps, num_stages=stages)
