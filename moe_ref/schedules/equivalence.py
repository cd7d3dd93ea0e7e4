"""Proof that two schedules compute the same: y, and the gradients of tokens, gate and experts."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from commbench.errors import CommbenchError
from moe_ref.schedules.base import Layer, Schedule

_TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5}
_OF_16_BITS = 3e-2


class DifferentResult(CommbenchError):
    """Two schedules of one layer computed something else."""

    exit_code = 1


class ResultComparison(NamedTuple):
    """How far results of two schedules are apart on this rank.

    differences: by what it is of (`y`, `tokens`, `gate.NAME`, `experts.NAME`): the largest difference of an element
    over the largest magnitude; nan where one is no number. first, second: the schedules, as the layer took them.
    tolerance: what is allowed.
    """

    differences: dict[str, float]
    first: Schedule
    second: Schedule
    tolerance: float

    def raise_if_different(self) -> None:
        """Raise `DifferentResult` with what differs, and by how much."""
        wrong = [f"{name} by {far:.2g}" for name, far in self.differences.items() if not far <= self.tolerance]
        if wrong:
            raise DifferentResult(
                f"schedules {self.first} and {self.second} differ in {', '.join(wrong)}, of the largest element",
                hint=f"{self.tolerance:g} is allowed; where slots are counted otherwise (parm_s1), compare where "
                "nothing is dropped",
            )


def compare(
    layer: Layer,
    x: Tensor,
    other: Schedule,
    padding: Tensor | None = None,
    *,
    generator: torch.Generator | None = None,
    tolerance: float | None = None,
) -> ResultComparison:
    """Make a pass forward and backward by the layer's schedule, and one by `other`. Collective.

    Both begin with the same random numbers, and what comes after does too; `.grad` of nothing is touched. tolerance:
    1e-12 in fp64, 1e-5 in fp32, else 3e-2. Losses of the gate are not compared.

    Compare on every rank: `compare(layer, x, other).raise_if_different()`.
    """
    own = layer.schedule
    first = _results(layer, x, padding, generator)
    try:
        layer.schedule = other
        taken, second = layer.schedule, _results(layer, x, padding, generator)
    finally:
        layer.schedule = own
    allowed = _TOLERANCES.get(x.dtype, _OF_16_BITS) if tolerance is None else tolerance
    return ResultComparison({name: _apart(one, second[name]) for name, one in first.items()}, own, taken, allowed)


def _results(layer: Layer, x: Tensor, padding: Tensor | None, generator: torch.Generator | None) -> dict[str, Tensor]:
    """Return y and all gradients of one pass, by name."""
    wanted = {"tokens": x} if x.requires_grad else {}
    for part, module in (("gate", layer.gate), ("experts", layer.experts)):
        wanted |= {f"{part}.{name}": value for name, value in module.named_parameters() if value.requires_grad}
    state = None if generator is None else generator.get_state()
    with torch.random.fork_rng([x.device] if x.is_cuda else []):
        y, _ = layer(x, padding, generator=generator)
    if generator is not None and state is not None:
        generator.set_state(state)
    # A weight for each element, so that none can take another's place; the same where ranks have the same tokens.
    weights = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(layer.ep.rank))
    loss = (y * weights.to(y.device, y.dtype)).sum()
    found = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
    gradients = {
        name: torch.zeros_like(of) if gradient is None else gradient
        for (name, of), gradient in zip(wanted.items(), found, strict=True)
    }
    return {"y": y.detach(), **gradients}


def _apart(first: Tensor, second: Tensor) -> float:
    if not first.numel():
        return 0.0
    largest = max(float(first.abs().max()), float(second.abs().max()))
    return float((first - second).abs().max()) / largest if largest != 0 else 0.0


__all__ = ["DifferentResult", "ResultComparison", "compare"]
