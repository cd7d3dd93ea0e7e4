"""A namespace of a run that stays is caught; those that somebody else makes meanwhile are not."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.conftest import PATIENCE_S
from tests.support.leftovers import Watch


def in_a_namespace(environment: Mapping[str, str] | None) -> subprocess.Popen[bytes]:
    # -r: of a user namespace too, where this user has no other right to make one.
    process = subprocess.Popen(["unshare", "-Urn", "sh", "-c", "echo; exec sleep 60"], env=environment,
                               stdout=subprocess.PIPE)  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    return process


@pytest.mark.parametrize("ours", [True, False])
def test_a_namespace_that_stays(tmp_path: Path, ours: bool) -> None:
    with Watch(tmp_path / "tmp") as watch, in_a_namespace(watch.environment() if ours else None) as process:
        try:
            watch.look()
            left = watch.left()
        finally:
            process.kill()
        assert left == {} if not ours else left.keys() == {"processes", "namespaces"}
        process.wait()
        deadline = time.monotonic() + PATIENCE_S  # of a process that was killed, the kernel lets all go a moment later
        while watch.left():
            assert time.monotonic() < deadline
