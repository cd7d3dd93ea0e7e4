"""Layers whose tokens travel as a payload: what arrives, what goes back, what is sent, and what cannot be meant."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from commbench import payloads
from commbench.communicators.with_payload import PayloadComm
from commbench.errors import UsageError
from commbench.payloads import tensors
from commbench.train.config import compose
from moe_ref import FFN, Capacity, DistributedMoE, Gate, GateConfig, schedules
from moe_ref.schedules import verify
from moe_ref.training import build
from tests.moe.fake import Alone

D, H, E = 160, 16, 4
LOSSY = [name for name in payloads.TABLE if name != "bf16"]


def layer(comm: Any, rule: str = "tutel", **given: Any) -> DistributedMoE:
    generator = torch.Generator().manual_seed(0)
    gate = Gate(D, GateConfig(experts=E, top_k=2, capacity=Capacity(rule, 1.5)), generator=generator)
    return DistributedMoE(gate, FFN(E, D, H, generator=generator), comm, **given)


def tokens() -> Tensor:
    return torch.randn(24, D, generator=torch.Generator().manual_seed(7)).requires_grad_()


def arrived(x: Tensor, name: str) -> Tensor:
    """What the quantiser makes of rows, said without the communicator."""
    payload = payloads.TABLE[name]
    rows = x.detach().reshape(-1, x.shape[-1])
    return tensors.dequantise(tensors.quantise(rows, payload), x.shape[-1], x.dtype, payload).view(x.shape)


class Rounding(Alone):
    """Exchanges lose what a payload loses: those forward by one, those backward by another."""

    def __init__(self, there: str, back: str) -> None:
        super().__init__()
        self.name, self.back = there, back

    def _call(self, out: Tensor, inp: Tensor, async_op: bool) -> Any:
        lossy = inp.dtype == torch.float32 and self.name != "none"
        return super()._call(out, arrived(inp, self.name) if lossy else inp, async_op)


def passes(moe: DistributedMoE, back: Any = lambda: None) -> list[Tensor]:
    """The output, and all gradients."""
    x = tokens()
    y, _ = moe(x)
    back()
    y.square().sum().backward()
    found = [parameter.grad for parameter in (x, *moe.parameters())]
    return [y.detach(), *(grad for grad in found if grad is not None)]


@pytest.mark.parametrize("schedule", ["sequential", "pipelined", "expert_groups"])
@pytest.mark.parametrize("rule", ["tutel", "dropless"])
@pytest.mark.parametrize(("there", "back"), [("int8", "none"), ("fp8", "mxfp8"), ("none", "int8")])
def test_tokens_lose_what_the_quantiser_takes_and_gradients_pass_it(
    schedule: str, rule: str, there: str, back: str
) -> None:
    """Against exchanges that round their input themselves, forward by one payload and backward by the other."""
    moe = layer(Alone(), rule, schedule=schedule, payload=there, payload_back=back)
    comm = Rounding(there, back)
    wanted = layer(comm, rule, schedule=schedule)

    def turn() -> None:
        comm.name = comm.back

    for mine, theirs in zip(passes(moe), passes(wanted, turn), strict=True):
        assert torch.equal(mine, theirs)
    plain = passes(layer(Alone(), rule, schedule=schedule))
    assert any(not torch.equal(mine, other) for mine, other in zip(passes(moe), plain, strict=True))


@pytest.mark.parametrize("schedule", ["sequential", "pipelined", "expert_groups"])
@pytest.mark.parametrize("rule", ["tutel", "dropless"])
def test_the_formula_counts_what_travels(schedule: str, rule: str) -> None:
    moe, x = layer(Alone(), rule, schedule=schedule, payload="int8", payload_back="bf16"), tokens()
    report = verify.verify(moe, x)
    report.raise_if_different()
    rows = dict.fromkeys(("forward", "backward"), 0)
    for entry in report.sent:
        rows[entry.phase] += entry.nbytes if entry.collective.startswith("all_to_all") else 0
    assert rows["forward"] * 2 * D == rows["backward"] * payloads.TABLE["int8"].row_bytes(D)


def test_a_communicator_with_a_payload_has_gradients() -> None:
    x = tokens()
    for back in ("none", "fp8"):
        comm = PayloadComm(Alone(), "int8", backward=back)
        for y in (comm.autograd.all_to_all(x), comm.autograd.all_to_allv(x, [24], [24])):
            assert torch.equal(y.detach(), arrived(x, "int8"))
            (grad,) = torch.autograd.grad((y * tokens().detach()).sum(), [x])
            assert torch.equal(grad, tokens().detach() if back == "none" else arrived(tokens(), back))


def test_other_collectives_and_empty_exchanges_are_as_they_were() -> None:
    comm, x = PayloadComm(Alone(), "int8"), tokens().detach()
    for name in ("all_gather", "all_reduce", "reduce_scatter"):
        out = torch.empty_like(x)
        getattr(comm, name)(out, x)
        assert torch.equal(out, x)
    none = x.new_empty(0, D)
    comm.all_to_allv(none.clone(), none, [0], [0])
    flat, out = x.view(-1), torch.empty(24 * D)
    pending = comm.all_to_all(out, flat, async_op=True)
    assert pending is not None
    pending.wait()
    assert torch.equal(out, arrived(flat[None], "int8")[0]), "a block is a row"


def test_what_cannot_be_meant_is_refused() -> None:
    x = tokens().detach()
    with pytest.raises(UsageError, match="of fp32, fp16, bf16, and elements are int64"):
        PayloadComm(Alone(), "fp8").all_to_all(x.long(), x.long())
    with pytest.raises(UsageError, match=r"out \(24, 161\) of torch.float32"):
        PayloadComm(Alone(), "fp8").all_to_all(x.new_empty(24, 161), x)
    with pytest.raises(UsageError, match="unknown payload 'int3'"):
        layer(Alone(), payload_back="int3")
    with pytest.raises(UsageError, match="elements are fp64"):
        compose(["tiny", "dtype=fp64", "payload=int8"])
    config, _ = compose(["tiny", "payload=int8", "tp=2"])
    with pytest.raises(UsageError, match="tensor_parallel sends tokens as they are, and payload=int8"):
        build.make_schedule(config)
    assert all(schedules.TABLE[name].payloads for name in ("sequential", "pipelined", "expert_groups"))
