"""What `COMMBENCH_BACKEND` asks for, done at `import torch`; `commbench_autoload` comes here, if it is set at all."""

from __future__ import annotations

import atexit
import functools
import multiprocessing
import os

from commbench import variables
from commbench.backend import in_rank, observer
from commbench.backend.install import install
from commbench.backend.said import describe, say, say_once
from commbench.backend.source import ProfileSource
from commbench.errors import CommbenchError

MODES = ("profile", "record")  # may be both, with a comma
_prepared: list[bool] = []  # whether this process has made a group


def start() -> None:
    """Wrap the groups of this process as the variable asks. Says in one line on stderr why not, if so; never raises."""
    try:
        modes = [mode.strip() for mode in os.environ.get(variables.BACKEND, "").split(",") if mode.strip()]
        if unknown := [mode for mode in modes if mode not in MODES]:
            say(f"{variables.BACKEND} is {unknown[0]!r}, which is none of {', '.join(MODES)}: nothing is wrapped")
        elif modes:
            install(lambda: _prepare(modes))
            _settle()
            if "profile" in modes:
                atexit.register(_say_unused)
    except Exception as error:  # torch makes of it an `import torch` that fails, whatever program it is
        say(f"the program runs without commbench: {describe(error)}")


def _settle() -> None:
    """Apply what is left to each rank, or say why not."""
    try:
        in_rank.settle()
    except (CommbenchError, OSError) as error:
        say(describe(error))


def _say_unused() -> None:
    """Say at the end of a program's first rank that it had nothing to do for commbench."""
    if _prepared or multiprocessing.parent_process() is not None:
        return
    try:
        info = in_rank.rank()
    except CommbenchError:
        return
    if info is not None and info.rank == 0:
        say("this program has made no process group of torch, so nothing went by the profile")


def _prepare(modes: list[str]) -> ProfileSource | None:
    """Return the profile of a group that is being made, if it is to go by one."""
    if not _prepared:
        _prepared.append(True)
        if lacking := in_rank.unsettled():
            say_once(lacking)
    if "record" in modes:
        _observe()
    return of_environment() if "profile" in modes else None


@functools.cache
def of_environment() -> ProfileSource | None:
    """Return the profile that the variables name; None, with the reason said, where they name none that can be read."""
    path = os.environ.get(variables.PROFILE, "")
    if not path:
        say(f"{variables.PROFILE} names no profile: torch makes all calls itself")
        return None
    source = ProfileSource(path, reductions=os.environ.get(variables.REDUCTIONS, "") == "1")
    if source.error is not None:  # other ranks may be able to, and wait for this one to say so
        say(f"torch makes all calls itself: {describe(source.error)}")
    return source


@functools.cache
def _observe() -> None:
    """Load the recorder, once."""
    try:
        from commbench.backend.recorder import recorder  # torch's optimizers with it

        observer.current = recorder()
    except Exception as error:
        say(f"nothing is recorded: {describe(error)}")
