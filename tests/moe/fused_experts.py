"""Experts by `moe_ref.fused_experts` beside the plain ones, in fp64, on any device."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from moe_ref import FFN, SwiGLU, fused_experts
from moe_ref.experts import ACTIVATIONS, Experts

COUNTS = ([3, 4, 2], [0, 9, 0], [0, 0, 0], [2100, 0, 5])


def makes(experts: int, width: int, hidden: int) -> Iterator[Experts]:
    """Experts of each kind, in fp32 on the CPU, whose biases are not 0."""
    for activation, bias in itertools.product(ACTIVATIONS, (True, False)):
        made = FFN(experts, width, hidden, activation=activation, bias=bias, generator=torch.Generator().manual_seed(0))
        for parameter in (made.b1_EH, made.b2_ED):
            if parameter is not None:
                torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
        yield made
    yield SwiGLU(experts, width, hidden, generator=torch.Generator().manual_seed(0))


@contextmanager
def plain() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused_experts, "unsupported", lambda *_: "plain is asked for")
        yield


def results(experts: Experts, x: Tensor, counts_E: Tensor | None) -> list[Tensor]:
    """The output, and all gradients of a loss that weighs all of its elements differently."""
    x = x.detach().requires_grad_()
    y = experts(x, counts_E)
    weighed = torch.linspace(-1, 1, y.numel(), dtype=torch.float64, device=y.device).view_as(y).to(y.dtype)
    wanted = [x, *experts.parameters()]
    return [y.detach(), *torch.autograd.grad(y, wanted, weighed, allow_unused=True, materialize_grads=True)]


def check(experts: Experts, x: Tensor, counts_E: Tensor | None, tolerance: float) -> None:
    """Ours are as near to fp64 as the dtype allows, in norm, and no further from it than twice what plain ones are."""
    oracle = type(experts)(experts.experts, experts.width, experts.hidden, **how(experts)).to(x.device, torch.float64)
    oracle.load_state_dict({name: value.double() for name, value in experts.state_dict().items()})
    ours = results(experts, x, counts_E)
    on_device = None if counts_E is None else counts_E.to(x.device)
    with plain():
        right = results(oracle, x.double(), on_device)
        simple = results(experts, x, on_device)
    for found, exact, by_torch in zip(ours, right, simple, strict=True):
        assert found.dtype == by_torch.dtype and found.shape == exact.shape
        norm = exact.norm().clamp(min=1e-30)
        far, of_torch = (float((each.double() - exact).norm() / norm) for each in (found, by_torch))
        assert far <= max(tolerance, 2 * of_torch), (type(experts).__name__, how(experts), found.shape, far, of_torch)


def how(experts: Experts) -> dict[str, object]:
    if isinstance(experts, FFN):
        return {"activation": experts.activation, "bias": experts.b1_EH is not None}
    return {}
