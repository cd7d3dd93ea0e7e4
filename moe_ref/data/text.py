"""One file of text as a memory map of bytes: its split, its batches, and the entropy that a model has to beat.

A batch is a function of the seed and the step, so a run that goes on knows where it was, on any number of ranks.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from commbench.errors import UsageError

Bytes = npt.NDArray[np.uint8]
_SAMPLE = "sample.txt"
_BLOCK, _BLOCKS = 1 << 16, 64  # of which a digest is made: a text of many gigabytes is not read for it
_CHUNK = 1 << 24


def sample() -> Path:
    """Return the path of the text that comes with the package; sample.md beside it says what it is."""
    return Path(__file__).resolve().parent / _SAMPLE


class TextDataset:
    """A file of text of which the last `validation` is held out; a batch for training never touches it."""

    def __init__(self, path: Path | None = None, *, context: int, validation: float = 0.1) -> None:
        """path: None for the sample. context: S, the positions that a model predicts.

        Raises `UsageError` where there is no such file, or it is too short for either part.
        """
        self.path, self.context = path or sample(), context
        if not 0 < validation < 1:
            raise UsageError(f"validation is {validation}", hint="the part of the text that is held out: 0 < part < 1")
        try:
            size = self.path.stat().st_size
            self.all: Bytes = np.memmap(self.path, np.uint8, "r") if size else np.empty(0, np.uint8)
        except OSError as error:
            raise UsageError(
                f"cannot read the text {str(self.path)!r}: {error.strerror}", hint="path=FILE, any file of bytes"
            ) from error
        held_out = int(size * validation)
        self.train, self.held_out = self.all[: size - held_out], self.all[size - held_out :]
        if min(len(self.train), len(self.held_out)) <= context:
            raise UsageError(
                f"{str(self.path)!r} has {size} bytes, {len(self.train)} to train on and {len(self.held_out)} held out",
                hint=f"each part needs more than context={context}: take a longer text, or a smaller context",
            )

    def batch(self, sequences: int, *, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """Return bytes and the bytes after them: int64 [B, S] each, B = `sequences`, drawn for this seed and step."""
        starts = len(self.train) - self.context
        # Raw numbers of a counter-based generator are the same in every version of numpy.
        raw = np.random.Philox(key=[seed, step]).random_raw(sequences)
        return self._windows(self.train, (raw % np.uint64(starts)).astype(np.int64))

    def validation(self, sequences: int) -> tuple[Tensor, Tensor]:
        """Return the same of the held-out part: always the same bytes, evenly spread.

        Raises `UsageError` for more sequences than fit without overlap.
        """
        fit = (len(self.held_out) - 1) // self.context
        if not 0 < sequences <= fit:
            raise UsageError(f"{sequences} sequences of {self.context} bytes to validate on",
                             hint=f"1 to {fit} fit into the {len(self.held_out)} bytes that are held out")  # fmt: skip
        starts = np.linspace(0, len(self.held_out) - 1 - self.context, sequences).astype(np.int64)
        return self._windows(self.held_out, starts)

    def identity(self) -> dict[str, Any]:
        """Return what tells this text from another one: its length, and a digest of bytes all over it."""
        starts = np.linspace(0, max(0, len(self.all) - _BLOCK), _BLOCKS).astype(np.int64)
        digest = hashlib.sha256()
        for start in starts:
            digest.update(self.all[start : start + _BLOCK].tobytes())
        return {"bytes": len(self.all), "digest": digest.hexdigest()[:16]}

    def entropy(self) -> float:
        """Compute the unigram entropy of the whole text in bits a byte: what a model gets without context."""
        counts = np.zeros(256, np.int64)
        for first in range(0, len(self.all), _CHUNK):  # numpy counts in a copy that is eight times as large
            counts += np.bincount(self.all[first : first + _CHUNK], minlength=256)
        shares = counts[counts > 0] / len(self.all)
        return float(-(shares * np.log2(shares)).sum())

    def _windows(self, part: Bytes, starts: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        rows = np.stack([part[start : start + self.context + 1] for start in starts]).astype(np.int64)
        found = torch.from_numpy(rows)
        return found[:, :-1], found[:, 1:]
