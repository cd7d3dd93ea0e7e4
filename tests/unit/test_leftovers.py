"""Runs that leave something are caught, whatever strangers do to the same machine meanwhile."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.leftovers import Watch

# What a rank does: it maps shared memory, and is killed.
MAPS = """
import mmap, sys, time
with open(sys.argv[1], "w+b") as file:
    file.truncate(4096)
    kept = mmap.mmap(file.fileno(), 4096)
sys.stdout.write("mapped\\n")
sys.stdout.flush()
sys.stdin.read()
"""


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[list[Path]]:
    """Somebody who makes and removes files in /tmp and /dev/shm all the time, and leaves one in each at the end."""
    over = threading.Event()
    word = f"stranger-{uuid.uuid4().hex}"
    kept = [Path("/tmp") / word, Path("/dev/shm") / word]

    def work() -> None:
        while not over.is_set():
            for path in kept:
                path.write_text("")
                path.unlink()
            time.sleep(0.001)
        for path in kept:
            path.write_text("")

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield kept
    finally:
        over.set()
        thread.join()
        for path in kept:
            path.unlink()


def finish(watch: Watch, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], env=watch.environment(), text=True, check=True, capture_output=True
    )


def test_a_stranger_leaves_nothing_of_ours(tmp_path: Path, stranger: list[Path]) -> None:
    with Watch(tmp_path / "tmp") as watch:
        finish(watch, "import time; time.sleep(0.5)")
        sleeper = subprocess.Popen(["sleep", "60"])  # not of the run
        try:
            assert watch.left() == {}
        finally:
            sleeper.kill()
            sleeper.wait()


@pytest.mark.parametrize("folder", ["/dev/shm", "/tmp"])
def test_what_a_process_of_the_run_had_open_is_caught(tmp_path: Path, folder: str, stranger: list[Path]) -> None:
    path = Path(folder) / f"left-{uuid.uuid4().hex}"
    with Watch(tmp_path / "tmp") as watch:
        rank = subprocess.Popen(
            [sys.executable, "-c", MAPS, str(path)],
            env=watch.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            assert rank.stdout is not None and rank.stdout.readline() == b"mapped\n"
            assert watch.left()["processes"] == {str(rank.pid)}
            watch.look()
            rank.kill()
            rank.wait()
            assert watch.left() == {"files": {str(path)}}
            path.unlink()
            assert watch.left() == {}
        finally:
            rank.kill()
            path.unlink(missing_ok=True)


def test_what_has_the_pid_of_a_process_of_the_run_is_caught(tmp_path: Path) -> None:
    """Libraries that open a file for a moment name it so: nobody need have seen it open."""
    with Watch(tmp_path / "tmp") as watch:
        program = "import os, sys; name = f'/dev/shm/torch_{os.getpid()}_1'; open(name, 'w').close(); print(name)\n"
        rank = subprocess.Popen(
            [sys.executable, "-c", program + "sys.stdout.flush(); sys.stdin.read()"],
            env=watch.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert rank.stdout is not None
        name = rank.stdout.readline().strip()
        watch.look()
        rank.kill()
        rank.wait()
        try:
            assert watch.left() == {"files": {name}}
        finally:
            Path(name).unlink()


def test_a_temporary_file_and_a_process_that_stays_are_caught(tmp_path: Path) -> None:
    program = """
import subprocess, tempfile
tempfile.mkstemp(prefix="left-")
print(subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).pid)
"""
    with Watch(tmp_path / "tmp") as watch:
        pid = finish(watch, program).stdout.strip()
        left = watch.left()
        subprocess.run(["kill", pid], check=True)
        assert left["processes"] == {pid} and [name[:5] for name in left["temporary files"]] == ["left-"]
