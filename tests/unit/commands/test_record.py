"""`commbench record` around programs that write what a rank would, and around those that it cannot record."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest

from commbench.ab import plan
from commbench.cli import _main
from commbench.launch.foreign import Cluster
from commbench.record import folder
from commbench.sweep import foreign_keys
from commbench.tune import run
from tests.conftest import REPOSITORY
from tests.support import page

RANKS = """
import os, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from commbench.record import rank_file
from tests.support import traces
assert os.environ["COMMBENCH_BACKEND"] == "record"
for record in traces.records():
    rank_file.write(Path(os.environ["COMMBENCH_RECORD"]), record)
print("loss 1.5")
{end}
"""


def program(path: Path, end: str = "") -> list[str]:
    script = path / "train.py"
    script.write_text(RANKS.format(root=str(REPOSITORY), end=end))
    return ["--", sys.executable, str(script)]


def test_a_program_is_recorded_and_passes_through(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a trace"
    assert _main(["record", "--out", str(out), *program(tmp_path)]) == 0
    said = capfd.readouterr()
    lines = said.out.splitlines()
    assert lines[0] == "loss 1.5" and lines[1].startswith("# 4 ranks on 2 x 2, gloo, 10 steps of 50 ms")
    assert "1 all-to-all of 1 MiB a step over 2 ranks in 2 groups: 1 % of the step, 1 % exposed; moe.py:20" in lines
    assert all(len(line) <= 100 or line.startswith("# next: ") for line in lines)
    assert any(line.startswith("# answer: a faster all-to-all can save") for line in lines[-4:])
    assert lines[-1] == f"# next: find what is faster for what it sends: commbench tune '{out}' budget=10m --out p.json"
    assert (out / "plots/trace.png").is_file() and folder.read(out).exit_code == 0
    assert _main(["plot", str(out), "--out", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again/trace.png").is_file()


def test_a_folder_of_its_own_choice_is_the_latest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert _main(["record", "--no-plots", "-q", *program(tmp_path)]) == 0
    latest = Path("results/latest")
    assert latest.is_symlink() and "-record-" in latest.resolve().name and folder.read(latest).exit_code == 0


def test_json_lines_alone_are_on_stdout(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["record", "--out", str(tmp_path / "t"), "--format", "json", "--anonymous", "--no-plots"]
    assert _main([*words, *program(tmp_path)]) == 0
    said = capfd.readouterr()
    *found, answer = map(json.loads, said.out.splitlines())
    assert {one["collective"] for one in found} == {"all_to_all", "all_to_allv", "all_reduce"} and answer["answer"]
    assert answer["exit_code"] == 0 and answer["ranks"] == 4 and "loss 1.5" in said.err
    trace = folder.read(tmp_path / "t")
    assert trace.command == [] and trace.hosts == ["host-0", "host-0", "host-1", "host-1"]


def test_a_program_that_fails_keeps_its_code_and_its_trace(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["record", "--out", str(tmp_path / "t"), "--no-plots"]
    assert _main([*words, *program(tmp_path, "os.kill(os.getpid(), 9)")]) == 137
    assert "error: the program ended with exit code 137; the trace has what was recorded" in capfd.readouterr().err
    assert folder.read(tmp_path / "t").status == "unfinished"


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ([], 2, "which program?"),
        (["--"], 2, "there is no program to run"),
        (["--", "no-such-program"], 2, "cannot start 'no-such-program'"),
        (["--", sys.executable, "-c", "print('no torch')"], 2, "nothing was recorded: no process of the program"),
        (["--", sys.executable, "-c", "raise SystemExit(7)"], 7, "ended with exit code 7 before any rank"),
        (["--", sys.executable, "-c", "raise SystemExit(130)"], 130, "ended with exit code 130 before any rank"),
        (["nodes=2", "--", "true"], 2, "nodes is set, but has no effect"),
        (["env.A=1,2", "--", "true"], 2, "env.A takes one value, not 2"),
        (["speed=1", "--", "true"], 2, "unknown key 'speed'"),
    ],
)
def test_wrong_uses_are_one_line(
    words: list[str], code: int, told: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert _main(["record", "--out", str(tmp_path / "t"), *words]) == code
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert told in line
    assert not (tmp_path / "t").exists()


def test_a_folder_that_is_used(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    held = folder.begin(tmp_path / "t")
    assert _main(["record", "--out", str(tmp_path / "t"), "--", "true"]) == 2
    assert "is in use: another recording writes there" in capfd.readouterr().err
    held.lock.release()
    assert _main(["record", "--out", str(tmp_path / "t"), "--", "true"]) == 2
    assert "is not empty" in capfd.readouterr().err


def test_what_the_page_of_a_whole_program_types_is_understood() -> None:
    """`make test-programs` types it."""
    own = {"ab": plan.KEYS, "record": None, "exec": None}
    meant = {}
    for block in page.typed(REPOSITORY / "docs/guide/any-program.md"):
        name, *words = shlex.split(block.replace("\\\n", " ").split(" -- ")[0])[1:]
        keys = [word for word in words if "=" in word]
        meant[name] = foreign_keys.read(keys, own[name]).cluster if name in own else run.read_limits(keys)[1].budget_s
    cluster = meant["record"]
    assert isinstance(cluster, Cluster) and cluster.ranks_per_node == 2
    assert meant == {"record": cluster, "tune": 360.0, "exec": cluster, "ab": cluster}
