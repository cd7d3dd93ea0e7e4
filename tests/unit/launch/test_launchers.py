"""mpiexec and srun: recorded environments, commands and last words, without any of them installed."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from commbench import launch, transports
from commbench.emulated import Emulated
from commbench.errors import EnvironmentProblem
from commbench.launch import mpi_library, mpiexec
from commbench.launch.job import Job
from commbench.rank_info import detect
from commbench.records import Setup
from tests.conftest import REPOSITORY

RECORDS = REPOSITORY / "tests/records"
RANKS = {path.stem: json.loads(path.read_text()) for path in sorted((RECORDS / "environments").glob("*.json"))}
STARTED_BY = {
    "torchrun": ("torchrun", "torchrun"),
    "openmpi": ("mpiexec", "Open MPI's mpiexec"),
    "mpich": ("mpiexec", "MPICH's or Intel MPI's mpiexec"),
    "intel": ("mpiexec", "MPICH's or Intel MPI's mpiexec"),
    "srun": ("slurm", "srun"),
}


TYPED = "from commbench.rank_info import typed_at_prompt; print('typed:', typed_at_prompt())"


@pytest.mark.parametrize("name", STARTED_BY)
def test_recorded_ranks_are_detected(name: str) -> None:
    for number, environ in enumerate(RANKS[name]):
        rank = detect(environ)
        assert rank is not None
        assert (rank.rank, rank.size, rank.local_rank, rank.local_size) == (number, 2, number, 2)
        assert (rank.launcher, rank.started_by) == STARTED_BY[name]


def test_mvapich_is_detected() -> None:
    names = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")
    rank = detect({f"MV2_COMM_WORLD_{name}": value for name, value in zip(names, "3412", strict=True)})
    assert rank is not None
    assert (rank.rank, rank.size, rank.local_rank, rank.local_size) == (3, 4, 1, 2)
    assert rank.started_by == "MVAPICH's mpiexec"


@pytest.mark.parametrize(
    ("inner", "outer"),
    [("torchrun", "srun"), ("torchrun", "openmpi"), ("torchrun", "mpich"), ("mpich", "srun"), ("openmpi", "srun")],
)
def test_the_innermost_launcher_wins(inner: str, outer: str) -> None:
    """torchrun started as a rank, and mpiexec whose helpers srun started, leave both sets of variables."""
    rank = detect({**RANKS[outer][1], **RANKS[inner][0]})
    assert rank is not None
    assert (rank.rank, rank.started_by) == (0, STARTED_BY[inner][1])


EVERYTHING = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}


@pytest.mark.parametrize("local_size", ["LOCAL_WORLD_SIZE", "LOCAL_SIZE"])  # the latter is deepspeed's
def test_ranks_that_somebody_else_started_are_joined(local_size: str) -> None:
    rank = detect({**EVERYTHING, local_size: "2"})
    assert rank is not None and (rank.launcher, rank.rendezvous) == ("torchrun", "env://")
    assert (rank.rank, rank.size, rank.local_rank, rank.local_size) == (3, 4, 1, 2)
    assert detect({"RANK": "0", "WORLD_SIZE": "1"}) is None and detect({"WORLD_SIZE": "8"}) is None


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        (EVERYTHING, "but LOCAL_WORLD_SIZE is not set"),  # PyTorchJob, with a process in each pod, has neither
        ({"RANK": "0", "WORLD_SIZE": "2"}, "but LOCAL_RANK and LOCAL_WORLD_SIZE and MASTER_ADDR and MASTER_PORT are"),
        ({**EVERYTHING, "LOCAL_WORLD_SIZE": "2", "RANK": "4"}, "says rank 4 of 4"),
        ({**EVERYTHING, "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "x"}, "but WORLD_SIZE is 'x'"),
        ({**RANKS["srun"][1], "RANK": "0", "WORLD_SIZE": "2"}, "srun says rank 1 of 2, a launcher that sets RANK"),
        ({**RANKS["openmpi"][1], **EVERYTHING}, "Open MPI's mpiexec says rank 1 of 2, a launcher that sets RANK says"),
    ],
)
def test_ranks_that_cannot_be_joined_stop(environ: dict[str, str], said: str) -> None:
    """Each of them would make a sweep of its own, all at the same time."""
    with pytest.raises(EnvironmentProblem, match=re.escape(said)) as raised:
        detect(environ)
    assert raised.value.hint


def test_what_a_script_sets_from_srun_agrees() -> None:
    assert detect({**RANKS["srun"][1], "RANK": "1", "WORLD_SIZE": "2"}) == detect(RANKS["srun"][1])
    assert detect({**RANKS["openmpi"][0], "RANK": "0", "WORLD_SIZE": "2"}) == detect(RANKS["openmpi"][0])


def test_an_allocation_of_one_task_is_no_launch() -> None:
    assert detect({"FLUX_TASK_RANK": "0", "FLUX_JOB_SIZE": "1"}) is None
    assert detect({"JSM_NAMESPACE_RANK": "0", "JSM_NAMESPACE_SIZE": "1"}) is None


def test_two_mpi_launchers_must_agree() -> None:
    both = {**RANKS["mpich"][0], **RANKS["openmpi"][0]}
    assert detect(both) == detect(RANKS["openmpi"][0])
    for change in ({"PMI_RANK": "1"}, {"PMI_SIZE": "4"}):
        with pytest.raises(EnvironmentProblem, match=r"Open MPI's mpiexec says rank 0 of 2, MPICH's .* says rank"):
            detect({**both, **change})


@pytest.mark.parametrize(
    "environ",
    [
        {"PMIX_RANK": "0"},
        {"PALS_RANKID": "3"},
        {"FLUX_TASK_RANK": "1", "FLUX_JOB_SIZE": "2"},
        {"JSM_NAMESPACE_RANK": "0", "JSM_NAMESPACE_SIZE": "2"},
        {"PMI_RANK": "0", "PMI_SIZE": "2"},  # one of several, but where?
        {"PMI_RANK": "1", "SLURM_PROCID": "0"},  # the shell of sbatch
        {**RANKS["srun"][1], "PMI_RANK": "0", "PMI_SIZE": "2"},
        {**RANKS["srun"][1], "PMI_RANK": "1", "PMI_SIZE": "4"},
    ],
)
def test_an_unknown_launcher_is_no_reason_to_sweep_in_every_rank(environ: dict[str, str]) -> None:
    with pytest.raises(EnvironmentProblem, match="an unknown launcher") as caught:
        detect(environ)
    assert "srun" in caught.value.hint and "unset " in caught.value.hint


@pytest.mark.parametrize("extra", [{"PMI_RANK": "1", "PMI_SIZE": "2"}, {"PMIX_RANK": "1"}])
def test_what_srun_sets_for_mpi_does_not_disturb(extra: dict[str, str]) -> None:
    assert detect({**RANKS["srun"][1], **extra}) == detect(RANKS["srun"][1])


def test_a_step_of_one_task_is_a_shell() -> None:
    """srun --pty bash; salloc leaves the number of tasks of the job in the shell that it opens."""
    shell = {**RANKS["srun"][0], "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1"}
    assert shell["SLURM_NTASKS"] == "2"
    assert detect(shell) is None
    assert detect({**shell, "PMIX_RANK": "0"}) is None
    assert detect({**shell, "PMI_RANK": "0", "PMI_SIZE": "1"}) is None
    assert detect({**shell, **RANKS["mpich"][1]}) == detect(RANKS["mpich"][1])


def test_a_prompt_in_a_step_of_several_tasks_is_a_shell() -> None:
    """srun --pty -n 2 bash: only its first task has a terminal, and the others have ended by the time one types."""
    shell = {**RANKS["srun"][0], "SLURM_PTY_PORT": "43579"}
    assert detect(shell, typed=lambda: True) is None
    assert detect({**shell, "PMI_RANK": "0", "PMI_SIZE": "2"}, typed=lambda: True) is None
    assert detect(shell, typed=lambda: False) == detect(RANKS["srun"][0])  # srun --pty -n 2 commbench ..
    assert detect(RANKS["srun"][0], typed=lambda: True) == detect(RANKS["srun"][0])
    assert detect({**shell, **RANKS["mpich"][1]}, typed=lambda: True) == detect(RANKS["mpich"][1])


@pytest.mark.parametrize(
    ("command", "typed"),
    [
        (["{}"], False),  # as srun --pty starts it
        (["bash", "-c", "{}; true"], False),
        (["bash", "--norc", "-i", "-c", "{}; true"], True),
        (["setsid", "--wait", "{}"], False),
    ],
)
def test_what_was_typed_has_a_process_group_of_its_own(command: list[str], typed: bool) -> None:
    program = f"{shlex.quote(sys.executable)} -S -c {shlex.quote(TYPED)}"
    words = [word for part in command for word in (shlex.split(program) if part == "{}" else [part.format(program)])]
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(REPOSITORY)
        os.execvp(words[0], words)
    said = b""
    with contextlib.suppress(OSError):  # the end of a terminal is an error
        while more := os.read(terminal, 1024):
            said += more
    os.waitpid(child, 0)
    os.close(terminal)
    assert f"typed: {typed}" in said.decode()


@pytest.mark.parametrize(("node", "tasks"), [("0", 4), ("1", 4), ("2", 3)])
def test_tasks_on_a_node_of_slurm(node: str, tasks: int) -> None:
    environ = {**RANKS["srun"][0], "SLURM_NODEID": node, "SLURM_STEP_TASKS_PER_NODE": "4(x2),3"}
    rank = detect({**environ, "SLURM_STEP_NUM_TASKS": "11"})
    assert rank is not None
    assert rank.local_size == tasks


def test_older_slurm_variables_will_do() -> None:
    environ = {key: value for key, value in RANKS["srun"][1].items() if not key.startswith("SLURM_STEP_N")}
    del environ["SLURM_STEP_TASKS_PER_NODE"]
    assert detect({**environ, "SLURM_NTASKS_PER_NODE": "2"}) == detect(RANKS["srun"][1])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("mpich", {"MPI_LOCALNRANKS": None}),
        ("intel", {"MPI_LOCALRANKID": "2"}),
        ("openmpi", {"OMPI_COMM_WORLD_RANK": "2"}),
        ("openmpi", {"OMPI_COMM_WORLD_LOCAL_SIZE": "x"}),
        ("srun", {"SLURM_NODEID": "1"}),
        ("srun", {"SLURM_STEP_TASKS_PER_NODE": "two"}),
        ("srun", {"SLURM_STEP_TASKS_PER_NODE": None}),
        ("srun", {"SLURM_LOCALID": None}),
    ],
)
def test_what_cannot_be_is_refused(name: str, change: dict[str, str | None]) -> None:
    environ = {key: value for key, value in {**RANKS[name][0], **change}.items() if value is not None}
    with pytest.raises(EnvironmentProblem, match=f"^{STARTED_BY[name][1]} "):
        detect(environ)


# What is run.

TAIL = ["python", "-m", "mpi4py", "-m", "commbench.measure.rank", "RUN/order.json"]


@pytest.mark.parametrize("dialect", ["mpich", "openmpi", "intel"])
def test_commands_are_recorded(dialect: str) -> None:
    lines = (RECORDS / f"commands/{dialect}.txt").read_text().splitlines()
    program = f"/opt/{dialect}/bin/mpiexec"
    made = [shlex.join(mpiexec.words(dialect, program, 4, TAIL, per_node=per_node)) for per_node in (4, 2)]
    assert made == lines


def library(family: str, version: str = "1") -> mpi_library.MpiLibrary:
    path, mpiexec = "/opt/lib/libmpi.so", "/opt/bin/mpiexec"
    return mpi_library.MpiLibrary(family=family, version=version, path=path, mpiexec=mpiexec)


def job(emulated: Emulated | None = None, **env: str) -> Job:
    setup = Setup(transport="mpi", nodes=2, ranks_per_node=2, env=env, emulated=emulated)
    return Job(run_dir="RUN", attempt="000-abc-0", launch=0, setup=setup, cases=())


def test_the_launcher_starts_the_mpiexec_of_the_library_of_its_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def find(env: dict[str, str]) -> mpi_library.MpiLibrary:
        asked.append(env)
        return library("mpich")

    monkeypatch.setattr(mpi_library, "find", find)
    words = launch.get("mpiexec").command(Path("RUN/order.json"), job(MPI4PY_LIBMPI="/other/libmpi.so"))
    assert words == mpiexec.words("mpich", "/opt/bin/mpiexec", 4, [sys.executable, *TAIL[1:]], per_node=2)
    assert asked == [{"MPI4PY_LIBMPI": "/other/libmpi.so"}]


@pytest.mark.parametrize(("user", "family", "names"), [(0, "openmpi", 2), (0, "mpich", 0), (1000, "openmpi", 0)])
def test_only_open_mpi_is_told_that_root_is_meant(
    monkeypatch: pytest.MonkeyPatch, user: int, family: str, names: int
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setattr(mpi_library, "find", lambda env: library(family))
    assert len(mpiexec.environment(job())) == names


EMULATED = Emulated(nodes=2, link="1gbit")


def test_open_mpi_takes_the_links_of_an_emulated_fabric(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mpi_library, "find", lambda env: library("openmpi"))
    words = shlex.join(launch.get("mpiexec").command(Path("RUN/order.json"), job(EMULATED)))
    assert "--mca btl tcp,self --mca btl_tcp_if_include net0" in words and words.endswith("RUN/order.json")
    assert "--mca" not in launch.get("mpiexec").command(Path("RUN/order.json"), job())


@pytest.mark.parametrize(
    ("version", "listen", "folder"),
    [
        ("Open MPI v5.0.11, package: x", {"PMIX_MCA_ptl_base_if_include"}, "PRTE_MCA_prte_tmpdir_base"),
        (
            "Open MPI v4.1.4, package: x",
            {"PMIX_MCA_ptl_base_if_include", "PMIX_MCA_ptl_tcp_if_include"},
            "OMPI_MCA_orte_tmpdir_base",
        ),
    ],
)
def test_ranks_find_mpiexec_over_the_second_link(
    monkeypatch: pytest.MonkeyPatch, version: str, listen: set[str], folder: str
) -> None:
    """As user 0, whom one is in a user namespace; what is left behind lies in the folder of the launch."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(mpi_library, "find", lambda env: library("openmpi", version))
    variables = mpiexec.environment(job(EMULATED))
    assert {name for name, value in variables.items() if value == "control"} == listen
    assert variables["OMPI_ALLOW_RUN_AS_ROOT"] == "1"
    assert variables[folder] == str(Path("RUN/logs/000-abc-0/session").absolute())


