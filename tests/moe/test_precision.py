"""Counts, sums and means over many tokens are right in narrow dtypes: fp64 on the same numbers says what is right."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from moe_ref import FFN, Capacity, Gate, GateConfig, losses
from moe_ref.routing import count

T, D, H = 32768, 16, 32
SIZES = [(experts, k) for experts, k in itertools.product((2, 8, 64), (1, 2, 8)) if k <= experts]
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
NOISE = 0.5


def numbers(*shape: int, device: str, salt: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(salt)).to(device)


def far(ours: Tensor, oracle: Tensor) -> float:
    """Return the distance over the oracle's norm; nan where a number is none."""
    return float((ours.double() - oracle).norm() / oracle.norm())


def cases(
    experts: int, k: int, dtype: torch.dtype, device: str
) -> Iterator[tuple[str, Tensor, Callable[[Tensor], Tensor]]]:
    """Yield a name, [T, E] of `dtype`, and a loss, which is the same function of that in any wider dtype."""
    logits_TE = numbers(T, experts, device=device) + torch.linspace(0, 2, experts, device=device)  # none is even
    noisy_TE = (logits_TE + NOISE * numbers(T, experts, device=device, salt=1)).to(dtype)
    logits_TE, scores_TE = logits_TE.to(dtype), logits_TE.softmax(1).to(dtype)
    experts_TK = logits_TE.topk(k, dim=1).indices

    def importance_load(x_TE: Tensor, real_T: Tensor | None) -> Tensor:
        shifted_TE = noisy_TE.to(x_TE.dtype) + (x_TE - x_TE.detach())  # the noise is given, the gradient goes through
        return losses.importance_load(x_TE, shifted_TE, k, NOISE, real_T)

    for real_T in (None, numbers(T, device=device, salt=2) > -1):
        gshard = functools.partial(losses.gshard, experts_TK=experts_TK, real_T=real_T, choices=k)
        yield f"gshard {real_T}", scores_TE, gshard
        yield f"importance_load {real_T}", logits_TE, functools.partial(importance_load, real_T=real_T)
        yield f"z {real_T}", logits_TE, functools.partial(losses.z, real_T=real_T)


def value_and_gradient(loss: Callable[[Tensor], Tensor], x_TE: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss and T times its gradient: as scaled losses have it, which fp16 has numbers for."""
    x_TE = x_TE.detach().requires_grad_()
    value = loss(x_TE)
    assert value.dtype == x_TE.dtype and value.shape == ()
    (gradient,) = torch.autograd.grad(value, x_TE, torch.full_like(value, T))
    return value.detach(), gradient


def check_losses(experts: int, k: int, dtype: torch.dtype, device: str) -> None:
    """A narrow result is fp32's, rounded once: by half an eps at most."""
    eps = torch.finfo(dtype).eps
    most = (8 if dtype == torch.float32 else 0.51) * eps
    for name, x_TE, loss in cases(experts, k, dtype, device):
        ours, oracle = (value_and_gradient(loss, x_TE.to(each)) for each in (dtype, torch.float64))
        for what, value, right in zip(("value", "gradient"), ours, oracle, strict=True):
            assert far(value, right) < most, (name, what, far(value, right) / eps, value, right)


def check_biases(dtype: torch.dtype, device: str, *, autocast: bool) -> None:
    """Their gradients are sums over all rows of an expert; here rows of one sign, which add up to thousands."""
    counts = [T - 3000, 3000]
    given = FFN(2, D, H, dtype=torch.float32 if autocast else dtype).to(device)
    oracle = FFN(2, D, H, dtype=torch.float64).to(device)
    oracle.load_state_dict({name: value.to(dtype).double() for name, value in given.state_dict().items()})
    given.load_state_dict(oracle.state_dict())
    x_ND = numbers(T, D, device=device, salt=3).to(dtype)
    for experts, x in ((given, x_ND), (oracle, x_ND.double())):
        with torch.autocast(device, dtype, enabled=autocast and experts is given):
            y_ND = experts(x, torch.tensor(counts, device=device))
        y_ND.backward(torch.ones_like(y_ND))
    for (name, ours), right in zip(given.named_parameters(), oracle.parameters(), strict=True):
        assert ours.grad.dtype == ours.dtype, name
        if name == "b2_ED":  # nothing but the sum
            sums_ED = torch.tensor(counts, dtype=torch.float64, device=device)[:, None].expand_as(right.grad)
            assert torch.equal(right.grad, sums_ED)
            assert torch.equal(ours.grad, sums_ED.to(ours.dtype)), (name, ours.grad[:, 0])
        assert far(ours.grad, right.grad) < max(4 * torch.finfo(dtype).eps, 1e-5), (name, ours.grad, right.grad)


def check_counts(dtype: torch.dtype, device: str) -> None:
    """What a gate counts is in integers, whatever its arithmetic is in."""
    config = GateConfig(experts=8, top_k=2, dtype="input", capacity=Capacity("dropless"), losses=())
    gate = Gate(D, config, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    routing = gate(numbers(T, D, device=device, salt=4).to(dtype))
    expected_E = torch.bincount(routing.experts_TK.cpu().flatten(), minlength=8)
    assert torch.equal(routing.loads_E.cpu(), expected_E) and int(expected_E.sum()) == 2 * T
    assert int(routing.slots_TK.max()) == int(expected_E.max()) - 1 and int(routing.dropped) == 0
    valid_TK = torch.ones_like(routing.experts_TK, dtype=torch.bool)
    assert torch.equal(count(routing.experts_TK, valid_TK, 8).cpu(), expected_E)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("experts", "k"), SIZES)
def test_losses(experts: int, k: int, dtype: torch.dtype) -> None:
    check_losses(experts, k, dtype, "cpu")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_of_biases(dtype: torch.dtype) -> None:
    check_biases(dtype, "cpu", autocast=False)


def test_gradients_of_biases_under_autocast() -> None:
    check_biases(torch.bfloat16, "cpu", autocast=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_counts(dtype: torch.dtype) -> None:
    check_counts(dtype, "cpu")
