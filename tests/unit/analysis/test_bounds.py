"""The yardstick: which rates hold, what they bound, and how a row says it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from commbench.analysis import bounds
from commbench.analysis.summary import Samples
from commbench.errors import UsageError
from commbench.links import LinkRate, parse_link_rates
from commbench.output import yardstick
from commbench.output.table import table
from commbench.records import Fabric, Row
from commbench.run_folder import RunFolder
from commbench.sweep import prepare
from tests.conftest import here, only_run
from tests.support.fake_runs import META, measured, planned, rows_of

SAMPLES = Samples(RunFolder(Path("/nowhere")))
WORDS = ("layout=4x2", "algorithm=direct", "launches=6", "sizes.list=8M")
EIGHT_MIB = 8 << 20


def row_of(fabric: Fabric, inter: LinkRate | None, *rates: str, time_us: float) -> Row:
    cases = planned(*WORDS)
    links = {"inter": inter} if inter else None
    found = measured(cases, lambda case: time_us, noise=0.0, drift=0.0)
    found = [dataclasses.replace(m, fabric=fabric, links=links) for m in found]
    (row,) = (rows_of(cases, found, SAMPLES),)[0]
    return bounds.rebound(row, cases[0], found[0], parse_link_rates(rates))


def test_declared_rates_take_the_place_of_others_and_say_so() -> None:
    found = LinkRate(gbps=10.0, of="node", kind="nominal", source="eth0")
    row = row_of(Fabric.REAL, found, time_us=2000.0)
    # Of 8 MiB a rank sends 6/8 to other nodes, its node twice that, over 10 GB/s.
    assert row.bound_us == pytest.approx(2 * EIGHT_MIB * 6 / 8 / 10e3)
    assert (row.bound_kind, row.bound_gbps) == ("nominal", pytest.approx(5 * 7 / 6))
    assert row.bound_fraction == pytest.approx((row.busbw_gbps or 0) / (row.bound_gbps or 1))
    row = row_of(Fabric.REAL, found, "inter=2x200gbit", time_us=2000.0)
    assert (row.bound_kind, row.bound_gbps) == ("declared", pytest.approx(25 * 7 / 6))
    row = row_of(Fabric.REAL, found, "inter=2x200gbit", "intra=1GBps", time_us=2000.0)
    assert (row.bound_kind, row.bound_gbps) == ("declared", pytest.approx(1 * 7 / 1)), "the inside of the node binds"
    row = row_of(Fabric.REAL, None, time_us=2000.0)
    assert (row.bound_kind, row.bound_gbps, row.bound_us, row.bound_fraction) == ("", None, None, None)


@pytest.mark.parametrize("fabric", [Fabric.DECLARED, Fabric.VIRTUAL])
def test_nodes_that_are_no_machines_have_no_cards(fabric: Fabric) -> None:
    row = row_of(fabric, None, "inter=400gbit", time_us=2000.0)
    assert row.bound_gbps is None
    assert "no bound: nothing passes a card between such nodes" in table([row], META, {})
    row = row_of(fabric, None, "inter=400gbit", "intra=1GBps", time_us=2e5)
    assert row.bound_gbps == pytest.approx(7.0)


def test_a_table_says_what_is_possible_and_what_is_not() -> None:
    row = row_of(Fabric.REAL, None, "inter=4x10gbit", time_us=3000.0)
    text = table([row], META, {})
    assert "# bound: direct reaches 2.45 GB/s of 2.92 possible (83.9 %, declared) at 8 MiB\n" in text
    assert "# warning" not in text
    row = row_of(Fabric.REAL, None, "inter=10gbit", time_us=3000.0)
    assert (
        "# warning: direct at 8 MiB shows 336 % of the bound, above what the link rate allows: is link_rate right?\n"
        in table([row], META, {})
    )
    assert "no bound: no link rate is known (link_rate.inter=)" in table([dataclasses.replace(
        row, bound_us=None, bound_gbps=None, bound_fraction=None, bound_kind="", steps_us=None)], META, {})  # fmt: skip


def test_in_words() -> None:
    assert yardstick.of_bound(41.04, 57, "nominal") == "41 GB/s of 57 possible (72 %, nominal)"
    assert yardstick.of_bound(41.04, 57, "") == "41 GB/s of 57 possible (72 %)"
    assert yardstick.above(1.019) == "" and "is link_rate right?" in yardstick.above(1.03)
    assert "NVLS or SHARP" in yardstick.above(1.9, "all_reduce")


def test_the_key_is_kept_in_run_json_and_makes_the_bound(tmp_path: Path) -> None:
    words = ("sweep", "quick", "transport=scripted", "layout=1x2", "launches=1", "sizes.list=1M", "algorithm=direct")
    result = here(*words, "link_rate.intra=2x50gbit", "--no-plots", "--format", "json", "--out", "out", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    run = only_run(tmp_path / "out")
    assert json.loads((run / "run.json").read_text())["link_rate"] == {"intra": "2x50gbit"}
    assert "link_rate:\n  intra: 2x50gbit\n" in (run / "config.yaml").read_text()
    line = json.loads(result.stdout.splitlines()[0])
    assert (line["bound_kind"], line["bound_gbps"]) == ("declared", pytest.approx(12.5))


@pytest.mark.parametrize("word", ["link_rate.inter=fast", "link_rate.inter=400Gbps", "link_rate.outer=1gbit"])
def test_a_bad_key_is_one_line_and_a_hint(word: str) -> None:
    with pytest.raises(UsageError, match=r"link_rate\."):
        prepare.configure(["quick", word])


def test_no_case_depends_on_the_rate() -> None:
    plain, rated = (planned(*WORDS, *more) for more in ((), ("link_rate.inter=400gbit",)))
    assert [case.case_id for case in plain] == [case.case_id for case in rated]
