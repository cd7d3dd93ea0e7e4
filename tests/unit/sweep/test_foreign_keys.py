"""KEY=VALUE words before `--`: an emulated cluster, a command's own keys, variables; anything else is one error."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from commbench.commands.options import WithProgram
from commbench.emulated import Emulated
from commbench.errors import UsageError
from commbench.sweep.foreign_keys import read
from commbench.sweep.key import Key, Number

OWN = {"rounds": Key(Number(int, 1, 99), "how often", default=7)}
CLUSTER = ("fabric=emulated", "ranks_per_node=2")


def test_words_become_a_cluster_variables_and_own_keys() -> None:
    words = (*CLUSTER, "nodes=3", "link=100mbit", "message_overhead=30000", "rounds=5", "env.A=b,c=d")
    found = read(words, OWN)
    assert found.cluster is not None and found.cluster.ranks_per_node == 2
    assert found.cluster.emulated == Emulated(nodes=3, link="100mbit", message_overhead=30000)
    assert found.own == {"rounds": 5} and found.env == {"A": ["b", "c=d"]}


def test_without_words_it_is_this_machine() -> None:
    for found in (read((), OWN), read(("fabric=real",), OWN)):
        assert found.cluster is None and found.own == {"rounds": 7} and not found.env


def test_the_least_of_a_cluster() -> None:
    cluster = read(CLUSTER).cluster
    assert cluster is not None and cluster.emulated == Emulated(nodes=2, link="1gbit")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("train.py",), "unexpected argument 'train.py'"),
        (("nodes=2",), "nodes is set, but has no effect"),
        (("fabric=virtual",), "unknown fabric 'virtual'"),
        (("fabric=emulated",), "without ranks_per_node"),
        ((*CLUSTER, "nodes=two"), "nodes is 'two'"),
        ((*CLUSTER, "link=fast"), "link is 'fast'"),
        ((*CLUSTER, "nodes=2,4"), "nodes takes one value, not 2"),
        ((*CLUSTER, "slow_link=node2:3"), "the nodes are 0 .. 1"),
        ((*CLUSTER, "rouds=3"), "unknown key 'rouds'"),
        ((*CLUSTER, "sizes=default"), "unknown key 'sizes'"),
        (("env.1=2",), "cannot read 'env.1=2'"),
    ],
)
def test_a_wrong_word_is_one_error(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(UsageError) as raised:
        read(words, OWN)
    assert said in str(raised.value) and raised.value.hint


@pytest.mark.parametrize(
    ("typed", "heard"),
    [
        ("a=b --flag -- run --flag -- x", "('a=b',) True ('run', '--flag', '--', 'x')"),
        ("--flag a=b", "('a=b',) True None"),
        ("--", "() False ()"),
    ],
)
def test_what_stands_after_two_dashes_is_the_programs(typed: str, heard: str) -> None:
    @click.command(cls=WithProgram)
    @click.argument("words", nargs=-1)
    @click.option("--flag", is_flag=True)
    def command(words: tuple[str, ...], flag: bool, program: tuple[str, ...] | None) -> None:
        click.echo(f"{words} {flag} {program}")

    assert CliRunner().invoke(command, typed.split()).output.strip() == heard
