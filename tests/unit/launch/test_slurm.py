"""Slurm and job scripts, without Slurm: recorded commands, what srun says, and stand-ins for Slurm's programs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commbench import launch
from commbench.errors import EnvironmentProblem
from commbench.launch import job_script, slurm, slurm_job
from commbench.launch.job import Job
from commbench.records import Setup
from commbench.sweep.plan import expand
from tests.conftest import PATIENCE_S, REPOSITORY, environment

RECORDS = REPOSITORY / "tests/records"
RANKS = json.loads((RECORDS / "environments/srun.json").read_text())
PATH = Path("results/20260101T000000Z-quick-abc123/logs/000-0f0f0f-0/order.json")
NAME = "commbench-20260101T000000Z-quick-abc123-000-0f0f0f-0"

Programs = Callable[..., Path]


@pytest.fixture(autouse=True)
def outside_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_"))]:
        monkeypatch.delenv(name)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    """Stand-ins for Slurm's programs, alone on PATH: each appends its words to a log and runs a line of shell."""
    folder, log = tmp_path / "bin", tmp_path / "calls"
    folder.mkdir()
    log.touch()
    for name in ("bash", "cat", "sleep"):
        (folder / name).symlink_to(shutil.which(name) or f"/bin/{name}")
    monkeypatch.setenv("PATH", str(folder))

    def add(**lines: str) -> Path:
        for name, line in lines.items():
            program = folder / name
            program.write_text(f'#!{folder}/bash\necho "{name} $*" >> {log}\n{line}\n')
            program.chmod(0o755)
        return log

    return add


def job(run: Path = Path("results/run"), **setup: object) -> Job:
    from commbench.sweep.prepare import configure

    cases = tuple(item.case for item in expand(configure(["quick", "transport=scripted", "cap=1"])[1]))
    values = {"transport": "gloo", "nodes": 2, "ranks_per_node": 4, **setup}
    return Job(run_dir=str(run), attempt="000-0f0f0f-0", launch=0, setup=Setup(**values), cases=cases[:3], timeout_s=60)


# What is run.


