"""MPI on emulated clusters: Open MPI's messages take the links, nothing is left of it; the others are left out."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from commbench.errors import EnvironmentProblem
from commbench.launch import mpi_library
from tests.conftest import PATIENCE_S, commbench, environment, here, rows_of
from tests.emulated.rounds import rank_at_work, round_of
from tests.support.kill_and_resume import family

EMULATED = ("transport=mpi", "fabric=emulated", "launches=1", "--no-plots")


def library() -> mpi_library.MpiLibrary:
    try:
        return mpi_library.find()
    except EnvironmentProblem as problem:
        pytest.skip(str(problem))


@pytest.fixture
def open_mpi() -> None:
    if library().family != "openmpi":
        pytest.skip(f"mpi4py loads {library().version}; set MPI4PY_LIBMPI to the libmpi of an Open MPI")


@pytest.mark.usefixtures("open_mpi")
@pytest.mark.parametrize(("layout", "size"), [("2x2", "1M"), ("3x2", "1.5M")])
def test_the_links_carry_what_steps_declare(tmp_path: Path, layout: str, size: str) -> None:
    """Messages of 256 KiB: nothing takes shared memory, and votes and barriers take the other link."""
    words = (*EMULATED, f"layout={layout}", "collective=all_to_all,tp_all_to_all", "algorithm=all", "link=10gbit")
    words += ("iters=20", "warmup=2", "-b", size, "-e", size, "--format", "json")
    result = commbench("sweep", "quick", *words, cwd=tmp_path, timeout=250)
    assert result.returncode == 0, result.stderr
    ok = [row for row in rows_of(result) if row["status"] == "ok" and row["inter_bytes"] is not None]
    assert {row["algorithm"] for row in ok} >= {"direct", "pairwise", "2d_intra_first", "2d_inter_first"}
    for row in ok:
        assert row["fabric"] == "emulated"
        assert 1.0 <= row["wire_bytes"] / row["inter_bytes"] <= 1.10, row
        assert row["bound_us"] is None or row["bound_us"] <= row["time_us"]


@pytest.mark.usefixtures("open_mpi")
def test_two_spines(tmp_path: Path) -> None:
    """All to one destination takes one spine, though MPI is told of the first interface only."""
    words = (*EMULATED, "layout=2x2", "algorithm=direct", "spines=2", "iters=10", "-b", "1M", "-e", "1M")
    (row,) = rows_of(commbench("sweep", "quick", *words, "--format", "json", cwd=tmp_path))
    assert 1.0 <= row["wire_bytes"] / row["inter_bytes"] <= 1.10 and row["link_imbalance"] > 1.9


@pytest.mark.usefixtures("open_mpi")
@pytest.mark.parametrize("seed", range(6))
def test_nothing_is_left(tmp_path: Path, seed: int) -> None:
    words = ["quick", *EMULATED[:2], "layout=2x2", "algorithm=direct", "launches=2", "iters=20", "-b", "4K", "-e", "4K"]
    round_of(seed, tmp_path / "out", words, kill=seed % 3 != 0, longest_s=5.0)


@pytest.mark.usefixtures("open_mpi")
def test_a_rank_that_dies_is_named(tmp_path: Path) -> None:
    """By mpiexec, or one that lost it, whoever is faster."""
    words = ("layout=2x2", "algorithm=direct", "iters=400", "-b", "1M", "-e", "1M", "link=50mbit")
    command = [sys.executable, "-m", "commbench", "sweep", "quick", *EMULATED, *words, "--out", str(tmp_path / "r")]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)
    rank_at_work(tmp_path / "r", 3).kill()
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1, said
    assert re.search(r"rank (3 was killed by signal 9|\d lost another rank, which was killed)", said), said
    assert not family(str(tmp_path / "r")) and not list((tmp_path / "r").glob("2*/logs/*/session"))


def test_where_the_library_is_another_the_rest_is_measured(tmp_path: Path) -> None:
    if library().family == "openmpi":
        pytest.skip("mpi4py loads Open MPI, which is not refused")
    words = ("fabric=emulated", "layout=2x2", "algorithm=direct", "launches=1", "iters=3", "-b", "4K", "-e", "4K")
    result = here("sweep", "quick", "transport=gloo,mpi", *words, "--no-plots", "--format", "json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    reasons = {row["transport"]: row["reason"] for row in rows_of(result)}
    assert not reasons["gloo"] and "transport mpi needs Open MPI on an emulated fabric" in reasons["mpi"]
