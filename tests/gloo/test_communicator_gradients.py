"""Communicators on forked ranks over gloo: gradients are those of dense torch, and of finite differences."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")

import torch

import commbench
from commbench.communicators.communicator import Communicator
from commbench.errors import UsageError
from tests.gloo.calls import nodes_of, numbers, raises
from tests.support.ranks import on_gloo


def close(found: torch.Tensor | None, want: torch.Tensor) -> None:
    """torch.testing says more, and takes seconds to import in every rank."""
    assert found is not None and found.shape == want.shape and torch.allclose(found, want, rtol=1e-9), (found, want)


def dense(collective: str, inputs: list[torch.Tensor], **asked: Any) -> list[torch.Tensor]:
    """All ranks' outputs, in plain torch."""
    n = len(inputs)
    whole = torch.stack(inputs) if collective != "all_to_allv" else None
    match collective:
        case "all_to_all":
            return [torch.cat([x.chunk(n)[rank] for x in inputs]) for rank in range(n)]
        case "all_to_allv":
            matrix = asked["matrix"]
            parts = [x.split(row) for x, row in zip(inputs, matrix, strict=True)]
            return [torch.cat([row[rank] for row in parts]) for rank in range(n)]
        case "all_gather":
            return [torch.cat(inputs)] * n
        case "all_reduce":
            assert whole is not None
            return [whole.sum(0)] * n
        case "reduce_scatter":
            assert whole is not None
            return list(whole.sum(0).chunk(n))
    raise AssertionError(collective)


def loss_of(out: torch.Tensor, rank: int) -> torch.Tensor:
    """Of one rank; nothing about it is linear or the same on two ranks."""
    weights = torch.arange(1, out.numel() + 1, dtype=out.dtype).reshape(out.shape)
    return (weights * (out * (0.7 + 0.1 * rank)).sin()).sum() / (rank + 1)


@pytest.mark.parametrize("ranks", [2, 4])
def test_gradients_are_those_of_dense_torch(ranks: int) -> None:
    matrix = [[(i + 2 * j) % 3 for j in range(ranks)] for i in range(ranks)]

    def inputs_of(collective: str) -> list[torch.Tensor]:
        rows = [sum(row) for row in matrix] if collective == "all_to_allv" else [2 * ranks] * ranks
        return [numbers(r, rows[r], 3, dtype=torch.float64) / 50 for r in range(ranks)]

    def rank(transport: Any) -> None:
        comm = commbench.communicator()
        me = comm.rank
        counts = {"received": [row[me] for row in matrix], "sent": matrix[me]}
        for collective in ("all_to_all", "all_to_allv", "all_gather", "reduce_scatter", "all_reduce"):
            variants: list[dict[str, Any]] = [{}]
            if collective == "all_to_allv":
                variants = [counts, {**counts, "matrix": matrix}]
            for asked in variants:
                everybody = [x.requires_grad_() for x in inputs_of(collective)]
                outputs = dense(collective, everybody, matrix=matrix)
                total = sum(loss_of(out, r) for r, out in enumerate(outputs))
                assert isinstance(total, torch.Tensor)
                want = torch.autograd.grad(total, everybody, create_graph=True)
                # Of the gradients, too: a penalty on their squares, say.
                second = torch.autograd.grad(sum(g.square().sum() for g in want), everybody)  # type: ignore[arg-type]
                mine = inputs_of(collective)[me].requires_grad_()
                out = getattr(comm.autograd, collective)(mine, **asked)
                close(out, outputs[me])
                (got,) = torch.autograd.grad(loss_of(out, me), mine, create_graph=True)
                close(got, want[me])
                (again,) = torch.autograd.grad(got.square().sum(), mine)
                close(again, second[me])
                finite_differences(comm, collective, mine.detach(), got.detach(), asked)

    on_gloo(ranks, rank)


def finite_differences(
    comm: Communicator, collective: str, inp: torch.Tensor, gradient: torch.Tensor, asked: dict[str, Any]
) -> None:
    """gradcheck over ranks: one element of one rank's input after the other is moved, and all losses are summed."""
    step = 1e-6

    def total(moved: torch.Tensor) -> float:
        loss = loss_of(getattr(comm.autograd, collective)(moved, **asked), comm.rank).reshape(1)
        comm.all_reduce(loss)
        return float(loss)

    for owner in range(comm.size):
        for place in (0, -1):
            slopes = []
            for sign in (1, -1):
                moved = inp.clone()
                if comm.rank == owner and moved.numel():
                    moved.view(-1)[place] += sign * step
                slopes.append(total(moved))
            if comm.rank == owner and inp.numel():
                slope = (slopes[0] - slopes[1]) / (2 * step)
                assert slope == pytest.approx(float(gradient.view(-1)[place]), rel=1e-5, abs=1e-7), (collective, owner)


@pytest.mark.parametrize("tp_input", ["replicated", "partial"])
def test_gradients_between_replicated_tensors(tp_input: str) -> None:
    """Two groups of two ranks. The ranks of a group compute one loss, which counts once."""

    def rank(transport: Any) -> None:
        nodes_of(2)
        comm = commbench.communicator()
        group = comm.rank // 2
        owners = [0, 0, 1, 1] if tp_input == "replicated" else [0, 1, 2, 3]
        leaves = [numbers(owner, 2, 16, dtype=torch.float64) / 50 for owner in range(max(owners) + 1)]
        for leaf in leaves:
            leaf.requires_grad_()
        of_groups = leaves if tp_input == "replicated" else [leaves[0] + leaves[1], leaves[2] + leaves[3]]
        outputs = [torch.stack([x[destination] for x in of_groups]) for destination in range(2)]
        total = loss_of(outputs[0], 0) + loss_of(outputs[1], 1)
        want = torch.autograd.grad(total, leaves)[owners[comm.rank]]
        mine = leaves[owners[comm.rank]].detach().requires_grad_()
        out = comm.autograd.tp_all_to_all(mine, tp=2, tp_input=tp_input)
        close(out, outputs[group])
        loss_of(out, group).backward()
        close(mine.grad, want)

    on_gloo(4, rank)


def test_a_gradient_that_is_no_plain_tensor() -> None:
    """`sum` hands back one number that looks like many; a leaf that two calls use gets both."""

    def rank(transport: Any) -> None:
        comm = commbench.communicator()
        inp = torch.ones(4, requires_grad=True)
        out = comm.autograd.all_to_all(inp) + comm.autograd.all_gather(inp).view(2, 4).sum(0)
        out.sum().backward()
        assert inp.grad is not None and inp.grad.tolist() == [3.0] * 4
        with torch.no_grad():
            assert not comm.autograd.all_to_all(inp).requires_grad
        raises(UsageError, lambda: comm.autograd.all_to_all(torch.ones(4, 2).t()), "not contiguous")

    on_gloo(2, rank)
