"""Ranks that somebody else started do what their own user's rank 0 wrote for this launch, and nothing else."""

from __future__ import annotations

import json
import os
import queue
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from commbench.errors import EXIT_USAGE, EnvironmentProblem
from commbench.files import Lock
from commbench.launch.job import Job
from commbench.measure import rendezvous
from commbench.rank_info import RankInfo
from commbench.records import Setup
from tests.conftest import PATIENCE_S


class Deadline:
    def end(self) -> None:
        return None


class Meeting:
    """A rendezvous of two threads, whose store takes anything from anybody."""

    store = None

    def __init__(self, rank: int, said: queue.Queue[str], heard: queue.Queue[str]) -> None:
        self._rank, self._said, self._heard = rank, said, heard

    def broadcast(self, text: str) -> str:
        if self._rank == 0:
            self._said.put(text)
            return text
        return self._heard.get(timeout=PATIENCE_S)

    def gather(self, text: str) -> list[str]:
        if self._rank:
            self._said.put(text)
            return []
        return [text, self._heard.get(timeout=PATIENCE_S)]


def meetings() -> tuple[Meeting, Meeting]:
    one: queue.Queue[str] = queue.Queue()
    other: queue.Queue[str] = queue.Queue()
    return Meeting(0, one, other), Meeting(1, other, one)


def job(folder: Path) -> Job:
    setup = Setup(transport="scripted", nodes=1, ranks_per_node=2)
    return Job(run_dir=str(folder), attempt="joined", launch=0, setup=setup, cases=())


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Jobs that rank 1 has begun."""
    begun: list[Job] = []

    def start_rank(one: Job, info: RankInfo, *, shared: Any = None) -> int:
        begun.append(one)
        return 0

    monkeypatch.setattr(rendezvous, "start_rank", start_rank)
    return begun


def follower(meeting: Meeting) -> tuple[threading.Thread, list[int]]:
    codes: list[int] = []
    info = RankInfo(rank=1, size=2, local_rank=1, local_size=2, launcher="torchrun")
    follow: Any = rendezvous.follow
    thread = threading.Thread(target=lambda: codes.append(follow(meeting, info, Deadline())), daemon=True)
    thread.start()
    return thread, codes


def lead(meeting: Meeting, one: Job) -> None:
    deadline: Any = Deadline()
    rendezvous.lead(meeting, one, deadline)


def test_a_rank_does_what_its_own_rank_0_wrote(tmp_path: Path, started: list[Job]) -> None:
    first, second = meetings()
    thread, codes = follower(second)
    lead(first, job(tmp_path))
    thread.join(10)
    assert codes == [0] and [one.run_dir for one in started] == [str(tmp_path)]
    path = tmp_path / "logs" / "joined" / "order.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("what", ["text", "another token", "link", "another user's", "a folder", "nothing"])
def test_a_stranger_in_the_store_cannot_make_a_rank_run_anything(tmp_path: Path, started: list[Job], what: str) -> None:
    """He knows the token, which went through the store, but cannot write a file as this user."""
    if what == "another user's" and os.geteuid() != 0:
        pytest.skip("only root makes files of others")
    stranger, second = meetings()
    thread, codes = follower(second)
    stranger.broadcast("ready")
    tokens = stranger.gather("")
    if what == "another token":  # of an older launch of the same user
        tokens = ["", "0" * 32]
    raw = {**json.loads(job(tmp_path).to_json()), "program": "antigravity", "tokens": tokens}
    path = tmp_path / "order.json"
    path.write_text(json.dumps(raw))
    if what == "another user's":
        os.chown(path, 65534, 65534)
    if what == "link":
        path.rename(tmp_path / "real.json")
        path.symlink_to(tmp_path / "real.json")
    stranger.broadcast({"text": json.dumps(raw), "a folder": str(tmp_path), "nothing": ""}.get(what, str(path)))
    assert stranger.gather("visible") == ["visible", ""]
    thread.join(10)
    assert codes == [EXIT_USAGE] and not started


def test_ranks_that_do_not_see_the_folder_are_named(tmp_path: Path) -> None:
    first, second = meetings()
    for text in ("a token", ""):
        second.gather(text)
    with pytest.raises(EnvironmentProblem, match=f"ranks 1 do not see {tmp_path}"):
        lead(first, job(tmp_path))


def test_nobody_else_can_hold_a_lock(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    path.touch(0o644)
    lock = Lock(path)
    assert lock.take() and stat.S_IMODE(path.stat().st_mode) == 0o600
    lock.release()


@pytest.mark.parametrize(
    ("rank", "size", "quiet", "said"),
    [
        (0, 4, False, "rank 0 waits for the other 3 ranks that srun started, 60 s at most\n"),
        (0, 2, False, "rank 0 waits for the other rank that srun started, 60 s at most\n"),
        (0, 4, True, ""),
        (1, 4, False, ""),
    ],
)
def test_a_start_that_takes_long_is_not_silent(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], rank: int, size: int, quiet: bool, said: str
) -> None:
    for name in ("signal", "alarm"):  # this process is no rank
        monkeypatch.setattr(rendezvous.signal, name, lambda *_: None)
    monkeypatch.setattr(rendezvous, "_SILENT_S", 0.0)
    timers: list[threading.Timer] = []
    start = threading.Timer.start
    monkeypatch.setattr(threading.Timer, "start", lambda timer: (timers.append(timer), start(timer)))
    info = RankInfo(rank=rank, size=size, local_rank=rank, local_size=size, launcher="slurm", started_by="srun")
    deadline = rendezvous.StartDeadline(info, quiet=quiet)
    for timer in timers[1:]:
        timer.join(PATIENCE_S)
    deadline.end()
    assert capfd.readouterr().err == said
