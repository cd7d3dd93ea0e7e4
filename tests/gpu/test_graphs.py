"""Layers and trainings from CUDA graphs on one GPU: beside the same without, and where they cannot be."""

from __future__ import annotations

import contextlib
import copy
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from commbench.machine import gpus

if gpus.count(os.environ) < 1:
    pytest.skip("needs a GPU", allow_module_level=True)

import torch
from torch import Tensor

from commbench.errors import UsageError
from moe_ref import FFN, Capacity, Gate, GateConfig, MoE
from moe_ref.training import checkpoint
from moe_ref.training.checkpoint import Checkpoint
from moe_ref.training.step_graph import EAGER_STEPS
from moe_ref.training.trainer import Trainer
from tests.moe.test_training import TINY

D, H, E = 64, 96, 4
EVEN = Capacity("tutel", 1.0)


def layer(capacity: Capacity = EVEN, dtype: torch.dtype = torch.float32, **gate: Any) -> MoE:
    generator = torch.Generator().manual_seed(0)
    config = GateConfig(experts=E, top_k=2, capacity=capacity, losses=("gshard", "z"), **gate)
    made = MoE(Gate(D, config, generator=generator), FFN(E, D, H, activation="relu", generator=generator))
    return made.cuda().to(dtype)


def twins(*given: Any, passes: int = 4, **gate: Any) -> tuple[MoE, MoE]:
    made = layer(*given, **gate)
    return copy.deepcopy(made), made.graph(passes)


def tokens(salt: int, count: int = 256, dtype: torch.dtype = torch.float32, *, grad: bool = True) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(salt)
    x = torch.randn(count // 2, 2, D, generator=generator, device="cuda").to(dtype)
    return x.requires_grad_(grad)


def back(output: Any, salt: int = 0) -> None:
    weight = torch.randn(output.y.shape, generator=torch.Generator("cuda").manual_seed(salt), device="cuda")
    (torch.sum(output.y.float() * weight) + sum(loss.float() for loss in output.routing.losses.values())).backward()


def grads(made: MoE) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in made.parameters() if parameter.grad is not None]


def equal(ours: Any, right: Any) -> bool:
    return len(ours) == len(right) and all(torch.equal(one, oracle) for one, oracle in zip(ours, right, strict=True))


@pytest.mark.parametrize(
    ("capacity", "dtype", "padded", "autocast"),
    [
        (EVEN, torch.float32, False, False),
        (EVEN, torch.float32, True, False),
        (EVEN, torch.float32, False, True),
        (EVEN, torch.bfloat16, False, False),
        (EVEN, torch.float16, True, False),
        (Capacity("dropless"), torch.bfloat16, False, False),
        (Capacity("dropless"), torch.float32, False, True),
    ],
    ids=str,
)
@pytest.mark.parametrize("grad", [False, True])
def test_passes_are_the_eager_ones(
    capacity: Capacity, dtype: torch.dtype, padded: bool, autocast: bool, grad: bool
) -> None:
    eager, graphed = twins(capacity, dtype)
    cast = torch.autocast("cuda", torch.bfloat16) if autocast else contextlib.nullcontext()
    for salt in range(4):  # gradients add up
        found = []
        for made in (eager, graphed):
            x = tokens(salt, dtype=dtype, grad=grad)
            padding = (
                torch.rand(128, 2, generator=torch.Generator().manual_seed(salt)).lt(0.3).cuda() if padded else None
            )
            with cast:
                output = made(x, padding)
            back(output, salt)
            routing = output.routing
            found.append([output.y, routing.weights_TK, routing.slots_TK, routing.loads_E, routing.losses["gshard"],
                          *grads(made), *([x.grad] if grad else [])])  # fmt: skip
            assert (routing.capacity, routing.rows) == (output.routing.capacity, output.routing.rows)
        assert equal(*found), [
            float((a.detach().double() - b.detach().double()).abs().max()) for a, b in zip(*found, strict=True)
        ]
        del found, output, routing
    assert graphed.graphs is not None and graphed.graphs.replays == 4 and not graphed.graphs.eager, repr(graphed)
    with torch.no_grad(), cast:
        assert torch.equal(eager.eval()(x, padding).y, graphed.eval()(x, padding).y)
    assert graphed.graphs.replays == 5


def test_an_optimizer_moves_both_alike() -> None:
    eager, graphed = twins()
    for made in (eager, graphed):
        optimizer = torch.optim.AdamW(made.parameters(), lr=0.01)
        for salt in range(5):
            optimizer.zero_grad(set_to_none=salt % 2 == 0)
            back(made(tokens(salt)), salt)
            optimizer.step()
    assert equal(list(graphed.parameters()), list(eager.parameters()))


