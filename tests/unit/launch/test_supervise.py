"""Watching one launch: when it is given up, what is said of its end, and that nothing of it is left."""

from __future__ import annotations

import dataclasses
import errno
import json
import mmap
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from commbench import launch
from commbench.errors import EnvironmentProblem, UsageError
from commbench.launch import supervise
from commbench.launch.job import EVENTS, EXITS, FAILURES, Job
from commbench.launch.supervise import Watch
from commbench.measure.rank import note_failure
from commbench.records import Setup
from commbench.run_folder import RunFolder, append_line


@pytest.fixture
def job(tmp_path: Path) -> Job:
    setup = Setup(transport="scripted", nodes=1, ranks_per_node=2)
    made = Job(run_dir=str(tmp_path), attempt="000", launch=0, setup=setup, cases=(), timeout_s=70.0)
    made.save()
    return made


class Clock:
    """In place of the module `time`."""

    def __init__(self) -> None:
        self.now = 100.0
        self.sleep = time.sleep

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(supervise, "time", clock)
    return clock


def write(path: Path, **line: Any) -> None:
    append_line(path, json.dumps(line))


def test_ranks_may_be_silent_for_a_minute_at_the_start_and_for_the_timeout_later(job: Job, clock: Clock) -> None:
    job = Job(run_dir=job.run_dir, attempt="000", launch=0, setup=job.setup, cases=(), timeout_s=2.0)
    events: list[str] = []
    more = iter((False, False, True, False, False))
    watched = Watch(job, lambda event: events.append(event["event"]), lambda: next(more))
    clock.now += 59
    watched.listen()
    assert not watched.gives_up() and watched.allowed_s == supervise.STARTS_WITHIN_S
    write(job.folder / EVENTS, event="begin")
    watched.listen()
    clock.now += 1.9
    assert not watched.gives_up() and watched.allowed_s == 2.0 and events == ["begin"]
    watched.listen()  # no event, but something else
    clock.now += 1.9
    watched.listen()
    assert not watched.gives_up() and not watched.timed_out
    clock.now += 0.2
    watched.listen()
    assert watched.gives_up() and watched.timed_out


def test_a_rank_that_raised_leaves_its_peers_a_moment(job: Job, clock: Clock) -> None:
    watched = Watch(job, lambda event: None)
    (job.folder / FAILURES).touch()  # it exists before its line is there
    assert not watched.gives_up() and not watched.failures
    write(job.folder / FAILURES, rank=1, error="ValueError: x")
    assert not watched.gives_up() and watched.failures[0]["rank"] == 1
    clock.now += 4
    write(job.folder / EVENTS, event="beat")
    watched.listen()
    assert not watched.gives_up()
    clock.now += 2
    assert watched.gives_up() and not watched.timed_out
    assert Watch(job, lambda event: None, grace_s=0.0).gives_up(), "at once, where no moment is granted"


@pytest.mark.parametrize(
    ("exits", "failures", "said"),
    [
        ([], ["RuntimeError: Connection closed by peer", "ValueError: x"], "rank 1 failed: ValueError: x"),
        (["was killed by signal 9"], ["ValueError: x"], "rank 0 was killed by signal 9"),
        ([], ["RuntimeError: Connection reset"], "rank 0 lost another rank, which was killed or crashed"),
        ([], [], ""),
    ],
)
def test_the_rank_that_others_failed_because_of_is_told(
    job: Job, exits: list[str], failures: list[str], said: str
) -> None:
    for rank, what in enumerate(exits):
        write(job.folder / EXITS, rank=rank, what=what)
    for rank, error in enumerate(failures):
        write(job.folder / FAILURES, rank=rank, error=error)
    (job.folder / "launcher.log").write_text("a line\n" * 20)
    reason = supervise.explain(job, "local")
    assert reason.text == said and reason.storage is None
    assert said.startswith(("rank 1 f", "rank 0 was")) or reason.last_lines() == ["a line"] * 8
    where = reason.log
    assert reason.shown().startswith(f"the last lines of {where}:\n    a" if where.exists() else f"{where.name} is not")
    for text in ("", "\n \n"):
        where.write_text(text)
        assert reason.shown() == f"{where.name} is empty: {where}"


def test_the_launcher_is_asked_where_no_rank_has_said_anything(job: Job) -> None:
    log = "rank      : 1 (local_rank: 1)\n  exitcode  : -9 (pid: 7)"
    (job.folder / "launcher.log").write_text(log)
    assert supervise.explain(job, "torchrun").text == "rank 1 was killed by signal 9"


