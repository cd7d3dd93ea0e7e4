"""reshard: every element arrives, over each link no more than must; senders are no busier than they have to be."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from commbench import algorithms, collectives
from commbench.algorithms.reshard_plan import casts, sized_of
from commbench.collectives import meshes
from commbench.collectives.reshard import pieces_of
from commbench.errors import UsageError
from commbench.layout import Layout
from commbench.measure import proof
from commbench.spec import Spec

MESHES = [
    ("tp4-ep2", "tp2", 3, 4), ("tp2", "dp4", 2, 4), ("dp2-tp2", "ep3", 4, 2), ("ep2-tp2", "tp2-ep2", 4, 2),
    ("ep4", "tp4@0", 2, 2), ("dp4@0", "tp4@0", 2, 2), ("tp3", "tp4@1", 3, 2), ("tp1", "dp6", 4, 2),
]  # fmt: skip


def spec_of(name: str, src: str, dst: str, nodes: int, per_node: int, **params: int) -> Spec:
    algorithm = algorithms.get("reshard", name)
    given = {key: default for key, (default, _) in algorithm.params.items()} | params
    found = proof.spec_of(
        algorithm, Layout(nodes, per_node), size_bytes=3000, asked={"src": src, "dst": dst}, params=given
    )
    assert isinstance(found, Spec), found
    return found


@pytest.mark.parametrize("name", algorithms.names("reshard"))
@pytest.mark.parametrize(("src", "dst", "nodes", "per_node"), MESHES)
def test_every_part_arrives_as_declared(name: str, src: str, dst: str, nodes: int, per_node: int) -> None:
    chunks = [{"chunks": 3}] if name == "broadcast_chain" else []
    for params in ({}, {"balance": 0}, *chunks):
        assert proof.examine(algorithms.get("reshard", name), spec_of(name, src, dst, nodes, per_node, **params)) == []


def shards(mesh: meshes.RankMesh, whole: np.ndarray) -> dict[int, np.ndarray]:
    """Cut a tensor as DTensor does, by torch's rule for chunks, one dimension of the mesh after the other."""
    found = {}
    for rank, place in zip(mesh.ranks, itertools.product(*map(range, mesh.shape)), strict=True):
        part = whole
        for index, parts, cut in zip(place, mesh.shape, mesh.cuts, strict=True):
            if cut is not None:
                each = -(-part.shape[cut] // parts)
                part = part[(slice(None),) * (cut % part.ndim) + (slice(index * each, (index + 1) * each),)]
        found[rank] = part
    return found


@pytest.mark.parametrize("lengths", [(12, 12), (7, 5), (1, 9), (3, 16)])
@pytest.mark.parametrize(("src", "dst", "nodes", "per_node"), MESHES)
def test_parts_are_those_that_both_cuts_have_in_common(
    lengths: tuple[int, int], src: str, dst: str, nodes: int, per_node: int
) -> None:
    """The oracle is each element's number in the whole tensor, on even cuts and on others."""
    whole = np.arange(np.prod(lengths)).reshape(lengths)
    one, other = meshes.parse(src), meshes.parse(dst, first=3)
    has, wants = shards(one, whole), shards(other, whole)
    held: Counter[tuple[int, int]] = Counter()
    wanted: Counter[tuple[int, int]] = Counter()
    for piece in meshes.pieces(lengths, one, other):
        numbers = whole[tuple(slice(*edge) for edge in piece.box)].ravel().tolist()
        assert len(numbers) == piece.elements > 0
        held.update((rank, number) for rank in piece.holders for number in numbers)
        wanted.update((rank, number) for rank in piece.receivers for number in numbers)
    assert held == Counter((rank, number) for rank, part in has.items() for number in part.ravel().tolist())
    assert wanted == Counter((rank, number) for rank, part in wants.items() for number in part.ravel().tolist())


@pytest.mark.parametrize(("src", "dst", "nodes", "per_node"), MESHES)
def test_a_link_carries_the_minimum_cut(src: str, dst: str, nodes: int, per_node: int) -> None:
    """Into a node come just the bytes that none of its ranks holds and some rank wants; naive sends bring more."""
    layout = Layout(nodes, per_node)
    least: Counter[int] = Counter()
    for piece in pieces_of(spec_of("send", src, dst, nodes, per_node)):
        held = {layout.node(rank) for rank in piece.holders}
        least.update(dict.fromkeys({layout.node(rank) for rank in piece.receivers} - held, piece.elements))
    for name in ("broadcast_chain", "scatter_gather", "send"):
        spec = spec_of(name, src, dst, nodes, per_node)
        cell = (
            spec.size_bytes // np.prod([max(piece.box[axis][1] for piece in pieces_of(spec)) for axis in (0, 1)]).item()
        )
        into: Counter[int] = Counter()
        for step in algorithms.get("reshard", name).steps(spec) or []:
            into.update({layout.node(rank): nbytes for rank, nbytes in _foreign(step.sends, layout).items() if nbytes})
        want = {node: count * cell for node, count in least.items()}
        if name == "send":
            assert all(into[node] >= nbytes for node, nbytes in want.items())
        else:
            assert into == want


def _foreign(sends: tuple, layout: Layout) -> Counter[int]:
    """Bytes into the first rank of each node from other nodes."""
    found: Counter[int] = Counter()
    for send in sends:
        if layout.link(send.src, send.dst) == "inter":
            found[layout.node(send.dst) * layout.ranks_per_node] += send.nbytes
    return found


@pytest.mark.parametrize(("src", "dst", "nodes"), [("dp2-tp2", "tp4", 4), ("dp3", "ep3", 6), ("dp2-ep3", "tp2", 4)])
def test_the_busiest_node_sends_as_little_as_any_choice_of_senders_makes_it(src: str, dst: str, nodes: int) -> None:
    """Greedy against all choices; the first holder of each part is busier."""
    layout = Layout(nodes, 2)
    sized = sized_of(spec_of("send", src, dst, nodes, 2))

    def busiest(senders: dict[int, int]) -> int:
        out: Counter[int] = Counter()
        for number, sender in senders.items():
            out[layout.node(sender)] += sized[number][1]
        return max(out.values())

    choices = [[(number, holder) for holder in piece.holders] for number, (piece, _) in enumerate(sized)]
    best = min(busiest(dict(choice)) for choice in itertools.product(*choices))
    balanced, first = (
        busiest({cast.piece: cast.sender for cast in casts(sized, layout, balance=balance)})
        for balance in (True, False)
    )
    assert balanced == best < first


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ({"src": "tp4,ep2"}, "is no mesh"), ({"src": "tp4-tp2"}, "is no mesh"), ({"src": "xp4"}, "is no mesh"),
        ({"src": "tp0"}, "is no mesh"), ({"src": "tp4@x"}, "is no mesh"), ({"src": ""}, "is no mesh"),
        ({"src": "tp8-ep2"}, "src=tp8-ep2 needs rank 15, and the ranks are 0 .. 7"),
        ({"dst": "tp4@6"}, "dst=tp4@6 needs rank 9, and the ranks are 0 .. 7"),
    ],
)  # fmt: skip
def test_what_is_no_mesh_here_is_refused(words: dict[str, str], reason: str) -> None:
    with pytest.raises(ValueError, match=r"mesh|needs rank") as error:
        collectives.get("reshard").settle(4096, Layout(2, 4), words)
    assert reason in str(error.value)
    with pytest.raises(UsageError, match="mesh"):
        meshes.parse("2tp")
