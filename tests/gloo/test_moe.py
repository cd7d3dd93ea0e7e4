"""The layer over ranks equals its oracle: outputs, gradients, and what is sent, for every schedule and way.

The oracle is one rank with all experts and the slowest dispatch, which is given the tokens of each rank in turn under
the capacity that the ranks have agreed on. One process group of each size runs all of its cases.
"""

from __future__ import annotations

import copy
import functools
import io
import itertools
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.importorskip("torch")

import torch
import torch.distributed as dist
from torch import Tensor

import commbench
from commbench.communicators.communicator import Communicator
from commbench.errors import UsageError
from moe_ref import FFN, Capacity, DistributedMoE, Gate, GateConfig, MoE, SwiGLU, dispatch, schedules, shard
from moe_ref.schedules import Schedule
from moe_ref.schedules.equivalence import compare
from moe_ref.schedules.verify import counting, report, verify
from tests.conftest import REPOSITORY
from tests.gloo.calls import by
from tests.support import profiles
from tests.support.ranks import on_gloo, run_program

D, H = 8, 16
KINDS = {"ffn": FFN, "swiglu": SwiGLU}
CAPACITIES = {
    "drops": Capacity("tutel", 0.5),
    "fewest": Capacity("deepspeed", 1.25, fewest=3),
    "largest": Capacity("fairseq", 0),
    "capped": Capacity("fairseq", -0.75),
    "nothing": Capacity("fairseq", 0.05),  # C = 0
    "dropless": Capacity("dropless"),
}
KEEP_ALL = ("largest", "dropless")


