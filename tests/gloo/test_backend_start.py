"""What COMMBENCH_BACKEND does at `import torch`, in processes that are forked after it."""

from __future__ import annotations

import importlib.metadata
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch.distributed as dist

import commbench_autoload
from commbench.backend import in_rank, start
from commbench.backend.group import WrappedGroup
from commbench.profile import file
from tests.conftest import environment
from tests.support import profiles
from tests.support.ranks import forked

PROGRAM = """
import os
import torch
import torch.distributed as dist

dist.init_process_group("gloo")
dist.all_to_all_single(torch.empty(4), torch.ones(4))
os.write(1, f"rank {dist.get_rank()} on {sorted(os.sched_getaffinity(0))}\\n".encode())
dist.destroy_process_group()
"""
CPUS = sorted(os.sched_getaffinity(0))
TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}


def started(path: Path, rank: int = 0, **more: str) -> None:
    """This process, as torchrun starts a rank under `commbench exec`, at its `import torch`."""
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ.update({**TORCHRUN, **place, "COMMBENCH_BACKEND": "profile", "COMMBENCH_PROFILE": str(path), **more})
    commbench_autoload.activate()


def in_child(body: Callable[[], None]) -> None:
    assert forked(1, lambda _: body()) == [0]


def bound(folder: Path, **more: str) -> Path:
    path = folder / "p.json"
    masks = f"{CPUS[-1]};{CPUS[0]}"
    scope = {"binding": "explicit", "cpu_masks": masks, "binding_memory": False, "ranks_per_node": 2}
    file.save(profiles.profile(profiles.choice("all_to_all", "pairwise"), **scope, env=more), path)
    return path


def test_each_rank_binds_itself(tmp_path: Path) -> None:
    path = bound(tmp_path, GLOO_X="1", GLOO_Y="unset")

    def rank(me: int) -> None:
        started(path, me, COMMBENCH_SCOPE="s", GLOO_Y="2")
        assert os.sched_getaffinity(0) == {CPUS[-1] if me == 0 else CPUS[0]}
        assert os.environ["COMMBENCH_BINDING"] == "explicit" and os.environ["GLOO_X"] == "1"
        assert "GLOO_Y" not in os.environ
        commbench_autoload.activate()  # of a child, which is bound by now

    assert forked(2, rank) == [0, 0]


def test_a_launcher_is_no_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under srun torchrun's own process has a rank's variables, and would hand its CPUs on."""
    path = bound(tmp_path)
    for words in (["python", "/opt/bin/torchrun"], ["python3.11", "-u", "-m", "torch.distributed.run"], ["deepspeed"]):
        monkeypatch.setattr(sys, "orig_argv", [*words, "train.py"])

        def body() -> None:
            started(path, COMMBENCH_SCOPE="s")
            assert sorted(os.sched_getaffinity(0)) == CPUS and "COMMBENCH_BINDING" not in os.environ

        in_child(body)
    monkeypatch.setattr(sys, "orig_argv", ["python", "train.py", "torchrun"])
    assert in_rank.rank() is None  # no variables here


def test_what_is_too_late_is_refused_in_words(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = bound(tmp_path)

    def too_late() -> None:
        sys.modules["mpi4py.MPI"] = sys
        started(path, COMMBENCH_SCOPE="s")
        assert sorted(os.sched_getaffinity(0)) == CPUS and "COMMBENCH_BINDING" not in os.environ

    in_child(too_late)
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1 and "binding=explicit is not applied, as MPI has started before torch" in said[0]

    def pinned() -> None:
        os.sched_setaffinity(0, {CPUS[0]})
        started(path, COMMBENCH_SCOPE="s")

    in_child(pinned)
    assert len(CPUS) == 1 or "started pinned to" in capfd.readouterr().err

    def spawned() -> None:
        os.environ.update({"COMMBENCH_BACKEND": "profile", "COMMBENCH_PROFILE": str(path), "COMMBENCH_SCOPE": "s"})
        commbench_autoload.activate()
        dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
        assert isinstance(dist.group.WORLD, WrappedGroup)
        dist.destroy_process_group()

    in_child(spawned)
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1 and "start ranks with torchrun, not by torch.multiprocessing.spawn" in said[0]


def test_import_torch_never_fails(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def wrong(words: str, body: Callable[[], None]) -> None:
        in_child(body)
        said = capfd.readouterr().err.splitlines()
        assert len(said) == 1 and said[0].startswith("commbench: ") and words in said[0], said

    def ours_raises() -> None:
        sys.modules["commbench.backend.start"] = None  # type: ignore[assignment]
        started(tmp_path)

    wrong("the program runs without it: ModuleNotFoundError", ours_raises)
    wrong("none of profile, record: nothing is wrapped", lambda: started(tmp_path, COMMBENCH_BACKEND="profle"))
    wrong("gone.json': No such file", lambda: started(tmp_path / "gone.json", COMMBENCH_SCOPE="s"))

    def no_profile() -> None:
        started(tmp_path)
        del os.environ["COMMBENCH_PROFILE"]
        assert start.of_environment() is None

    wrong("COMMBENCH_PROFILE names no profile", no_profile)


def test_a_program_that_makes_no_group_is_told_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "p.json"
    file.save(profiles.profile(profiles.choice("all_to_all", "pairwise")), path)

    def rank(me: int) -> None:
        started(path, me)
        start._say_unused()
        if multiprocessing.parent_process() is None and me == 0:
            with_group(tmp_path)
            start._say_unused()

    assert forked(2, rank) == [0, 0]
    assert capfd.readouterr().err.count("has made no process group of torch") == 1


def with_group(folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    dist.destroy_process_group()


def test_unset_nothing_is_loaded() -> None:
    def body() -> None:
        for name in [name for name in sys.modules if name.startswith("commbench.")]:
            del sys.modules[name]
        os.environ.pop("COMMBENCH_BACKEND", None)
        commbench_autoload.activate()
        assert not [name for name in sys.modules if name.startswith("commbench.")]

    in_child(body)


@pytest.mark.slow
def test_exec_above_torchrun_and_under_it(tmp_path: Path) -> None:
    """Real ranks, bound either way, with the exchange by the profile and no word of it in the program."""
    loaded = [entry.value for entry in importlib.metadata.entry_points(group="torch.backends")]
    if "commbench_autoload:activate" not in loaded:
        pytest.skip("torch does not load commbench here: install it again")
    path = bound(tmp_path)
    (tmp_path / "train.py").write_text(PROGRAM)
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    inside = (sys.executable, "-m", "commbench", "exec", "--profile", str(path), "--")
    for words in (
        (*inside, *torchrun, "train.py"),
        (*torchrun, "--no-python", *inside, sys.executable, "train.py"),
    ):
        done = subprocess.run(
            words, cwd=tmp_path, env=environment(COMMBENCH_EXPLAIN="1"), capture_output=True, text=True, timeout=250
        )
        assert done.returncode == 0, done.stderr
        assert sorted(done.stdout.splitlines()) == [f"rank 0 on [{CPUS[-1]}]", f"rank 1 on [{CPUS[0]}]"], words
        assert "all_to_all, 16 B: pairwise window=1" in done.stderr and "binding=explicit" in done.stderr
