"""What can be differentiated twice, and by torch.func: plain ways equal the loop's; the rest is refused in words."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, jacrev, jvp, vmap

from commbench.communicators.differentiation import differentiated_once
from commbench.errors import UsageError
from moe_ref import FFN, Capacity, Gate, GateConfig, MoE, SwiGLU

CAPACITIES = {"drops": Capacity("tutel", 1.0), "dropless": Capacity("dropless")}


def layer(permute: str, capacity: str, kind: type[FFN] | type[SwiGLU] = FFN, dtype: torch.dtype = torch.float64) -> MoE:
    config = GateConfig(experts=4, capacity=CAPACITIES[capacity], losses=("gshard", "z"))
    experts = kind(4, 16, 32, generator=torch.Generator().manual_seed(1))
    made = MoE(Gate(16, config, generator=torch.Generator().manual_seed(0)), experts, permute=permute)
    for name, parameter in made.named_parameters():
        if ".b" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(2))
    return made.to(dtype)


def tokens(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(9, 16, dtype=dtype, generator=torch.Generator().manual_seed(3)).requires_grad_()


def loss(of: MoE, parameters: dict[str, Tensor], x_TD: Tensor) -> Tensor:
    y_TD, routing = functional_call(of, parameters, (x_TD,))
    # The second term's gradient is constant: what torch's once_differentiable left out without a word.
    return y_TD.square().sum() + y_TD.sum() + sum(routing.losses.values())


def twice(of: MoE, x_TD: Tensor) -> list[Tensor]:
    parameters = dict(of.named_parameters())
    inputs = [x_TD, *parameters.values()]
    first = torch.autograd.grad(loss(of, parameters, x_TD), inputs, create_graph=True)
    return [*first, *torch.autograd.grad(sum(one.pow(3).sum() for one in first), inputs)]


@pytest.mark.parametrize("kind", [FFN, SwiGLU])
@pytest.mark.parametrize("capacity", CAPACITIES)
def test_second_gradients_are_those_of_the_loop(capacity: str, kind: type[FFN] | type[SwiGLU]) -> None:
    for dtype, tolerance in ((torch.float64, 1e-6), (torch.float32, 1e-4)):  # weights of choices are fp32 in both
        x_TD = tokens(dtype)
        plain, found = (twice(layer(permute, capacity, kind, dtype), x_TD) for permute in ("loop", "sparse"))
        for one, other in zip(plain, found, strict=True):
            torch.testing.assert_close(other, one, rtol=tolerance, atol=tolerance * float(one.detach().abs().max()))


@pytest.mark.parametrize("capacity", CAPACITIES)
def test_torch_func_is_autograd(capacity: str) -> None:
    of, x_TD = layer("sparse", capacity), tokens()
    parameters = dict(of.named_parameters())
    wanted = torch.autograd.grad(loss(of, parameters, x_TD), [x_TD, *parameters.values()])
    by_parameters, by_x = grad(lambda p, x: loss(of, p, x), argnums=(0, 1))(parameters, x_TD)
    torch.testing.assert_close([by_x, *by_parameters.values()], list(wanted))
    second = grad(lambda x: grad(lambda z: loss(of, parameters, z))(x).pow(3).sum())(x_TD)
    (first,) = torch.autograd.grad(loss(of, parameters, x_TD), x_TD, create_graph=True)
    torch.testing.assert_close(second, torch.autograd.grad(first.pow(3).sum(), x_TD)[0])
    if capacity == "drops":  # of a grouped product torch has no rule for batches, and says that it is slow
        jacobian = jacrev(lambda x: of(x).y.sum(0))(x_TD)
        torch.testing.assert_close(jacobian.sum(0), torch.autograd.grad(of(x_TD).y.sum(), x_TD)[0])


@pytest.mark.parametrize(
    ("name", "transform"),
    [
        ("vmap", lambda of, x_TD: vmap(lambda x: of(x).y)(torch.stack([x_TD, x_TD]))),
        ("jvp", lambda of, x_TD: jvp(lambda x: of(x).y, (x_TD,), (x_TD,))),
    ],
)
def test_other_transforms_are_refused(name: str, transform: Any) -> None:
    with pytest.raises(UsageError, match=rf"^torch.func.{name} of MoE on cpu") as caught:
        transform(layer("sparse", "drops"), tokens())
    assert "torch.autograd.grad" in caught.value.hint and "[.., D]" in caught.value.hint


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, other: None) -> Tensor:
        return 2 * x

    @staticmethod
    @differentiated_once("a doubled tensor", "double it by hand")
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return 2 * gradient, None


def test_a_gradient_of_a_kernel_is_refused_where_it_is_differentiated_again() -> None:
    x = torch.ones(3, requires_grad=True)
    (plain,) = torch.autograd.grad(Doubled.apply(x, None).sum(), x)
    (again,) = torch.autograd.grad(Doubled.apply(x, None).sum(), x, create_graph=True)  # which alone is fine
    assert torch.equal(plain, again) and torch.equal(again, torch.full((3,), 2.0)) and not plain.requires_grad
    with pytest.raises(UsageError, match=r"^a gradient of a doubled tensor cannot be differentiated again") as caught:
        again.square().sum().backward()
    assert caught.value.hint == "double it by hand"