def test_commands_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "python")
    situations = (
        {},
        {"SLURM_JOB_ID": "7"},  # a batch script
        {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "4294967290"},  # the shell of salloc
        {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"},  # the shell of srun --pty
    )
    made = []
    for situation in situations:
        with monkeypatch.context() as patch:
            for name, value in situation.items():
                patch.setenv(name, value)
            made.append(" ".join(launch.get("slurm").command(PATH, job())))
    assert made == (RECORDS / "commands/slurm.txt").read_text().splitlines()


@pytest.mark.parametrize("inside", [False, True])
def test_slurm_must_be_there(programs: Programs, monkeypatch: pytest.MonkeyPatch, inside: bool) -> None:
    if inside:
        monkeypatch.setenv("SLURM_JOB_ID", "7")
    program = "srun" if inside else "sbatch"
    with pytest.raises(
        EnvironmentProblem, match=rf"--launcher slurm needs Slurm's {program}, which is not on PATH"
    ) as e:
        launch.get("slurm").check()
    assert "login node" in e.value.hint and "--launcher print" in e.value.hint
    programs(**{program: "true"})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    if inside:
        slurm.check()
    else:
        with pytest.raises(EnvironmentProblem, match="submitit") as e:
            slurm.check()
        assert "pip install 'commbench[slurm]'" in e.value.hint


def test_the_time_limit_is_no_less_than_a_launch_may_take() -> None:
    """Three cases with a cap of a second, the start, and one case that hangs."""
    assert slurm_job.minutes(job()) == 4


# What Slurm says.

KILLED = """srun: error: node2: task 2: Killed
srun: launch/slurm: _step_signal: Terminating StepId=4.3
slurmstepd-node1: error: *** STEP 4.3 ON node1 CANCELLED AT 2026-11-22T09:34:52 ***
srun: error: node2: task 3: Terminated
srun: error: node1: tasks 0-1: Terminated
"""
CANCELLED = """srun: forcing job termination
srun: Job step aborted: Waiting up to 5 seconds for job step to finish.
slurmstepd-node1: error: *** STEP 4.2 ON node1 CANCELLED AT 2026-11-22T09:34:45 ***
srun: error: node2: tasks 2-3: Killed
"""
LATE = """slurmstepd-node1: error: *** STEP 4.0 ON node1 CANCELLED AT 2026-11-22T09:34:45 DUE TO TIME LIMIT ***
srun: error: node1: task 0: Terminated
"""


@pytest.mark.parametrize(
    ("log", "account"),
    [
        (KILLED, "rank 2 ended: Killed"),
        (KILLED.replace("task 2: Killed", "tasks 2,4-5: Segmentation fault"), "ranks 2,4-5 ended: Segmentation fault"),
        (KILLED.replace("Killed", "Exited with exit code 7"), "rank 2 exited with code 7"),
        (KILLED.replace("Killed", "Exited with exit code 1"), ""),  # the rank has said why itself
        (LATE, "Slurm ended the launch: time limit"),
        ("srun: error: Only allocated 1 nodes asked for 2", "srun: error: Only allocated 1 nodes asked for 2"),
        ("sbatch: error: invalid partition specified: x\n", "sbatch: error: invalid partition specified: x"),
        ("Slurm has it as job 9\nSlurm job 9 ended as NODE_FAIL\n", "Slurm job 9 ended as NODE_FAIL"),
        ("Slurm has it as job 9\nhello\n", ""),
        ("", ""),
    ],
)
def test_what_srun_says(log: str, account: str) -> None:
    assert launch.get("slurm").explain(log) == account


def test_tasks_that_slurm_ended_are_not_the_cause() -> None:
    assert "rank" not in slurm.explain(CANCELLED)


@pytest.mark.parametrize(
    ("nodes", "hosts"),
    [
        ("node1", ["node1"]),
        ("node[01-03,7],x1", ["node01", "node02", "node03", "node7", "x1"]),
        ("a[1-2]b[3-4]", ["a1b3", "a1b4", "a2b3", "a2b4"]),
        ("a[1-2]-ib0,b", ["a1-ib0", "a2-ib0", "b"]),
        ("gpu-a100-[098-101]", ["gpu-a100-098", "gpu-a100-099", "gpu-a100-100", "gpu-a100-101"]),
        ("0x7f[000001-000002]", ["0x7f000001", "0x7f000002"]),
        ("", []),
    ],
)
def test_lists_of_hosts(nodes: str, hosts: list[str]) -> None:
    assert slurm.expand_hosts(nodes) == hosts


NODE = st.tuples(st.sampled_from(["a", "rack-2n", "x1."]), st.lists(st.integers(0, 120), min_size=1, max_size=5))


@given(st.lists(NODE, min_size=1, max_size=4), st.integers(1, 4))
def test_any_list_of_hosts(groups: list[tuple[str, list[int]]], width: int) -> None:
    text = ",".join(f"{prefix}[{','.join(f'{n:0{width}}' for n in numbers)}]" for prefix, numbers in groups)
    assert slurm.expand_hosts(text) == [f"{prefix}{n:0{width}}" for prefix, numbers in groups for n in numbers]


def test_ranks_of_a_step_meet_at_its_first_node() -> None:
    places = [slurm.rendezvous({**rank, "SLURM_STEP_NODELIST": "n[07-08]"}) for rank in RANKS]
    assert [(place.pop("RANK"), place.pop("WORLD_SIZE")) for place in places] == [("0", "2"), ("1", "2")]
    assert places[0] == places[1]
    assert places[0]["MASTER_ADDR"] == "n07"


def test_ports_differ_between_steps_and_are_not_those_of_outgoing_connections() -> None:
    ports = [
        int(slurm.rendezvous({**RANKS[0], "SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)})["MASTER_PORT"])
        for job in (1, 2, 3, 67_108_863)
        for step in range(30)
    ]
    assert len(set(ports)) == len(ports)
    assert all(1024 < port < 32768 for port in ports)


def test_an_address_of_the_users_own_stays() -> None:
    own = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "5"}
    assert slurm.rendezvous({**RANKS[1], **own}).items() >= own.items()


def test_without_a_list_of_nodes_there_is_nowhere_to_meet() -> None:
    rank = {name: value for name, value in RANKS[0].items() if "NODELIST" not in name}
    with pytest.raises(EnvironmentProblem, match="list of nodes is ''"):
        slurm.rendezvous(rank)


# Ending what is left.


def launch_folder(tmp_path: Path, **record: str) -> Path:
    folder = tmp_path / PATH.parent
    folder.mkdir(parents=True)
    if record:
        slurm.record_path(folder).write_text(json.dumps(record))
    return folder


def test_cancel_without_a_job_or_without_slurm_does_nothing(programs: Programs, tmp_path: Path) -> None:
    folder = launch_folder(tmp_path)
    launch.get("slurm").cancel(folder)
    slurm.record_path(folder).write_text('{"job_id": "12"}')
    launch.get("slurm").cancel(folder)  # there is no scancel
    log = programs(squeue=f'echo "12 {NAME}"', scancel="exit 1")
    launch.get("slurm").cancel(folder)
    assert log.read_text() == "squeue --jobs=12 --noheader --format=%i %j\nscancel 12\n"


@pytest.mark.parametrize("forged", ["12", "--user=me", "12 13", 12, None, ["12"]])
def test_a_forged_number_cancels_nothing(programs: Programs, tmp_path: Path, forged: object) -> None:
    """The folder may be from elsewhere: a job that has not the name of this launch is somebody else's."""
    log = programs(squeue='echo "12 training-of-weeks"', scancel="true")
    folder = launch_folder(tmp_path)
    slurm.record_path(folder).write_text(json.dumps({"job_id": forged}))
    slurm.cancel(folder)
    slurm.record_path(folder).write_text("[" * 5)
    slurm.cancel(folder)
    assert "scancel" not in log.read_text()


def test_a_job_that_is_over_is_left_alone(programs: Programs, tmp_path: Path) -> None:
    log = programs(scancel="true")
    slurm.cancel(launch_folder(tmp_path, job_id="12", state="COMPLETED"))
    assert log.read_text() == ""


def test_a_step_is_cancelled_by_its_name(programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    log = programs(squeue=f'echo "7.batch batch"\necho "7.3 {NAME}"\necho "7.4 {NAME}0"', scancel="true")
    slurm.cancel(launch_folder(tmp_path))
    assert log.read_text() == "squeue --steps --jobs=7 --noheader --format=%i %j\nscancel 7.3\n"


# The process that waits for a job.


def child(tmp_path: Path) -> tuple[subprocess.Popen[str], Path]:
    """The child that submits a job for a launch below `tmp_path`."""
    pytest.importorskip("submitit")
    path = job(tmp_path / "run").save()
    process = subprocess.Popen(
        [sys.executable, "-m", "commbench.launch.slurm_job", str(path)],
        env=environment(SBATCH_EXPORT="NONE"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return process, path.parent


SUBMITTED = 'echo "Submitted batch job 7"; cat "$1" > "$0.script"; echo "${SBATCH_EXPORT-unset}" > "$0.export"'


def test_a_job_is_submitted_and_waited_for(programs: Programs, tmp_path: Path) -> None:
    states = 'if [ -e "$0.asked" ]; then echo "JobId=7 JobState=COMPLETED Reason=None"; else\n'
    states += '> "$0.asked"; echo "JobId=7 JobState=PENDING Reason=Priority"; fi'
    programs(srun="true", sbatch=SUBMITTED, scontrol=states)
    process, folder = child(tmp_path)
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, output
    assert json.loads((folder / "job.json").read_text()) == {"job_id": "7", "state": "COMPLETED"}
    (event,) = map(json.loads, (folder / "events.jsonl").read_text().splitlines())
    assert event == {"event": "queued", "job_id": "7", "state": "PENDING", "reason": "Priority"}
    submitted = (tmp_path / "bin/sbatch.script").read_text()
    for option in ("nodes=2", "ntasks-per-node=4", "time=4", "exclusive", "no-requeue", "job-name=commbench-run-000"):
        assert f"#SBATCH --{option}" in submitted
    assert f"{' '.join(slurm.STEP)} {sys.executable} " in submitted
    assert (tmp_path / "bin/sbatch.export").read_text() == "unset\n"  # all variables arrive


def test_a_job_that_fails_says_why(programs: Programs, tmp_path: Path) -> None:
    errors = tmp_path / "run/logs/000-0f0f0f-0/submitit/7_0_log.err"
    programs(
        srun="true",
        sbatch=f'{SUBMITTED}; echo "srun: error: n1: task 2: Exited with exit code 9" > {errors}',
        scontrol='echo "JobId=7 JobState=FAILED Reason=NonZeroExitCode"',
    )
    process, folder = child(tmp_path)
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert "Slurm job 7 ended as FAILED" in output
    assert slurm.explain(output) == "rank 2 exited with code 9"
    assert json.loads((folder / "job.json").read_text())["state"] == "FAILED"


def test_a_job_that_slurm_refuses_says_why(programs: Programs, tmp_path: Path) -> None:
    programs(srun="true", sbatch='echo "sbatch: error: invalid account" >&2; exit 1')
    process, folder = child(tmp_path)
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1 and not (folder / "job.json").exists()
    assert slurm.explain(output) == "sbatch: error: invalid account"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_child_that_is_asked_to_stop_cancels_its_job(programs: Programs, tmp_path: Path, number: int) -> None:
    log = programs(
        srun="true", sbatch=SUBMITTED, scancel="true", scontrol='echo "JobId=7 JobState=RUNNING Reason=None"',
        squeue='echo "7 commbench-run-000-0f0f0f-0"',
    )  # fmt: skip
    process, _ = child(tmp_path)
    deadline = time.monotonic() + PATIENCE_S
    while "scontrol" not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(30) == 1
    assert log.read_text().splitlines()[-1] == "scancel 7"


def test_a_job_that_slurm_has_forgotten_is_over(programs: Programs, tmp_path: Path) -> None:
    programs(
        srun="true", sbatch=SUBMITTED, scontrol='echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1'
    )
    process, folder = child(tmp_path)
    assert process.wait(60) == 1
    assert json.loads((folder / "job.json").read_text())["state"] == "GONE"


# What each task of a job runs.


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    monkeypatch.setattr(slurm_job, "BEAT_S", 0.05)
    monkeypatch.setattr(slurm_job, "SILENCE_S", 1.5)

    def run(rank: int, code: str) -> None:
        monkeypatch.setenv("SLURM_PROCID", str(rank))
        slurm_job.run_rank([sys.executable, "-c", code], str(tmp_path))

    return run


def exits(folder: Path) -> list[dict[str, object]]:
    path = folder / "exits.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_task_ends_as_its_rank_does(task: Callable[..., None], tmp_path: Path) -> None:
    task(1, "pass")
    for code in ("raise SystemExit(1)", "raise SystemExit(7)", "import os; os.kill(os.getpid(), 11)"):
        with pytest.raises(SystemExit):
            task(1, code)
    with pytest.raises(SystemExit):
        task(2, "import os; os.kill(os.getpid(), 15)")  # that is Slurm
    assert exits(tmp_path) == [
        {"rank": 1, "what": "exited with code 7"},
        {"rank": 1, "what": "was killed by signal 11 (SIGSEGV)"},
    ]


def test_nothing_is_measured_for_a_sweep_that_is_gone(task: Callable[..., None], tmp_path: Path) -> None:
    """The job comes out of the queue, and the heart does not beat: the file is there, but does not change."""
    (tmp_path / "heartbeat").touch()
    with pytest.raises(SystemExit, match="is gone"):
        task(0, "open('measured', 'w')")
    assert not (tmp_path / "measured").exists()


def test_a_job_ends_soon_after_its_sweep(task: Callable[..., None], tmp_path: Path) -> None:
    import threading

    heart = tmp_path / "heartbeat"
    heart.touch()
    beats = 60

    def beat() -> None:
        for _ in range(beats):  # 3 seconds, twice the silence that ends the job
            time.sleep(0.05)
            heart.touch()

    thread = threading.Thread(target=beat)
    thread.start()
    began = time.monotonic()
    with pytest.raises(SystemExit):
        task(0, "import time; time.sleep(60)")
    took = time.monotonic() - began
    thread.join()
    assert 0.05 * beats < took < 50
    assert exits(tmp_path) == [{"rank": 0, "what": "was killed by signal 9 (SIGKILL)"}]


def test_a_heartbeat_is_a_change_whatever_the_clocks_say(tmp_path: Path) -> None:
    heart = tmp_path / "heartbeat"
    heart.touch()
    watch = slurm_job.Heartbeat(tmp_path)
    assert not watch.heard and watch.silent_s() < 60
    heart.unlink()
    watch.silent_s()
    assert not watch.heard
    heart.touch()
    os.utime(heart, (1e9, 1e9))  # a clock that is far behind
    watch.silent_s()
    assert watch.heard


# Job scripts.

WORDS = ("quick", "algorithm=direct,bruck", "env.NAME=a b,c", "transport=gloo,mpi", "nodes=1,2", "launches=5")
OUTERS = [
    Setup(transport=transport, nodes=nodes, ranks_per_node=2, env={"NAME": "a b"})
    for transport in ("gloo", "mpi")
    for nodes in (1, 2)
]
NASTY = ("my recipe.yaml", "script=a\nrm -rf $HOME\n'`b`\"", "env.X=$(id);\\", "cap=1")


def text(words: tuple[str, ...] = WORDS, setups: list[Setup] = OUTERS, python: str = "/opt/venv/bin/python") -> str:
    return job_script.text(words, setups, seconds=600, options=["--out", "/shared/my runs"], python=python, environ={})


def test_the_job_script_is_recorded() -> None:
    assert text() == (RECORDS / "commands/job.sh").read_text()


@pytest.mark.parametrize(
    ("words", "setups"),
    [
        (WORDS, OUTERS),
        (NASTY, [Setup(transport="gloo", nodes=2, ranks_per_node=1, env={"X": "$(id);\nrm \\"})]),
        (("alltoall",), [Setup(transport="scripted", nodes=1, ranks_per_node=8, script='{"noise": 1}')]),
    ],
)
def test_the_job_script_is_valid(words: tuple[str, ...], setups: list[Setup], tmp_path: Path) -> None:
    path = tmp_path / "job.sh"
    path.write_text(text(words, setups))
    subprocess.run(["bash", "-n", path], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "--severity=warning", path], check=True)
    lines = path.read_text().splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == lines[-1:]
    directives = [line for line in lines if line.startswith("#SBATCH")]
    assert len(directives) == 7 and all("=" in line or " " not in line[8:] for line in directives)


def words_run(line: str, **env: str) -> list[str]:
    """The words that bash makes of a command."""
    shown = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True, check=True, env={**os.environ, **env}
    )
    return shown.stdout.split("\0")[:-1]


def test_values_arrive_as_they_were_typed() -> None:
    """In the script's own command, and in those of its comments."""
    made = text(NASTY, [Setup(transport="gloo", nodes=2, ranks_per_node=1, env={"X": "$(id);\\"})])
    *_, last = made.splitlines()
    head = ["exec", "/opt/venv/bin/python", "-m", "commbench", "sweep"]
    assert words_run(last) == [*head, *NASTY, "--out", "/shared/my runs", "--launcher", "slurm"]
    commands = [line.removeprefix("#   ") for line in made.splitlines() if line.startswith("#   ")]
    assert len(commands) == 3
    narrowed = [word for word in NASTY if not word.startswith("env.")]
    narrowed += ["transport=gloo", "nodes=2", "ranks_per_node=1", "--out", "/shared/my runs"]
    for command in commands:
        words = words_run(command, FIRST_NODE="n1")
        assert words[words.index("sweep") + 1 :] == narrowed
        setting = words.index("env")
        assert words[setting + 1 : setting + 3] == ["OMP_NUM_THREADS=1", "X=$(id);\\"]


def test_a_recipe_that_sets_variables_cannot_be_joined() -> None:
    """Under somebody else's launcher env comes too late, and nothing on the command line takes it back."""
    made = text(("mine.yaml",), [Setup(transport="gloo", nodes=1, ranks_per_node=2, env={"NAME": "1"})])
    assert "# Not by hand: the recipe itself sets NAME." in made and "torch.distributed.run" not in made
