"""Emulated fabrics as text and as keys: what is asked of the kernel, and every way to ask for the impossible."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from commbench import fabric
from commbench.emulated import Emulated, parse_rate
from commbench.errors import EnvironmentProblem, UsageError
from commbench.fabric import namespaces, network, rails, tools
from tests.conftest import environment, here

FOUR = Emulated(nodes=4, link="1gbit", message_overhead=30000)
SPINES = {
    name: Emulated(nodes=4, link="500mbit", spines=2, routing=name) for name in ("static", "ecmp", "spray")
}  # fmt: skip


def test_rates_are_what_tc_means_by_them() -> None:
    assert [parse_rate(text) for text in ("1gbit", "200mbit", "2.5gbit", "1500kbit")] == [1e9, 2e8, 2.5e9, 1.5e6]
    assert FOUR.gbps == 0.125


@pytest.mark.parametrize("text", ["fast", "0gbit", "1", "1gbps", "-1gbit", "1e3mbit", "500gbit", "999kbit", ""])
def test_rates_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="link is"):
        parse_rate(text)


def test_a_bucket_holds_the_largest_packet_with_its_charge() -> None:
    """Else tbf would cut packets into frames, each of them charged, or drop them."""
    assert FOUR.burst_bytes >= 65536 + 45 * 66 + 30000
    assert Emulated(nodes=2, link="100gbit").burst_bytes == 2_500_000


def test_every_node_has_a_link_to_every_spine_shaped_at_both_ends() -> None:
    fabric = SPINES["static"]
    text = network.switch(fabric, [11, 12, 13, 14])
    links = [line for line in text.splitlines() if "type veth" in line]
    assert len(links) == 4 * 2 + 4 and sum("peer name control" in line for line in links) == 4
    assert sum(" netns 13" in line for line in links) == 3
    assert network.switch_shaping(fabric).count("tbf rate 500mbit") == 4 * 2
    assert network.node_shaping(fabric, 0).count("tbf rate 500mbit") == 2
    assert "control" not in network.switch_shaping(fabric) + network.node_shaping(fabric, 0)


def test_only_messages_that_cost_something_are_charged() -> None:
    assert "stab overhead 30000 tbf" in network.node_shaping(FOUR, 0)
    assert "stab" not in network.node_shaping(SPINES["ecmp"], 0)


def test_one_node_can_have_a_slow_link() -> None:
    """A defect to look for: that node's own ends are slower, in the direction that was asked for."""
    both, out = (Emulated(nodes=4, link="900mbit", slow_link=text) for text in ("node2:3", "node2:3:out"))
    assert [network.node_shaping(both, node).count("rate 300000000bit") for node in range(4)] == [0, 0, 1, 0]
    assert network.switch_shaping(both).count("rate 300000000bit") == 1
    assert "dev n2s0 root handle 1: tbf rate 300000000bit" in network.switch_shaping(both)
    assert network.node_shaping(out, 2) == network.node_shaping(both, 2)
    assert "300000000bit" not in network.switch_shaping(out)
    assert str(out) == "900mbit links, slow link node2:3:out"
    assert fabric.links(both) == fabric.links(Emulated(nodes=4, link="900mbit")), "the bound is of the healthy links"


def test_the_inside_of_a_node_can_have_a_rate_too() -> None:
    inside = Emulated(nodes=2, link="200mbit", intra_link="1600mbit")
    assert "dev lo parent 1: classid 1:1 htb rate 1600mbit burst 70123" in network.node_shaping(inside, 0)
    assert "match ip dst 10.77.0.0/16 flowid 1:1" in network.node_shaping(inside, 0)  # votes go to 10.78
    assert "dev lo" not in network.node_shaping(FOUR, 0)
    assert fabric.links(inside)["intra"].gbps == pytest.approx(0.2) and "intra" not in fabric.links(FOUR)
    assert str(inside) == "200mbit links, 1600mbit inside nodes"


