"""Files that a user names, and files that replace others: devices, pipes and links stay what they are."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from commbench.cli import _main
from commbench.files import atomic_file, write_atomically, write_named
from tests.conftest import REPOSITORY

PROFILE = REPOSITORY / "tests/data/exports/profile.json"


def test_a_pipe_is_written_to_and_stays_one(tmp_path: Path) -> None:
    pipe, heard = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: heard.append(pipe.read_bytes()), daemon=True)
    reader.start()
    assert _main(["export", str(PROFILE), "--format", "json", "--out", str(pipe)]) == 0
    reader.join(10)
    assert stat.S_ISFIFO(pipe.stat().st_mode) and heard[0].startswith(b"{")
    assert list(tmp_path.iterdir()) == [pipe]


def test_a_device_is_written_to_and_stays_one(tmp_path: Path) -> None:
    """A node of our own, where we may make one; never the machine's."""
    node = tmp_path / "node"
    try:
        os.mknod(node, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        node.write_bytes(b"")
    except OSError as error:
        pytest.skip(f"no node can be made or opened here: {error}")
    assert _main(["export", str(PROFILE), "--format", "json", "--out", str(node)]) == 0
    assert stat.S_ISCHR(node.stat().st_mode) and list(tmp_path.iterdir()) == [node]


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path, exists: bool) -> None:
    (tmp_path / "there").mkdir()
    target, link, middle = tmp_path / "there" / "file", tmp_path / "link", tmp_path / "middle"
    middle.symlink_to("there/file")
    link.symlink_to(middle)
    if exists:
        target.write_text("old")
    write_named(link, "new")
    assert link.readlink() == middle and middle.is_symlink()
    assert target.read_text() == "new" and not target.is_symlink() and len(list((tmp_path / "there").iterdir())) == 1


def test_what_cannot_be_written_is_one_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for out in (loop, tmp_path, tmp_path / "none" / "file", tmp_path / ("n" * 300)):
        assert _main(["export", str(PROFILE), "--format", "json", "--out", str(out)]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert [line.split(":")[0] for line in lines if not line.startswith("note")] == ["error", "hint"]
    assert list(tmp_path.iterdir()) == [loop]


def test_a_file_that_replaces_another_follows_no_link(tmp_path: Path) -> None:
    """In a run folder: a link there, or one where the temporary file will be, leads nowhere."""
    outside, path = tmp_path / "outside", tmp_path / "run" / "run.json"
    path.parent.mkdir()
    outside.write_text("mine")
    path.symlink_to(outside)
    (path.parent / f".run.json.{os.getpid()}.tmp").symlink_to(outside)
    write_atomically(path, "new")
    assert outside.read_text() == "mine" and path.read_text() == "new" and not path.is_symlink()


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")
    with pytest.raises(KeyboardInterrupt), atomic_file(path) as file:
        file.write(b"ne")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
