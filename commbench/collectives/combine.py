"""combine: the way back of `dispatch`: every token gets the sum of what its experts made of it.

A rank's input is a row for each row of its dispatch, in the same order; its output a row for each of its T tokens.
With `output=expert` a token's row is the sum over its experts, each multiplied by its weight; with `output=rank` each
rank has done so for its own experts, and the sum is over ranks. Sums are made in fp32; what is sent on is rounded.

All ranks know the routing, as the dispatch has told them. The numbers are such that all sums are exact, in whatever
order and with whatever stops: whole numbers up to 3, times 1, 1/2 or 1/4.

With a payload each row that is sent is quantised, sums of parts too. Its numbers are such that this changes nothing,
either: once they are weighed a block of a row has but one size, of 1, 2, 4 and 8, and zeros, and each expert has
columns of its own.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from commbench.collectives import routing
from commbench.collectives.dispatch import ROUTED, Routed, fields_of
from commbench.collectives.payload import payload_of
from commbench.collectives.routing import NONE, Ints
from commbench.data import POOL_STARTS, SIGNIFICANT, Apart, Pattern, Run, Sums, block_keys, piece_words
from commbench.spec import Spec

_LARGEST, _UNITS = 3, 4  # of the data; units in 1, as weights are quarters at the least


class TokenCombine(Routed):
    name = "combine"
    adjoint = "dispatch"
    arguments = ROUTED
    dtypes = tuple(SIGNIFICANT)

    def unsupported(self, spec: Spec) -> str:
        if reason := super().unsupported(spec):
            return reason
        if spec.dtype not in SIGNIFICANT:
            return f"combine adds numbers up with weights, and {spec.dtype} has no fractions"
        if _apart(spec):
            return ""
        payload, top_k = payload_of(spec), routing.shape_of(spec).top_k
        sent = spec.dtype if payload is None else payload.code
        most = (1 << SIGNIFICANT[sent]) // (_LARGEST * _UNITS)
        return f"sums of {top_k} are not exact in {sent}, of {most} at the most" if top_k > most else ""

    def on_wire(self, spec: Spec) -> Spec:
        """Return the same: algorithms quantise, as they have to add up numbers between two hops."""
        return spec

    def input_bytes(self, spec: Spec, rank: int) -> int:
        return len(fields_of(spec, rank).token) * routing.shape_of(spec).row_bytes

    def output_bytes(self, spec: Spec, rank: int) -> int:
        return spec.size_bytes

    def input_pattern(self, spec: Spec, rank: int, *, seed: int) -> Pattern:
        fields = fields_of(spec, rank)
        weights = np.ones((len(fields.token), 1), np.float32)
        if spec.arguments["output"] == "expert":
            shifts, parts = fields.experts, fields.choices
            if _apart(spec):
                all_weights = routing.routing_of(spec).weights
                weights = np.float32(1) / all_weights[fields.source[:, None], fields.token[:, None], parts]
        else:
            shifts = np.full((len(fields.token), 1), rank)
            parts = (_ranks_of(spec, fields.experts) == rank).argmax(axis=1)[:, None]
        return _pattern(spec, seed, fields.source, fields.token, shifts.astype(np.int64), weights, parts)

    def expected_pattern(self, spec: Spec, rank: int, *, seed: int) -> Pattern:
        shape = routing.shape_of(spec)
        experts, weights = (of_all[rank] for of_all in routing.routing_of(spec))
        shifts = experts.astype(np.int64)
        if spec.arguments["output"] == "rank":
            shifts = _ranks_of(spec, shifts)
        if spec.arguments["output"] == "rank" or _apart(spec):
            weights = np.ones_like(weights)
        parts = np.broadcast_to(np.arange(shape.top_k), shifts.shape)
        return _pattern(spec, seed, np.full(shape.tokens, rank), np.arange(shape.tokens), shifts, weights, parts)


def _apart(spec: Spec) -> bool:
    """Return whether each column has numbers of one expert alone, as scales are of many numbers together."""
    payload = payload_of(spec)
    return payload is not None and payload.scale_bytes > 0


def _ranks_of(spec: Spec, experts: Ints) -> Ints:
    """Return the ranks of tokens' experts, [tokens, top_k], each once, in order; `NONE` in the other places."""
    ranks = np.sort(np.where(experts == NONE, NONE, experts // routing.shape_of(spec).per_rank), axis=1)
    ranks[:, 1:][ranks[:, 1:] == ranks[:, :-1]] = NONE
    return ranks.astype(np.int64)


def _pattern(
    spec: Spec, seed: int, source: Ints, token: Ints, shifts: Ints, weights: npt.NDArray[np.float32], parts: Ints
) -> Pattern:
    """Return rows of numbers that begin where the word of their token says, each shifted by its expert, or rank.

    parts: which of the token's parts each is, [rows, parts of the row].
    """
    shape = routing.shape_of(spec)
    count = POOL_STARTS + shape.experts + shape.row_bytes // spec.itemsize
    words = piece_words(block_keys(seed, source, token), 0)
    if (payload := payload_of(spec)) is not None and _apart(spec):
        apart = Apart(shape.top_k, (parts + token[:, None]) % shape.top_k, payload.block, token)
        sums = Sums(_numbers(count, 1), shifts, weights, spec.dtype, apart)
    else:
        sums = Sums(_numbers(count, _LARGEST), shifts, weights, spec.dtype)
    run = Run(0, len(words), shape.row_bytes, 0, shape.row_bytes, words, sums=sums)
    return Pattern.of_runs([run] if run.rows else [], spec.itemsize)


@functools.lru_cache(maxsize=8)
def _numbers(count: int, largest: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).integers(-largest, largest + 1, count).astype(np.float32)
