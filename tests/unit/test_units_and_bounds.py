from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commbench import collectives
from commbench.bound import bound_us
from commbench.data import block_chunks, block_key
from commbench.errors import UsageError
from commbench.layout import Layout
from commbench.spec import Spec
from commbench.units import format_seconds, format_size, gbps, parse_size


@pytest.mark.parametrize(
    ("text", "expected"),
    [("8", 8), ("32K", 32768), ("1MiB", 1 << 20), ("1.5G", 3 << 29), ("4kb", 4096), (17, 17), ("2t", 2 << 40)],
)
def test_sizes(text: str | int, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "12Q", "-4K", "K", "1.0001K", "four", None, 1.5, True])
def test_bad_sizes(text: object) -> None:
    with pytest.raises(UsageError, match="size"):
        parse_size(text)  # type: ignore[arg-type]


@given(st.integers(0, 4096), st.sampled_from([1, 1024, 1024**2, 1024**3]))
def test_whole_sizes_survive_the_round_trip(count: int, unit: int) -> None:
    if count < 1000:  # four digits are shown
        assert parse_size(format_size(count * unit)) == count * unit


def test_seconds() -> None:
    assert [format_seconds(s) for s in (0.42, 59.6, 200, 7500)] == ["0.4 s", "60 s", "3 min 20 s", "2 h 05 min"]


@pytest.mark.parametrize(
    ("nodes", "per_node", "rate", "ceiling"),
    [(2, 8, 50, 93.75), (4, 8, 50, 64.58), (8, 8, 50, 56.25), (2, 8, 12.5, 23.44)],
)
def test_network_bound_is_the_known_ceiling(nodes: int, per_node: int, rate: float, ceiling: float) -> None:
    """busbw <= B (n - 1) / (n - g): the worked examples of nccl-tests' discussions (NVIDIA/nccl-tests#130)."""
    layout = Layout(nodes, per_node)
    spec = Spec(collective="all_to_all", dtype="uint8", size_bytes=layout.ranks * 1 << 20, layout=layout)
    a2a = collectives.get("all_to_all")
    time_us = bound_us(a2a.needs(spec), {"intra": 1e9, "inter": rate})
    assert gbps(spec.size_bytes, time_us) * (a2a.busbw_factor(spec) or 0) == pytest.approx(ceiling, rel=1e-3)


def test_intra_bound_where_the_node_is_slow() -> None:
    layout = Layout(1, 4)
    spec = Spec(collective="all_to_all", dtype="uint8", size_bytes=4 << 20, layout=layout)
    assert bound_us(collectives.get("all_to_all").needs(spec), {"intra": 1.0, "inter": 1e9}) == pytest.approx(
        3 * (1 << 20) / 1e3
    )


@pytest.mark.parametrize(
    ("name", "nodes", "per_node", "per_rank", "per_nic"),
    [
        ("all_gather", 1, 4, 3 / 4, 0.0),
        ("all_gather", 2, 4, 7 / 8, 1 / 2 / 4),  # half of all parts must reach each node, over 4 NICs
        ("reduce_scatter", 4, 2, 7 / 8, 3 / 4 / 2),
        ("all_reduce", 2, 4, 2 * 7 / 8, 2 * 1 / 2 / 4),
        ("broadcast", 2, 4, 1.0, 1 / 4),
    ],
)
def test_shared_data_must_reach_each_node_once(
    name: str, nodes: int, per_node: int, per_rank: float, per_nic: float
) -> None:
    """Ranks of a node may hand on what one of them got, so the network carries it once for all of them."""
    size = 8 << 20
    arguments = {"root": 0} if name == "broadcast" else {"op": "sum"}
    spec = Spec(collective=name, dtype="fp32", size_bytes=size, layout=Layout(nodes, per_node), arguments=arguments)
    needs = collectives.get(name).needs(spec)
    network_only = bound_us(needs, {"intra": 1e12, "inter": 1.0})
    assert network_only == pytest.approx(per_nic * size / 1e3, rel=1e-6, abs=1e-4)
    both = (
        bound_us(needs, {"intra": 3.0, "inter": 1e-9}) if nodes == 1 else bound_us(needs[:1], {"intra": 3, "inter": 1})
    )
    assert both == pytest.approx(per_rank * size / (3.0 if nodes == 1 else 4.0) / 1e3)


@given(st.integers(0, 1 << 40), st.integers(1, 512))
def test_rounding_keeps_blocks_multiples_of_16_bytes(size: int, ranks: int) -> None:
    rounded, _ = collectives.get("all_to_all").settle(size, ranks, {})
    assert rounded <= size and rounded % (16 * ranks) == 0 and size - rounded < 16 * ranks


def test_blocks_differ_in_every_coordinate_and_in_every_position() -> None:
    base = (3, 1, 0, 1)
    blocks = {key: b"".join(c.tobytes() for c in block_chunks(block_key(*key), 4096)) for key in
              (base, (4, 1, 0, 1), (3, 2, 0, 1), (3, 1, 1, 1), (3, 1, 0, 2), (3, 1, 1, 0))}  # fmt: skip
    assert len(set(blocks.values())) == len(blocks)
    content = blocks[base]
    assert len({content[i : i + 16] for i in range(0, 4096, 16)}) == 256


def test_chunks_are_one_stream() -> None:
    whole = b"".join(c.tobytes() for c in block_chunks(9, (1 << 20) + 100))
    assert len(whole) == (1 << 20) + 100
    assert whole[: 1 << 10] == b"".join(c.tobytes() for c in block_chunks(9, 1 << 10))
