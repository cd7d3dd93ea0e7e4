"""Which experts each token goes to: drawn from a rule or read from a trace, the same on every rank that asks.

A draw depends on the rule, `router_seed` and the rank, never on the data of a call: what an algorithm sends in a case
is the same in all of its calls.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from commbench.collectives import routing_trace
from commbench.layout import Layout
from commbench.spec import Arguments, Spec, Value

ROUTERS = ("uniform", "zipf", "grouped", "trace")
NONE = -1  # in place of an expert: the token is masked, or has fewer choices than others
TOP_K = 8  # where nothing says
_PER_RANK = 4  # experts on each rank, at the least, where nothing says
_OF_GROUP = 2  # the best scores of a group of experts that count for it (DeepSeek-V3, arXiv 2412.19437, section 2.1.2)

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


class ExpertChoices(NamedTuple):
    """experts: [ranks, tokens, top_k], `NONE` for none. weights: of the same shape, exact in every dtype in sums."""

    experts: npt.NDArray[np.int32]
    weights: Floats


class RoutedShape(NamedTuple):
    """The layer of which a spec speaks. row_bytes: of a token as it travels; tokens: of each rank."""

    tokens: int
    row_bytes: int
    top_k: int
    experts: int
    ranks: int

    @property
    def per_rank(self) -> int:
        """Experts of each rank."""
        return self.experts // self.ranks


def shape_of(spec: Spec) -> RoutedShape:
    row = int(spec.arguments["row_bytes"])
    top_k, experts = int(spec.arguments["top_k"]), int(spec.arguments["experts"])
    return RoutedShape(spec.size_bytes // row, row, top_k, experts, spec.ranks)


def settle(arguments: Arguments, ranks: int) -> dict[str, Value]:
    """Return the arguments of the router that have an effect. Raises `ValueError`, in words, where they make no sense.

    With `router=trace` the tokens of each rank are among them, as `trace_tokens`.
    """
    router = str(arguments["router"])
    if router == "trace":
        return _of_trace(arguments, ranks)
    top_k = int(arguments.get("top_k") or TOP_K)
    experts = int(arguments.get("experts") or ranks * max(_PER_RANK, -(-top_k // ranks)))
    _check(experts, top_k, ranks)
    kept: dict[str, Value] = {"router": router, "top_k": top_k, "experts": experts}
    kept["router_seed"] = int(arguments.get("router_seed") or 0)
    if router == "zipf":
        kept["alpha"] = float(arguments["alpha"])
    if router == "grouped":
        kept |= _groups(arguments, experts, top_k)
    return kept


def _check(experts: int, top_k: int, ranks: int) -> None:
    if experts % ranks:
        raise ValueError(f"experts={experts} do not divide among {ranks} ranks")
    if top_k > experts:
        raise ValueError(f"top_k={top_k}: a token goes to different experts, and there are {experts}")


def _groups(arguments: Arguments, experts: int, top_k: int) -> dict[str, Value]:
    groups = int(arguments.get("expert_groups") or 0)
    if not groups:
        raise ValueError("router=grouped needs expert_groups, the groups into which experts are divided")
    limit = int(arguments.get("group_limit") or -(-groups // 2))
    if experts % groups or experts // groups < _OF_GROUP:
        raise ValueError(f"expert_groups={groups}: {experts} experts do not divide into such groups of 2 or more")
    if limit > groups or limit * (experts // groups) < top_k:
        raise ValueError(f"group_limit={limit} of {groups} groups of {experts // groups} experts cannot give {top_k}")
    return {"expert_groups": groups, "group_limit": limit}


def _of_trace(arguments: Arguments, ranks: int) -> dict[str, Value]:
    step = routing_trace.step_of(arguments)
    chosen = routing_trace.unpack(step)
    if chosen.shape[0] != ranks:
        raise ValueError(f"the routing trace is of {chosen.shape[0]} ranks, not {ranks}")
    top_k = chosen.shape[2]
    given = int(arguments.get("top_k") or top_k)
    if given != top_k:
        raise ValueError(f"top_k={given}, but tokens of the routing trace go to {top_k} experts")
    largest = int(chosen.max()) + 1
    experts = int(arguments.get("experts") or -(-largest // ranks) * ranks)
    if largest > experts:
        raise ValueError(f"experts={experts}, but the routing trace has expert {largest - 1}")
    _check(experts, top_k, ranks)
    number = int(arguments.get("step") or 0)
    kept: dict[str, Value] = {"router": "trace", "top_k": top_k, "experts": experts, "step": number, "trace": step}
    return {**kept, "trace_tokens": chosen.shape[1]}


def routing_of(spec: Spec) -> ExpertChoices:
    """Return the routing of all ranks of a settled spec. Shared: do not write to it."""
    shape = shape_of(spec)
    return _routing(shape.ranks, shape.tokens, tuple(sorted(spec.arguments.items())))


@functools.lru_cache(maxsize=8)
def _routing(ranks: int, tokens: int, items: tuple[tuple[str, Value], ...]) -> ExpertChoices:
    arguments = dict(items)
    top_k = int(arguments["top_k"])
    if arguments["router"] == "trace":
        experts = routing_trace.unpack(str(arguments["trace"]))
    else:
        experts = np.stack([_drawn(rank, tokens, arguments) for rank in range(ranks)])
    # Sums of up to 21 whole numbers up to 3 with these weights are exact in bf16, in any order.
    drawn = [np.random.default_rng([rank, 1]).integers(0, 3, (tokens, top_k)) for rank in range(ranks)]
    weights = np.ldexp(np.float32(1), -np.stack(drawn)).astype(np.float32)
    experts.setflags(write=False)
    weights.setflags(write=False)
    return ExpertChoices(experts, weights)


def _drawn(rank: int, tokens: int, arguments: Arguments) -> npt.NDArray[np.int32]:
    """Return the experts of one rank's tokens: those of the highest scores, drawn so that popularities come out."""
    experts, top_k, seed = (int(arguments[key]) for key in ("experts", "top_k", "router_seed"))
    rng = np.random.default_rng([seed, rank, 0])
    scores = rng.gumbel(size=(tokens, experts)).astype(np.float32)
    if arguments["router"] == "zipf":
        # Which experts are popular is the same for all ranks, and not always those of rank 0.
        popularity = -float(arguments["alpha"]) * np.log(np.arange(1, experts + 1))
        scores += np.random.default_rng(seed).permutation(popularity).astype(np.float32)
    if arguments["router"] == "grouped":
        groups, limit = int(arguments["expert_groups"]), int(arguments["group_limit"])
        of_groups = scores.reshape(tokens, groups, -1)
        best = np.sort(of_groups, axis=2)[:, :, -_OF_GROUP:].sum(axis=2)
        left_out = np.argsort(-best, axis=1)[:, limit:]
        np.put_along_axis(of_groups, left_out[:, :, None], np.float32(-np.inf), axis=1)
    return np.argpartition(-scores, top_k - 1, axis=1)[:, :top_k].astype(np.int32)


