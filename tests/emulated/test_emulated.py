"""Sweeps over gloo on emulated clusters: results, the links' own counters, rights, and nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from commbench import fabric
from commbench.emulated import Emulated
from tests.conftest import PATIENCE_S, cases_in, commbench, environment, first, here, only_run, rows_of
from tests.emulated.rounds import rank_at_work, round_of
from tests.support.kill_and_resume import family

EMULATED = ("transport=gloo", "fabric=emulated", "--no-plots")
FEW = ("launches=1", "warmup=2", "--format", "json")
ONCE = ["quick", *EMULATED[:2], "layout=2x2", "algorithm=direct", "iters=20", "-b", "4K", "-e", "4K", "launches=1"]
QUICK = [*ONCE[:-1], "launches=2"]


def sweep(tmp_path: Path, *words: str) -> list[dict[str, Any]]:
    result = here("sweep", "quick", *EMULATED, *words, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    return rows_of(result)


@pytest.mark.parametrize("layout", first(1, ["3x2", "2x2"]))
def test_the_links_carry_what_steps_declare(tmp_path: Path, layout: str) -> None:
    """Counters of the links over 20 calls and more, messages of 256 KiB and more: the payload and its headers."""
    words = (f"layout={layout}", "collective=all_to_all,all_to_allv,tp_all_to_all", "algorithm=all", "splits=zipf")
    rows = sweep(tmp_path, *words, *FEW, "iters=20", "link=10gbit", "-b", "3M", "-e", "3M")
    ok = [row for row in rows if row["status"] == "ok"]
    assert {(row["collective"], row["algorithm"]) for row in ok} >= {
        ("all_to_all", "2d_pipelined"), ("all_to_allv", "2d_intra_first"), ("tp_all_to_all", "drop_gather_pipelined")
    }  # fmt: skip
    for row in ok:
        assert row["fabric"] == "emulated" and row["wire_bytes"] is not None
        if row["inter_bytes"] is not None:
            assert 1.0 <= row["wire_bytes"] / row["inter_bytes"] <= 1.10, row
        assert row["bound_us"] is None or row["bound_us"] <= row["time_us"]


def fastest_us(tmp_path: Path) -> float:
    """Return the time of the newest run's fastest sample: others may have waited for a CPU that somebody else had."""
    samples = pd.read_parquet(tmp_path / "results" / "latest" / "samples.parquet")
    slowest = samples[~samples["warmup"]].groupby("sample")["time_us"].max()
    return float(slowest.min())


def test_a_slow_link_is_what_takes_the_time(tmp_path: Path) -> None:
    """At 20 Mbit/s a call takes what the bound says: the data cross the links, nothing else costs that much."""
    (row,) = sweep(
        tmp_path, "layout=2x2", "algorithm=direct", *FEW, "iters=5", "link=20mbit", "-b", "512K", "-e", "512K"
    )
    assert row["bound_fraction"] <= 1.0 and 0.7 <= row["bound_us"] / fastest_us(tmp_path) <= 1.0
    assert (row["link"], row["message_overhead"], row["spines"]) == ("20mbit", 0, 1)


def test_a_node_can_be_slow_inside(tmp_path: Path) -> None:
    """Messages between ranks of a node are held up as those between nodes are; votes are not."""
    words = ("layout=2x2", "algorithm=direct", "link=400gbit", "intra_link=40mbit", "-b", "2M", "-e", "2M")
    (row,) = sweep(tmp_path, *words, *FEW, "iters=5")
    assert row["bound_fraction"] <= 1.0 and 0.7 <= row["bound_us"] / fastest_us(tmp_path) <= 1.0
    (row,) = sweep(tmp_path, *words, *FEW, "iters=3", "groups=rails")
    assert row["intra_bytes"] == 0 and row["bound_us"] is None and fastest_us(tmp_path) < 100_000


@pytest.mark.parametrize("routing", ["static", "ecmp", "spray"])
def test_two_spines(tmp_path: Path, routing: str) -> None:
    if routing == "spray" and shutil.which("nft", path=os.environ["PATH"] + ":/usr/sbin") is None:
        pytest.skip("spraying needs nft, from Debian's package nftables")
    words = ("layout=2x2", "algorithm=direct", "spines=2", f"routing={routing}", "link=1gbit")
    (row,) = sweep(tmp_path, *words, *FEW, "iters=20", "-b", "1M", "-e", "1M")
    assert 1.0 <= row["wire_bytes"] / row["inter_bytes"] <= 1.10
    if routing == "static":  # all to one destination takes one spine: each link has twice the mean, or nothing
        assert row["link_imbalance"] > 1.9
    elif routing == "spray":
        assert row["link_imbalance"] < 1.25