def test_routes() -> None:
    static, ecmp, spray = (network.node(fabric, 1) for fabric in SPINES.values())
    assert "route add 10.77.0.3/32 src 10.77.0.2 quickack 1 dev net0" in static.splitlines()
    assert "route add 10.77.0.4/32 src 10.77.0.2 quickack 1 dev net1" in static.splitlines()
    assert ecmp.count("nexthop dev net0 nexthop dev net1") == 3
    assert "rule add fwmark 101 table 101" in spray and "10.77.0.1/32 src 10.77.0.2 dev net1 table 101" in spray
    rules = network.spray(SPINES["spray"], 1)
    assert rules.count("numgen inc mod 2 offset 100") == 3 * 2 and "10.77.0.2 " not in rules
    assert "dev net1 table 101 quickack 1" in spray and "quickack" not in network.node(FOUR, 1)
    # TCP would take what overtakes for losses, and wait 40 ms for company: with several spines, on all routings alike.
    assert [network.settings(one).get("ipv4/tcp_reordering") for one in (*SPINES.values(), FOUR)] == ["127"] * 3 + [
        None
    ]
    for text in (static, ecmp, spray):
        assert text.count("neigh add") == 3 * 2  # to each other node, over each spine


def test_addresses_do_not_repeat() -> None:
    nodes = range(300)
    assert len({network.address(n) for n in nodes} | {network.control_address(n) for n in nodes}) == 600


def test_a_fabric_survives_its_text() -> None:
    assert Emulated.from_json(FOUR.to_json()) == FOUR
    assert str(FOUR) == "1gbit links, 30000 B per packet"
    assert str(SPINES["spray"]) == "500mbit links, 2 spines, spray"
    assert fabric.links(SPINES["spray"])["inter"].gbps == pytest.approx(0.125)


def test_a_missing_program_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools.shutil, "which", lambda name, path: None if name == "nft" else f"/usr/sbin/{name}")
    with pytest.raises(EnvironmentProblem, match="needs the program nft") as caught:
        fabric.check(SPINES["spray"])
    assert caught.value.hint == "install it, e.g. apt install nftables"


def test_missing_rights_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, *arguments: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(namespaces, "_call", refuse)
    with pytest.raises(EnvironmentProblem, match="cannot make network namespaces") as caught:
        namespaces.build(FOUR)
    assert "run as root" in caught.value.hint and "apparmor_restrict_unprivileged_userns" in caught.value.hint


@pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")
def test_what_a_tool_refuses_is_passed_on(tmp_path: Path) -> None:
    """The child tells in JSON what the kernel or a program said; the parent makes an error of it."""
    (tmp_path / "ip").write_text("#!/bin/sh\necho 'Error: Unknown device type.' >&2\nexit 1\n")
    (tmp_path / "ip").chmod(0o755)
    command = fabric.wrap([], FOUR)
    env = environment(PATH=f"{tmp_path}:/usr/bin:/bin")
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    told = json.loads(done.stderr)
    assert done.returncode == 2
    if "cannot make network namespaces" not in told["error"]:
        assert told["error"] == "ip refused a part of the emulated network: Error: Unknown device type."


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("fabric=emulated nodes=1", "has 2 to 64 nodes, layout 1x2 has 1"),
        ("fabric=emulated layout=100x1", "has 2 to 64 nodes"),
        ("fabric=emulated layout=4by4", "layout is '4by4'"),
        ("fabric=emulated layout=0x4", "nodes is 0"),
        ("layout=2x2 nodes=2", "nodes and layout are both set"),
        ("fabric=emulated nodes=2 link=fast", "link is 'fast'"),
        ("fabric=emulated nodes=2 link=900gbit", "link is '900gbit'"),
        ("fabric=emulated nodes=2 message_overhead=-1", "message_overhead is -1"),
        ("fabric=emulated nodes=2 intra_link=slow", "intra_link is 'slow'"),
        ("2d_overhead ranks_per_node=8", "ranks_per_node is set, and the recipe sets layout=4x4"),
        ("fabric=emulated layout=2x2 env.GLOO_SOCKET_IFNAME=lo", "would be overwritten"),
        ("fabric=emulated nodes=2 slow_link=node1", "slow_link is 'node1'"),
        ("fabric=emulated nodes=2 slow_link=node1:0.5", "slow_link is 'node1:0.5'"),
        ("fabric=emulated nodes=2 slow_link=node2:3", "the nodes are 0 .. 1"),
        ("nodes=2 slow_link=node1:3", "slow_link is set, but has no effect"),
        ("nodes=2 intra_link=1gbit", "intra_link is set, but has no effect"),
        ("fabric=emulated nodes=2 spines=0", "spines is 0"),
        ("fabric=emulated nodes=2 spines=2 routing=best", "unknown routing 'best'"),
        ("fabric=emulated nodes=2 routing=spray", "routing is set, but has no effect"),
        ("nodes=2 link=1gbit", "link is set, but has no effect"),
        ("fabric=emulate nodes=2", "unknown fabric 'emulate'"),
        ("fabric=emulated nodes=2 transport=scripted", "scripted does not run on an emulated fabric"),
        ("fabric=emulated nodes=2 --launcher torchrun", "does not run under torchrun"),
        ("fabric=emulated nodes=2 --launcher print", "does not run under print"),
    ],
)
def test_what_cannot_be(tmp_path: Path, words: str, said: str) -> None:
    first = [] if "transport" in words else ["transport=gloo"]
    recipe = [] if words.startswith("2d_") else ["quick"]
    result = here("sweep", *recipe, *words.split(), *first, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    error, hint = result.stderr.strip().splitlines()[-2:]
    assert said in error + hint and hint.startswith("hint: ")
    assert not list(tmp_path.iterdir())


def test_layouts_in_a_job_script_are_one_in_each_line(tmp_path: Path) -> None:
    words = ("transport=gloo", "layout=2x2,4x1", "--launcher", "print")
    result = here("sweep", "quick", *words, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if "srun" in line and "sweep" in line]
    assert len(lines) == 2 and not any("layout=" in line for line in lines)
    assert "nodes=2 ranks_per_node=2" in lines[0] and "nodes=4 ranks_per_node=1" in lines[1]


def test_a_launch_without_its_fabric_says_why() -> None:
    log = 'noise\n{"error": "ip refused a part", "hint": "a kernel with veth"}\n'
    assert fabric.explain(log) == "ip refused a part (a kernel with veth)"
    assert fabric.explain("Traceback ...") == fabric.explain("") == ""


RAILS = Emulated(nodes=3, link="25mbit", spine_rate="50mbit", places=2)


def test_rails_are_a_leaf_for_each_place_and_one_spine() -> None:
    """The ranks of a place share a leaf; ranks of a node meet inside it; all else goes over the leaf's link up."""
    assert RAILS.hosts == 6 and [RAILS.host(rank, 2) for rank in range(6)] == list(range(6))
    assert FOUR.hosts == 4 and FOUR.host(5, 2) == 2
    lines = rails.switch(RAILS, list(range(100, 106))).splitlines()
    for rank in range(6):
        assert f"link set r{rank}d master leaf{rank % 2} up" in lines
        assert f"link set r{rank}i master node{rank // 2} up" in lines
    assert [line for line in lines if "up0" in line] == [
        "link add up0 type veth peer name down0", "link set up0 master leaf0 up"
    ]  # fmt: skip
    assert "link set down0 master spine up" in lines
    shaping = rails.switch_shaping(RAILS).splitlines()
    rates = Counter(line.split("rate ")[1].split()[0] for line in shaping)
    assert rates == {"25mbit": 6, "50mbit": 4} and all("dev up" in line or "dev down" in line for line in shaping[6:])
    routes = [line.split() for line in rails.node(RAILS, 3).splitlines() if line.startswith("route")]
    assert {line[2].split("/")[0]: line[-1] for line in routes} == {
        network.address(rank): "inside" if rank == 2 else "net0" for rank in range(6) if rank != 3
    }
    assert "rails, 50mbit from each to the spine" in str(RAILS)
    assert fabric.links(RAILS)["inter"].of == "rank"
    assert Emulated.from_json(RAILS.to_json()) == RAILS and "spine_rate" not in FOUR.to_json()


def test_bytes_of_the_spine_are_those_that_leaves_send_up(tmp_path: Path) -> None:
    head = "Inter-| Receive | Transmit\n face |bytes ...\n"
    row = "{name}: 1 0 0 0 0 0 0 0 {sent} 0 0 0 0 0 0 0\n"
    names = {"up0": 100, "up1": 20, "down0": 7, "r0d": 5, "leaf0": 3}
    (tmp_path / "dev").write_text(head + "".join(row.format(name=name, sent=sent) for name, sent in names.items()))
    assert rails.spine_bytes(RAILS, tmp_path / "dev") == 120
