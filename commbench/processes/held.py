"""Signals that interrupt wait until a child is started."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

_INTERRUPTING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Hold Ctrl-C, SIGTERM and SIGHUP back in this block; their handlers run when it ends.

    On a busy machine a child may run before `Popen` has returned: an exception out of a handler would leave it without
    anybody who knows its pid. Signals that are ignored, or end this process, are left alone, since a child inherits
    that. Outside of the main thread, which alone runs handlers, this does nothing.
    """
    came: list[int] = []
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in _INTERRUPTING:
            if callable(handler := signal.getsignal(number)):
                before[number] = handler
                signal.signal(number, lambda received, _: came.append(received))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for arrived in came:
        signal.raise_signal(arrived)