def test_rails_keep_what_crosses_the_node_first_off_the_spine(tmp_path: Path) -> None:
    """Of four blocks that leave a node of 2 x 2, two are for another place: over the spine, but with 2D none is."""
    words = ("layout=2x2", "algorithm=direct,2d_intra_first", "link=1gbit", "spine_rate=500mbit")
    rows = {row["algorithm"]: row for row in sweep(tmp_path, *words, *FEW, "iters=5", "-b", "1M", "-e", "1M")}
    direct, rail = rows["direct"], rows["2d_intra_first"]
    assert direct["spine_rate"] == "500mbit" and rail["spine_bytes"] == 0
    assert 0.48 <= direct["spine_bytes"] / direct["wire_bytes"] <= 0.52
    assert all(1.0 <= row["wire_bytes"] / row["inter_bytes"] <= 1.10 for row in (direct, rail))


def test_links_are_silent_while_nobody_talks() -> None:
    """What counters see of no calls: the control that the tests above would have to subtract."""
    emulated = Emulated(nodes=2, link="1gbit", spines=2, routing="spray" if shutil.which("nft") else "ecmp")
    script = (
        "import json, sys, time\n"
        "from commbench import fabric\n"
        "from commbench.emulated import Emulated\n"
        "fabric.enter(1)\n"
        f"emulated = Emulated.from_json({emulated.to_json()!r})\n"
        "before = fabric.counters(emulated)\n"
        "time.sleep(2)\n"
        "print(json.dumps([b - a for a, b in zip(before, fabric.counters(emulated), strict=True)]))\n"
    )
    command = fabric.wrap([sys.executable, "-c", script], emulated)
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    assert json.loads(done.stdout) == [0.0] * 4


def test_without_root(tmp_path: Path) -> None:
    """A process that may not make network namespaces makes a user namespace first."""
    if (setpriv := shutil.which("setpriv")) is None:
        pytest.skip("setpriv, of util-linux, is not here")
    words = ["sweep", *ONCE, "--out", str(tmp_path / "r"), "--no-plots", "--format", "json"]
    # All that root may but one thing, without which user 0 cannot be himself in a user namespace.
    drop = [setpriv, "--bounding-set", "-all,+setfcap", "--inh-caps", "-all"] if os.geteuid() == 0 else []
    command = [*drop, sys.executable, "-m", "commbench", *words]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    if done.returncode and subprocess.run([*drop, "unshare", "-Urn", "true"], check=False).returncode:
        pytest.skip("this machine lets nobody but root make namespaces")
    assert done.returncode == 0, done.stderr
    assert rows_of(done)[0]["fabric"] == "emulated"


@pytest.mark.parametrize("seed", first(3, range(4)))
def test_nothing_is_left(tmp_path: Path, seed: int) -> None:
    """Runs that end, and runs of which a process is killed at a random moment; `make bench ARGS=emulated` has 20."""
    round_of(seed, tmp_path / "out", QUICK, kill=seed % 3 != 0, longest_s=5.0)


def test_two_at_once(tmp_path: Path) -> None:
    """Neither sees the other, though their networks have the same names and addresses."""
    words = [sys.executable, "-m", "commbench", "sweep", *ONCE, "--no-plots", "--format", "json"]
    both = [
        subprocess.Popen([*words, "--out", str(tmp_path / name)], env=environment(), stdout=subprocess.PIPE, text=True)
        for name in ("a", "b")
    ]
    for process in both:
        out, _ = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0
        assert [row["status"] for row in cases_in(out)] == ["ok"]


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    words = ("sweep", *QUICK, "--no-plots", "--format", "json")
    assert here(*words, cwd=tmp_path).returncode == 0
    run = only_run(tmp_path / "results")
    lines = (run / "measurements.jsonl").read_text().splitlines(keepends=True)
    (run / "measurements.jsonl").write_text(lines[0])
    (run / "cases.jsonl").write_text("")
    resumed = commbench("sweep", "--resume", str(run), "--no-plots", "--format", "json", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert rows_of(resumed)[0]["launches"] == 2


def test_a_rank_that_dies_is_named(tmp_path: Path) -> None:
    """Through the wrapper around the launcher, too."""
    words = ("layout=2x2", "algorithm=direct", "launches=1", "iters=200", "-b", "1M", "-e", "1M", "link=50mbit")
    command = [sys.executable, "-m", "commbench", "sweep", "quick", *EMULATED, *words, "--out", str(tmp_path / "r")]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)
    rank_at_work(tmp_path / "r", 3).kill()
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1 and "rank 3 was killed by signal 9" in said
    assert not family(str(tmp_path / "r"))


pytestmark = pytest.mark.emulated
