"""all_to_allv: as all_to_all, with a size of its own for each pair of ranks: what a Mixture-of-Experts layer does.

`size_bytes` is the bottleneck, as in nccl-tests: the most that one rank sends or receives.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from commbench.collectives import splits
from commbench.collectives.base import Argument
from commbench.collectives.payload import PAYLOAD, PayloadBlocks, kept
from commbench.data import Block, block_key
from commbench.layout import Layout
from commbench.links import Need, of_messages
from commbench.spec import Arguments, Send, Spec


class AllToAllV(PayloadBlocks):
    name = "all_to_allv"
    adjoint = "all_to_allv"  # with the counts transposed
    arguments = {
        "splits": Argument("even", "how the bytes are split among the receivers", splits.CHOICES),
        "alpha": Argument(1.0, "splits=zipf: the exponent; 0 is even", limits=(float, 0, 100)),
        "experts": Argument(None, "splits=zipf: experts, in equal numbers on each rank; without it one per rank",
                            limits=(int, 1, 1 << 30)),
        "matrix": Argument(None, "splits=matrix: a file in nccl-tests' form", read=splits.read_matrix),
        "trace": Argument(None, "splits=trace: a file of recorded token counts", read=splits.read_trace),
        "step": Argument(0, "splits=trace: which step", limits=(int, 0, 1 << 40)),
        "row_bytes": Argument(None, "bytes of a token, which is never cut; 16 where nothing says",
                              limits=(int, 1, 1 << 40)),
        "send_bytes": Argument(None, "bytes that each rank sends; the size then follows from the splits",
                               limits=(int, 1, 1 << 50)),
        "payload": PAYLOAD,
    }  # fmt: skip

    def settle(self, size_bytes: int, layout: Layout, arguments: Arguments) -> tuple[int, Arguments]:
        size, settled = splits.settle(size_bytes, layout.ranks, arguments)
        return size, {**settled, **kept(arguments)}

    def unsupported(self, spec: Spec) -> str:
        odd = self.counts(spec) % spec.itemsize
        if not odd.any():
            return self.unsupported_payload(spec)  # no block is a rank's equal part
        i, j = (int(index[0]) for index in odd.nonzero())
        return f"{self.counts(spec)[i, j]} B from rank {i} to rank {j} are not a whole number of {spec.dtype}"

    def counts(self, spec: Spec) -> splits.Matrix:
        """Bytes from rank i to rank j in row i, column j."""
        return splits.counts(spec.ranks, spec.arguments)

    def wire_spec(self, spec: Spec) -> Spec:
        counts = self.counts(spec)
        wire = {nbytes: self.wire_bytes(spec, nbytes) for nbytes in np.unique(counts).tolist()}
        matrix = np.array([[wire[nbytes] for nbytes in row] for row in counts.tolist()], dtype=np.int64)
        arguments = {"splits": "matrix", "matrix": json.dumps(matrix.tolist(), separators=(",", ":"))}
        return replace(spec, size_bytes=splits.size_of(matrix), arguments=arguments)

    def sent(self, spec: Spec, rank: int) -> list[int]:
        counts: list[int] = self.counts(spec)[rank].tolist()
        return counts

    def received(self, spec: Spec, rank: int) -> list[int]:
        counts: list[int] = self.counts(spec)[:, rank].tolist()
        return counts

    def input_bytes(self, spec: Spec, rank: int) -> int:
        return int(self.counts(spec)[rank].sum())

    def output_bytes(self, spec: Spec, rank: int) -> int:
        return int(self.counts(spec)[:, rank].sum())

    def input_blocks(self, spec: Spec, rank: int, *, seed: int) -> Iterator[Block]:
        for dst, nbytes in enumerate(self.counts(spec)[rank].tolist()):
            yield Block(block_key(seed, rank, dst), nbytes)

    def expected_blocks(self, spec: Spec, rank: int, *, seed: int) -> Iterator[Block]:
        for src, nbytes in enumerate(self.counts(spec)[:, rank].tolist()):
            yield Block(block_key(seed, src, rank), nbytes)

    def messages(self, spec: Spec) -> list[Send]:
        """One message for each pair of ranks that have something to say."""
        rows = enumerate(self.counts(spec).tolist())
        return [Send(i, j, n) for i, row in rows for j, n in enumerate(row) if n and i != j]

    def needs(self, spec: Spec) -> list[Need]:
        return of_messages(self.messages(self.on_wire(spec)), spec.layout)

    def busbw_factor(self, spec: Spec) -> float | None:
        return (spec.ranks - 1) / spec.ranks

    def mean_bytes(self, spec: Spec) -> float | None:
        return float(self.counts(spec).sum()) / spec.ranks
