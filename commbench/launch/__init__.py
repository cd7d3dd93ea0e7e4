"""Launchers: how the ranks of one launch are started. A new one is one file and one line in `TABLE`.

Nothing here imports torch: the parent that starts a launcher stays small.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from commbench.errors import unknown

if TYPE_CHECKING:
    from commbench.launch.order import Order

# name -> the module whose `command(order_path, order)` gives the words to run: a pure function.
TABLE: dict[str, str] = {
    "local": "commbench.launch.local",
    "torchrun": "commbench.launch.torchrun",
}


def command(launcher: str) -> Callable[[Path, Order], list[str]]:
    if launcher not in TABLE:
        raise unknown("launcher", launcher, TABLE)
    function: Callable[[Path, Order], list[str]] = importlib.import_module(TABLE[launcher]).command
    return function
