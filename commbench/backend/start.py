"""What `COMMBENCH_BACKEND` asks for, done at `import torch`; `commbench_autoload` comes here, if it is set at all."""

from __future__ import annotations

import importlib
import os
import sys

from commbench.backend import observer
from commbench.backend.install import install
from commbench.errors import CommbenchError

VARIABLE = "COMMBENCH_BACKEND"
MODES = ("profile", "record")  # may be both, with a comma
_RECORDER = "commbench.record"  # stands above this folder, so that it is found by its name
_done: set[str] = set()


def start() -> None:
    """Wrap the groups of this process as the variable asks. Says in one line on stderr why not, if so; never raises."""
    try:
        modes = [mode.strip() for mode in os.environ.get(VARIABLE, "").split(",") if mode.strip()]
        if unknown := [mode for mode in modes if mode not in MODES]:
            return say(f"{VARIABLE} is {unknown[0]!r}, which is none of {', '.join(MODES)}: nothing is wrapped")
        if "record" in modes:
            install(_observe)
    except Exception as error:  # torch makes of it an `import torch` that fails, whatever program it is
        say(f"the program runs without commbench: {describe(error)}")
    return None


def _observe() -> None:
    """Load the recorder, once."""
    if "record" in _done:
        return
    _done.add("record")
    try:
        observer.current = importlib.import_module(_RECORDER).observer()
    except Exception as error:
        say(f"nothing is recorded: {describe(error)}")


def describe(error: BaseException) -> str:
    """Return an error in one line."""
    hint = f" ({error.hint})" if isinstance(error, CommbenchError) and error.hint else ""
    words = " ".join(str(error).split()) or type(error).__name__
    return words + hint if isinstance(error, CommbenchError) else f"{type(error).__name__}: {words}"


def say(text: str) -> None:
    sys.stderr.write(f"commbench: {text}\n")
