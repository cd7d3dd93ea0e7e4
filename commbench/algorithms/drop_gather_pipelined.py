"""drop_gather_pipelined: `drop_gather` in chunks, so that the gathers hide behind the exchanges between groups.

MoNTA (arXiv 2411.00662) has four chunks and a copy of each into its place; here every piece arrives in its place.
"""

from __future__ import annotations

from commbench.algorithms.chunks import unsupported_chunks
from commbench.algorithms.drop_gather import DropGather, slice_unit
from commbench.collectives.tp_all_to_all import group_block_bytes
from commbench.spec import Spec


class DropGatherPipelined(DropGather):
    name = "drop_gather_pipelined"
    params = {"chunks": (4, "chunks of every block: one is exchanged while the one before is gathered")}
    tries = {"chunks": (2, 4, 8)}
    concurrent = True

    def unsupported(self, spec: Spec) -> str:
        return unsupported_chunks(group_block_bytes(spec), spec.params["chunks"], slice_unit(spec))
