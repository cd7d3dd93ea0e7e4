"""What leaves this place without names: hosts, users, paths, addresses and serial numbers are replaced."""

from __future__ import annotations

import getpass
import re
from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

_ADDRESS = re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}\b|\b(?:[0-9a-f]{2}:){5}[0-9a-f]{2}\b", re.IGNORECASE)
_ID = re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", re.IGNORECASE)
_PATH = re.compile(r"(?<![\w./])/(?:[\w.@+-]+/)*[\w.@+-]+")
_SHORTEST = 2  # letters of a name that is replaced wherever it stands


class Hidden:
    """Replaces names, each by the same word wherever it stands."""

    def __init__(self, hosts: Collection[str]) -> None:
        names = {*hosts, *(host.partition(".")[0] for host in hosts)}
        self._words = {host: f"host{number}" for number, host in enumerate(sorted(names))}
        for name in (_user(), Path.home().name):
            self._words.setdefault(name, "user")
        long = sorted((name for name in self._words if len(name) >= _SHORTEST), key=len, reverse=True)
        self._names = re.compile("|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in long) or r"(?!)")

    def text(self, text: str) -> str:
        """Return the text without names."""
        text = _PATH.sub("/PATH", _ID.sub("ID", _ADDRESS.sub("ADDRESS", text)))
        return self._names.sub(lambda match: self._words[match[0]], text)

    def value(self, value: Any) -> Any:
        """Return a value of JSON, or a record of such, without names in any text."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.value(key): self.value(item) for key, item in value.items()}
        if is_dataclass(value) and not isinstance(value, type):
            return replace(value, **{one.name: self.value(getattr(value, one.name)) for one in fields(value)})
        return [self.value(item) for item in value] if isinstance(value, list | tuple) else value


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name
        return ""
