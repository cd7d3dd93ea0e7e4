"""What a Mixture-of-Experts layer sends, and what is likely best for it: arithmetic, before anything is measured.

Shapes are those of moe_ref's reference layer, whose `Schedule.traffic` counts the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from commbench.errors import UsageError
from commbench.find.words import unknown_name
from commbench.spec import DTYPES
from commbench.sweep.key import NO_DEFAULT, Key, Number, OneOf, explain

_COUNT = Number(int, 1, 1 << 40)
KEYS: dict[str, Key] = {
    "tokens": Key(_COUNT, "tokens of a rank in one pass"),
    "model_dim": Key(Number(int, 1, 1 << 30), "elements of a token"),
    "top_k": Key(Number(int, 1, 1 << 20), "experts to which a token goes"),
    "experts": Key(_COUNT, "experts of the layer, over all ranks"),
    "ep": Key(Number(int, 2, 1 << 20), "ranks that share the experts"),
    "layers": Key(Number(int, 1, 100_000), "layers with experts", default=1),
    "dtype": Key(OneOf(tuple(DTYPES)), "type of what is sent", default="bf16"),
    "capacity_factor": Key(Number(float, 0, 1000), "of Tutel's rule for slots; 0: dropless", default=1.0),
    "nodes": Key(Number(int, 1, 100_000), "hosts over which those ranks are spread", default=1),
}
_SMALL, _LARGE = 64 << 10, 1 << 20  # bytes of a block: below, a message's own cost rules; above, its bytes
_SMALL_INSIDE = 1 << 10  # where messages stay inside a node, which cost less


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShape:
    """A layer and where it runs. Raises `UsageError` where experts or nodes do not divide.

    tokens: of one rank. ep: ranks that share the experts. capacity_factor: 0 for a dropless layer.
    """

    tokens: int
    model_dim: int
    top_k: int
    experts: int
    ep: int
    layers: int
    dtype: str
    capacity_factor: float
    nodes: int

    def __post_init__(self) -> None:
        if self.experts % self.ep:
            raise UsageError(
                f"experts={self.experts} do not divide among ep={self.ep} ranks", hint="experts is a multiple of ep"
            )
        if self.ep % self.nodes:
            raise UsageError(f"ep={self.ep} ranks do not divide among nodes={self.nodes}", hint="nodes divides ep")
        if self.top_k > self.experts:
            raise UsageError(f"top_k={self.top_k} is above experts={self.experts}", hint="top_k is experts at most")
        if not self.dropless and not self.slots:
            raise UsageError(
                f"capacity_factor={self.capacity_factor:g} leaves an expert no slot",
                hint="a larger one, or 0: dropless",
            )

    @property
    def dropless(self) -> bool:
        return self.capacity_factor == 0

    @property
    def slots(self) -> int:
        """Return C, the slots of an expert for one rank's tokens, by Tutel's rule: K floor(f ceil(T / E))."""
        factor = Fraction(repr(float(self.capacity_factor)))
        return self.top_k * math.floor(factor * -(-self.tokens // self.experts))

    @property
    def rows(self) -> int:
        """Return the tokens that a rank sends in one exchange, to itself included."""
        return self.tokens * self.top_k if self.dropless else self.experts * self.slots

    @property
    def collective(self) -> str:
        return "all_to_allv" if self.dropless else "all_to_all"

    @property
    def size_bytes(self) -> int:
        """Return the size of one exchange: what one rank sends, its own block included."""
        return self.rows * self.model_dim * DTYPES[self.dtype]

    @property
    def block_bytes(self) -> int:
        """Return what goes to one rank; of a dropless layer if tokens are even."""
        return self.size_bytes // self.ep

    @property
    def per_node(self) -> int:
        return self.ep // self.nodes

    @property
    def inter_bytes(self) -> int:
        """Return what a rank sends to other nodes in one exchange."""
        return self.block_bytes * (self.ep - self.per_node)

    @property
    def intra_bytes(self) -> int:
        """Return what a rank sends to others of its node in one exchange."""
        return self.block_bytes * (self.per_node - 1)

    @property
    def exchanges(self) -> int:
        """Return the exchanges of a step: there and back, forward and backward, in each layer."""
        return 4 * self.layers


def read(words: Sequence[str]) -> LayerShape:
    """Return the layer that KEY=VALUE words describe. Raises `UsageError`."""
    values: dict[str, Any] = {name: key.default for name, key in KEYS.items() if key.default is not NO_DEFAULT}
    for word in words:
        name, separator, text = word.partition("=")
        if not separator:
            raise UsageError(f"unexpected argument {word!r}", hint="settings are written KEY=VALUE, e.g. tokens=4096")
        if name not in KEYS:
            raise unknown_name("key", name, list(KEYS), "commbench advise --help")
        values[name] = KEYS[name].read(name, _number(text))
    if missing := [name for name in KEYS if name not in values]:
        raise UsageError(
            f"not set: {', '.join(missing)}",
            hint="for example: commbench advise tokens=4096 model_dim=4096 top_k=2 experts=16 ep=8",
        )
    return LayerShape(**values)


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def explain_keys(width: int) -> str:
    """Return what help says of every key, in lines of `width` letters."""
    return "\nKEYs, each with its default; those without one have to be set.\n" + explain(KEYS, ("",), width)


@dataclass(frozen=True, slots=True, kw_only=True)
class Likely:
    """What is likely best, by the structure of costs alone. algorithm: "" where it is open."""

    algorithm: str
    reason: str


def likely(shape: LayerShape) -> Likely:
    """Return a rule of thumb: a message costs something of its own, and a byte costs something, on each class of link.

    2D saves (N - 1)(m - 1) messages between nodes for as many blocks more inside of one. So it wins where a message
    between nodes costs more than a block inside.
    """
    n, m, block = shape.ep, shape.per_node, shape.block_bytes
    if shape.nodes > 1 and m > 1:
        trade = (
            f"of each rank's messages between nodes 2d_intra_first leaves {shape.nodes - 1} of {n - m}, and for each "
            "one saved it sends a block more inside the node. It wins where a message between nodes costs more time "
            "than a block inside one"
        )
        if block <= _SMALL:
            return Likely(algorithm="2d_intra_first", reason=f"{trade}: likely for such small blocks")
        if block >= _LARGE:
            return Likely(algorithm="direct", reason=f"{trade}: unlikely for such large blocks")
        return Likely(algorithm="", reason=f"{trade}: at this size either may be faster")
    if shape.nodes == 1 and block <= _SMALL_INSIDE and n >= 8 and not shape.dropless:
        rounds = math.ceil(math.log2(n))
        reason = f"bruck leaves {rounds} of a rank's {n - 1} messages, and sends about {rounds / 2:g} times the bytes"
        return Likely(algorithm="bruck", reason=f"{reason}: likely for such small blocks, if a message is dear")
    reason = "direct sends every byte once, and the library knows its links; no other sends less"
    return Likely(algorithm="direct", reason=reason)
