"""Lines on stderr for people whose program holds nothing of ours: few, and each once."""

from __future__ import annotations

import sys

from commbench.errors import CommbenchError

_said: set[str] = set()


def say(text: str) -> None:
    sys.stderr.write(f"commbench: {text}\n")


def say_once(text: str) -> None:
    if text not in _said:
        _said.add(text)
        say(text)


def describe(error: BaseException) -> str:
    """Return an error in one line."""
    words = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, CommbenchError):
        return f"{words} ({error.hint})" if error.hint else words
    return f"{type(error).__name__}: {words}"
