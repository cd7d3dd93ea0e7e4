"""Dispatch and combine over the scripted transport, on ranks of which one may make a mistake with rows."""

from __future__ import annotations

import random
import threading
from typing import Any

import numpy as np
import pytest

from commbench import algorithms, collectives
from commbench.algorithms import quantised
from commbench.algorithms.quantised import QuantisedBound
from commbench.layout import Layout
from commbench.measure import buffers
from commbench.measure.verify import Checker
from commbench.payloads import Payload, arrays
from commbench.spec import Spec
from commbench.transports.rows import HostRows
from commbench.transports.scripted.transport import Scripted
from tests.conftest import scripted_ranks

DISPATCHES, COMBINES = algorithms.names("dispatch"), algorithms.names("combine")
BOTH = [*(("dispatch", name) for name in DISPATCHES), *(("combine", name) for name in COMBINES)]
# Those whose rows are moved by what a transport says of rows: kernels have mistakes of their own.
HOPPING = [pair for pair in BOTH if not algorithms.get(*pair).one_sided]
PAYLOADS = [pair for pair in HOPPING if pair != ("combine", "all_gather")]  # whose sums are the library's
KINDS = ("twice", "swapped", "missing", "stale", "short", "row", "weight")


def spec_of(
    collective: str, name: str, nodes: int, per_node: int, *, tokens: int = 7, model_dim: int = 24, **asked: Any
) -> Spec:
    """A settled spec with every default but what is asked; of one-sided ways as many ranks on one node."""
    algorithm, of = algorithms.get(collective, name), collectives.get(collective)
    defaults = {key: item.default for key, item in of.arguments.items() if item.default is not None}
    dtype = asked.pop("dtype", "bf16")
    row = model_dim * (4 if dtype == "fp32" else 2)
    layout = Layout(1, nodes * per_node) if algorithm.one_sided else Layout(nodes, per_node)
    given = {**defaults, **algorithm.demands, "row_bytes": row, "top_k": 3, **asked}
    size, arguments = of.settle(
        tokens * row, layout, {key: given[key] for key in given if key != "counts" or collective == "dispatch"}
    )
    params = {key: default for key, (default, _) in algorithm.params.items()}
    return Spec(
        collective=collective, dtype=dtype, size_bytes=size, layout=layout, params=params, arguments=arguments,
        buffers="symmetric" if algorithm.one_sided else "plain",
    )  # fmt: skip


class Saboteur(HostRows):
    """Work on rows that goes wrong in one way: at one copy, or at one sum, of a call."""

    def __init__(self, kind: str, at: int, seed: int) -> None:
        self.kind, self.at, self.random, self.struck = kind, at, random.Random(seed), False
        self.copied = self.summed = 0

    def copy(self, out: Any, to: Any, inp: Any, source: Any) -> None:
        self.copied += 1
        if self.copied - 1 != self.at or len(source) < 2:
            super().copy(out, to, inp, source)
            return
        one, other = self.random.sample(range(len(source)), 2)
        changed = np.array(source)
        if self.kind == "twice":
            changed[one] = changed[other]
        elif self.kind == "swapped":
            changed[[one, other]] = changed[[other, one]]
        self.struck = (changed != source).any() or self.kind in ("missing", "stale")
        if self.kind == "stale":  # what the call before has left
            return
        kept = np.arange(len(source)) != one if self.kind == "missing" else np.full(len(source), True)
        places = np.arange(len(source)) if to is None else to
        super().copy(out, places[kept], inp, changed[kept])

    def sums(self, count: int, terms: Any) -> Any:
        """Leave out a term, or take a neighbour's weight or row."""
        self.summed += 1
        found = [term for term in terms if len(term.to) > 1]
        if self.summed - 1 != self.at or not found:
            return super().sums(count, terms)
        term = self.random.choice(found)
        one, other = self.random.sample(range(len(term.to)), 2)
        source, weights = term.source.copy(), None if term.weights is None else term.weights.copy()
        kept = np.arange(len(term.to)) != one if self.kind == "short" else np.full(len(term.to), True)
        if self.kind == "row":
            source[one] = source[other]
        if self.kind == "weight" and weights is not None:
            weights[one] = weights[other]
        self.struck = self.kind == "short" or (source != term.source).any()
        self.struck |= weights is not None and bool((weights != term.weights).any())
        spoilt = term._replace(
            to=term.to[kept], source=source[kept], weights=None if weights is None else weights[kept]
        )
        return super().sums(count, [spoilt if item is term else item for item in terms])