def test_a_full_disk_is_told_by_its_number(job: Job) -> None:
    note_failure(job.folder, 0, OSError(errno.EACCES, os.strerror(errno.EACCES), "No space left"))
    assert supervise.explain(job, "local").storage is None
    note_failure(job.folder, 1, OSError(errno.ENOSPC, "kein Platz", "samples"))
    found = supervise.explain(job, "local").storage
    assert found is not None and found.errno == errno.ENOSPC and found.filename == "samples"


def test_the_rank_that_stopped_first_is_found(tmp_path: Path) -> None:
    assert supervise.stopped_rank(tmp_path) is None and supervise.stopped_rank(tmp_path / "none") is None
    for rank, when in ((0, 20), (2, 10), (10, 30)):
        file = tmp_path / f"trace-rank-{rank}.txt"
        file.write_text(f"rank {rank}\ndoing: {'word ' * 30}\n")
        os.utime(file, (when, when))
    stopped = supervise.stopped_rank(tmp_path)
    assert stopped is not None
    name, doing, file = stopped
    assert (name, file.name) == ("2", "trace-rank-2.txt") and len(doing) <= 80 and doing.endswith("...")
    file.write_text("")
    os.utime(file, (10, 10))
    assert supervise.stopped_rank(tmp_path) == ("2", "?", file)


def test_a_hang_names_the_ranks_that_left_no_trace(job: Job) -> None:
    """Of ranks 0 to 3, rank 2 is stopped (SIGSTOP): it writes nothing, and the others, who wait for it, write."""
    job = dataclasses.replace(job, setup=dataclasses.replace(job.setup, ranks_per_node=4))
    assert supervise.explain_silence(job) == ""
    for rank, when in ((0, 30), (1, 10), (3, 20)):
        file = job.folder / f"trace-rank-{rank}.txt"
        file.write_text(f"rank {rank}\ndoing: bruck, 1 KiB\n")
        os.utime(file, (when, when))
    said = supervise.explain_silence(job)
    assert said.startswith("; rank 2 left no trace (stopped, gone, or stuck outside of Python); rank 1 waited in bruck")
    (job.folder / "trace-rank-2.txt").write_text("doing: direct, 1 KiB\n")
    assert supervise.explain_silence(job).startswith("; rank 1 was in bruck, 1 KiB: logs/")
    many = dataclasses.replace(job, setup=dataclasses.replace(job.setup, nodes=4))
    assert "; ranks 4, 5, 6, 7, 8, 9, 10, 11 and 4 more left no trace" in supervise.explain_silence(many)


def test_whatever_ends_a_watch_nothing_of_the_launch_is_left(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    cancelled: list[Path] = []
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    starter = SimpleNamespace(command=lambda path, job: command, environment=lambda job: {}, cancel=cancelled.append)
    monkeypatch.setattr(launch, "get", lambda name: starter)
    started: list[Any] = []

    class Kept(supervise.Process):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            started.append(self)

    monkeypatch.setattr(supervise, "Process", Kept)
    session = supervise.cleanup.session(job.folder)

    def interrupted() -> bool:
        session.mkdir()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        supervise.watch(job, "any", lambda event: None, interrupted)
    assert started[0].ended() and cancelled == [job.folder] and not session.exists()


def killed_run(tmp_path: Path) -> RunFolder:
    """A run that was killed, with memory that its rank had shared and half a line."""
    folder = RunFolder.create(tmp_path, "killed")
    attempt = folder.path / "logs" / "000"
    (attempt / "session").mkdir(parents=True)
    shared = Path("/dev/shm") / f"commbench-test-{os.getpid()}"
    shared.touch()
    about = {"host": os.uname().nodename, "shared_memory": [str(shared)]}
    (attempt / "rank-0.json").write_text(json.dumps(about))
    (folder.path / "lines.jsonl").write_text('{"a": 1}\n{"a":')
    return folder


def test_a_resume_ends_what_is_left_and_mends_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = killed_run(tmp_path)
    attempt, lines = folder.path / "logs" / "000", folder.path / "lines.jsonl"
    (shared,) = (Path(path) for path in json.loads((attempt / "rank-0.json").read_text())["shared_memory"])
    done: list[str] = []
    starter = SimpleNamespace(cancel=lambda path: done.append(f"cancelled {path.name} {shared.exists()}"))
    monkeypatch.setattr(launch, "get", lambda name: starter)
    assert supervise.open_to_resume(folder, ["slurm"], [lines, folder.path / "none.jsonl"]) == [lines]
    assert done == ["cancelled 000 True"], "first the ranks, then what they have left"
    assert not shared.exists() and not (attempt / "session").exists() and lines.read_text() == '{"a": 1}\n'
    with pytest.raises(UsageError, match="in use by another"):
        supervise.open_to_resume(RunFolder(folder.path), [], [])


def test_a_resume_touches_nothing_while_ranks_are_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise, "RANKS_END_S", 0.1)
    folder = killed_run(tmp_path)
    attempt, lines = folder.path / "logs" / "000", folder.path / "lines.jsonl"
    (shared,) = (Path(path) for path in json.loads((attempt / "rank-0.json").read_text())["shared_memory"])
    rank = RunFolder(folder.path)
    assert rank.ranks_lock.take(shared=True)
    with pytest.raises(EnvironmentProblem, match="still alive"):
        supervise.open_to_resume(folder, [], [lines])
    assert shared.exists() and (attempt / "session").exists() and lines.read_text().endswith('{"a":')
    rank.ranks_lock.release()
    shared.unlink()


