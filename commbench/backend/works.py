"""What a program gets for a call that the profile has made, and the thread that makes calls it did not wait for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from queue import SimpleQueue
from typing import Any

import torch
import torch.distributed as dist

from commbench.communicators.prepared import Pending


class ProfiledWork(dist.Work):
    """A call that has been made, or that a thread makes; torch's own interface."""

    def __init__(self, outputs: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self._outputs = list(outputs)
        self._done = threading.Event()
        self._error: BaseException | None = None
        self._future: torch.futures.Future[Any] | None = None
        self._lock = threading.Lock()

    def finish(self, error: BaseException | None = None) -> None:
        with self._lock:
            self._error = error
            self._done.set()
            if self._future is not None:
                self._settle(self._future)

    def wait(self, timeout: timedelta | None = None) -> bool:
        seconds = timeout.total_seconds() if timeout else None
        if not self._done.wait(seconds if seconds and seconds > 0 else None):
            raise RuntimeError(f"commbench: the call did not end within {seconds} s")
        if self._error is not None:
            raise self._error
        return True

    def get_future(self) -> torch.futures.Future[Any]:
        with self._lock:
            if self._future is None:
                self._future = torch.futures.Future()
                if self._done.is_set():
                    self._settle(self._future)
            return self._future

    def is_completed(self) -> bool:
        return self._done.is_set()

    def is_success(self) -> bool:
        return self._done.is_set() and self._error is None

    def exception(self) -> BaseException | None:
        return self._error

    def result(self) -> list[torch.Tensor]:
        return self._outputs

    def synchronize(self) -> None:
        self.wait()

    def _settle(self, future: torch.futures.Future[Any]) -> None:
        if self._error is None:
            future.set_result(self._outputs)
        else:
            future.set_exception(self._error)


class PendingWork(ProfiledWork):
    """A call on a GPU: enqueued, and waited for by the stream that is current at the wait."""

    def __init__(self, pending: Pending, outputs: Sequence[torch.Tensor]) -> None:
        super().__init__(outputs)
        self._pending = pending
        self.finish()

    def wait(self, timeout: timedelta | None = None) -> bool:
        self._pending.wait()
        return True

    def get_future(self) -> torch.futures.Future[Any]:
        self._pending.wait()
        future: torch.futures.Future[Any] = torch.futures.Future(devices=[self._outputs[0].device])
        future.set_result(self._outputs)
        return future


class Worker:
    """One thread for the calls of one group, which makes them in the order in which the program asked for them.

    A program may do, between such a call and the wait for it, what another rank needs before it makes the same call. So
    neither may the call block there, nor may a part of it be left for the wait.
    """

    def __init__(self) -> None:
        self._jobs: SimpleQueue[tuple[Callable[[], object], ProfiledWork] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._last: ProfiledWork | None = None

    def submit(self, job: Callable[[], object], outputs: Sequence[torch.Tensor]) -> ProfiledWork:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="commbench", daemon=True)
            self._thread.start()
        self._last = work = ProfiledWork(outputs)
        self._jobs.put((job, work))
        return work

    def drain(self) -> None:
        """Wait for what was submitted. Its errors are those of who waits for it."""
        if self._last is not None:
            self._last._done.wait()
            self._last = None

    def close(self) -> None:
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join(timeout=1)  # it may hang in a call, and is a daemon
            self._thread = None

    def _work(self) -> None:
        while (item := self._jobs.get()) is not None:
            job, work = item
            try:
                with torch.no_grad():
                    job()
            except BaseException as error:
                work.finish(error)
            else:
                work.finish()
            del item, job, work  # they hold tensors