def planted(collective: str, name: str, kind: str, at: int, seed: int) -> tuple[bool, bool]:
    """Whether a mistake was made at the `at`-th copy or sum of each call of a rank, and whether it was seen."""
    spec = spec_of(collective, name, 2, 2, tokens=5, model_dim=16)
    saboteurs = {seed % 4: Saboteur(kind, at, seed)}
    wrong = wrong_elements(collective, name, spec, 5, saboteurs)
    return bool(saboteurs[seed % 4].struck), wrong > 0


class WrongScale:
    """The quantiser's inverse, which at its `at`-th call with rows gives a block of one row a neighbour's scale."""

    quantise = staticmethod(arrays.quantise)

    def __init__(self, at: int, seed: int) -> None:
        self._at, self._random, self.struck, self._lock = at, random.Random(seed), False, threading.Lock()

    def dequantise(self, wire: Any, values: int, dtype: str, payload: Payload, out: Any) -> Any:
        with self._lock:
            now = len(wire) > 0 and self._at == 0
            self._at -= len(wire) > 0
        if now:
            row, blocks = self._random.randrange(len(wire)), -(-values // payload.block)
            one, other = self._random.sample(range(blocks), 2)
            wire = wire.copy()
            scales = wire[row, payload.scales_at(values) :][: blocks * payload.scale_bytes].reshape(blocks, -1)
            codes = wire[row, one * payload.block : min(values, (one + 1) * payload.block)]
            self.struck = bool((scales[one] != scales[other]).any() and (codes & 0x7F).any())
            scales[one] = scales[other]
        return arrays.dequantise(wire, values, dtype, payload, out)


def planted_scale(collective: str, name: str, at: int, seed: int) -> tuple[bool, bool]:
    """The same for a neighbour's scale: rows of three blocks, as fp8."""
    spec = spec_of(collective, name, 2, 2, tokens=5, model_dim=384, payload="fp8")
    wrong_scale = WrongScale(at, seed)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(quantised, "arrays", wrong_scale)
        wrong = wrong_elements(collective, name, spec, seed)
    return wrong_scale.struck, wrong > 0


def wrong_elements(
    collective: str, name: str, spec: Spec, seed: int, saboteurs: dict[int, Saboteur] | None = None
) -> int:
    """How many elements are wrong after two calls, on all ranks. saboteurs: of ranks."""
    algorithm, of = algorithms.get(collective, name), collectives.get(collective)
    quantised.scratch_bytes(algorithm, spec)  # plans once, and not in each thread

    def rank(transport: Scripted) -> int:
        ((out, inp),) = buffers.allocate(transport, of, spec, transport.rank, 1, one_sided=False)
        saboteur = (saboteurs or {}).get(transport.rank)
        if saboteur:
            transport.world.rows = saboteur
        on_wire, wrong = of.on_wire(spec), 0
        bound = algorithm.prepare(transport.world, on_wire)
        if on_wire is not spec:
            (wire,) = buffers.allocate(transport, of, on_wire, transport.rank, 1, one_sided=False)
            bound = QuantisedBound(bound, spec, transport.rank, wire)
        checker = Checker(transport, of, spec, transport.rank, seed)
        for salt in (1, 2):
            checker.poison(out, salt)
            checker.fill_input(inp, salt)
            if saboteur:
                saboteur.copied = 0  # it strikes in each call, as what the call before has left may be right
            bound.start(out, inp).wait()
            wrong += checker.count_wrong(out, salt)
        return wrong

    return sum(scripted_ranks(spec.layout.nodes, spec.layout.ranks_per_node, rank))
