"""`commbench check` from the command line to its verdict, over the scripted transport: real ranks, a virtual clock."""

from __future__ import annotations

import json
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from commbench.check import kept, node_facts
from commbench.run_folder import RunFolder
from tests.conftest import here, only_run
from tests.support import machines
from tests.support.drawn_checks import QUIET

CLUSTER = ("transport=scripted", "nodes=2", "ranks_per_node=2", "sizes.min=256", "sizes.max=64K", "iters=3", "cap=0.1")
SCRIPT = {"noise": 0.02, "alpha_us": {"intra": 1, "inter": 2}, "gbps": {"intra": 10, "inter": 1}}


def check(cwd: Path, *words: str, launches: int = 6, **script: object) -> subprocess.CompletedProcess[str]:
    (cwd / "s.json").write_text(json.dumps({**SCRIPT, **script}))
    return here("check", *CLUSTER, f"launches={launches}", "script=s.json", "-q", *words, cwd=cwd)


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    """Ranks, which are forked from this process, find nobody else on its CPUs, whoever there is."""
    with mock.patch.object(node_facts, "_look", lambda system, parent: dict(QUIET)):
        yield


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """One check of a fleet with a slow rank, and what it sent."""
    cwd = tmp_path_factory.mktemp("check")
    words = ("--format", "json", "--bundle", "b.tar.gz", "--anonymous")
    return cwd, check(cwd, *words, slow_ranks={"3": 4.0})


def test_the_answer_is_one_object_and_the_exit_code(checked: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    cwd, done = checked
    found = json.loads(done.stdout)
    assert (done.returncode, found["verdict"], found["launches"]) == (1, "not_healthy", 6)
    assert [(one["kind"], one["ranks"]) for one in found["named"]] == [("rank", [3])]
    assert found["answer"]["sentence"].startswith("not healthy: rank 3 (node 1) is 4.")
    assert {host["host"] for host in found["hosts"]} and found["hosts"][0]["nodes"] == [0, 1]
    assert len(found["hosts"][0]["looks"]) == 6 and found["hosts"][0]["machine"]["cpus"]
    _, _, stored = kept.read(RunFolder.open(only_run(cwd / "results")))
    assert stored == {key: value for key, value in found.items() if key not in ("answer", "format")}


def test_a_bundle_that_shall_name_nobody_names_nobody(checked: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    cwd, done = checked
    host = json.loads(done.stdout)["hosts"][0]["host"]
    with tarfile.open(cwd / "b.tar.gz") as tar:
        files = {one.name: tar.extractfile(one).read().decode() for one in tar.getmembers()}  # type: ignore[union-attr]
    assert sorted(files) == ["check/check.json", "check/pairs.csv", "check/pairs.json", "check/report.txt"]
    assert "rank 3 (node 1) is 4." in files["check/report.txt"]
    found = json.loads(files["check/check.json"])["found"]
    assert found["verdict"] == "not_healthy" and found["hosts"][0]["host"] == "host0"
    for text in files.values():
        assert str(cwd) not in text and f'"{host}"' not in text and "/root/" not in text


def test_a_check_that_was_stopped_goes_on_to_the_same_verdict(
    checked: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    cwd, done = checked
    run = only_run(cwd / "results")
    for name in ("measurements.jsonl", "cases.jsonl"):  # as if it was killed in its fifth launch
        lines = (run / name).read_text().splitlines(keepends=True)
        (run / name).write_text("".join(lines[: len(lines) * 3 // 4] if name == "measurements.jsonl" else []))
    again = here("check", "--resume", str(run), "--format", "json", "--bundle", "whole.tar.gz", cwd=cwd)
    assert again.returncode == 1 and "resuming" in again.stderr
    before, after = json.loads(done.stdout), json.loads(again.stdout)
    assert [one["ranks"] for one in after["named"]] == [one["ranks"] for one in before["named"]]
    with tarfile.open(cwd / "whole.tar.gz") as tar:
        assert f"{run.name}/measurements.jsonl" in tar.getnames() and f"{run.name}/report.txt" in tar.getnames()


def test_a_recorded_machine_stands_for_a_node_and_few_launches_tell_nothing(tmp_path: Path) -> None:
    one, other = (machines.unpack(name, tmp_path / name) for name in ("ndv4", "pc"))
    words = ("--machine", str(one), "--machine", f"node1={other}")
    done = check(tmp_path, *words, launches=1)
    assert done.returncode == 1 and "node 1's GPUs are " in done.stdout and done.stdout.startswith("NOT HEALTHY: ")
    few = check(tmp_path, "nodes=1", "--format", "json", launches=1)
    assert few.returncode == 3 and json.loads(few.stdout)["doubts"]


def test_a_plan_is_shown_and_nothing_measured(tmp_path: Path) -> None:
    done = check(tmp_path, "--dry-run")
    assert done.returncode == 0 and "14 cases" in done.stdout and not (tmp_path / "results").exists()
