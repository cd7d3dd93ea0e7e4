"""Schedules for tokens that several ranks hold alike equal an oracle in one process, and send what they say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.importorskip("torch")

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

import commbench
from commbench.communicators.loaded import LoadedProfile
from commbench.errors import UsageError
from moe_ref import FFN, Capacity, Gate, GateConfig, SwiGLU, dispatch, schedules
from moe_ref.distributed import DistributedMoE
from moe_ref.experts import Experts
from moe_ref.schedules import Schedule
from moe_ref.schedules.equivalence import compare
from moe_ref.schedules.verify import Mismatch, verify
from moe_ref.sharding import shard
from tests.conftest import REPOSITORY
from tests.support import profiles
from tests.support.ranks import on_gloo, run_program

D, H, E = 8, 16, 4
SAME_SLOTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("tensor_parallel", {"tp_tokens": "duplicate"}),
    ("tensor_parallel", {"tp_tokens": "drop"}),
    ("tensor_parallel", {"tp_tokens": "drop_pipelined", "chunks": 2}),
    ("tensor_parallel", {"tp_tokens": "drop_pipelined", "chunks": 5}),
    ("tensor_parallel", {"tp_tokens": "profile"}),
    ("parm_s2", {"chunks": 1}),
    ("parm_s2", {"chunks": 3}),
)
# Of each: tokens of the groups in turn, the rule for C, padding, whether experts are SwiGLU.
CASES: dict[str, tuple[tuple[int, ...], dict[str, Any], bool, bool]] = {
    "even": ((16,), {"rule": "tutel", "factor": 1.5}, False, False),
    "uneven, overflow": ((17, 9), {"rule": "tutel", "factor": 0.5, "fewest": 1}, False, True),
    "padding": ((11, 11), {"rule": "deepspeed", "fewest": 0}, True, False),
    "nothing dropped": ((5, 14), {"factor": 0}, True, True),
    "many slots": ((24, 3), {"rule": "fairseq", "factor": 4.0}, False, False),
    "everything dropped": ((9, 9), {"rule": "tutel", "factor": 0.1}, False, False),
    "no tokens here": ((0, 11), {"rule": "fairseq", "factor": 1.0}, False, False),
}


class Case(NamedTuple):
    """Tokens, padding and the loss's weights of each group, and the gate and the whole experts that all start from."""

    config: GateConfig
    make_experts: Callable[[], Experts]
    x: list[Tensor]
    padding: list[Tensor | None]
    weights: list[Tensor]


class Expected(NamedTuple):
    y: Tensor
    x: Tensor
    gate: list[Tensor]
    experts: list[Tensor]


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def case_of(name: str, groups: int, tp: int) -> Case:
    lengths, rule, padded, swiglu = CASES[name]
    tokens = [lengths[group % len(lengths)] for group in range(groups)]
    capacity = Capacity(multiple_of=tp, **rule)
    config = GateConfig(experts=E, top_k=2, dtype="fp64", capacity=capacity, losses=("gshard", "z"))

    def experts() -> Experts:
        generator = torch.Generator().manual_seed(3)
        found = (SwiGLU if swiglu else FFN)(E, D, H, dtype=torch.float64, generator=generator)
        for parameter in found.parameters():  # biases start at 0, where nobody would miss them
            parameter.data += 0.1 * random(*parameter.shape, seed=9)
        return found

    padding: list[Tensor | None] = [None] * groups
    if padded:
        padding = [torch.arange(length) % 5 == group % 5 for group, length in enumerate(tokens)]
    x = [random(length, D, seed=group) for group, length in enumerate(tokens)]
    return Case(config, experts, x, padding, [random(length, D, seed=50 + g) for g, length in enumerate(tokens)])


def gate_of(case: Case) -> Gate:
    return Gate(D, case.config, generator=torch.Generator().manual_seed(1))


