"""The kernels of routed.cu on threads of a CPU: every byte of a dispatch and a combine, whatever the ranks' order."""

from __future__ import annotations

import pytest

from tests.support.routed_host import OnHost
from tests.support.routed_ranks import RoutedRanks, sabotaged, specs_of


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> OnHost:
    if reason := OnHost.missing():
        pytest.skip(reason)
    return OnHost(tmp_path_factory.mktemp("routed"))


@pytest.mark.parametrize("slots", [False, True])
@pytest.mark.parametrize("output", ["expert", "rank"])
@pytest.mark.parametrize("collective", ["dispatch", "combine"])
def test_every_byte_arrives(host: OnHost, collective: str, output: str, slots: bool) -> None:
    for blocks, resident in ((3, 3), (5, 1), (16, 1)):  # at once; one after the other; a token each
        specs = specs_of(collective, 2, output=output)
        ranks = RoutedRanks(specs, host.place, slots=slots, blocks=blocks)
        assert host.wrong(ranks, 5, resident=resident) == 0


def test_planted_mistakes_are_seen(host: OnHost) -> None:
    struck = 0
    for number in range(10):
        ranks = sabotaged(number, host.place)
        wrong = host.wrong(ranks, 3, most_us=0)
        struck += ranks.struck
        assert bool(wrong) == ranks.struck, number
    assert struck > 7