@pytest.mark.parametrize(
    "where", ["logs", "logs/000", "logs/000/session", "lines.jsonl", "samples", "samples/x", "fifo"]
)
def test_a_resume_follows_no_link_out_of_the_folder(tmp_path: Path, where: str) -> None:
    """A folder from elsewhere: everything in it may be forged, and nothing outside of it is touched."""
    folder = killed_run(tmp_path)
    attempt = folder.path / "logs" / "000"
    (shared,) = (Path(path) for path in json.loads((attempt / "rank-0.json").read_text())["shared_memory"])
    outside = tmp_path / "outside"
    (outside / "session" / "deep").mkdir(parents=True)
    (outside / "lines").write_text('{"a": 1}\n{"a":')
    place = folder.path / where
    if place.exists():
        place.rename(outside / "moved")
    if where == "fifo":
        os.mkfifo(place)
    else:
        place.symlink_to(outside / "lines" if "lines" in where else outside)
    before = sorted(str(path) for path in outside.rglob("*")), (outside / "lines").read_text()
    with pytest.raises(UsageError, match="a resume writes and removes in its own folder only") as raised:
        supervise.open_to_resume(folder, [], [folder.path / "lines.jsonl"])
    assert where in str(raised.value)
    assert (sorted(str(path) for path in outside.rglob("*")), (outside / "lines").read_text()) == before
    assert shared.exists()
    shared.unlink()


def test_a_resume_removes_no_memory_of_others(tmp_path: Path) -> None:
    """A description may name any file of /dev/shm: one with the name of no library, or that a process has, stays."""
    folder = killed_run(tmp_path)
    description = folder.path / "logs" / "000" / "rank-0.json"
    about = json.loads(description.read_text())
    own, foreign, mapped, opened = (
        Path("/dev/shm") / f"{name}{os.getpid()}"
        for name in ("mpich_test", "somebody-test-", "torch_test", "nccl-test")
    )
    for path in (own, foreign, mapped, opened):
        path.write_bytes(bytes(4096))
    elsewhere = tmp_path / "mpich_file"
    elsewhere.touch()
    names = [*about["shared_memory"], *map(str, (own, foreign, mapped, opened, elsewhere)), 5]
    description.write_text(json.dumps({**about, "shared_memory": names[:-1]}))
    (folder.path / "logs" / "000" / "rank-1.json").write_text(json.dumps({**about, "shared_memory": names[-1]}))
    (folder.path / "logs" / "000" / "rank-2.json").write_text("[]")
    try:
        with open(mapped, "r+b") as file, mmap.mmap(file.fileno(), 0), open(opened, "rb"):
            supervise.open_to_resume(folder, [], [])
        assert not own.exists() and not Path(about["shared_memory"][0]).exists()
        assert foreign.exists() and mapped.exists() and opened.exists() and elsewhere.exists()
    finally:
        for path in (own, foreign, mapped, opened):
            path.unlink(missing_ok=True)


@pytest.mark.parametrize(("transport", "goes"), [("mpi", True), ("gloo", False)])
def test_what_mpi_ranks_left_before_they_told_of_it_goes(tmp_path: Path, transport: str, goes: bool) -> None:
    """Killed in MPI_Init: younger than the job, with a name that MPI gives, and in no process."""
    old, young, held = (Path("/dev/shm") / f"mpich_shm_{name}-{os.getpid()}" for name in ("old", "young", "held"))
    try:
        old.touch()
        time.sleep(0.02)  # files' times are as coarse as the kernel's ticks
        (tmp_path / "order.json").write_text(json.dumps({"outer": {"transport": transport}}))
        time.sleep(0.02)
        young.touch()
        held.touch()
        with open(held, "rb"):
            supervise.cleanup.remove(tmp_path)
        assert old.exists() and held.exists() and young.exists() != goes
    finally:
        for path in (old, young, held):
            path.unlink(missing_ok=True)
