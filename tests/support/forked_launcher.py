"""A launcher that is forked from this process: its ranks need not import again what takes seconds, torch above all."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn
from unittest import mock

from commbench import transports
from commbench.fabric import namespaces
from commbench.launch import local, supervise
from commbench.launch.job import Job
from commbench.measure import fork
from commbench.processes.orphans import die_with_parent
from commbench.processes.process import Process

# What `python -m` would run, and another module's `Popen` that it starts a process with.
PROGRAMS: dict[str, Callable[[], None]] = {local.PROGRAM: fork.main, "commbench.fabric": namespaces.main}


class _Child:
    """What is asked of a `Popen`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._code: int | None = None

    def poll(self, options: int = os.WNOHANG) -> int | None:
        if self._code is None:
            pid, status = os.waitpid(self.pid, options)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def wait(self) -> int | None:
        return self.poll(0)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


class Forked(Process):
    """`Process` for the command of the launcher `local`, with or without a fabric around it."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        job = Job.load(command[-1])
        transports.load(job.setup.transport)  # here, and not by every launch
        if job.program:
            importlib.import_module(job.program)

        def begin() -> None:
            os.setsid()
            die_with_parent()
            output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            for number in (1, 2):
                os.dup2(output, number)
            let_go()

        self._process: Any = _forked(command, environment, begin)


def let_go() -> None:
    """Close what an exec would have closed, locks of run folders above all; speak on descriptors 1 and 2.

    Python objects still have the numbers, and will close them: so the numbers stay taken, by nothing.
    """
    nothing = os.open(os.devnull, os.O_RDWR)
    for name in [path.name for path in Path("/proc/self/fd").iterdir()]:
        with contextlib.suppress(OSError):  # that of the listing is gone
            if (number := int(name)) > 2 and os.fstat(number):
                os.dup2(nothing, number, inheritable=False)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    for logger in (logging.root, *logging.root.manager.loggerDict.values()):
        for handler in getattr(logger, "handlers", ()):
            if type(handler) is logging.StreamHandler:
                handler.stream = sys.stderr


def _forked(command: Sequence[str], env: Mapping[str, str], preexec_fn: Callable[[], None]) -> _Child:
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    return _Child(pid) if pid else _run(command, env, preexec_fn)


def _run(command: Sequence[str], environment: Mapping[str, str], begin: Callable[[], None]) -> NoReturn:
    code = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        begin()
        os.environ.clear()
        os.environ.update(environment)
        namespaces.subprocess = SimpleNamespace(Popen=_forked, run=subprocess.run)  # type: ignore[assignment]
        sys.argv = list(command[2:])
        PROGRAMS[command[2]]()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def process(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Process:
    """Other launchers start as always."""
    return (Forked if local.PROGRAM in command else Process)(command, environment, log)


@contextlib.contextmanager
def instead() -> Iterator[None]:
    """Let sweeps and trainings of this process start their launchers so."""
    with mock.patch.object(supervise, "Process", process):
        yield
