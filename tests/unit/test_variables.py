"""What of an environment axis reaches the ranks, and what is said of it."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

import pytest

from commbench import variables
from commbench.errors import EnvironmentProblem
from commbench.machine import infiniband
from tests.conftest import commbench, only_run, rows_of

FAST = ("transport=gloo", "nodes=1", "ranks_per_node=2", "algorithm=direct", "-b", "1K", "-e", "1K", "launches=1")


def test_unset_takes_a_variable_away() -> None:
    asked = {"A": "unset", "B": "2", "D": "unset"}
    found = variables.applied({"A": "1", "B": "1", "C": "1"}, asked)
    assert found == {"B": "2", "C": "1"}
    variables.check(asked, found)


@pytest.mark.parametrize(("asked", "words"), [
    ({"B": "3"}, "env.B=3 was asked, and this rank has '2'"), ({"X": "1"}, "this rank has none"),
    ({"B": "unset"}, "env.B=unset was asked, and this rank has '2'"),
])  # fmt: skip
def test_what_did_not_arrive_is_an_error(asked: dict[str, str], words: str) -> None:
    with pytest.raises(EnvironmentProblem, match=words) as caught:
        variables.check(asked, {"B": "2"})
    assert "launcher" in caught.value.hint


def test_nccl_is_asked_to_write_down_what_it_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"NCCL_P2P_NVL_CHUNKSIZE": "1048576", "NCCL_MIN_P2P_NCHANELS": "8", "OMP_NUM_THREADS": "2"}
    log = variables.nccl_log(tmp_path, asked, {})
    assert variables.nccl_log(tmp_path, {"OMP_NUM_THREADS": "2"}, {}) == {}
    assert variables.nccl_log(tmp_path, asked, {"NCCL_DEBUG": "WARN"}) == {}
    assert variables.nccl_log(tmp_path, {**asked, "NCCL_DEBUG": "INFO"}, {}) == {}
    assert variables.nccl_told(tmp_path) is None
    monkeypatch.setenv("NCCL_DEBUG_FILE", log["NCCL_DEBUG_FILE"])
    assert variables.nccl_told(tmp_path) == {}
    host = platform.node().split(".")[0]
    (tmp_path / f"nccl-{host}-{os.getpid()}.txt").write_text(
        "vm:1:2 [0] NCCL INFO NCCL_P2P_NVL_CHUNKSIZE set by environment to 1048576.\nother\n"
        "vm:1:2 [0] NCCL INFO NCCL_NET set by environment to Socket\n"
    )
    told = variables.nccl_told(tmp_path)
    assert told == {"NCCL_P2P_NVL_CHUNKSIZE": "1048576", "NCCL_NET": "Socket"}
    assert "NCCL_MIN_P2P_NCHANELS: misspelt" in variables.silence(asked, told)
    assert variables.silence({"NCCL_NET": "Socket", "NCCL_X": "unset"}, told) == ""


def test_ranks_have_what_was_asked_and_write_it_down(tmp_path: Path) -> None:
    result = commbench("sweep", "quick", *FAST, "env.OMP_NUM_THREADS=unset,2", "env.NCCL_IB_SL=1", "--no-plots",
                       "--format", "json", cwd=tmp_path)  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("no InfiniBand or RoCE port on this host, so that") == 1 or infiniband.ports()
    files = list(only_run(tmp_path / "results").glob("logs/*/rank-1.json"))
    found = [json.loads(path.read_text())["environment"] for path in files]
    assert sorted(str(item["OMP_NUM_THREADS"]) for item in found) == ["2", "None"]
    assert {row["env"]["OMP_NUM_THREADS"] for row in rows_of(result)} == {"unset", "2"}


def test_counters_of_ports(tmp_path: Path) -> None:
    def write(port: str, kind: str, **values: object) -> None:
        folder = tmp_path / port / kind
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in values.items():
            (folder / name).write_text(f"{value}\n")

    assert infiniband.ports(tmp_path) == {}
    write("mlx5_0/ports/1", "counters", port_xmit_data=100, symbol_error="N/A (not allowed)")
    write("mlx5_0/ports/1", "hw_counters", out_of_sequence=3, lifespan=10)
    write("mlx5_1/ports/1", "counters", port_xmit_data=7)
    before = infiniband.ports(tmp_path)
    assert before["mlx5_0/1"] == {"port_xmit_data": 100, "out_of_sequence": 3, "lifespan": 10}
    write("mlx5_0/ports/1", "counters", port_xmit_data=180)
    changed = infiniband.growth(before, infiniband.ports(tmp_path))
    assert changed == {"mlx5_0/1": {"port_xmit_data": 80}}
    assert infiniband.evidence(changed).startswith("no packet came out of order")
    write("mlx5_0/ports/1", "hw_counters", out_of_sequence=5)
    assert infiniband.evidence(infiniband.growth(before, infiniband.ports(tmp_path))).startswith(
        "2 packets came out of order"
    )
    assert infiniband.evidence({}) == ""


def test_a_mode_is_not_called_routing() -> None:
    assert infiniband.mode({"NCCL_IB_ADAPTIVE_ROUTING": "1"}) == "NCCL AR mode 1" and infiniband.mode({}) == ""
    assert infiniband.asked({"UCX_IB_SL": "1"}) and not infiniband.asked({"NCCL_DEBUG": "INFO"})
