"""A stream or a disk that takes no more: output ends, the run goes on, or stops in words that say how to go on."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from commbench.errors import EnvironmentProblem, storage
from commbench.files import write_atomically
from commbench.profile import Profile, Scope, file
from commbench.run_folder import RunFolder, append_line, remove_temporaries
from tests.conftest import environment, here, only_run
from tests.support import forked_command

FULL = Path("/dev/full")
SWEEP = ("sweep", "quick", "transport=scripted", "algorithm=direct", "-b", "1K", "-e", "1K", "launches=1", "iters=3",
         "nodes=1", "ranks_per_node=2", "--no-plots", "--format", "json")  # fmt: skip

pytestmark = pytest.mark.skipif(not FULL.exists(), reason="/dev/full is there on Linux")


def commbench(*words: str, cwd: Path, stdout: Path | None, stderr: Path | None) -> tuple[int, str, str]:
    out, err = (open(path or cwd / name, "wb") for path, name in ((stdout, "out"), (stderr, "err")))  # noqa: SIM115
    with out, err:
        code = forked_command.start(*words, cwd=cwd, stdout=out, stderr=err).wait(60)
    return code, *("" if path else (cwd / name).read_text() for path, name in ((stdout, "out"), (stderr, "err")))


@pytest.mark.parametrize("full", [("stdout",), ("stdout", "stderr")], ids="+".join)
def test_a_sweep_goes_on_where_its_output_cannot_be_written(tmp_path: Path, full: tuple[str, ...]) -> None:
    streams = {name: FULL if name in full else None for name in ("stdout", "stderr")}
    code, _, err = commbench(*SWEEP, cwd=tmp_path, **streams)
    assert code == 0 and "Traceback" not in err
    assert len((only_run(tmp_path / "results") / "cases.jsonl").read_text().splitlines()) == 1
    assert full != ("stdout",) or "stdout: No space left on device; what it lacks is in the run folder" in err


def test_what_is_only_printed_fails_where_it_cannot_be_written(tmp_path: Path) -> None:
    code, _, err = commbench("sweep", "--dry-run", cwd=tmp_path, stdout=FULL, stderr=None)
    assert code == 2 and err.splitlines()[-2].startswith("error: stdout: No space left on device")
    assert commbench("no-command", cwd=tmp_path, stdout=FULL, stderr=FULL)[0] == 2, "its own code"


def test_a_file_is_not_taken_for_a_stream_that_is_closed(tmp_path: Path) -> None:
    words = " ".join([sys.executable, "-m", "commbench", "sweep", "--show-config"])
    ended = subprocess.run(["sh", "-c", f"exec {words} >&- 2>&-"], env=environment(), cwd=tmp_path, check=False)
    assert ended.returncode == 0


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A folder with room for 64 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("nothing can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_sweep_on_a_full_disk_says_how_to_go_on(small: Path) -> None:
    words = (*SWEEP, "--out", str(small), "-e", "64K", "launches=3")
    result = here(*words, cwd=small.parent)
    assert result.returncode == 2, result.stderr
    run = only_run(small)
    error, hint = result.stderr.splitlines()[-2:]
    assert error.startswith(f"error: {run}") and error.endswith("no space left on the disk")
    assert f"commbench sweep --resume {run.relative_to(small.parent)}" in hint
    assert not [*small.rglob("*.tmp"), *small.rglob(".room")]
    subprocess.run(["mount", "-o", "remount,size=8m", small], check=True)
    result = here("sweep", "--resume", str(run), "--no-plots", cwd=small.parent)
    assert result.returncode == 0, result.stderr
    assert len((run / "measurements.jsonl").read_text().splitlines()) == 3 * len(
        (run / "plan.jsonl").read_text().splitlines()
    )


def test_a_run_that_cannot_begin_leaves_no_folder(small: Path) -> None:
    (small / "filler").write_bytes(bytes(56 << 10))
    result = here(*SWEEP, "--out", str(small), cwd=small.parent)
    assert result.returncode == 2 and "no space left on the disk" in result.stderr
    assert "--out DIR" in result.stderr
    assert [path.name for path in small.iterdir()] == ["filler"]


def test_files_that_a_user_names(small: Path, tmp_path: Path) -> None:
    """What was there stays, and nothing is left beside it."""
    target = small / "rows.json"
    target.write_text("old")
    (small / "filler").write_bytes(bytes(52 << 10))
    with pytest.raises(EnvironmentProblem, match="json: no space left on the disk") as caught, storage(small, "go on"):
        write_atomically(target, bytes(1 << 16))
    assert caught.value.hint == "go on" and str(target) in str(caught.value)
    with pytest.raises(OSError, match=str(small / "lines.jsonl")):
        append_line(small / "lines.jsonl", "x" * (1 << 16))
    assert target.read_text() == "old" and (small / "lines.jsonl").stat().st_size == 0
    assert sorted(path.name for path in small.iterdir()) == ["filler", "lines.jsonl", "rows.json"]


@pytest.mark.parametrize(
    "words",
    [("export", "p.json", "--format", "json", "--out"), ("topo", "--plot"), ("topo", "--record")],
    ids=lambda words: "-".join(words[:1] + words[-1:]),
)
def test_commands_name_the_file_and_leave_nothing(small: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    file.save(
        Profile(scopes=[Scope(id="one", transport="gloo", nodes=None, ranks_per_node=None)], choices=[]),
        tmp_path / "p.json",
    )
    with contextlib.suppress(OSError), open(small / "filler", "wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))
    target = small / "out.svg"
    result = here(*words, str(target), cwd=tmp_path)
    error, hint = result.stderr.splitlines()[-2:]
    assert result.returncode == 2 and f"cannot write '{target}" in error and "No space left on device" in error
    assert hint.startswith("hint: ")
    assert not [path for path in small.rglob("*") if path.is_file() and path.name != "filler"]


def test_temporaries_of_writers_that_were_killed_go_and_nothing_else(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    run = tmp_path / "run"
    (run / "logs" / "000").mkdir(parents=True)
    (run / "checkpoints" / ".step-00000003.tmp").mkdir(parents=True)
    (run / "checkpoints" / ".step-00000003.tmp" / "rank-0000.safetensors").touch()
    for name in (".run.json.12.0123abcd.tmp", ".room", "mine.tmp", ".lock"):
        (run / name).touch()
    (run / ".latest.12.tmp").symlink_to(run.name)
    (run / "logs" / "000" / ".x.1.89abcdef.tmp").symlink_to(outside)
    RunFolder(run).refuse_links()  # which lets them pass, as they are removed
    remove_temporaries(run)
    assert sorted(path.name for path in run.rglob("*")) == [".lock", "000", "checkpoints", "logs", "mine.tmp"]
    assert (outside / "kept").exists()


def test_a_folder_says_whether_it_takes_more(small: Path) -> None:
    run = RunFolder(small)
    (small / "filler").write_bytes(bytes(8 << 10))
    assert (error := run.takes_no_more()) is not None and error.strerror == os.strerror(28)
    subprocess.run(["mount", "-o", "remount,size=1m", small], check=True)
    assert run.takes_no_more() is None and [path.name for path in small.iterdir()] == ["filler"]
