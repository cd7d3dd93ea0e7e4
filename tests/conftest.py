"""Ranks for tests: threads over the scripted transport, or forked processes over gloo."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any
from unittest import mock

import hypothesis
import pytest

# Before torch is loaded: test processes and their ranks are more than cores, and threads that spin for work take them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["COLUMNS"] = "100"  # tables and comments are as wide as the terminal, whoever runs the tests

from commbench.transports.scripted.mesh import ThreadMesh, thread_meshes
from commbench.transports.scripted.transport import Scripted

# The machine may be busy; and what is random has a seed, so that a test fails always or never.
hypothesis.settings.register_profile(
    "busy", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("busy")

REPOSITORY = Path(__file__).resolve().parent.parent
PATIENCE_S = 240  # for what takes a second on an idle machine: others may use this one; pytest ends a test at 300 s


def environment(*first: Path, **extra: str) -> dict[str, str]:
    """For a process of its own: this checkout is importable, after `first` and before what was importable already."""
    path = os.pathsep.join(filter(None, [*map(str, first), str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, **extra}


def first(count: int, values: Iterable[Any]) -> list[Any]:
    """Parameters of a test: the first `count` of `values`, and all others in `make test-all` only."""
    return [pytest.param(v, marks=[pytest.mark.slow] if n >= count else []) for n, v in enumerate(values)]


class ThreadRanks:
    """What `before_fork` gives, for ranks that are threads."""

    def __init__(self, size: int) -> None:
        self._meshes = thread_meshes(size)

    def take(self, rank: int) -> ThreadMesh:
        return self._meshes[rank]


def in_threads(size: int, function: Callable[[int], Any], *, timeout: float = PATIENCE_S) -> list[Any]:
    """function(rank) in one thread per rank; the results by rank, or the first exception."""
    results: list[Any] = [None] * size
    errors: list[BaseException] = []

    def body(rank: int) -> None:
        try:
            results[rank] = function(rank)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=body, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout)
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads), "a rank hangs"
    return results


def scripted_ranks(
    nodes: int, ranks_per_node: int, function: Callable[[Scripted], Any], *, script: dict[str, Any] | None = None
) -> list[Any]:
    """function(transport) on every rank of a scripted world of threads; its counters are on."""
    size = nodes * ranks_per_node
    meshes = thread_meshes(size)

    def body(rank: int) -> Any:
        transport = Scripted({"script": json.dumps(script or {}), "layout": (nodes, ranks_per_node)})
        transport.attach(meshes[rank])
        transport.counting = True
        return function(transport)

    return in_threads(size, body)


def commbench(
    *words: str, cwd: Path, env: dict[str, str] | None = None, **kwargs: Any
) -> subprocess.CompletedProcess[str]:
    """The real command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "commbench", *words],
        cwd=cwd,
        env=env or environment(),
        capture_output=True,
        text=True,
        timeout=kwargs.pop("timeout", PATIENCE_S),
        check=False,
        **kwargs,
    )


def here(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """As `commbench`, but in this process, which has imported everything. Ranks are processes as always."""
    from commbench.algorithms import outside
    from commbench.cli import _main
    from tests.support import forked_launcher

    out, err = io.StringIO(), io.StringIO()
    before = signal.getsignal(signal.SIGTERM)
    try:
        with (
            contextlib.chdir(cwd),
            mock.patch.dict(os.environ, environment()),
            forked_launcher.instead(),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            code = _main(list(words))
    finally:
        signal.signal(signal.SIGTERM, before)
        outside.forget()
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def only_run(parent: Path) -> Path:
    """The one run folder below `parent`."""
    (run,) = (path for path in parent.iterdir() if path.is_dir() and not path.is_symlink())
    return run


def rows_of(result: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return cases_in(result.stdout)


def unfolded(text: str) -> str:
    """The text of a table, with each of its comments on one line."""
    return re.sub(r"\n#(  |\t)\s*(?=\S)", " ", text)


def cases_in(text: str) -> list[dict[str, Any]]:
    """The cases that `--format json` printed, without the answer after them."""
    return [found for line in text.splitlines() if line.startswith("{") and "case_id" in (found := json.loads(line))]


@pytest.fixture
def write_script(tmp_path: Path) -> Callable[..., Path]:
    """A script file for transport=scripted."""

    def write(**values: Any) -> Path:
        path = tmp_path / "script.json"
        path.write_text(json.dumps(values))
        return path

    return write


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The folder is the tier: tests/unit/sweep -> unit, tests/gloo -> gloo."""
    for item in items:
        tier = Path(item.path).relative_to(REPOSITORY / "tests").parts[0]
        item.add_marker(getattr(pytest.mark, tier))


UNIT_CPU_S = 10.0  # of a unit test, with its children


def cpu_s() -> float:
    """What this process and the children that it has waited for have computed."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """A unit test that computes for too long fails: the bulk of the tests has to stay quick."""
    before = cpu_s()
    result = yield
    if pyfuncitem.get_closest_marker("unit") and not pyfuncitem.get_closest_marker("slow"):
        # CPU time too grows where cores are shared (caches, hyperthreads), to twice as much at the most.
        allowed = UNIT_CPU_S * (2 if os.getloadavg()[0] > (os.cpu_count() or 1) else 1)
        used = cpu_s() - before
        assert used <= allowed, f"{used:.0f} s of CPU time, and a unit test has {allowed:.0f}: make it shorter"
    return result


def pytest_collection_finish() -> None:
    """All that is imported and collected stays for good: let the garbage collector not look at it again and again."""
    gc.collect()
    gc.freeze()
