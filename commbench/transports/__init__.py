"""Transports: the libraries that move bytes. A new one is one file and one entry in `TABLE`.

The entries are plain data, so that planning a sweep imports none of the libraries.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING

from commbench.errors import EnvironmentProblem, unknown
from commbench.spec import DTYPES

if TYPE_CHECKING:
    from commbench.transports.base import Transport


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportEntry:
    module: str
    cls: str
    requires: dict[str, str]  # module that must be importable -> what to install
    launchers: tuple[str, ...]
    dtypes: tuple[str, ...] = tuple(DTYPES)
    buffers: tuple[str, ...] = ("plain",)


TABLE: dict[str, TransportEntry] = {
    "gloo": TransportEntry(
        module="commbench.transports.torch_dist",
        cls="Gloo",
        requires={"torch": "pip install torch"},
        launchers=("local", "torchrun"),
    ),
    "scripted": TransportEntry(
        module="commbench.transports.scripted", cls="Scripted", requires={}, launchers=("local",)
    ),
}


def entry(name: str) -> TransportEntry:
    if name not in TABLE:
        raise unknown("transport", name, TABLE)
    return TABLE[name]


def missing(name: str) -> str | None:
    """None, or one line that says which package a transport lacks here; imports nothing."""
    for module, install in entry(name).requires.items():
        if importlib.util.find_spec(module) is None:
            return f"transport {name} needs {module}, which is not installed: {install}"
    return None


def load(name: str) -> type[Transport]:
    """The transport's class; imports its library."""
    reason = missing(name)
    if reason:
        raise EnvironmentProblem(reason.split(": ")[0], hint=reason.split(": ", 1)[1])
    cls: type[Transport] = getattr(importlib.import_module(entry(name).module), entry(name).cls)
    return cls
