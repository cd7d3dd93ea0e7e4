from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commbench import collectives
from commbench.collectives.all_to_all import AllToAll
from commbench.data import CHUNK_BYTES, Block, Pattern, block_key
from commbench.errors import UsageError
from commbench.layout import Layout
from commbench.links import LeastTime, LinkRate, Need, least_time, of_messages, parse_link_rate, parse_link_rates
from commbench.spec import Send, Spec
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


def bound_us(needs: list[Need], links: dict[str, LinkRate], layout: Layout, *, share: float = 1.0) -> float:
    least = least_time(needs, links, layout, share=share)
    return least.us if least else 0.0


def rates(**gbps: float) -> dict[str, LinkRate]:
    return {link: LinkRate(gbps=value) for link, value in gbps.items()}


@pytest.mark.parametrize(
    ("nodes", "per_node", "rate", "ceiling"),
    [(2, 8, 50, 93.75), (4, 8, 50, 64.58), (8, 8, 50, 56.25), (2, 8, 12.5, 23.44)],
)
def test_network_bound_is_the_known_ceiling(nodes: int, per_node: int, rate: float, ceiling: float) -> None:
    """busbw <= B (n - 1) / (n - g): the worked examples of nccl-tests' discussions (NVIDIA/nccl-tests#130)."""
    layout = Layout(nodes, per_node)
    spec = Spec(collective="all_to_all", dtype="uint8", size_bytes=layout.ranks * 1 << 20, layout=layout)
    a2a = collectives.get("all_to_all")
    time_us = bound_us(a2a.needs(spec), rates(intra=1e9, inter=rate), layout)
    assert gbps(spec.size_bytes, time_us) * (a2a.busbw_factor(spec) or 0) == pytest.approx(ceiling, rel=1e-3)


@pytest.mark.parametrize(
    ("text", "gbps"),
    [
        ("400gbit", 50), ("400Gbit", 50), ("8x400gbit", 400), ("4x100gbit/s", 50), ("200mbit", 0.025), ("1.6tbit", 200),
        ("450GBps", 450), ("50GB/s", 50), ("900MBps", 0.9), ("2GiBps", 2 * 1.073741824), ("18x26.5625GBps", 478.125),
        ("999999tbit", 124999875),
    ],
)  # fmt: skip
def test_rates_in_bits_and_bytes(text: str, gbps: float) -> None:
    rate = parse_link_rate("inter", text)
    assert rate.gbps == pytest.approx(gbps) and (rate.of, rate.kind, rate.source) == ("node", "declared", text)
    assert parse_link_rate("intra", text).of == "rank"


@pytest.mark.parametrize("text", ["", "400", "gbit", "0gbit", "-1gbit", "4x", "x400gbit", "400gbitx4",
                                  "9" * 400 + "GBps", "infGBps", "4xx4gbit", "400 parsecs"])  # fmt: skip
def test_bad_rates(text: str) -> None:
    with pytest.raises(UsageError, match=r"link_rate.inter is") as raised:
        parse_link_rate("inter", text)
    assert "4x400gbit" in raised.value.hint


@pytest.mark.parametrize("text", ["400Gbps", "400gbps", "400Gb/s", "100mbps"])
def test_a_unit_that_may_be_bits_or_bytes_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="may mean bits or bytes"):
        parse_link_rate("inter", text)


def test_options_name_their_class_of_links() -> None:
    found = parse_link_rates(["inter=400gbit", "intra=450GBps", "inter=8x400gbit"])
    assert {link: rate.gbps for link, rate in found.items()} == {"inter": 400, "intra": 450}
    for text in ("400gbit", "outer=400gbit", "=400gbit"):
        with pytest.raises(UsageError, match="names no class of links"):
            parse_link_rates([text])


def test_a_bound_of_two_rates_has_the_weaker_label() -> None:
    intra = LinkRate(gbps=3.0, kind="measured")
    links = {"intra": intra, "inter": LinkRate(gbps=1.0, of="node", kind="nominal")}
    both = [Need(8000, ("intra", "inter"))]
    assert least_time(both, links, Layout(2, 2)) == LeastTime(2.0, "nominal")
    assert least_time(both, {**links, "inter": LinkRate(gbps=1.0, kind="declared")}, Layout(2, 2)) == (2.0, "declared")
    assert least_time([*both, Need(9000, ("intra",))], links, Layout(2, 2)) == LeastTime(3.0, "measured")
    assert least_time(both, {"intra": intra}, Layout(2, 2)) is None


@pytest.mark.parametrize(("nodes", "per_node"), [(1, 1), (1, 4), (2, 1), (2, 3), (4, 2), (3, 5)])
def test_what_all_to_all_needs_is_what_its_messages_need(nodes: int, per_node: int) -> None:
    layout, a2a = Layout(nodes, per_node), AllToAll()
    spec = Spec(collective="all_to_all", dtype="uint8", size_bytes=layout.ranks * 16, layout=layout)
    assert sorted(a2a.needs(spec)) == sorted(of_messages(a2a.messages(spec), layout))


