"""combine: the way back of `dispatch`: every token gets the sum of what its experts made of it.

A rank's input is a row for each row of its dispatch, in the same order; its output a row for each of its T tokens.
With `output=expert` a token's row is the sum over its experts, each multiplied by its weight; with `output=rank` each
rank has done so for its own experts, and the sum is over ranks. Sums are made in fp32; what is sent on is rounded.

All ranks know the routing, as the dispatch has told them. The numbers are such that all sums are exact, in whatever
order and with whatever stops: whole numbers up to 3, times 1, 1/2 or 1/4.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from commbench.collectives import routing
from commbench.collectives.dispatch import ROUTED, Routed, fields_of
from commbench.collectives.routing import NONE, Ints
from commbench.data import POOL_STARTS, SIGNIFICANT, Pattern, Run, Sums, block_keys, piece_words
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
        most = (1 << SIGNIFICANT[spec.dtype]) // (_LARGEST * _UNITS)
        top_k = routing.shape_of(spec).top_k
        return f"sums of {top_k} are not exact in {spec.dtype}, of {most} at the most" if top_k > most else ""

    def input_bytes(self, spec: Spec, rank: int) -> int:
        return len(fields_of(spec, rank).token) * routing.shape_of(spec).row_bytes

    def output_bytes(self, spec: Spec, rank: int) -> int:
        return spec.size_bytes

    def input_pattern(self, spec: Spec, rank: int, *, seed: int) -> Pattern:
        fields = fields_of(spec, rank)
        shifts = fields.experts if spec.arguments["output"] == "expert" else np.full((len(fields.token), 1), rank)
        weights = np.ones(shifts.shape, np.float32)
        return _pattern(spec, seed, fields.source, fields.token, shifts.astype(np.int64), weights)

    def expected_pattern(self, spec: Spec, rank: int, *, seed: int) -> Pattern:
        shape = routing.shape_of(spec)
        experts, weights = (of_all[rank] for of_all in routing.routing_of(spec))
        shifts = experts.astype(np.int64)
        if spec.arguments["output"] == "rank":
            shifts = np.sort(np.where(experts == NONE, NONE, experts // shape.per_rank), axis=1).astype(np.int64)
            shifts[:, 1:][shifts[:, 1:] == shifts[:, :-1]] = NONE
            weights = np.ones_like(weights)
        return _pattern(spec, seed, np.full(shape.tokens, rank), np.arange(shape.tokens), shifts, weights)


def _pattern(
    spec: Spec, seed: int, source: Ints, token: Ints, shifts: Ints, weights: npt.NDArray[np.float32]
) -> Pattern:
    """Return rows of numbers that begin where the word of their token says, each shifted by its expert, or rank."""
    shape = routing.shape_of(spec)
    numbers = _numbers(POOL_STARTS + shape.experts + shape.row_bytes // spec.itemsize)
    words = piece_words(block_keys(seed, source, token), 0)
    sums = Sums(numbers, shifts, weights, spec.dtype)
    run = Run(0, len(words), shape.row_bytes, 0, shape.row_bytes, words, sums=sums)
    return Pattern.of_runs([run] if run.rows else [], spec.itemsize)


@functools.lru_cache(maxsize=8)
def _numbers(count: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).integers(-_LARGEST, _LARGEST + 1, count).astype(np.float32)