def oracle(case: Case, group: int, tp: int, *, slices: bool) -> Expected:
    """Of one process that has all tokens and all experts, and moves rows one by one.

    slices: each tp-th of a group's tokens has slots of its own, and the loss of the gate is the mean over them.
    """
    gate, experts = gate_of(case), case.make_experts()
    parts = tp if slices else 1
    inputs = [x.clone().requires_grad_() for x in case.x]
    cut = [(_cut(x, parts, 0.0), _cut(_mask(x, mask), parts, 1.0))
           for x, mask in zip(inputs, case.padding, strict=True)]  # fmt: skip
    lengths = [len(x) for xs, _ in cut for x in xs]
    loads = [int(gate(x, m.bool(), most_tokens=max(lengths), largest=lambda load: 10**6).loads_E.max())
             for xs, masks in cut for x, m in zip(xs, masks, strict=True)]  # fmt: skip
    mine: tuple[Tensor, list[Tensor]] | None = None
    total = torch.zeros((), dtype=torch.float64)
    for number, (xs, masks) in enumerate(cut):
        ys, auxiliary = [], torch.zeros((), dtype=torch.float64)
        for x, mask in zip(xs, masks, strict=True):
            routing = gate(x, mask.bool(), most_tokens=max(lengths), largest=lambda load: max(loads))
            moves = dispatch.LoopDispatcher(routing)
            ys.append(moves.combine(experts(moves.dispatch(x))))
            auxiliary = auxiliary + (routing.losses["gshard"] + 0.1 * routing.losses["z"]) / parts
        y = torch.cat(ys)[: len(inputs[number])]
        loss = (y * case.weights[number]).sum() + auxiliary
        total = total + loss
        if number == group:
            gradients = torch.autograd.grad(loss, list(gate.parameters()), retain_graph=True)
            mine = y.detach(), list(gradients)
    assert mine is not None
    wanted = [inputs[group], *experts.parameters()]
    found = torch.autograd.grad(total, wanted, allow_unused=True, materialize_grads=True)
    return Expected(mine[0], found[0], mine[1], list(found[1:]))


def _mask(x: Tensor, mask: Tensor | None) -> Tensor:
    return (torch.zeros(len(x)) if mask is None else mask).to(torch.float64)


def _cut(x: Tensor, parts: int, fill: float) -> list[Tensor]:
    length = -(-len(x) // parts)
    padded = functional.pad(x.T, (0, length * parts - len(x)), value=fill).T
    return list(padded.view(parts, length, *x.shape[1:]))


def pieces(experts: Experts, whole: Sequence[Tensor], group: int, tp: int, place: int) -> list[Tensor]:
    """Of the gradients of whole experts, what a rank has of them."""
    names = [name for name, _ in experts.named_parameters()]
    here = experts.experts
    return [g[group * here : (group + 1) * here].chunk(tp, experts.shard_dims[name])[place]
            for name, g in zip(names, whole, strict=True)]  # fmt: skip


def communicators(tp: int) -> dict[str, Any]:
    """Of all ranks, of the rank's group of `tp`, and of those of its place."""
    ranks, me = range(dist.get_world_size()), dist.get_rank()
    made: dict[str, Any] = {"comm": commbench.communicator()}
    places = [list(ranks[first : first + tp]) for first in ranks[::tp]]
    for name, groups in (("tp", places), ("ep", [list(column) for column in zip(*places, strict=True)])):
        for group in groups:
            handle = dist.new_group(group)
            if me in group:
                mine = handle
        made[name] = commbench.communicator(mine)
    return made


def layer_of(case: Case, comms: dict[str, Any], **more: Any) -> DistributedMoE:
    whole, here = case.make_experts(), E // comms["ep"].size
    mine = type(whole)(here, D, H, dtype=torch.float64)
    first = comms["ep"].rank * here
    mine.load_state_dict({name: value[first : first + here] for name, value in whole.state_dict().items()})
    shard(mine, comms["tp"].rank, comms["tp"].size)
    return DistributedMoE(gate_of(case), mine, **{**comms, **more})


def check(layer: DistributedMoE, case: Case, want: Expected, what: str) -> None:
    group = layer.ep.rank
    x = case.x[group].clone().requires_grad_()
    y, routing = layer(x, case.padding[group])
    loss = (y * case.weights[group]).sum() + routing.losses["gshard"] + 0.1 * routing.losses["z"]
    wanted = [x, *layer.gate.parameters(), *layer.experts.parameters()]
    found = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
    assert layer.tp is not None
    experts = pieces(layer.experts, want.experts, group, layer.tp.size, layer.tp.rank)
    expected = [want.y, want.x, *want.gate, *experts]
    names = ["y", "x", *(name for name, _ in layer.gate.named_parameters()), *layer.experts.state_dict()]
    for name, one, other in zip(names, [y, *found], expected, strict=True):
        assert one.shape == other.shape, (what, name, one.shape, other.shape)
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-12), (what, name, float((one - other).abs().max()))