def test_what_is_held_stays_as_it_is() -> None:
    eager, graphed = twins(passes=2)
    ours: list[Tensor] = []
    right: list[Tensor] = []
    for salt in range(3):
        for made, into in ((graphed, ours), (eager, right)):
            into.append(made(tokens(salt)).y)
    assert equal(ours, right)
    assert graphed.graphs is not None and graphed.graphs.replays == 2
    assert sum(graphed.graphs.eager.values()) == 1 and "what they returned is still in use" in repr(graphed)
    for one, oracle in zip(reversed(ours), reversed(right), strict=True):
        one.square().sum().backward()
        oracle.square().sum().backward()
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(grads(graphed), grads(eager), strict=True))
    # Gradients that somebody holds stay too.
    del ours, one
    x = tokens(7)
    held = torch.autograd.grad(graphed(x).y.sum(), [x, *graphed.experts.parameters()])
    kept = [grad.clone() for grad in held]
    for salt in range(3):
        back(graphed(tokens(salt)))
    assert equal(held, kept)


def test_two_passes_at_once_and_one_that_goes_back_twice() -> None:
    eager, graphed = twins()
    for made in (eager, graphed):
        one, two = made(tokens(1)), made(tokens(2))
        back(two, 2)
        back(one, 1)
    assert equal(grads(graphed), grads(eager))
    assert graphed.graphs is not None and len(graphed.graphs.passes) == 2
    again = graphed(tokens(3)).y.sum()
    again.backward(retain_graph=True)
    with pytest.raises(UsageError, match="goes back a second time"):
        again.backward()


def test_shapes_up_to_a_bound() -> None:
    eager, graphed = twins(passes=2)
    for _ in range(2):
        for count in (64, 128, 256):
            for made in (eager, graphed):
                back(made(tokens(1, count)))
            assert equal(grads(graphed), grads(eager))
    graphs = graphed.graphs
    assert graphs is not None and (graphs.replays, sum(graphs.eager.values())) == (4, 2)
    assert "none is for tokens [128, 2, 64]" in repr(graphed)
    graphed.load_state_dict(eager.state_dict())  # in place
    assert torch.equal(graphed(tokens(1, 64)).y, eager(tokens(1, 64)).y) and graphs.replays == 5
    graphed.double().float()  # which moves the parameters
    assert torch.equal(graphed(tokens(1, 256)).y, eager(tokens(1, 256)).y)
    assert (graphs.replays, len(graphs.passes)) == (6, 1)


@pytest.mark.parametrize(
    ("capacity", "gate", "said"),
    [
        (Capacity("tutel", 0), {}, "follows from the loads"),
        (Capacity("dropless"), {}, "the host waits for the GPU"),  # fp32 has no grouped product
        (EVEN, {"order": "random"}, "draws at random"),
    ],
)
def test_what_cannot_be_captured_is_eager_and_says_why(capacity: Capacity, gate: dict[str, Any], said: str) -> None:
    graphed = layer(capacity, **gate).graph()
    for salt in range(2):
        back(graphed(tokens(salt)))
    assert graphed.graphs is not None and not graphed.graphs.replays
    assert "2 eager: " in repr(graphed) and said in repr(graphed)
    assert torch.rand(3, device="cuda").shape == (3,), "torch's own draws go on"


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("recompute", ["none", "stash"])
def test_steps_are_the_eager_ones(tmp_path: Path, dtype: str, recompute: str) -> None:
    config = replace(TINY, dtype=dtype, recompute=recompute, steps=12, clip=0.5, width=64, hidden=64)
    device = torch.device("cuda", 0)
    found = []
    for graphs in (False, True):
        trainer = Trainer(replace(config, graphs=graphs), None, device)
        made = [trainer.step(eager=step == 6)[0] for step in range(8)]
        trainer.save(tmp_path / str(graphs))
        made += [trainer.step()[0] for _ in range(4)]
        assert (trainer.graph is not None and trainer.graph.replays == 12 - EAGER_STEPS - 1) == graphs, trainer.notes
        found.append([(one.loss, one.drop_rate, one.expert_balance) for one in made])
        state = [parameter.detach().clone() for parameter in trainer.model.parameters()]
        assert not trainer.notes and trainer.evaluate() > 0
        resumed = Trainer(replace(config, graphs=not graphs), None, device)
        folder = checkpoint.latest(tmp_path / str(graphs))
        assert folder is not None
        resumed.load(Checkpoint(folder))
        found.append([(one.loss, one.drop_rate, one.expert_balance) for one in (resumed.step()[0] for _ in range(4))])
        assert equal([parameter.detach() for parameter in resumed.model.parameters()], state)
    assert found[0] == found[2]
    assert found[1] == found[3] == found[0][8:]


def test_a_training_that_waits_is_eager_and_says_why() -> None:
    config = replace(TINY, capacity="dropless", graphs=True)
    trainer = Trainer(config, None, torch.device("cuda", 0))
    losses = [trainer.step()[0].loss for _ in range(EAGER_STEPS + 2)]
    assert trainer.graph is None and "the host waits for the GPU" in trainer.notes[0]
    plain = Trainer(replace(config, graphs=False), None, torch.device("cuda", 0))
    assert losses == [plain.step()[0].loss for _ in range(EAGER_STEPS + 2)]
