"""A rank that is slow: stopped and let go in turn, for as long as a sweep lasts. A process of its own is on time."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import PATIENCE_S, environment

WORK_S, REST_S = 0.001, 0.020


@contextlib.contextmanager
def throttled(parent: Path, rank: int) -> Iterator[None]:
    """Every process that is rank `rank` of a launch in a run below `parent`."""
    words = [sys.executable, "-m", "tests.emulated.throttle", str(parent), str(rank)]
    process = subprocess.Popen(words, env=environment(), stdin=subprocess.PIPE)
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=PATIENCE_S)


def main() -> None:
    parent, rank = Path(sys.argv[1]), int(sys.argv[2])
    # As a call like any other, so that nobody is left stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with contextlib.suppress(PermissionError):  # where CPUs are busy it would come too late, and the rank be quick
        os.nice(-20)
    done: set[int] = set()
    while True:
        for path in parent.glob(f"2*/logs/*/rank-{rank}.json"):
            with contextlib.suppress(ValueError):  # half written
                pid = json.loads(path.read_text())["pid"]
                if pid not in done:
                    _slow(pid)
                    done.add(pid)
        time.sleep(0.02)


def _slow(pid: int) -> None:
    """Until it has ended."""
    try:
        while True:
            os.kill(pid, signal.SIGSTOP)
            time.sleep(REST_S)
            os.kill(pid, signal.SIGCONT)
            time.sleep(WORK_S)
    except ProcessLookupError:
        return
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


if __name__ == "__main__":
    main()
