"""Which line of a program makes a call: file:line of the first frame that is the program's own."""

from __future__ import annotations

import sys
from pathlib import Path
from types import CodeType, FrameType

_LIBRARIES = frozenset({"torch", "deepspeed", "megatron", "accelerate"})
# Not even where nothing else has called. What is deprecated in torch is called by way of typing_extensions.
_NEVER = frozenset({"torch", "commbench", "typing_extensions"})
_MOST_DEEP = 200  # frames that are looked at
_MOST_CODES = 20_000  # that are remembered
_PASSED, _LIBRARY, _OWN = 0, 1, 2  # what a frame is


class Sites:
    """Finds lines; what it has seen once is found at once."""

    def __init__(self, *, names_only: bool) -> None:
        """names_only: leave folders out."""
        self._names_only = names_only
        # By identity: codes are equal, whatever their files are.
        self._kinds: dict[int, int] = {}
        self._codes: list[CodeType] = []  # kept alive, as another one would have its identity
        self._texts: dict[tuple[int, int], str] = {}
        self._cwd = Path.cwd()

    def find(self, frame: FrameType | None) -> str:
        """Return `moe.py:214` of the first frame of the program's own, from `frame` outwards; "" if there is none.

        Where libraries alone have called, as a script that is one of theirs, it is their innermost line.
        """
        kinds = self._kinds
        inside: FrameType | None = None
        for _ in range(_MOST_DEEP):
            if frame is None:
                break
            kind = kinds.get(id(frame.f_code))
            if kind is None:
                kind = self._see(frame)
            if kind:
                if kind == _OWN:
                    return self._text(frame)
                if inside is None:
                    inside = frame
            frame = frame.f_back
        return "" if inside is None else self._text(inside)

    def _see(self, frame: FrameType) -> int:
        """Return what a frame is whose code has not been seen before."""
        if len(self._codes) >= _MOST_CODES:  # of a program that makes its own
            self._kinds.clear()
            self._codes.clear()
            self._texts.clear()
        self._codes.append(frame.f_code)
        kind = self._kinds[id(frame.f_code)] = _kind(frame)
        return kind

    def _text(self, frame: FrameType) -> str:
        key = id(frame.f_code), frame.f_lasti  # the number of the line would have to be looked up in a table
        text = self._texts.get(key)
        if text is None:
            text = self._texts[key] = f"{self._file(Path(frame.f_code.co_filename))}:{frame.f_lineno}"
        return text

    def _file(self, path: Path) -> str:
        if not self._names_only:
            if path.is_relative_to(self._cwd):
                return str(path.relative_to(self._cwd))
            for folder in ("site-packages", "dist-packages"):
                if folder in path.parts:
                    return str(Path(*path.parts[len(path.parts) - path.parts[::-1].index(folder) :]))
        return path.name


def _kind(frame: FrameType) -> int:
    """Return whether a frame is the program's own: neither a library's, nor Python's, nor made up by one of them."""
    package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    generated = frame.f_code.co_filename.startswith("<")
    if not (generated or package in _LIBRARIES | _NEVER or package in sys.stdlib_module_names):
        return _OWN
    return _LIBRARY if package in _LIBRARIES - _NEVER else _PASSED
