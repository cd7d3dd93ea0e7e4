"""A large JSON file, read item by item: one item of its long list is in memory, however large the file is."""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from commbench.errors import UsageError

_CHUNK = 1 << 20
_MOST_VALUE = 64 << 20  # characters of one item: a trace has none that is larger
_UNFINISHED = 3  # characters of a number that are none without what follows: `.`, `e+`
_DECODER = json.JSONDecoder(strict=False)  # names of kernels have whatever characters
_BLANK = " \t\r\n"
_HINT = "give files that torch.profiler (export_chrome_trace) or ExecutionTraceObserver has written, whole"


class Item(NamedTuple):
    """A value of the file's object by its key; `listed`: one item of the list that has this key."""

    key: str
    value: Any
    listed: bool


def items(path: Path, lists: frozenset[str]) -> Iterator[Item]:
    """Yield what a JSON object holds, in its order: of the lists named in `lists` each item by itself.

    A file that is a list is read as `traceEvents`, as Chrome's format has it. gzip is recognised by its first bytes.
    Raises `UsageError`, naming the file, where it cannot be read, is no JSON, or ends too early.
    """
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            if not packed:
                yield from _Reader(file).document(lists)
                return
            with gzip.open(file) as unpacked:
                yield from _Reader(unpacked).document(lists)  # type: ignore[arg-type]
    except EOFError:
        raise UsageError(f"{path} ends too early: it was cut, or is still being written", hint=_HINT) from None
    except (gzip.BadGzipFile, zlib.error, ValueError) as error:
        raise UsageError(f"{path} is no JSON: {error}", hint=_HINT) from None
    except OSError as error:
        raise UsageError(f"cannot read {str(path)!r}: {error.strerror or error}", hint=_HINT) from None


class _Reader:
    """The text of a file from where it was read to. `EOFError`: it ends inside a value."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        self._text = ""
        self._at = 0
        self._ended = False

    def document(self, lists: frozenset[str]) -> Iterator[Item]:
        first = self._next()
        if first == "[":
            for value in self._list():
                yield Item("traceEvents", value, listed=True)
            return
        if first != "{":
            raise ValueError(f"it begins with {first!r}")
        self._at += 1
        while (mark := self._next()) != "}":
            if mark == ",":
                self._at += 1
                continue
            key = self._value()
            if not isinstance(key, str) or self._next() != ":":
                raise ValueError("an object without a key")
            self._at += 1
            if key in lists and self._next() == "[":
                for value in self._list():
                    yield Item(key, value, listed=True)
            else:
                yield Item(key, self._value(), listed=False)

    def _list(self) -> Iterator[Any]:
        self._at += 1
        while (mark := self._next()) != "]":
            if mark == ",":
                self._at += 1
            else:
                yield self._value()
        self._at += 1

    def _more(self) -> bool:
        """Read on. Return whether there was more."""
        if self._ended:
            return False
        chunk = self._file.read(_CHUNK)
        self._ended = not chunk
        self._text = self._text[self._at :] + self._decode(chunk, self._ended)
        self._at = 0
        return True

    def _next(self) -> str:
        """Return the next character that is no blank; it is not read over."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _BLANK:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                raise EOFError

    def _value(self) -> Any:
        self._next()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except RecursionError:
                raise ValueError("lists in lists without end") from None
            except ValueError as error:
                # What was read may be the first part of a value, or of a number or a word.
                if len(self._text) - self._at > _MOST_VALUE:
                    raise ValueError(f"a value of more than {_MOST_VALUE >> 20} Mi characters") from None
                if self._more():
                    continue
                if _was_cut(error, self._text):
                    raise EOFError from None
                raise
            if len(self._text) - end < _UNFINISHED and isinstance(value, int | float) and self._more():
                continue
            self._at = end
            return value


def _was_cut(error: ValueError, text: str) -> bool:
    """Return whether a value was understood until the end of the text."""
    position = getattr(error, "pos", 0)
    return position >= len(text.rstrip()) - 5 or "Unterminated string" in str(error)
