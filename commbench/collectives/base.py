"""What a collective is: sizes, input data, expected result, bandwidth formula."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from commbench.data import Bytes
from commbench.spec import Send, Spec


class Collective(Protocol):
    """One record per collective; the timing loop, the check and the plan are written against it."""

    name: str
    adjoint: str  # the collective that carries the gradient back
    dtypes: tuple[str, ...]

    def round_size(self, size_bytes: int, ranks: int) -> int:
        """`size_bytes` rounded down to what this collective can split evenly; may be 0."""
        ...

    def input_bytes(self, spec: Spec, rank: int) -> int: ...

    def output_bytes(self, spec: Spec, rank: int) -> int: ...

    def input_chunks(self, spec: Spec, rank: int, *, seed: int, salt: int) -> Iterator[Bytes]:
        """Rank `rank`'s input for the call numbered `salt`, from the first byte to the last, in pieces."""
        ...

    def expected_chunks(self, spec: Spec, rank: int, *, seed: int, salt: int) -> Iterator[Bytes]:
        """Rank `rank`'s right output for the call numbered `salt`, in the same form."""
        ...

    def traffic(self, spec: Spec) -> list[Send]:
        """What must travel whatever the algorithm: the ground of the bound."""
        ...

    def busbw_factor(self, spec: Spec) -> float | None:
        """busbw = algbw x this factor (nccl-tests, doc/PERFORMANCE.md); None where busbw means nothing."""
        ...