@pytest.mark.parametrize(("ranks", "tp", "cases"), [(4, 2, len(CASES)), (8, 2, 3), (8, 4, len(CASES))])
def test_they_equal_their_oracles_and_send_what_they_say(ranks: int, tp: int, cases: int) -> None:
    def rank(transport: Any) -> None:
        torch.set_num_threads(1)
        comms = communicators(tp)
        for name in tuple(CASES)[:cases]:
            case = case_of(name, ranks // tp, tp)
            layer = layer_of(case, comms, schedule="tensor_parallel")
            group = layer.ep.rank
            want = oracle(case, group, tp, slices=False)
            everything = [(schedules.get(kind, **params), want) for kind, params in SAME_SLOTS]
            everything.append((schedules.get("parm_s1"), oracle(case, group, tp, slices=True)))
            for schedule, expected in everything:
                what = f"{name}: {schedule}"
                layer.schedule = schedule
                check(layer, case, expected, what)
                for grad in (True, False) if name == "even" else (True,):
                    verify(layer, case.x[group].clone().requires_grad_(grad), case.padding[group]).raise_if_different()
            if name == "even":
                layer.schedule = everything[0][0]
                for schedule, expected in everything[1:]:
                    if expected is want:
                        compare(layer, case.x[group].clone().requires_grad_(), schedule).raise_if_different()
        case = case_of("many slots", ranks // tp, tp)
        skipped(layer, case)
        formulas_can_be_wrong(layer, case)
        under_autocast(layer_of(case, comms, schedule="tensor_parallel").float(), case.x[layer.ep.rank].float())

    on_gloo(ranks, rank)


def under_autocast(layer: DistributedMoE, x: Tensor) -> None:
    """Tokens travel in bf16, and the tokens' gradient, where slices of it are gathered, in fp32."""
    for kind, params in (*SAME_SLOTS, ("parm_s1", {})):
        layer.schedule = schedules.get(kind, **params)
        want, _ = layer(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y, _ = layer(x)
            report = verify(layer, x.clone().requires_grad_())
        assert y.dtype == torch.bfloat16 and torch.allclose(y.float(), want, rtol=0.05, atol=0.05), layer.schedule
        report.raise_if_different()
        assert (report.shape.itemsize, report.shape.token_itemsize) == (2, 4)


def skipped(layer: DistributedMoE, case: Case) -> None:
    """Without communication, or without experts, a pass still ends, and its result is another one."""
    group = layer.ep.rank
    layer.schedule = schedules.get("tensor_parallel", tp_tokens="drop_pipelined")
    y, _ = layer(case.x[group])
    for skip in ("communication", "experts"):
        layer.skip = skip
        other, _ = layer(case.x[group])
        assert other.shape == y.shape and (not len(y) or not torch.allclose(other, y)), skip
    layer.skip = None


def formulas_can_be_wrong(layer: DistributedMoE, case: Case) -> None:
    """What is counted tells schedules from each other."""
    x = case.x[layer.ep.rank].clone().requires_grad_()
    for kind, params in SAME_SLOTS:
        layer.schedule = schedules.get(kind, **params)
        report = verify(layer, x)
        for other in SAME_SLOTS:
            if other != (kind, params):
                expected = schedules.get(other[0], **other[1]).traffic(report.shape)
                with pytest.raises(Mismatch):
                    report._replace(expected=expected).raise_if_different()


def test_the_profile_decides() -> None:
    """Of `profile`, on two nodes of two ranks: pipelined ways both ways, and the same result."""

    def rank(transport: Any) -> None:
        comms = communicators(2)
        both = {"replicated": "drop_gather_pipelined", "partial": "drop_reduce_scatter"}
        chosen = [profiles.choice("tp_all_to_all", way, arguments={"tp": 2, "tp_input": tp_input}, params={"chunks": 2})
                  for tp_input, way in both.items()]  # fmt: skip
        comms["comm"] = LoadedProfile(profiles.profile(*chosen)).communicator()
        case = case_of("even", 2, 2)
        layer = layer_of(case, comms, schedule="tensor_parallel")
        check(layer, case, oracle(case, layer.ep.rank, 2, slices=False), "profile")
        told = comms["comm"].explain()
        assert all(f": {way} chunks=2" in told for way in both.values()), told

    on_gloo(4, rank)


def test_what_cannot_be_meant() -> None:
    def rank(transport: Any) -> None:
        comms = communicators(2)
        case = case_of("even", 1, 2)
        odd = case._replace(config=GateConfig(experts=E, capacity=Capacity("tutel", 1.0, fewest=5), dtype="fp64"))
        for name in ("tensor_parallel", "parm_s2"):
            layer = layer_of(odd, comms, schedule=schedules.get(name, **({"tp_tokens": "drop"} if "t" in name else {})))
            with pytest.raises(UsageError, match="C=5 does not divide among the 2 ranks"):
                layer(random(8, D, seed=1))
        dropless = case._replace(config=GateConfig(experts=E, capacity=Capacity("dropless")))
        for name in ("tensor_parallel", "parm_s1", "parm_s2"):
            with pytest.raises(UsageError, match=f"schedule {name} of a dropless layer"):
                layer_of(dropless, comms, schedule=name)
            with pytest.raises(UsageError, match=f"schedule {name} of a layer without a tp communicator"):
                alone = FFN(E // 2, D, H)
                DistributedMoE(gate_of(case), alone, comms["comm"], schedule=name)

    on_gloo(2, rank)


@pytest.mark.parametrize(
    ("name", "params", "words"),
    [
        ("tensor_parallel", {"tp_tokens": "half"}, "unknown tp_tokens 'half'"),
        ("tensor_parallel", {"chunks": 0}, "chunks=0 is below 1"),
        ("parm_s2", {"chunks": 0}, "chunks=0 is below 1"),
        ("parm_s1", {"chunks": 2}, "no parameter 'chunks'"),
    ],
)
def test_parameters_that_cannot_be_meant(name: str, params: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        schedules.get(name, **params)


def test_all_are_in_the_table() -> None:
    made: list[Schedule] = [schedules.get(name, **params) for name, params in SAME_SLOTS]
    assert str(made[2]) == "tensor_parallel tp_tokens=drop_pipelined chunks=2"


def test_the_program_in_the_docs_runs(tmp_path: Path) -> None:
    text = (REPOSITORY / "docs/guide/schedules.md").read_text()
    printed = run_program(text.split("```python\n")[1].split("```")[0], ranks=4, folder=tmp_path)
    assert printed.count("tensor_parallel tp_tokens=") == 4, printed
    assert "(phase='backward', collective='all_to_all', group='ep', calls=8, nbytes=2048)" in printed, printed