def test_intra_bound_where_the_node_is_slow() -> None:
    layout = Layout(1, 4)
    spec = Spec(collective="all_to_all", dtype="uint8", size_bytes=4 << 20, layout=layout)
    needs = collectives.get("all_to_all").needs(spec)
    assert bound_us(needs, rates(intra=1.0, inter=1e9), layout) == pytest.approx(3 * (1 << 20) / 1e3)


def test_ranks_share_the_link_of_their_node() -> None:
    """8 ranks behind one NIC of rate B: the node's traffic, not a rank's, bounds; a group of them has its share."""
    a2a, layout = collectives.get("all_to_all"), Layout(2, 8)
    spec = Spec(collective="all_to_all", dtype="uint8", size_bytes=16 << 20, layout=layout)
    per_rank = bound_us(a2a.needs(spec), rates(inter=1.0), layout)
    of_node = {"inter": LinkRate(gbps=1.0, of="node")}
    assert (
        bound_us(a2a.needs(spec), of_node, layout) == pytest.approx(8 * per_rank) == pytest.approx(8 * (8 << 20) / 1e3)
    )
    rail = Layout(2, 1)
    one = Spec(collective="all_to_all", dtype="uint8", size_bytes=16 << 20, layout=rail)
    assert bound_us(a2a.needs(one), of_node, rail, share=1 / 8) == pytest.approx(8 * (8 << 20) / 1e3)


def test_what_a_link_passes_at_once_after_a_rest_is_free() -> None:
    layout = Layout(2, 1)
    spec = Spec(collective="all_to_all", dtype="uint8", size_bytes=2 << 20, layout=layout)
    link = {"inter": LinkRate(gbps=1.0, of="node", burst_bytes=1 << 18)}
    needs = collectives.get("all_to_all").needs(spec)
    assert bound_us(needs, link, layout) == pytest.approx(((1 << 20) - (1 << 18)) / 1e3)
    assert bound_us(needs, {"inter": LinkRate(gbps=1.0, burst_bytes=1 << 21)}, layout) == 0.0


def test_packets_are_charged() -> None:
    link = LinkRate(gbps=1.0, packet_bytes=65536, packet_overhead=30000)
    assert [link.charged(n) for n in (1, 65536, 65537)] == [30001, 95536, 125537]
    assert LinkRate(gbps=1.0).charged(100) == 100
    assert of_messages([Send(0, 1, 100)], Layout(2, 1), lambda link, n: 7 * n)[0].nbytes == 700


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
    layout = spec.layout
    network_only = bound_us(needs, rates(intra=1e12, inter=1.0), layout)
    assert network_only == pytest.approx(per_nic * size / 1e3, rel=1e-6, abs=1e-4)
    both = (
        bound_us(needs, rates(intra=3.0), layout)
        if nodes == 1
        else bound_us(needs[:1], rates(intra=3.0, inter=1.0), layout)
    )
    assert both == pytest.approx(per_rank * size / (3.0 if nodes == 1 else 4.0) / 1e3)


@given(st.integers(0, 1 << 40), st.integers(1, 512))
def test_rounding_keeps_blocks_multiples_of_16_bytes(size: int, ranks: int) -> None:
    """Or, below 16 bytes, blocks of 8, 4, 2 or 1: the largest that fits."""
    rounded, _ = collectives.get("all_to_all").settle(size, Layout(1, ranks), {})
    block = rounded // ranks
    assert rounded == block * ranks <= size
    if size >= 16 * ranks:
        assert block % 16 == 0 and size - rounded < 16 * ranks
    else:
        assert block in (0, 1, 2, 4, 8) and (2 * block * ranks > size if block else size < ranks)


def test_blocks_differ_in_every_coordinate_and_in_every_position() -> None:
    base = (3, 1, 0, 1)
    blocks = {key: content_of(*key) for key in
              (base, (4, 1, 0, 1), (3, 2, 0, 1), (3, 1, 1, 1), (3, 1, 0, 2), (3, 1, 1, 0))}  # fmt: skip
    assert len(set(blocks.values())) == len(blocks)
    content = blocks[base]
    assert len({content[i : i + 16] for i in range(0, 4096, 16)}) == 256


def content_of(seed: int, salt: int, src: int, dst: int) -> bytes:
    return Pattern([Block(block_key(seed, src, dst), 4096)], 1).whole(salt).tobytes()


@pytest.mark.parametrize("sizes", [(0, 24, 24, 8), (3, 1, 0), (CHUNK_BYTES,) * 2, (CHUNK_BYTES + 100,) * 2 + (12,)])
def test_blocks_lie_one_after_the_other(sizes: tuple[int, ...]) -> None:
    blocks = [Block(number, nbytes) for number, nbytes in enumerate(sizes)]
    apart = b"".join(Pattern([block], 1).whole(5).tobytes() for block in blocks)
    assert Pattern(blocks, 1).whole(5).tobytes() == apart and len(apart) == sum(sizes)
    pieces = [apart[first : first + CHUNK_BYTES][:64] for first in range(0, len(apart), CHUNK_BYTES)]
    assert len(set(pieces)) == len(pieces)
