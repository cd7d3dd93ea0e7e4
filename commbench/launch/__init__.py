"""Launchers: how the ranks of one launch are started. A new one is one file and one line in `TABLE`.

Nothing here imports torch: the parent that starts a launcher stays small.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from commbench.errors import unknown

if TYPE_CHECKING:
    from commbench.launch.order import Order

# name -> a module with two pure functions: `command(order_path, order)`, the words to run, and `explain(log)`, which
# rank ended first by the launcher's own account.
TABLE: dict[str, str] = {
    "local": "commbench.launch.local",
    "torchrun": "commbench.launch.torchrun",
}


class Launcher(Protocol):
    def command(self, order_path: Path, order: Order) -> list[str]: ...

    def explain(self, log: str) -> str: ...


def get(name: str) -> Launcher:
    if name not in TABLE:
        raise unknown("launcher", name, TABLE)
    return cast(Launcher, importlib.import_module(TABLE[name]))
