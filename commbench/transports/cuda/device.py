"""The memory of one GPU: how much there is, and test data that are made and checked there."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from commbench import data
from commbench.errors import EnvironmentProblem
from commbench.machine import gpus
from commbench.rank_info import RankInfo
from commbench.units import format_size

_PIECES = 64  # of a block that are compared at a time
_HEADROOM = 0.95  # of free memory: contexts and libraries grow


def index_of(info: RankInfo) -> int:
    """Return the index of this rank's GPU: the launcher may show it all of the host's, or its own alone."""
    count = torch.cuda.device_count()
    if count == 1 and info.local_size > 1:
        return 0
    if info.local_rank >= count:
        raise EnvironmentProblem(
            f"rank {info.rank} is number {info.local_rank + 1} on its host, where {count} GPUs can be seen",
            hint="start as many ranks on a host as it has GPUs: ranks_per_node, or see CUDA_VISIBLE_DEVICES",
        )
    return info.local_rank


def identity_of(index: int) -> dict[str, Any]:
    """Return which GPU that is, in the words of `Device.identity`."""
    uuid = f"GPU-{torch.cuda.get_device_properties(index).uuid}"
    return {"name": torch.cuda.get_device_name(index), "uuid": uuid, "index": index}


class Cuda:
    def __init__(self, index: int) -> None:
        self.index = index
        self._uuid = identity_of(index)["uuid"]
        self.generator = BlockGenerator(torch.device("cuda", index))

    def missing_memory(self, nbytes: int, ranks: int) -> str:
        torch.cuda.empty_cache()  # what earlier cases left: symmetric buffers come from elsewhere
        available = int(torch.cuda.mem_get_info(self.index)[0] * _HEADROOM)
        if nbytes <= available:
            return ""
        return f"{format_size(nbytes)} on each GPU, {format_size(available)} available"

    def cache_bytes(self) -> int:
        return int(torch.cuda.get_device_properties(self.index).L2_cache_size)

    def identity(self) -> dict[str, Any]:
        return identity_of(self.index)

    def condition(self) -> dict[str, Any]:
        return gpus.condition(self._uuid)


class BlockGenerator:
    """`data.block_chunks` on a GPU: one table of words, combined with one word for each piece of a block."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._table = torch.from_numpy(data.table().view(np.int64)).to(device)

    def fill(self, array: torch.Tensor, offset: int, key: int, nbytes: int, *, invert: bool) -> None:
        words = self._words(key, nbytes, invert=invert)
        for first in range(0, len(words), _PIECES):
            part = self._part(words[first : first + _PIECES], nbytes - first * data.CHUNK_BYTES)
            start = offset + first * data.CHUNK_BYTES
            array[start : start + part.numel()] = part

    def count_wrong(self, array: torch.Tensor, offset: int, key: int, nbytes: int, itemsize: int) -> int:
        wrong = torch.zeros((), dtype=torch.int64, device=self._device)
        words = self._words(key, nbytes, invert=False)
        for first in range(0, len(words), _PIECES):
            part = self._part(words[first : first + _PIECES], nbytes - first * data.CHUNK_BYTES)
            start = offset + first * data.CHUNK_BYTES
            differs = array[start : start + part.numel()] != part
            wrong += differs.view(-1, itemsize).any(dim=1).sum()
        return int(wrong)

    def _words(self, key: int, nbytes: int, *, invert: bool) -> torch.Tensor:
        words = np.array(data.piece_words(key, nbytes), dtype=np.uint64)
        return torch.from_numpy((~words if invert else words).view(np.int64)).to(self._device)

    def _part(self, words: torch.Tensor, nbytes: int) -> torch.Tensor:
        """The bytes of the pieces of `words`, `nbytes` of them at most."""
        if nbytes < data.CHUNK_BYTES:  # one piece, cut short
            return (self._table[: -(-nbytes // 8)] ^ words).view(torch.uint8)[:nbytes]
        return (self._table ^ words[:, None]).view(-1).view(torch.uint8)[:nbytes]
