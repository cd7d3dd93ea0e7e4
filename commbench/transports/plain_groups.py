"""Groups that commbench makes for itself, which no profile and no recorder shall see (commbench.backend wraps all)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_THREAD = threading.local()


@contextmanager
def plain_groups() -> Iterator[None]:
    """Let groups that this thread makes inside be torch's own."""
    _THREAD.depth = getattr(_THREAD, "depth", 0) + 1
    try:
        yield
    finally:
        _THREAD.depth -= 1


def wanted() -> bool:
    """Return whether this thread wants groups of torch's own."""
    return getattr(_THREAD, "depth", 0) > 0
