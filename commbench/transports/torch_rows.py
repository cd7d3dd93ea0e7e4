"""Work on rows in torch, on the host or on a GPU: see `rows.Rows`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from commbench.transports.rows import RowsBase

_WORD = torch.int64  # rows are copied in words of this kind
_FLOATS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class TorchRows(RowsBase):
    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type != "cpu":
            self.piece_rows = 1 << 20  # all of them: what counts is the number of kernels

    def known(self, numbers: Any) -> torch.Tensor:
        return torch.from_numpy(numbers).to(self._device)

    def copy(self, out: torch.Tensor, to: Any, inp: torch.Tensor, source: torch.Tensor) -> None:
        words, given = out.view(_WORD), inp.view(_WORD)
        if to is None:
            torch.index_select(given, 0, source, out=words)
        else:
            words.index_copy_(0, to, given.index_select(0, source))

    def add(self, out: torch.Tensor, origins: Sequence[torch.Tensor], sums: Any, dtype: str) -> None:
        if sums.copied is not None:
            self.copy(out, None, origins[sums.copied.origin], sums.copied.source)
        for rows, parts in sums.pieces:
            to = out[rows].view(_FLOATS[dtype])
            total = torch.zeros(to.shape, dtype=torch.float32, device=self._device)
            for part in parts:
                terms = origins[part.origin].view(_WORD).index_select(0, part.source).view(_FLOATS[dtype])
                if part.to is not None:
                    terms = terms.float() if part.weights is None else terms * part.weights[:, None]
                    total.index_copy_(0, part.to, total.index_select(0, part.to).add_(terms))
                elif part.weights is None:
                    total.add_(terms)
                else:
                    total.addcmul_(terms, part.weights[:, None])
            to.copy_(total)
