"""Correct before fast: every rank recomputes what every block of its output must be.

The output is poisoned first with the complement of the expected bytes, so that no byte is right unless it was
written; the data of consecutive calls differ, so that a stale result is wrong everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from commbench.collectives.base import Collective
from commbench.data import Bytes
from commbench.spec import Spec
from commbench.transports.base import Array, Transport


def fill_input(transport: Transport, array: Array, collective: Collective, spec: Spec, *, seed: int, salt: int) -> None:
    """Write this rank's input for the call numbered `salt`."""
    _write(transport, array, collective.input_chunks(spec, transport.rank, seed=seed, salt=salt))


def poison(transport: Transport, array: Array, collective: Collective, spec: Spec, *, seed: int, salt: int) -> None:
    """Make every byte of the output wrong for the call numbered `salt`."""
    expected = collective.expected_chunks(spec, transport.rank, seed=seed, salt=salt)
    _write(transport, array, (np.bitwise_not(chunk) for chunk in expected))


def count_wrong(transport: Transport, array: Array, collective: Collective, spec: Spec, *, seed: int, salt: int) -> int:
    """Elements of this rank's output that differ from what the call numbered `salt` must give."""
    wrong = 0
    offset = 0
    carry = np.empty(0, dtype=bool)  # bytes of an element that two chunks share
    for chunk in collective.expected_chunks(spec, transport.rank, seed=seed, salt=salt):
        differs = transport.download(array, offset, chunk.size) != chunk
        offset += chunk.size
        if not carry.size and chunk.size % spec.itemsize == 0 and not differs.any():
            continue
        differs = np.concatenate([carry, differs]) if carry.size else differs
        whole = differs.size // spec.itemsize * spec.itemsize
        wrong += int(differs[:whole].reshape(-1, spec.itemsize).any(axis=1).sum())
        carry = differs[whole:]
    return wrong


def _write(transport: Transport, array: Array, chunks: Iterator[Bytes]) -> None:
    offset = 0
    for chunk in chunks:
        transport.upload(array, offset, chunk)
        offset += chunk.size
