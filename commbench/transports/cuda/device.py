"""The memory of one GPU: how much there is, and test data that are made and checked there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from commbench import data
from commbench.data import WORD_BYTES, Pattern, Run
from commbench.errors import EnvironmentProblem
from commbench.machine import gpus
from commbench.rank_info import RankInfo
from commbench.transports.device import Difference, HostGenerator
from commbench.units import format_size

_PART_BYTES = 64 << 20  # that are made or compared at a time
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}  # by bytes of an element
_FLOATS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_SUMMED = 8  # times the memory of a row that making a sum takes
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

    def cache_share(self, ranks: int) -> int:
        return self.cache_bytes()

    def identity(self) -> dict[str, Any]:
        return identity_of(self.index)

    def condition(self) -> dict[str, Any]:
        return gpus.condition(self._uuid)


class BlockGenerator:
    """`data.Pattern` on a GPU: what the host would make of it, made by the GPU, on the current stream.

    Buffers in the host's memory are the host's to make and check.
    """

    _host = HostGenerator()

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._table = torch.from_numpy(data.table().view(np.int64)).to(device)
        self._bytes = torch.arange(WORD_BYTES, device=device)

    def _of_host(self, array: torch.Tensor) -> bool:
        """Whether the host makes and checks this buffer; then no copy to or from it is under way any more."""
        if not array.is_cpu or self._device.type == "cpu":
            return False
        torch.cuda.current_stream().synchronize()
        return True

    def fill(self, array: torch.Tensor, pattern: Pattern, salt: int, *, invert: bool) -> None:
        if self._of_host(array):
            self._host.fill(array, pattern, salt, invert=invert)
            return
        for run, kept, first, last in self._parts(pattern):
            made = self._made(pattern, run, kept, first, last, salt)
            run.of(array, first, last)[...] = made.bitwise_not_() if invert else made

    def compare(self, array: torch.Tensor, pattern: Pattern, salt: int) -> list[_Compared] | Difference:
        if self._of_host(array):
            return self._host.compare(array, pattern, salt)
        compared = []
        for run, kept, first, last in self._parts(pattern):
            seen, right = run.of(array, first, last), self._made(pattern, run, kept, first, last, salt)
            kind = _INTEGERS[pattern.itemsize]
            differs = (seen.view(kind) != right.view(kind)).view(-1)
            at = differs.to(torch.uint8).argmax() * pattern.itemsize  # the first of them
            row, byte = at // run.width, at % run.width
            columns = (byte // WORD_BYTES * WORD_BYTES + self._bytes).clamp_(max=run.width - 1)
            # An index of no dimensions would make the host wait for it.
            word = seen.index_select(0, row.view(1))[0].index_select(0, columns).to(torch.int64)
            compared.append(_Compared(run, first, torch.cat([differs.sum().view(1), at.view(1), word])))
        return compared

    def read(self, compared: list[list[_Compared] | Difference]) -> list[Difference]:
        every = [part for parts in compared if not isinstance(parts, Difference) for part in parts]
        numbers = iter(torch.stack([part.numbers for part in every]).tolist() if every else [])
        return [
            parts if isinstance(parts, Difference) else _difference(parts, [next(numbers) for _ in parts])
            for parts in compared
        ]

    def _parts(self, pattern: Pattern) -> Iterator[tuple[Run, _RunOnDevice, int, int]]:
        """Parts of a pattern that need little memory beside, each with what the GPU keeps of its run."""
        for run, kept in zip(pattern.runs, self._kept(pattern).runs, strict=True):
            rows = max(1, _PART_BYTES // (run.width if run.sums is None else _SUMMED * run.width))
            for first in range(0, run.rows, rows):
                yield run, kept, first, min(run.rows, first + rows)

    def _made(self, pattern: Pattern, run: Run, kept: _RunOnDevice, first: int, last: int, salt: int) -> torch.Tensor:
        """Make the rows `first` to `last` of a run: a new matrix of bytes."""
        if kept.fixed is not None:
            return kept.fixed[first:last].clone()
        word, pool = data.call_word(salt), self._kept(pattern).pool
        tags = kept.words[first:last] ^ (word - (1 << 64) if word >> 63 else word)
        if kept.magnitudes is not None:
            count, signs = -(-run.width // WORD_BYTES), int(data.SIGNS[pattern.itemsize]) - (1 << 64)
            made = (self._table[:count] * (tags[:, None] | 1) & signs) ^ kept.magnitudes[:count]
            return made.view(torch.uint8)[:, : run.width].contiguous()
        if kept.sums is not None:
            return kept.sums.rows(tags & (data.POOL_STARTS - 1), first, run.width)
        if pool is None:
            made = self._table[: -(-run.width // WORD_BYTES)] ^ tags[:, None]
            return made.view(torch.uint8)[:, : run.width].contiguous()
        rows = pool.unfold(0, run.width // pattern.itemsize, 1)
        return rows[tags & (data.POOL_STARTS - 1)].view(torch.uint8)

    def _kept(self, pattern: Pattern) -> _OnDevice:
        if pattern.on_device is None:
            runs = [_RunOnDevice.of(run, self._device) for run in pattern.runs]
            pool = None
            if pattern.pool is not None:
                pool = torch.from_numpy(pattern.pool).to(self._device).view(_INTEGERS[pattern.itemsize])
            pattern.on_device = _OnDevice(runs, pool)
        kept: _OnDevice = pattern.on_device
        return kept


class _OnDevice(NamedTuple):
    """What the GPU keeps of a pattern: its runs, and the pool as whole numbers."""

    runs: list[_RunOnDevice]
    pool: torch.Tensor | None


class _SumsOnDevice(NamedTuple):
    """`data.Sums` on the GPU."""

    numbers: torch.Tensor
    shifts: torch.Tensor
    weights: torch.Tensor
    kind: torch.dtype
    apart: data.Apart | None  # of tensors

    def rows(self, starts: torch.Tensor, first: int, width: int) -> torch.Tensor:
        """Make the rows from `first`, whose parts begin at `starts` before they are shifted."""
        parts = self.numbers.unfold(0, width // self.kind.itemsize, 1)
        total = torch.zeros(len(starts), parts.shape[1], device=starts.device)
        rows = slice(first, first + len(starts))
        columns = torch.arange(parts.shape[1], device=starts.device)
        for part, (shifts, weights) in enumerate(zip(self.shifts[rows].T, self.weights[rows].T, strict=True)):
            # A part that is not there is one of the pool that counts nothing.
            found = (weights * (shifts >= 0))[:, None] * parts[starts + shifts.clamp(min=0)]
            if self.apart is not None:
                found *= self.apart.factors(columns, rows, part)
            total += found
        return total.to(self.kind).view(torch.uint8)


class _RunOnDevice(NamedTuple):
    """What the GPU keeps of a run: its words; or its rows, where they are fixed; of what rows are sums; magnitudes."""

    words: torch.Tensor
    fixed: torch.Tensor | None
    sums: _SumsOnDevice | None = None
    magnitudes: torch.Tensor | None = None

    @staticmethod
    def of(run: Run, device: torch.device) -> _RunOnDevice:
        words = torch.from_numpy(run.words.view(np.int64)).to(device)
        fixed = None if run.fixed is None else torch.from_numpy(run.fixed.copy()).to(device)
        if run.sums is None:
            signed = None if run.magnitudes is None else torch.from_numpy(run.magnitudes.view(np.int64)).to(device)
            return _RunOnDevice(words, fixed, None, signed)
        numbers, shifts, weights = (torch.from_numpy(part.copy()).to(device) for part in run.sums[:3])
        if (apart := run.sums.apart) is not None:
            owners, turns = (torch.from_numpy(part.copy()).to(device) for part in (apart.owners, apart.turns))
            apart = apart._replace(owners=owners, turns=turns)  # type: ignore[arg-type]
        sums = _SumsOnDevice(numbers, shifts, weights, _FLOATS[run.sums.dtype], apart)
        return _RunOnDevice(words, fixed, sums)


class _Compared(NamedTuple):
    """A comparison under way, of the rows of `run` from `first`: elements that differ, where, and eight bytes there."""

    run: Run
    first: int
    numbers: torch.Tensor


def _difference(parts: list[_Compared], numbers: list[list[int]]) -> Difference:
    """Return the outcome for a whole buffer."""
    for part, (elements, at, *word) in zip(parts, numbers, strict=True):
        if elements:
            row, byte = divmod(at, part.run.width)
            held = bytes(word[: part.run.width - byte // WORD_BYTES * WORD_BYTES])
            return Difference(sum(row[0] for row in numbers), part.run.at(part.first + row, byte), held)
    return Difference()
