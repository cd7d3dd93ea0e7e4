"""dispatch: every token to the ranks of its experts. combine is the way back.

A rank's input is T tokens, one row each, and of each K experts with their weights. Its output is the rows that some
rank's tokens have for its experts, and of each row where it comes from: `output=expert` has a row for each choice, by
expert, then source rank, then token, as grouped products want them; `output=rank` has one for each token, by source
rank, then token, with all of its experts on this rank.

Rows may travel as a payload, each quantised once, where its token is, whatever the hops.

A buffer is rows first, then weights, then numbers, as `Fields` has them. With `counts=cached` all ranks know the
routing beforehand, as in a backward pass, and rows are all there is.

`size_bytes` is T x row bytes of one rank's tokens: what is known before the routing is, and equal for all algorithms.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from commbench.collectives import routing
from commbench.collectives.base import Argument
from commbench.collectives.payload import PAYLOAD, PayloadMoves, kept, magnitudes_of
from commbench.collectives.routing import Ints
from commbench.collectives.splits import ROW_BYTES, read_trace
from commbench.data import CHUNK_BYTES, Bytes, Pattern, Run, Words, block_keys, piece_words
from commbench.layout import Layout
from commbench.links import Need, shared_needs
from commbench.spec import Arguments, Spec, Value

OUTPUTS, COUNTS = ("expert", "rank"), ("host", "cached", "device")
ROW_UNIT = 16  # of a row's bytes, so that any dtype and vector width fits
NUMBER_BYTES = 4  # of a weight, an expert, a rank, a token's place


class Fields(NamedTuple):
    """What an output says of its rows: the rank and the place of the token, and experts, [rows, 1 or top_k].

    choices: which of the token's experts these are. With `output=rank` they are all of them, those of other ranks too.
    """

    source: Ints
    token: Ints
    experts: Ints
    choices: Ints

    @property
    def numbers(self) -> Bytes:
        """Return source, token and experts of each row as they lie in a buffer."""
        return as_bytes(np.column_stack([self.source, self.token, self.experts]).astype(np.int32))


def as_bytes(matrix: np.ndarray) -> Bytes:
    """Return rows of numbers as rows of bytes."""
    return np.ascontiguousarray(matrix).view(np.uint8)


ROUTED: dict[str, Argument] = {
    "row_bytes": Argument(None, "bytes of a token, in place of model_dim", limits=(int, 1, 1 << 40)),
    "experts": Argument(None, "experts, in equal numbers on each rank; without it 4 of each rank, or more for top_k",
                        limits=(int, 1, 1 << 30)),
    "router": Argument("uniform", "how tokens choose their experts", routing.ROUTERS),
    "alpha": Argument(1.0, "router=zipf: the exponent; 0 is uniform", limits=(float, 0, 100)),
    "expert_groups": Argument(None, "router=grouped: groups into which the experts are divided",
                              limits=(int, 1, 1 << 20)),
    "group_limit": Argument(None, "router=grouped: of how many groups a token has experts; without it half of them",
                            limits=(int, 1, 1 << 20)),
    "router_seed": Argument(0, "of the routing", limits=(int, 0, 1 << 62)),
    "trace": Argument(None, "router=trace: an .npz file with the experts of each token", read=read_trace),
    "step": Argument(0, "router=trace: which step", limits=(int, 0, 1 << 40)),
    "output": Argument("expert", "a row for each choice, by expert, or for each token, by rank", OUTPUTS),
    "payload": PAYLOAD,
}  # fmt: skip


class Routed(PayloadMoves):
    """What `dispatch` and `combine` share: whose rows go where."""

    routed = True

    def settle(self, size_bytes: int, layout: Layout, arguments: Arguments) -> tuple[int, Arguments]:
        row = int(arguments.get("row_bytes") or ROW_BYTES)
        settled = {**routing.settle(arguments, layout.ranks), "row_bytes": row}
        settled |= {key: arguments[key] for key in ("output", "counts") if key in arguments}
        tokens = int(settled.pop("trace_tokens", size_bytes // row))
        return tokens * row, {**settled, **kept(arguments)}

    def unsupported(self, spec: Spec) -> str:
        row = int(spec.arguments["row_bytes"])
        if row % ROW_UNIT:
            return f"a row of {row} B is not a multiple of {ROW_UNIT} B"
        return self.unsupported_payload(spec)

    def wire_spec(self, spec: Spec) -> Spec:
        shape = routing.shape_of(spec)
        row = self.wire_bytes(spec, shape.row_bytes)
        arguments = {key: value for key, value in spec.arguments.items() if key != "payload"}
        return replace(spec, size_bytes=shape.tokens * row, arguments={**arguments, "row_bytes": row})

    def needs(self, spec: Spec) -> list[Need]:
        """Return what ranks and nodes lack: a row for each token that others have for one of their experts."""
        counts, layout = routing.counts_of(spec), spec.layout
        row = self.wire_bytes(spec, routing.shape_of(spec).row_bytes)
        foreign = counts.ranks.sum(axis=0) - counts.ranks.diagonal()
        of_node = counts.nodes.reshape(layout.nodes, layout.ranks_per_node, layout.nodes).sum(axis=1)
        to_node = of_node.sum(axis=0) - of_node.diagonal()
        here = foreign.reshape(layout.nodes, layout.ranks_per_node).sum(axis=1)
        most = (float(rows.max()) * row for rows in (foreign, here, to_node))
        return shared_needs(layout, *most)

    def busbw_factor(self, spec: Spec) -> float | None:
        return None


class TokenDispatch(Routed):
    name = "dispatch"
    adjoint = "combine"
    arguments = {
        **ROUTED,
        "counts": Argument("host", "who knows how many rows come: the host, once counts were exchanged; the GPU alone "
                           "(device); or everybody beforehand (cached)", COUNTS),
    }  # fmt: skip

    def sent(self, spec: Spec, rank: int) -> list[int]:
        shape = routing.shape_of(spec)
        return [shape.row_bytes] * shape.tokens

    def received(self, spec: Spec, rank: int) -> list[int]:
        return [routing.shape_of(spec).row_bytes] * len(fields_of(spec, rank).token)

    def input_bytes(self, spec: Spec, rank: int) -> int:
        shape = routing.shape_of(spec)
        return spec.size_bytes + (0 if cached(spec) else shape.tokens * shape.top_k * 2 * NUMBER_BYTES)

    def output_bytes(self, spec: Spec, rank: int) -> int:
        fields = fields_of(spec, rank)
        rows, row = len(fields.token), routing.shape_of(spec).row_bytes
        said = 0 if cached(spec) else (2 + 2 * fields.experts.shape[1]) * NUMBER_BYTES
        return rows * (row + said)

    def input_pattern(self, spec: Spec, rank: int, *, seed: int) -> Pattern:
        shape = routing.shape_of(spec)
        tokens = np.arange(shape.tokens)
        here = np.full(shape.tokens, rank)
        keys = [(here, tokens)]
        fixed = None
        if not cached(spec):
            numbers = np.arange(shape.tokens * shape.top_k) + shape.tokens
            keys.append((np.full(len(numbers), rank), numbers))
            fixed = as_bytes(routing.routing_of(spec).experts[rank])
        return _pattern(spec, seed, keys, fixed, magnitudes_of(spec, arrived=False))

    def expected_pattern(self, spec: Spec, rank: int, *, seed: int) -> Pattern:
        shape, fields = routing.shape_of(spec), fields_of(spec, rank)
        keys = [(fields.source, fields.token)]
        if cached(spec):
            return _pattern(spec, seed, keys, None, magnitudes_of(spec, arrived=True))
        numbers = shape.tokens + fields.token[:, None] * shape.top_k + fields.choices
        keys.append((np.repeat(fields.source, numbers.shape[1]), numbers.ravel()))
        return _pattern(spec, seed, keys, fields.numbers, magnitudes_of(spec, arrived=True))


def cached(spec: Spec) -> bool:
    """Return whether all ranks know the routing before a call."""
    return spec.arguments["counts"] == "cached"


def fields_of(spec: Spec, rank: int) -> Fields:
    """Return what the output of a rank says of its rows, in their order. Shared: do not write to it."""
    return _fields(spec.ranks, spec.size_bytes, tuple(sorted(spec.arguments.items())), rank)


@functools.lru_cache(maxsize=256)
def _fields(ranks: int, size_bytes: int, items: tuple[tuple[str, Value], ...], rank: int) -> Fields:
    spec = Spec(
        collective="dispatch", dtype="uint8", size_bytes=size_bytes, layout=Layout(1, ranks), arguments=dict(items)
    )
    experts = routing.routing_of(spec).experts
    top_k, per_rank = experts.shape[2], routing.shape_of(spec).per_rank
    here = (experts >= rank * per_rank) & (experts < (rank + 1) * per_rank)
    if spec.arguments["output"] == "rank":
        source, token = np.nonzero(here.any(axis=2))
        choices = np.broadcast_to(np.arange(top_k), (len(token), top_k))
        return Fields(source, token, experts[source, token].astype(np.int64), choices)
    source, token, choice = np.nonzero(here)
    chosen = experts[source, token, choice].astype(np.int64)
    order = np.argsort(chosen, kind="stable")
    return Fields(source[order], token[order], chosen[order, None], choice[order, None])


_Pairs = tuple[Ints, Ints]  # of numbers that make a key each: the rank that has it, and its number there


def _pattern(spec: Spec, seed: int, keys: Sequence[_Pairs], fixed: Bytes | None, magnitudes: Words | None) -> Pattern:
    """Return the pattern of a buffer of rows, of weights where there are keys of them, and of numbers.

    magnitudes: of rows that are numbers; None where they are any bytes.
    """
    runs: list[Run] = []
    start = 0
    for width, pairs in zip((routing.shape_of(spec).row_bytes, NUMBER_BYTES), keys, strict=False):
        words = block_keys(seed, *pairs)
        for piece, column in enumerate(range(0, width, CHUNK_BYTES)):
            part = min(CHUNK_BYTES, width - column)
            runs.append(Run(start, len(words), width, column, part, piece_words(words, piece), magnitudes=magnitudes))
        start += len(words) * width
        magnitudes = None  # weights are any bytes
    if fixed is not None:
        runs.append(Run(start, len(fixed), fixed.shape[1], 0, fixed.shape[1], np.empty(0, np.uint64), fixed=fixed))
    return Pattern.of_runs([run for run in runs if run.rows], spec.itemsize)
