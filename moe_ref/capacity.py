"""The rules for how many tokens an expert takes from one rank: those of fairseq, Tutel and DeepSpeed, side by side.

T tokens of the rank, E experts, K choices of a token, C slots of an expert, f capacity factor. Worked examples are in
docs/guide/moe.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from commbench.errors import UsageError, unknown

DROPLESS = "dropless"


def _fairseq(tokens: int, experts: int, top_k: int, factor: Fraction) -> int:
    return math.floor(factor * top_k * -(-tokens // experts))


def _tutel(tokens: int, experts: int, top_k: int, factor: Fraction) -> int:
    return top_k * math.floor(factor * -(-tokens // experts))


def _deepspeed(tokens: int, experts: int, top_k: int, factor: Fraction) -> int:
    return math.ceil(factor * top_k * tokens / experts)


RULES: dict[str, Callable[[int, int, int, Fraction], int]] = {
    "fairseq": _fairseq,
    "tutel": _tutel,
    "deepspeed": _deepspeed,
}
_FEWEST = {"deepspeed": 8}  # what its gate takes where nothing is said


@dataclass(frozen=True, slots=True)
class Capacity:
    """The rule by which C follows from T, E and K.

    rule: `fairseq`: floor(f K ceil(T/E)); its top-2 gate has no factor, and is this with f = 1 (fairseq, branch moe,
        top1gate and top2gate; GShard, arXiv 2006.16668, 3.1). `tutel`: K floor(f ceil(T/E)), rounded down before the
        product (Tutel, arXiv 2206.03382, 2.1, and its code). `deepspeed`: ceil(f K T/E), at least `fewest`
        (DeepSpeed-MoE, arXiv 2201.05596, and its code). `dropless`: no slots; tokens are sorted by expert and each
        expert takes what it gets (MegaBlocks, arXiv 2211.15841).
    factor: above 0, f. 0: C is the largest load, so that nothing is dropped. Below 0: the same, but at most the rule's
        C for -f.
    fewest: the least that the rule gives; None: 8 for `deepspeed`, else 0.
    multiple_of: C is rounded up to it at the end: the tensor-parallel degree, or the number of chunks of an exchange.
    eval_factor: the factor outside of training; None: the same.
    eval_fraction: above 0, C outside of training is ceil(eval_fraction T), whatever the rule (fairseq's
        moe-eval-capacity-token-fraction, there 0.25 by default).

    Factors are taken as the decimal numbers that they are written as: 0.29 x 100 is 29 here, where floating point says
    28.999999999999996 and would round it to 28 on the way.

    Raises `UsageError` for an unknown rule, a number that is not finite, or a count below its least.
    """

    rule: str = "tutel"
    factor: float = 1.0
    fewest: int | None = None
    multiple_of: int = 1
    eval_factor: float | None = None
    eval_fraction: float = 0.0

    def __post_init__(self) -> None:
        if self.rule not in (*RULES, DROPLESS):
            raise unknown("capacity rule", self.rule, (*RULES, DROPLESS))
        for name in ("factor", "eval_factor", "eval_fraction"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise UsageError(
                    f"capacity {name}={value} is not a finite number",
                    hint="above 0: a factor; 0: nothing is dropped; below 0: nothing is dropped up to that factor",
                )
        if self.fewest is not None and self.fewest < 0:
            raise UsageError(f"capacity fewest={self.fewest} is below 0", hint="0 or more slots")
        if self.multiple_of < 1:
            raise UsageError(f"capacity multiple_of={self.multiple_of} is below 1", hint="1 or more slots")

    @property
    def dropless(self) -> bool:
        """Whether experts take whatever they get, so that there is no C."""
        return self.rule == DROPLESS

    def needs_load(self, *, training: bool) -> bool:
        """Say whether C depends on where tokens go, so that the device has to tell the host (and ranks each other)."""
        return not self.dropless and self._fraction(training) is None and self._factor(training) <= 0

    def needs_tokens(self, *, training: bool) -> bool:
        """Say whether C depends on T, so that ranks have to agree on one where theirs differ."""
        return not self.dropless and (self._fraction(training) is not None or self._factor(training) != 0)

    def slots(self, tokens: int, experts: int, top_k: int, *, load: int | None = None, training: bool = True) -> int:
        """Return C for T tokens: those of the rank that has most, where ranks differ.

        `load` is the largest number of choices that fall on one expert of one rank, before dropping; only factors of 0
        and below look at it. Raises `UsageError` without it there, and for `dropless`, which has no C.
        """
        if self.dropless:
            raise UsageError("a dropless layer has no capacity", hint=f"rules with one: {', '.join(RULES)}")
        fraction, factor = self._fraction(training), self._factor(training)
        if fraction is not None:
            found = math.ceil(fraction * tokens)
        elif factor > 0:
            found = self._by_rule(tokens, experts, top_k, factor)
        elif load is None:
            raise UsageError(f"capacity factor={factor} asks for the largest load", hint="give load=")
        else:
            found = load if factor == 0 else min(load, self._by_rule(tokens, experts, top_k, -factor))
        return -(-found // self.multiple_of) * self.multiple_of

    def _by_rule(self, tokens: int, experts: int, top_k: int, factor: float) -> int:
        fewest = _FEWEST.get(self.rule, 0) if self.fewest is None else self.fewest
        return max(fewest, RULES[self.rule](tokens, experts, top_k, _as_written(factor)))

    def _factor(self, training: bool) -> float:
        return self.factor if training or self.eval_factor is None else self.eval_factor

    def _fraction(self, training: bool) -> Fraction | None:
        return None if training or self.eval_fraction <= 0 else _as_written(self.eval_fraction)


def _as_written(number: float) -> Fraction:
    return Fraction(repr(float(number)))