@dataclass(frozen=True)
class Case:
    """What ranks bring. Hashable: oracles are kept."""

    experts: int
    capacity: str = "drops"
    tokens: str = "even"
    kind: str = "ffn"
    top_k: int = 2

    def config(self) -> GateConfig:
        top_k = min(self.top_k, self.experts)
        return GateConfig(experts=self.experts, top_k=top_k, dtype="fp64", capacity=CAPACITIES[self.capacity])

    def many(self, rank: int) -> int:
        """T of a rank: where uneven, rank 1 has none."""
        return 10 if self.tokens != "uneven" else (7 + 3 * rank) * (rank != 1)

    def x(self, rank: int) -> Tensor:
        return numbers(rank, self.many(rank), D, salt=1)

    def padding(self, rank: int) -> Tensor | None:
        return numbers(rank, self.many(rank), salt=2) > 0.7 if self.tokens == "padded" else None

    def gate(self) -> Gate:
        return Gate(D, self.config(), generator=torch.Generator().manual_seed(0))

    def whole(self) -> Any:
        """All experts, the same on all ranks; biases are not 0."""
        experts = KINDS[self.kind](self.experts, D, H, dtype=torch.float64)
        generator = torch.Generator().manual_seed(5)
        for parameter in experts.parameters():
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
        return experts

    def mine(self, comm: Communicator) -> Any:
        """This rank's part: some experts, or a piece of one."""
        ranks, whole = comm.size, self.whole()
        many = max(1, self.experts // ranks)
        first = comm.rank * self.experts // ranks
        part = KINDS[self.kind](many, D, H, dtype=torch.float64)
        part.load_state_dict({name: value[first : first + many] for name, value in whole.state_dict().items()})
        pieces = max(1, ranks // self.experts)
        return shard(part, comm.rank % pieces, pieces) if pieces > 1 else part


def numbers(rank: int, *shape: int, salt: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(100 * salt + rank))


class Expected(NamedTuple):
    """Of this rank; experts': of the sum of all ranks' losses."""

    y: Tensor
    x: Tensor
    gate: Tensor
    experts: dict[str, Tensor]
    dropped: int  # by all ranks


@functools.cache
def oracle(case: Case, rank: int, ranks: int) -> Expected:
    """Collective, over torch's own all_reduce."""
    whole, gate, x_TD = case.whole(), case.gate(), case.x(rank).requires_grad_()
    loads = [int(gate(case.x(other), case.padding(other)).loads_E.max()) for other in range(ranks)]
    most = max(case.many(other) for other in range(ranks))
    routing = gate(x_TD, case.padding(rank), most_tokens=most, largest=lambda _: max(loads))
    moves = dispatch.LoopDispatcher(routing)
    counts = (routing.counts_E,) if routing.capacity is None else ()
    y_TD = moves.combine(whole(moves.dispatch(x_TD), *counts))
    wanted = [x_TD, *gate.parameters(), *whole.parameters()]
    x, gates, *experts = torch.autograd.grad(loss(y_TD, rank), wanted, allow_unused=True, materialize_grads=True)
    dropped = routing.dropped
    for tensor in (*experts, dropped):
        dist.all_reduce(tensor)
    named = dict(zip(dict(whole.named_parameters()), experts, strict=True))
    return Expected(y_TD.detach(), x, gates, named, int(dropped))


def loss(y_TD: Tensor, rank: int) -> Tensor:
    return (y_TD * numbers(rank, *y_TD.shape, salt=3)).sum() + y_TD.square().sum()


def close(found: Tensor | None, want: Tensor, where: object, *, tolerance: float = 1e-12) -> None:
    assert found is not None and found.shape == want.shape, (where, found, want.shape)
    worst = float((found - want).detach().abs().max()) if found.numel() else 0.0
    assert worst <= tolerance * max(1.0, float(want.detach().abs().max()) if want.numel() else 0), (where, worst)


def check(
    comm: Communicator, case: Case, schedule: Schedule, way: str = "sparse", *, tolerance: float = 1e-12,
    exchange: str = "per_choice",
) -> None:  # fmt: skip
    """Outputs, gradients and traffic."""
    moe = DistributedMoE(case.gate(), case.mine(comm), comm, schedule=schedule, permute=way, exchange=exchange,
                         equal_tokens=exchange == "profile")  # fmt: skip
    want, where = oracle(case, comm.rank, comm.size), (comm.rank, case, str(moe.schedule), way)
    x_TD = case.x(comm.rank).requires_grad_()
    with counting(moe) as log:
        y_TD, routing = moe(x_TD, case.padding(comm.rank))
        log.phase = "backward"
        found = torch.autograd.grad(
            loss(y_TD, comm.rank), [x_TD, *moe.parameters()], allow_unused=True, materialize_grads=True
        )
    report(moe, log, x_TD, routing).raise_if_different()
    close(y_TD, want.y, where, tolerance=tolerance)
    close(found[0], want.x, (*where, "x"), tolerance=tolerance)
    close(found[1], want.gate, (*where, "gate"), tolerance=tolerance)
    for (name, parameter), gradient in zip(moe.experts.named_parameters(), found[2:], strict=True):
        close(gradient, part_of(want.experts[name], moe, name, parameter), (*where, name), tolerance=tolerance)


def part_of(whole: Tensor, moe: DistributedMoE, name: str, parameter: Tensor) -> Tensor:
    """Of all experts' gradients what this rank's parameter should have."""
    comm, experts = moe.comm, moe.experts
    first = comm.rank * len(whole) // comm.size
    mine = whole[first : first + len(parameter)]
    return mine.chunk(experts.pieces, experts.shard_dims[name])[experts.piece] if experts.pieces > 1 else mine


def of_all(ranks: int, experts: int) -> Iterator[Schedule]:
    """Schedules that can run so many experts on so many ranks."""
    here, pieces = experts // ranks, ranks // experts
    for r in (r for r in range(max(1, pieces) + 1) if not r or max(1, pieces) % r == 0):
        yield schedules.get("sequential", r=r)
        if r:
            yield schedules.get("pipelined", r=r, chunks=2 + r % 2)
    if here > 1:
        yield schedules.get("expert_groups", groups=min(here, 3))


EXPERTS = {1: (6,), 2: (6, 2, 1), 4: (8, 2, 1), 8: (8, 2)}
FEW = ("drops", "capped", "dropless")  # for 8 ranks on two cores


def all_cases(comm: Communicator) -> None:
    """Every schedule with every capacity; kinds of tokens and experts by turns, so that each meets each somewhere."""
    turn = 0
    for experts in EXPERTS[comm.size]:
        for capacity in CAPACITIES if comm.size < 8 else FEW:
            tokens = ("even", "uneven", "padded")[turn % 3]
            kind = ("ffn", "swiglu")[turn % 2]
            turn += 1
            case = Case(experts, capacity, tokens, kind)
            for schedule in of_all(comm.size, experts):
                check(comm, case, schedule)
    assert oracle(Case(EXPERTS[comm.size][0], "drops"), comm.rank, comm.size).dropped, "capacity is forced to overflow"


def all_ways(comm: Communicator) -> None:
    experts = EXPERTS[comm.size][0]
    for way in ("loop", "fairseq_einsum"):
        for capacity in ("drops", "dropless"):
            for schedule in (schedules.get("sequential"), schedules.get("pipelined", chunks=3)):
                check(comm, Case(experts, capacity, "uneven"), schedule, way)
    check(comm, Case(experts, "largest"), schedules.get("sequential"), "fairseq_einsum_tc", tolerance=3e-2)


def union(comm: Communicator) -> None:
    """A layer over ranks equals one rank with all tokens, where nothing drops."""
    for experts in EXPERTS[comm.size]:
        for capacity in KEEP_ALL:
            case = Case(experts, capacity, "uneven", top_k=3)
            alone = MoE(case.gate(), case.whole())
            xs = [case.x(rank) for rank in range(comm.size)]
            all_TD = torch.cat(xs).requires_grad_()
            y_TD, _ = alone(all_TD)
            parts = y_TD.split([len(x_TD) for x_TD in xs])
            total = sum((loss(part, rank) for rank, part in enumerate(parts)), torch.zeros(()))
            wanted = [all_TD, *alone.gate.parameters(), *alone.experts.parameters()]
            expected = torch.autograd.grad(total, wanted)
            moe = DistributedMoE(case.gate(), case.mine(comm), comm, schedule="pipelined")
            x_TD = case.x(comm.rank).requires_grad_()
            y_mine, _ = moe(x_TD)
            close(y_mine, parts[comm.rank], (case, "union"))
            found = torch.autograd.grad(loss(y_mine, comm.rank), [x_TD, *moe.parameters()])
            close(found[0], expected[0].split([len(x) for x in xs])[comm.rank], (case, "union", "x"))
            gate = found[1].clone()
            comm.all_reduce(gate)
            close(gate, expected[1], (case, "union", "gate"))
            for (name, parameter), mine, whole in zip(
                moe.experts.named_parameters(), found[2:], expected[2:], strict=True
            ):
                close(mine, part_of(whole, moe, name, parameter), (case, "union", name))


def rest(comm: Communicator) -> None:
    case = Case(EXPERTS[comm.size][0], "largest")
    moe = DistributedMoE(case.gate(), case.mine(comm), comm)
    x_TD = case.x(comm.rank)
    # r and the schedule change from step to step, and parameters stay where they are.
    before = [parameter.data_ptr() for parameter in moe.parameters()]
    results = []
    for schedule in of_all(comm.size, case.experts):
        moe.schedule = schedule
        results.append(moe(x_TD).y)
        close(results[-1], results[0], schedule)
    assert before == [parameter.data_ptr() for parameter in moe.parameters()]
    with torch.no_grad():
        close(moe.eval()(x_TD).y, results[0], "without a graph")
    moe.train()
    # Tokens without gradient: what goes to experts has no way back.
    found = verify(moe, x_TD)
    found.raise_if_different()
    assert not found.shape.input_grad
    # A promise of equal tokens saves the agreement.
    plain = DistributedMoE(case.gate(), case.mine(comm), comm, equal_tokens=True)
    found = verify(plain, x_TD.requires_grad_())
    found.raise_if_different()
    assert found.shape.agreements == 1, "only the largest load"


class Made:
    """A communicator that counts the buffers that it is asked for."""

    def __init__(self, comm: Communicator) -> None:
        self._comm, self.buffers = comm, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._comm, name)

    def empty(self, *given: Any, **named: Any) -> Tensor:
        self.buffers += 1
        return self._comm.empty(*given, **named)


def kept(comm: Communicator) -> None:
    """Exchanges write to the same buffers in each pass, results are right each time, and passes cannot overtake."""
    case = Case(EXPERTS[comm.size][0], "drops")
    want = oracle(case, comm.rank, comm.size)
    for schedule, parts in ((schedules.get("sequential"), 1), (schedules.get("pipelined", chunks=3), 3)):
        made = Made(comm)
        moe = DistributedMoE(case.gate(), case.mine(comm), made, schedule=schedule, keep_buffers=True)
        for _ in range(3):
            x_TD = case.x(comm.rank).requires_grad_()
            y_TD, _ = moe(x_TD)
            found = torch.autograd.grad(loss(y_TD, comm.rank), [x_TD, *moe.parameters()])
            close(y_TD, want.y, (case, "kept"))
            close(found[0], want.x, (case, "kept", "x"))
            close(found[1], want.gate, (case, "kept", "gate"))
            assert made.buffers == 4 * parts, "in the first pass, and not again"
        verify(moe, x_TD).raise_if_different()
        first, second = moe(x_TD).y, moe(x_TD).y
        with pytest.raises(RuntimeError, match="inplace"):
            first.sum().backward()
        second.sum().backward()


def shadows(comm: Communicator) -> None:
    """A popular expert comes to the tokens, and all is as without."""
    case = Case(EXPERTS[comm.size][0], "dropless", "uneven")
    gate = case.gate()
    with torch.no_grad():  # tokens are drawn to the last expert
        gate.get_parameter("router.weight_ED")[-1] *= 50
    x_TD = torch.cat([case.x(comm.rank)] * 40).abs().requires_grad_()
    moe = DistributedMoE(gate, case.mine(comm), comm, schedule="shadowed")
    compare(moe, x_TD, schedules.get("sequential")).raise_if_different()
    found = verify(moe, x_TD)
    found.raise_if_different()
    assert comm.size == 1 or sum(sent.collective == "all_to_allv" for sent in found.sent) == 6, "weights, too"


def skips(comm: Communicator) -> None:
    """Nothing is sent, in either pass, and shapes are right."""
    for experts in EXPERTS[comm.size]:
        for capacity in ("drops", "dropless"):
            case = Case(experts, capacity, "uneven")
            moe = DistributedMoE(case.gate(), case.mine(comm), comm)
            for schedule in of_all(comm.size, experts):
                x_TD = case.x(comm.rank).requires_grad_()
                for moe.skip in ("communication", "experts"):
                    moe.schedule = schedule
                    with counting(moe) as log:
                        y_TD = moe(x_TD).y
                        y_TD.sum().backward()
                    assert y_TD.shape == x_TD.shape and x_TD.grad is not None
                    assert bool(log.messages) == (moe.skip == "experts"), (moe.skip, schedule, log.messages)


def low_precision(comm: Communicator) -> None:
    """What travels is as wide as what experts take."""
    case = Case(EXPERTS[comm.size][0], "fewest")
    for capacity in ("fewest", "dropless"):
        config = replace(case.config(), capacity=CAPACITIES[capacity], dtype="fp32")
        for schedule in of_all(comm.size, case.experts):
            moe = DistributedMoE(Gate(D, config), case.mine(comm).float(), comm, schedule=schedule)
            x_TD = case.x(comm.rank).float().requires_grad_()
            y_full = moe(x_TD).y
            with torch.autocast("cpu", torch.bfloat16):
                y_TD = moe(x_TD).y
                found = verify(moe, x_TD)
            found.raise_if_different()
            assert found.shape.itemsize == 2 and y_TD.dtype == torch.bfloat16
            close(y_TD.float(), y_full, (schedule, "autocast"), tolerance=3e-2)
            for dtype in (torch.bfloat16, torch.float16):
                narrow = DistributedMoE(moe.gate, case.mine(comm).to(dtype), comm, schedule=schedule)
                y_TD = narrow(x_TD.to(dtype)).y
                y_TD.sum().backward()
                assert y_TD.dtype == dtype


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_every_schedule_and_way_equals_its_oracle(ranks: int) -> None:
    def rank(transport: Any) -> None:
        torch.set_num_threads(1)  # ranks are more than cores
        with commbench.communicator() as comm:
            all_cases(comm)
            union(comm)
            rest(comm)
            if ranks < 8:
                all_ways(comm)
                low_precision(comm)
                kept(comm)
                shadows(comm)
                skips(comm)
        pairwise = [profiles.choice(name, "pairwise") for name in ("all_to_all", "all_to_allv")]
        with by(*pairwise) as comm:
            for capacity in ("drops", "dropless"):
                check(comm, Case(EXPERTS[ranks][0], capacity), schedules.get("pipelined"))
            ways = comm.explain().count("pairwise window=1")
            assert ways >= 2 or ranks == 1, comm.explain()

    on_gloo(ranks, rank)


def test_bad_input_over_ranks(tmp_path: Path) -> None:
    def rank(transport: Any) -> None:
        with commbench.communicator() as comm:
            case = Case(3)
            with pytest.raises(UsageError, match="experts=3 do not divide among 2 ranks"):
                DistributedMoE(case.gate(), FFN(1, D, H), comm)
            with pytest.raises(UsageError, match=r"rank . of 2 has 4 experts"):
                DistributedMoE(Case(4).gate(), FFN(4, D, H), comm)

    on_gloo(2, rank)


def program(text: str, heading: str) -> str:
    """The first Python block under a heading."""
    return text.split(heading)[1].split("```python\n")[1].split("```")[0]


def test_the_programs_in_the_docs_run(tmp_path: Path) -> None:
    text = (REPOSITORY / "docs/guide/moe.md").read_text()
    for heading, said in (("## In somebody else's layer", "all_to_all"), ("## Over ranks", "pipelined")):
        assert said in run_program(program(text, heading), ranks=2, folder=tmp_path)


def test_copies_share_the_communicator_and_pickling_says_what_to_do() -> None:
    def rank(transport: Any) -> None:
        with commbench.communicator() as comm:
            layer = DistributedMoE(Gate(8, GateConfig(experts=4)), FFN(2, 8, 16), comm)
            again = copy.deepcopy(layer)
            assert again.comm is comm and again.gate is not layer.gate
            average = torch.optim.swa_utils.AveragedModel(layer)
            x_TD = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
            assert torch.equal(again(x_TD).y, layer(x_TD).y) and torch.equal(average(x_TD).y, layer(x_TD).y)
            for save in (lambda: pickle.dumps(layer), lambda: torch.save(comm, io.BytesIO())):
                with pytest.raises(UsageError, match="cannot be pickled"):
                    save()

    on_gloo(2, rank)


def test_second_gradients_over_ranks_are_those_of_one() -> None:
    def second(of: Any, tokens: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        given = [x_TD.clone().requires_grad_() for x_TD in tokens]
        losses = [of(x_TD).y.square().sum() + of(x_TD).y.sum() for x_TD in given]
        first = torch.autograd.grad(sum(losses), given, create_graph=True)
        return torch.autograd.grad(sum(one.pow(3).sum() for one in first), given)

    def rank(transport: Any) -> None:
        with commbench.communicator() as comm:
            tokens = [torch.randn(6, 8, generator=torch.Generator().manual_seed(r)).double() for r in range(comm.size)]
            for rule, schedule in itertools.product(("tutel", "dropless"), ("sequential", "pipelined")):
                config = GateConfig(experts=4, capacity=Capacity(rule))
                gate = Gate(8, config, generator=torch.Generator().manual_seed(0))
                whole = FFN(4, 8, 16, generator=torch.Generator().manual_seed(1))
                here = FFN(2, 8, 16)
                with torch.no_grad():
                    for own, of_all in zip(here.parameters(), whole.parameters(), strict=True):
                        own.copy_(of_all[2 * comm.rank : 2 * comm.rank + 2])
                layer = DistributedMoE(gate, here, comm, schedule=schedule).double()
                one = MoE(gate, whole.double())
                (found,) = second(layer, [tokens[comm.rank]])
                torch.testing.assert_close(found, second(one, tokens)[comm.rank])
            for name, call in (
                ("DistributedMoE on cpu", lambda x: layer(x).y),
                ("all_to_all", comm.autograd.all_to_all),
            ):
                with pytest.raises(UsageError, match=f"torch.func.grad of {name}"):
                    torch.func.grad(lambda x, call=call: call(x).sum())(tokens[0])

    on_gloo(2, rank)


DIFFERENT: dict[str, Callable[[DistributedMoE, torch.Tensor, int], torch.Tensor]] = {
    "mode": lambda layer, x_TD, rank: (layer.train(rank == 0), x_TD)[1],
    "gradient": lambda layer, x_TD, rank: x_TD.requires_grad_(rank == 0),
    "dtype": lambda layer, x_TD, rank: x_TD.to(torch.bfloat16 if rank else torch.float32),
    "tokens": lambda layer, x_TD, rank: x_TD[rank:],
    "weights of the gate": lambda layer, x_TD, rank: (
        layer.gate.get_parameter("router.weight_ED").data.add_(rank),
        x_TD,
    )[1],
}


def test_ranks_that_disagree_are_told_in_what() -> None:
    def rank(transport: Any) -> None:
        with commbench.communicator() as comm:
            for name, change in DIFFERENT.items():
                gate = Gate(8, GateConfig(experts=4), generator=torch.Generator().manual_seed(0))
                layer = DistributedMoE(gate, FFN(2, 8, 16), comm, equal_tokens=True, check_ranks=True)
                verify(layer, torch.ones(6, 8)).raise_if_different()  # the comparison is no part of what is sent
                with pytest.raises(UsageError, match=f"rank 1 differs from rank 0 in {name}; here: {name}: "):
                    layer(change(layer, torch.ones(6, 8), comm.rank))

    on_gloo(2, rank)
