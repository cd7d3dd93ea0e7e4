"""What a rank that hangs leaves behind: where it hung, and nothing if it was only slow."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from commbench.measure import hang_trace
from commbench.run_folder import RunFolder
from tests.conftest import PATIENCE_S, REPOSITORY, environment, only_run

TIMEOUT_S = 0.3
Start = Callable[..., hang_trace.Tracer]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "trace-rank-3.txt"


@pytest.fixture
def start(path: Path) -> Iterator[Start]:
    tracers: list[hang_trace.Tracer] = []

    def start(what: Callable[[], str] = lambda: "direct, 64 MiB", timeout_s: float = TIMEOUT_S) -> hang_trace.Tracer:
        tracers.append(hang_trace.Tracer(path, timeout_s, what))
        tracers[-1].start()
        return tracers[-1]

    yield start
    for tracer in tracers:
        tracer.stop()
        assert not tracer.is_alive()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def waits_for_ever(lock: threading.Lock) -> None:
    with lock:
        pass


def test_a_thread_that_is_stuck_is_seen(path: Path, start: Start) -> None:
    lock = threading.Lock()
    with lock:
        stuck = threading.Thread(target=waits_for_ever, args=(lock,), name="stuck one")
        stuck.start()
        start()
        until(path.exists)
    stuck.join()
    lines = path.read_text().splitlines()
    assert lines[0].startswith("rank 3, 20") and ": no progress for 0." in lines[0]
    assert lines[1] == "doing: direct, 64 MiB"
    threads = [line for line in lines if line.startswith("thread ")]
    assert threads[0].startswith("thread MainThread,") and "thread stuck one, innermost call last" in threads
    assert not any("tracer" in line for line in threads)
    own = "\n".join(lines).split("thread stuck one")[1].split("\nthread ")[0]
    assert own.index("in run") < own.index("in waits_for_ever") < own.index("with lock:")
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_rank_that_was_only_slow_leaves_nothing_and_can_hang_later(path: Path, start: Start) -> None:
    tracer = start()
    for _ in range(2):
        until(path.exists)
        tracer.beat()
        until(lambda: not path.exists())


def test_one_file_a_hang(path: Path, start: Start) -> None:
    start()
    until(path.exists)
    path.unlink()
    time.sleep(3 * TIMEOUT_S)
    assert not path.exists()


def test_beats_are_progress(path: Path, start: Start) -> None:
    tracer = start(timeout_s=1.0)
    beats = [time.monotonic()]
    while len(beats) < 51:
        time.sleep(0.02)
        tracer.beat()
        beats.append(time.monotonic())
        # Where this thread itself did not come to run for that long, there was no beat.
        late = max(after - before for before, after in itertools.pairwise(beats)) > 0.9
        assert late or not path.exists()


def test_the_file_stays_when_a_rank_gives_up_and_goes_when_it_went_on(path: Path, start: Start) -> None:
    tracer = start()
    until(path.exists)
    tracer.stop()
    assert path.exists()
    tracer = start()
    path.unlink()
    until(path.exists)
    tracer.beat()
    tracer.stop()
    assert not path.exists()


def test_what_fails_and_folders_that_are_gone_are_survived(path: Path, start: Start) -> None:
    def fail() -> str:
        raise ValueError("no\nidea")

    start(fail)
    until(path.exists)
    assert "\ndoing: unknown, ValueError: no idea\n" in path.read_text()
    path.unlink()
    path.parent.rmdir()
    tracer = start(lambda: "\udce9")
    time.sleep(2 * TIMEOUT_S)
    assert tracer.is_alive()
    path.parent.mkdir()
    tracer.beat()
    until(path.exists)
    assert "doing: \\udce9\n" in path.read_text()


def torch_with(dump: Any) -> SimpleNamespace:
    recorder = {"_dump_nccl_trace_json": dump} if dump else {}
    return SimpleNamespace(_C=SimpleNamespace(_distributed_c10d=SimpleNamespace(**recorder)))


def entry(number: int, state: str, **more: Any) -> dict[str, Any]:
    created = int((datetime.now(UTC).timestamp() - 5) * 1e9)
    return {"collective_seq_id": number, "p2p_seq_id": 0, "is_p2p": False, "profiling_name": "nccl:all_to_all",
            "input_sizes": [[4]], "output_sizes": [[8]], "state": state, "time_created_ns": created,
            **more}  # fmt: skip


def dumped(*entries: Any) -> Callable[..., bytes]:
    def dump(*, includeCollectives: bool, onlyActive: bool) -> bytes:  # noqa: N803 - torch's names
        assert includeCollectives and onlyActive
        return json.dumps({"version": "2.10", **({"entries": entries} if entries else {})}).encode()

    return dump


def broken(**_: Any) -> bytes:
    raise RuntimeError("the recorder is gone")


@pytest.mark.parametrize(
    ("dump", "said"),
    [
        (None, None),
        (dumped(), "  none\n"),
        (dumped(entry(16, "completed"), entry(17, "started")), "  17 nccl:all_to_all [[4]] to [[8]], started, enqu"),
        (dumped(entry(2, "scheduled", is_p2p=True, p2p_seq_id=5)), "  5 nccl:all_to_all [[4]] to [[8]], scheduled, "),
        (dumped({}), "  None None None to None, None, enqueued "),
        (dumped(*[entry(i, "scheduled") for i in range(60)]), "  and 10 more\n"),
        (dumped("odd"), "unknown, AttributeError: "),
        (broken, "unknown, RuntimeError: the recorder is gone\n"),
        (lambda: b"", "unknown, TypeError: "),
    ],
)
def test_collectives_of_nccl(
    dump: Any, said: str | None, path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", torch_with(dump))
    tracer = start()
    until(path.exists)
    tracer.stop()
    _, title, pending = path.read_text().partition("\nNCCL's unfinished collectives\n")
    assert bool(title) is (said is not None) and "thread MainThread" in path.read_text()
    assert (said or "") in pending and "completed" not in pending
    if "started" in pending:
        assert pending.count("\n") == 1 and float(pending.split()[-3]) > 4.5


def test_it_neither_imports_torch_nor_keeps_a_process_alive(path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from commbench.measure.hang_trace import Tracer\n"
        f"path = Path({str(path)!r}); Tracer(path, 0.1, lambda: 'x').start()\n"
        "while not path.exists(): time.sleep(0.01)\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, timeout=PATIENCE_S)


def test_a_timeout_names_the_trace(tmp_path: Path) -> None:
    fault = {"kind": "hang", "rank": 1, "algorithm": "bruck", "from_op": 3}
    (tmp_path / "script.json").write_text(json.dumps({"faults": [fault]}))
    words = ("sweep", "quick", "transport=scripted", "script=script.json", "algorithm=bruck", "-e", "1K", "-f", "8")
    sweep = subprocess.Popen(
        [sys.executable, "-m", "commbench", *words, "launches=1", "iters=6", "timeout=3", "--no-plots"],
        cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    until(lambda: bool(list(tmp_path.glob("results/*/logs/*/events.jsonl"))))
    run = only_run(tmp_path / "results")
    (logs,) = (run / "logs").iterdir()
    # Of a rank that is not there, and before any other.
    (logs / "trace-rank-7.txt").write_text("rank 7\ndoing: bruck, 1 KiB\n")
    os.utime(logs / "trace-rank-7.txt", (10, 10))
    assert sweep.wait(timeout=PATIENCE_S) == 1
    (measurement,) = RunFolder(run).measurements()
    assert measurement.reason == f"no progress for 3.0 s; rank 7 was in bruck, 1 KiB: logs/{logs.name}/trace-rank-7.txt"
