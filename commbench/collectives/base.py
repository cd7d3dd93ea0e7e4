"""What a collective is: sizes, input data, expected result, bandwidth formula."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from commbench.data import Block, Bytes, Pattern
from commbench.layout import Layout
from commbench.links import Need
from commbench.spec import DTYPES, Arguments, Spec, Value

# nccl-tests keeps each rank's part a multiple of 16 bytes, so that any dtype and vector width fits.
PART_BYTES = 16


def round_down(size_bytes: int, parts: int = 1) -> int:
    """Return the largest size up to this one that `parts` equal parts make: multiples of 16 bytes, or 8, 4, 2 or 1."""
    part = size_bytes // parts
    if part >= PART_BYTES:
        return part // PART_BYTES * PART_BYTES * parts
    return (1 << part.bit_length() - 1) * parts if part else 0


class Argument(NamedTuple):
    """A key that a collective understands.

    choices: words that it may be. limits: kind, smallest and largest of a number that it may be. read: what reads the
    file that it names; its content is stored, as a run must not change with the file.
    """

    default: Value | None
    text: str
    choices: tuple[str, ...] = ()
    limits: tuple[type[int] | type[float], float, float] | None = None
    read: Callable[[str], str] | None = None


class InPlace(NamedTuple):
    """How input and output share one buffer: its bytes, and where each of the two begins in it."""

    nbytes: int
    output_at: int
    input_at: int


class Collective(Protocol):
    """One record per collective; the timing loop, the check and the plan are written against it."""

    name: str
    adjoint: str  # the collective that carries the gradient back
    dtypes: tuple[str, ...]
    arguments: dict[str, Argument]
    alone: bool  # whether a rank does it by itself
    routed: bool  # whether tokens choose their experts, so that it knows tokens, top_k and what follows

    def reduces(self, arguments: Arguments) -> bool:
        """Whether it computes with the elements, and so needs a dtype that the transport knows."""
        ...

    def variants(self, arguments: Arguments, layout: Layout) -> Iterator[Arguments]:
        """What `arguments` ask for, one after the other, where one of them stands for several values."""
        ...

    def settle(self, size_bytes: int, layout: Layout, arguments: Arguments) -> tuple[int, Arguments]:
        """The largest size up to `size_bytes` that can be done, and the arguments that have an effect on it.

        The size may be 0. Raises `ValueError`, in words, where no size is possible on this layout.
        """
        ...

    def unsupported(self, spec: Spec) -> str:
        """Return in words why this cannot be done or checked; "" if it can."""
        ...

    def input_bytes(self, spec: Spec, rank: int) -> int: ...

    def output_bytes(self, spec: Spec, rank: int) -> int: ...

    def host_memory(self, spec: Spec) -> tuple[str, str]:
        """Which of output and input is in the host's memory, `pinned` or `pageable`; "": it is where the device is."""
        ...

    def in_place(self, spec: Spec, rank: int) -> InPlace | None:
        """How input and output share a buffer, as MPI_IN_PLACE and NCCL have it; None where that is not defined."""
        ...

    def repeatable(self, spec: Spec) -> bool:
        """Whether a call on what the last one left gives the same again: so calls without new data can be checked."""
        ...

    def input_blocks(self, spec: Spec, rank: int, *, seed: int) -> Iterator[Block]:
        """Rank `rank`'s input: blocks, one after the other."""
        ...

    def expected_blocks(self, spec: Spec, rank: int, *, seed: int) -> Iterator[Block]:
        """Rank `rank`'s right output, in the same form."""
        ...

    def input_pool(self, spec: Spec, rank: int) -> Bytes | None:
        """Where it computes: the numbers of which each piece of the input is a part (`data.Pattern`)."""
        ...

    def expected_pool(self, spec: Spec, rank: int) -> Bytes | None:
        """What the pools of all ranks give together, element by element: the right output is made of it."""
        ...

    def input_pattern(self, spec: Spec, rank: int, *, seed: int) -> Pattern:
        """Return what rank `rank`'s input holds in any call."""
        ...

    def expected_pattern(self, spec: Spec, rank: int, *, seed: int) -> Pattern:
        """Return what rank `rank`'s right output holds in any call."""
        ...

    def on_wire(self, spec: Spec) -> Spec:
        """Return what an algorithm is asked to do, where elements travel as something else than they are."""
        ...

    def needs(self, spec: Spec) -> list[Need]:
        """What must travel whatever the algorithm: the ground of the bound."""
        ...

    def busbw_factor(self, spec: Spec) -> float | None:
        """busbw = algbw x this factor (nccl-tests, doc/PERFORMANCE.md); None where busbw means nothing."""
        ...

    def mean_bytes(self, spec: Spec) -> float | None:
        """Mean over ranks of the bytes that they send, own block included; None where all ranks are alike."""
        ...


class Moves:
    """What most collectives that only move data share: every dtype, no arguments, all ranks alike."""

    dtypes = tuple(DTYPES)
    arguments: dict[str, Argument] = {}
    alone = False
    routed = False

    def reduces(self, arguments: Arguments) -> bool:
        return False

    def variants(self, arguments: Arguments, layout: Layout) -> Iterator[Arguments]:
        yield arguments

    def settle(self, size_bytes: int, layout: Layout, arguments: Arguments) -> tuple[int, Arguments]:
        return round_down(size_bytes, layout.ranks), arguments

    def part_bytes(self, spec: Spec) -> int:
        """Return bytes of a part, which has whole elements."""
        return spec.block_bytes

    def unsupported(self, spec: Spec) -> str:
        part = self.part_bytes(spec)
        return f"{part} B are not a whole number of {spec.dtype}" if part % spec.itemsize else ""

    def host_memory(self, spec: Spec) -> tuple[str, str]:
        return "", ""

    def in_place(self, spec: Spec, rank: int) -> InPlace | None:
        return None

    def repeatable(self, spec: Spec) -> bool:
        return True

    def mean_bytes(self, spec: Spec) -> float | None:
        return None

    def input_pool(self, spec: Spec, rank: int) -> Bytes | None:
        return None

    def expected_pool(self, spec: Spec, rank: int) -> Bytes | None:
        return None

    def input_blocks(self, spec: Spec, rank: int, *, seed: int) -> Iterator[Block]:
        raise NotImplementedError

    def expected_blocks(self, spec: Spec, rank: int, *, seed: int) -> Iterator[Block]:
        raise NotImplementedError

    def input_pattern(self, spec: Spec, rank: int, *, seed: int) -> Pattern:
        return Pattern(self.input_blocks(spec, rank, seed=seed), spec.itemsize, self.input_pool(spec, rank))

    def expected_pattern(self, spec: Spec, rank: int, *, seed: int) -> Pattern:
        return Pattern(self.expected_blocks(spec, rank, seed=seed), spec.itemsize, self.expected_pool(spec, rank))

    def on_wire(self, spec: Spec) -> Spec:
        return spec


class Blocks(Moves):
    """A collective that moves whole blocks of data, from one rank to another, whose bytes mean nothing to it."""