@pytest.mark.parametrize("family", ["mpich", "intel"])
def test_only_open_mpi_runs_on_an_emulated_fabric(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    monkeypatch.setattr(mpi_library, "find", lambda env: library(family, "A library 1"))
    with pytest.raises(EnvironmentProblem, match="needs Open MPI on an emulated fabric") as caught:
        launch.get("mpiexec").command(Path("RUN/order.json"), job(EMULATED))
    assert "mpi4py loads A library 1" in caught.value.hint
    assert mpiexec.environment(job(EMULATED)) == {}


# What mpiexec says when a rank is lost.

OPEN_MPI_5 = (
    "-----\nprterun noticed that process rank 1 with PID 1894 on node a-1.b exited on\nsignal 9 (Killed).\n-----"
)
OPEN_MPI_4 = (
    "mpiexec.openmpi noticed that process rank 2 with PID 0 on node a exited on signal 11 (Segmentation fault)."
)
OPEN_MPI_CODE = """prterun detected that one or more processes exited with non-zero status,
thus causing the job to be terminated. The first process to do so was:

   Process name: [prterun-a-2004@1,1]
   Exit code:    {}
"""
OPEN_MPI_4_CODE = OPEN_MPI_CODE.replace("[prterun-a-2004@1,1]", "[[5400,1],3]")
OPEN_MPI_SILENT = (
    "prterun has exited due to process rank 1 with PID 2122 on node a exiting\nimproperly. There are three"
)
OPEN_MPI_PEER = """[vm:00000] *** An error occurred in Socket closed
[vm:00000] *** reported by process [3436183553,2]
prterun has exited due to process rank 1 with PID 18213 on node vm calling
"abort". This may have caused other processes in the application to be"""
HYDRA = """=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES
=   PID 3545 RUNNING AT a
=   EXIT CODE: 9
[mpiexec@a] Exit codes: {}
YOUR APPLICATION TERMINATED WITH THE EXIT STRING: Killed (signal 9)
"""


@pytest.mark.parametrize(
    ("log", "account"),
    [
        (OPEN_MPI_5, "rank 1 was killed by signal 9"),
        (OPEN_MPI_4, "rank 2 was killed by signal 11"),
        (OPEN_MPI_CODE.format(7), "rank 1 exited with code 7"),
        (OPEN_MPI_4_CODE.format(7), "rank 3 exited with code 7"),
        (OPEN_MPI_CODE.format(1), ""),  # the rank has said why itself
        (OPEN_MPI_SILENT, "rank 1 exited without a word"),
        (OPEN_MPI_PEER, "rank 1 lost another rank, which was killed or crashed"),
        (HYDRA.format("[a] 9,0,1792,0"), "rank 2 exited with code 7"),
        (HYDRA.format("[a:0] 9,9,11,9"), "rank 2 was killed by signal 11"),
        (HYDRA.format("[a] 9,0 \n[b] 139,9"), "rank 2 was killed by signal 11"),  # 128: it dumped core
        (HYDRA.format("[a] 0,0,0,9"), "rank 3 was killed by signal 9"),
        (HYDRA.format("[a] 9,0,9,0"), "one of the ranks 0, 2 was killed by signal 9, and mpiexec then killed the"),
        (HYDRA.format("[a] 9,9,256,9"), ""),
        (HYDRA.format("[a] 15,15"), ""),  # mpiexec was told to stop
        ("[mpiexec@a] Exit codes: [a] 0,0", ""),
        ("nothing of the kind", ""),
        ("", ""),
    ],
)
def test_mpiexecs_own_account_of_a_failure(log: str, account: str) -> None:
    told = launch.get("mpiexec").explain(log)
    assert told.startswith(account) and bool(told) == bool(account)


# Which library and which mpiexec.


def test_families_are_recognized() -> None:
    for texts in json.loads((RECORDS / "mpi_versions.json").read_text()).values():
        for text, family in texts.items():
            assert mpi_library.family(text) == family
    assert mpi_library.family("mpiexec of another kind 1.0") is None


@pytest.fixture(autouse=True)
def nothing_known() -> Iterator[None]:
    mpi_library._find.cache_clear()
    yield
    mpi_library._find.cache_clear()


SAYS = {"mpich": "HYDRA build details:", "openmpi": "mpiexec (Open MPI) 5.0.11", "odd": "mpiexec of another kind"}


class Machine:
    """Programs that say something, in the places where `find` looks for them."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        monkeypatch.setattr(sys, "executable", str(folder / "python"))
        monkeypatch.setattr(sys, "prefix", str(folder / "venv"))
        monkeypatch.setenv("PATH", str(folder / "path"))
        monkeypatch.delenv(mpi_library.CHOICE, raising=False)

    def program(self, name: str, says: str, *, code: int = 0) -> str:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\necho {shlex.quote(says)}\nexit {code}\n")
        path.chmod(0o755)
        return str(path)

    def loads(self, version: str, path: str = "opt/lib/libmpi.so.12") -> None:
        self.program("python", json.dumps({"version": version, "path": str(self.folder / path)}))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_the_mpiexec_nearest_to_the_library_is_taken(machine: Machine) -> None:
    machine.loads("MPICH Version: 5.0.2")
    machine.program("opt/bin/mpiexec", SAYS["openmpi"])  # both installed below one prefix
    for place in ("path/mpiexec", "venv/bin/mpiexec", "opt/bin/mpiexec.mpich"):
        nearest = machine.program(place, SAYS["mpich"])
        mpi_library._find.cache_clear()
        assert mpi_library.find().mpiexec == nearest
    machine.loads("MPICH Version: 5.0.2", path="opt/lib/x86_64-linux-gnu/libmpich.so.12")
    mpi_library._find.cache_clear()
    assert mpi_library.find() == mpi_library.MpiLibrary(
        family="mpich",
        version="MPICH Version: 5.0.2",
        path=str(machine.folder / "opt/lib/x86_64-linux-gnu/libmpich.so.12"),
        mpiexec=nearest,
    )


def test_the_library_is_asked_for_once_for_each_environment(machine: Machine) -> None:
    machine.loads("MPICH Version: 5.0.2")
    machine.program("path/mpiexec", SAYS["mpich"])
    first = mpi_library.find()
    machine.loads("MPICH Version: 6")
    assert mpi_library.find() is first
    assert mpi_library.find({"MPI4PY_LIBMPI": "x"}).version == "MPICH Version: 6"


def test_an_mpiexec_can_be_chosen_but_not_one_of_another_family(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.loads("MPICH Version: 5.0.2")
    machine.program("path/mpiexec", SAYS["mpich"])
    chosen = machine.program("elsewhere/mpiexec", SAYS["mpich"])
    monkeypatch.setenv(mpi_library.CHOICE, chosen)
    assert mpi_library.find().mpiexec == chosen
    for program in (machine.program("elsewhere/other", SAYS["openmpi"]), "/does/not/exist/MPICH"):
        mpi_library._find.cache_clear()
        monkeypatch.setenv(mpi_library.CHOICE, program)
        with pytest.raises(EnvironmentProblem, match=rf"{mpi_library.CHOICE} is {program} \(.+\), but ranks load"):
            mpi_library.find()


def test_no_mpiexec_of_the_family_says_what_was_found(machine: Machine) -> None:
    machine.loads("Intel(R) MPI Library 2021.18.1 for Linux* OS")
    with pytest.raises(EnvironmentProblem, match=r"no mpiexec for the intel library .*: found none at all") as caught:
        mpi_library.find()
    assert "pip install impi-rt" in caught.value.hint
    machine.program("path/mpiexec", SAYS["openmpi"])
    machine.program("venv/bin/mpiexec", SAYS["odd"])
    with pytest.raises(
        EnvironmentProblem, match=r"found only .*venv/bin/mpiexec \(.*kind\), .*path/mpiexec \(.*Open MPI\) 5\.0\.11\)"
    ):
        mpi_library.find()


@pytest.mark.parametrize(
    ("answer", "code", "message", "hint"),
    [
        ('{"error": "no mpi4py"}', 0, "needs mpi4py", "pip install 'commbench[mpi]'"),
        ('{"error": "libmpi.so.40: no such file"}', 0, "no MPI library: libmpi.so.40", "mpich | openmpi | impi-rt"),
        ("Fatal error in something", 139, "ended without an answer: 'Fatal error", "MPI4PY_LIBMPI"),
        ("[]", 0, "ended without an answer", "MPI4PY_LIBMPI"),
        ('{"version": "Another MPI 3", "path": "/x"}', 0, "'Another MPI 3' from /x, for which", "mpich, openmpi"),
    ],
)
def test_what_is_missing_is_said(machine: Machine, answer: str, code: int, message: str, hint: str) -> None:
    machine.program("python", answer, code=code)
    with pytest.raises(EnvironmentProblem) as caught:
        mpi_library.find()
    assert message in str(caught.value) and hint in caught.value.hint


def test_the_answer_of_the_process_that_loads_mpi(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer() -> dict[str, str]:
        mpi_library.main()
        found: dict[str, str] = json.loads(capsys.readouterr().out)
        return found

    monkeypatch.setitem(sys.modules, "mpi4py", None)
    assert answer() == {"error": "no mpi4py"}
    package = ModuleType("mpi4py")
    package.rc = SimpleNamespace(initialize=True, finalize=True)  # type: ignore[attr-defined]
    package.__path__ = []
    monkeypatch.setitem(sys.modules, "mpi4py", package)
    monkeypatch.delitem(sys.modules, "mpi4py.MPI", raising=False)
    assert "mpi4py.MPI" in answer()["error"]
    version = "Open MPI v5.0.11, package: \tOpen MPI\0\nmore"
    monkeypatch.setitem(sys.modules, "mpi4py.MPI", SimpleNamespace(Get_library_version=lambda: version))
    assert answer()["version"] == "Open MPI v5.0.11, package: Open MPI"
    assert not package.rc.initialize and not package.rc.finalize


def test_gpus_of_other_hosts_are_not_looked_for_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A login node has none, and `--launcher slurm` is typed there."""
    monkeypatch.setattr(transports, "_installed", lambda module: True)
    monkeypatch.setattr(transports.gpus, "count", lambda environ: 0)
    assert "needs GPUs" in transports.missing("nccl")
    assert not transports.missing("nccl", elsewhere=True)
