"""tp_all_to_all: an all-to-all between tensor-parallel groups, whose ranks all hold the same tokens.

`tp` consecutive ranks of a node form a tensor-parallel group, so there are e = ranks / tp of them. A rank's input is
e blocks; block d goes to group d, and every rank of group d ends with the block of each group, in order. The input is
the same on all ranks of a group (`tp_input=replicated`: tokens after attention, on the way to the experts), or each
has a summand of it and the sum is what travels (`partial`: the outputs of experts that are cut over the group).

`size_bytes` is one rank's whole dispatch buffer, input and output alike, before an algorithm drops duplicates.
Settings and names: Singh et al., "A Hybrid Tensor-Expert-Data Parallelism Approach to Optimize Mixture-of-Experts
Training" (DeepSpeed-TED, arXiv 2303.06318).
"""

from __future__ import annotations

from collections.abc import Iterator

from commbench.collectives.base import Argument, Moves
from commbench.collectives.reductions import combined_pool, pool, unsupported_reduction
from commbench.data import Block, Bytes, block_key
from commbench.layout import Layout
from commbench.links import Need, of_shared
from commbench.spec import Arguments, Spec

INPUTS = ("replicated", "partial")


class TpAllToAll(Moves):
    name = "tp_all_to_all"
    adjoint = "tp_all_to_all"  # gradients of replicated tensors are replicated
    arguments = {
        "tp": Argument(None, "ranks of a tensor-parallel group; without it all of a node", limits=(int, 2, 1024)),
        "tp_input": Argument("replicated", "what the ranks of a tensor-parallel group have", INPUTS),
    }

    def reduces(self, arguments: Arguments) -> bool:
        return arguments["tp_input"] == "partial"

    def settle(self, size_bytes: int, layout: Layout, arguments: Arguments) -> tuple[int, Arguments]:
        m = layout.ranks_per_node
        tp = int(arguments.get("tp") or m)
        if tp < 2:
            raise ValueError(f"tp={tp}: a tensor-parallel group is 2 ranks of a node or more, and nodes here have {m}")
        if m % tp:
            raise ValueError(f"tp={tp}: the {m} ranks of a node do not divide into tensor-parallel groups of {tp}")
        if layout.ranks == tp:
            raise ValueError(f"tp={tp}: all {tp} ranks are one tensor-parallel group, with no other to exchange with")
        size, _ = super().settle(size_bytes, layout, arguments)
        return size, {**arguments, "tp": tp}

    def unsupported(self, spec: Spec) -> str:
        odd = super().unsupported(spec)
        return odd or (unsupported_reduction(tp_of(spec), spec.dtype, "sum") if self.reduces(spec.arguments) else "")

    def input_bytes(self, spec: Spec, rank: int) -> int:
        return spec.size_bytes

    def output_bytes(self, spec: Spec, rank: int) -> int:
        return spec.size_bytes

    def input_blocks(self, spec: Spec, rank: int, *, seed: int) -> Iterator[Block]:
        tp = tp_of(spec)
        for dst in range(spec.ranks // tp):
            yield Block(block_key(seed, rank // tp, dst), group_block_bytes(spec))

    def expected_blocks(self, spec: Spec, rank: int, *, seed: int) -> Iterator[Block]:
        tp = tp_of(spec)
        for src in range(spec.ranks // tp):
            yield Block(block_key(seed, src, rank // tp), group_block_bytes(spec))

    def input_pool(self, spec: Spec, rank: int) -> Bytes | None:
        if not self.reduces(spec.arguments):
            return None
        tp = tp_of(spec)
        return pool(spec.dtype, "sum", rank=rank % tp, ranks=tp, largest=group_block_bytes(spec))

    def expected_pool(self, spec: Spec, rank: int) -> Bytes | None:
        if not self.reduces(spec.arguments):
            return None
        return combined_pool(spec.dtype, "sum", ranks=tp_of(spec), largest=group_block_bytes(spec))

    def needs(self, spec: Spec) -> list[Need]:
        block, e = group_block_bytes(spec), spec.ranks // tp_of(spec)
        here = spec.layout.ranks_per_node // tp_of(spec)  # groups of one node, each with blocks of its own
        return of_shared(block * (e - 1), block * here * (e - here), spec.layout)

    def busbw_factor(self, spec: Spec) -> float | None:
        return None


def tp_of(spec: Spec) -> int:
    """Ranks of a tensor-parallel group."""
    return int(spec.arguments["tp"])


def group_block_bytes(spec: Spec) -> int:
    """Bytes from one tensor-parallel group to another."""
    return spec.size_bytes // (spec.ranks // tp_of(spec))


def tensor_parallel(spec: Spec) -> list[list[int]]:
    """The ranks of each tensor-parallel group: e lists of tp ranks."""
    return spec.layout.partition(f"blocks:{tp_of(spec)}")


def expert_parallel(spec: Spec) -> list[list[int]]:
    """The ranks of equal place in all tensor-parallel groups: tp lists of e ranks."""
    return [list(ranks) for ranks in zip(*tensor_parallel(spec), strict=True)]