class Counts(NamedTuple):
    """Rows of tokens that have a choice there: for each source rank, by choice and by rank (of any rank), by node."""

    choices: Ints  # [source, rank]: one for each choice
    ranks: Ints  # [source, rank]: one for each token that has a choice there
    nodes: Ints  # [source, node]


def counts_of(spec: Spec) -> Counts:
    """Return how many rows must come where. Shared: do not write to it."""
    shape = shape_of(spec)
    layout = spec.layout
    return _counts(
        shape.tokens, shape.per_rank, layout.nodes, layout.ranks_per_node, tuple(sorted(spec.arguments.items()))
    )


@functools.lru_cache(maxsize=8)
def _counts(
    tokens: int, per_rank: int, nodes: int, ranks_per_node: int, items: tuple[tuple[str, Value], ...]
) -> Counts:
    layout = Layout(nodes, ranks_per_node)
    choices, by_rank, by_node = [], [], []
    for experts in _routing(layout.ranks, tokens, items).experts:
        hits = np.zeros((len(experts), layout.ranks + 1), bool)  # the last column is for no choice
        targets = np.where(experts == NONE, layout.ranks, experts // per_rank)
        np.put_along_axis(hits, targets, True, axis=1)
        hits = hits[:, :-1]
        choices.append(np.bincount(targets.ravel(), minlength=layout.ranks + 1)[:-1])
        by_rank.append(hits.sum(axis=0))
        by_node.append(hits.reshape(len(experts), nodes, ranks_per_node).any(axis=2).sum(axis=0))
    return Counts(np.stack(choices), np.stack(by_rank), np.stack(by_node))
