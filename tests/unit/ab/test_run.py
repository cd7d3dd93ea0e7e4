"""`commbench ab` from its words to its answer; the launches are made up, but for those of the last tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from commbench.cli import _main
from commbench.launch import foreign
from commbench.launch.foreign import ProgramEnd
from commbench.profile import file
from commbench.record import rank_file
from commbench.record.rank_file import RankRecord
from commbench.serialise import unseal
from tests.conftest import environment
from tests.support import profiles
from tests.support.edits import change_json

NOISE = (0.0, 0.004, -0.003, 0.002, -0.004, 0.001)  # of launches, in turn
Launching = Callable[[int, dict[str, str]], float | ProgramEnd]


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    yield  # type: ignore[misc]
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Launching], list[dict[str, str]]]:
    """Launches that take the seconds that `launching` says for their number and variables."""

    def stub(launching: Launching) -> list[dict[str, str]]:
        asked: list[dict[str, str]] = []

        def run(command: Any, *, env: dict[str, str], log: Path, **more: Any) -> ProgramEnd:
            number = len(asked)
            asked.append(dict(env))
            log.write_text(f"launch {number}\n")
            found = launching(number, dict(env))
            return found if isinstance(found, ProgramEnd) else ProgramEnd(code=0, seconds=found)

        monkeypatch.setattr(foreign, "run", run)
        return asked

    return stub


def gain(by: float) -> Launching:
    return lambda number, env: (1 + NOISE[number % 6]) / (by if env.get("X") == "b" else 1.0)


def answer(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    (line,) = capsys.readouterr().out.splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


WORDS = ("ab", "env.X=a,b", "--format", "json", "--no-plots")


def test_a_gain_is_found_and_everything_is_kept(scripted: Any, capsys: pytest.CaptureFixture[str]) -> None:
    asked = scripted(gain(1.15))
    assert _main([*WORDS, "--", "true"]) == 0
    found = answer(capsys)
    assert [env["X"] for env in asked[:6]] == ["a", "a", "b", "b", "a", "a"], "one before, then by turns"
    assert found["verdict"] == "faster" and found["ratio"] == pytest.approx(1.15, rel=0.01) and found["rounds"] == 9
    assert found["low"] > 1.1 and found["stopped"] == "resolved" and found["status"] == "finished"
    assert found["answer"].startswith("The candidate is faster: 1.1") and "wall time" in found["answer"]
    folder = Path("results/latest")
    assert json.loads(unseal((folder / "ab.json").read_bytes())) == found
    assert len((folder / "launches.jsonl").read_text().splitlines()) == 19 == len([*folder.glob("logs/*.log")])


def test_the_same_twice_has_no_difference(scripted: Any, capsys: pytest.CaptureFixture[str]) -> None:
    scripted(gain(1.0))
    assert _main(["ab", "rounds=10", "env.X=a,a", "--format", "json", "--", "true"]) == 0
    found = answer(capsys)
    assert found["rounds"] == 10 and found["low"] <= 1 <= found["high"] and found["verdict"] == "no difference"
    assert found["stopped"] == "rounds" and found["title"] == "both arms are the same"
    assert "No difference was found" in found["answer"] and "at this noise" in found["answer"]
    assert Path("results/latest/plots/ab.png").is_file()
    assert _main(["plot", "results/latest", "--out", "again"]) == 0 and Path("again/ab.svg").is_file()


def test_the_table_begins_with_the_answer(scripted: Any, capsys: pytest.CaptureFixture[str]) -> None:
    scripted(gain(1.15))
    assert _main(["ab", "env.X=a,b", "--no-plots", "-q", "--", "true"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("The candidate is faster") and "X=a\n" in out and "control" in out and not err


def test_an_arm_that_fails_is_an_answer(scripted: Any, capsys: pytest.CaptureFixture[str]) -> None:
    scripted(lambda number, env: ProgramEnd(code=137, seconds=1.0) if env["X"] == "b" else 1.0)
    assert _main([*WORDS, "--", "true"]) == 0
    found = answer(capsys)
    assert found["stopped"] == "failed" and found["rounds"] == 0 and found["ratio"] is None
    assert "The candidate fails: exit code 137 (SIGKILL) (round-001-candidate-2.log: launch" in found["answer"]
    assert found["answer"].endswith("The baseline does not.")
    lines = [json.loads(line) for line in Path("results/latest/launches.jsonl").read_text().splitlines()]
    assert [line["arm"][0] for line in lines if line.get("error")] == ["c", "c"]


def test_a_baseline_that_fails_leaves_nothing_to_compare(scripted: Any, capsys: pytest.CaptureFixture[str]) -> None:
    scripted(lambda number, env: ProgramEnd(code=1, seconds=1.0, timed_out=True))
    assert _main([*WORDS, "--", "true"]) == 1
    assert "The baseline fails: it did not end within 60 min" in answer(capsys)["answer"].replace("1 h 00", "60")


def test_a_metric_that_matches_nothing_is_told(scripted: Any, capsys: pytest.CaptureFixture[str]) -> None:
    scripted(gain(1.0))
    assert _main([*WORDS, "--metric", "took ([0-9]+)", "--", "true"]) == 1
    assert "nothing that matches 'took ([0-9]+)'" in answer(capsys)["answer"]


def test_it_goes_on_where_it_was_interrupted(scripted: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """In the middle of a round, which is made again as a whole."""

    def launching(number: int, env: dict[str, str]) -> float:
        if number == 6:
            raise KeyboardInterrupt
        return float(gain(1.15)(number, env))  # type: ignore[arg-type]

    asked = scripted(launching)
    assert _main([*WORDS, "--", "true"]) == 130
    captured = capsys.readouterr()
    assert json.loads(captured.out)["rounds"] == 2 and json.loads(captured.out)["status"] == "interrupted"
    assert "2 whole rounds kept" in captured.err and "commbench ab --resume results/" in captured.err
    del asked[:]
    scripted(gain(1.15))
    assert _main(["ab", "--resume", "results/latest", "--format", "json", "--no-plots"]) == 0
    found = answer(capsys)
    assert found["rounds"] == 9 and found["verdict"] == "faster" and found["status"] == "finished"
    lines = [json.loads(line) for line in Path("results/latest/launches.jsonl").read_text().splitlines()]
    assert len(lines) == 20 and [line["round"] for line in lines if line["round"] < 0] == [-1], "one lone launch"


def test_a_budget_may_grow(scripted: Any, capsys: pytest.CaptureFixture[str]) -> None:
    noisy = lambda number, env: 1.0 + 0.05 * (number * 7 % 5)  # noqa: E731
    scripted(noisy)
    assert _main([*WORDS, "budget=0.001s", "--", "true"]) == 0
    assert answer(capsys)["stopped"] == "budget"
    assert _main(["ab", "--resume", "results/latest", "budget=1h", "resolve=0.9", "--format", "json"]) == 0
    found = answer(capsys)
    assert found["rounds"] > 8 and found["resolve"] == 0.9


def record(env: dict[str, str], *durations_us: list[float]) -> None:
    """Write what ranks of a program would that is recorded: their steps."""
    for rank, its in enumerate(durations_us):
        rank_file.write(Path(env["COMMBENCH_RECORD"]), RankRecord(
            rank=rank, ranks=len(durations_us), host="h", transport="gloo", gpu="", versions={}, group_names=[],
            group_ranks=[], calls=[], steps=[[float(number), us] for number, us in enumerate(its)],
        ))  # fmt: skip


def test_steps_are_compared_where_they_are_seen(scripted: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The slowest rank's, whatever the whole program takes."""

    def launching(number: int, env: dict[str, str]) -> float:
        record(env, [9e6, 9e6, 1e6, 1e6, 1e6], [1e3] * 2 + [2e6 * gain(1.15)(number, env)] * 3)  # type: ignore[operator]
        return 100.0 / (1 + number % 3)

    asked = scripted(launching)
    assert _main([*WORDS, "--", "true"]) == 0
    found = answer(capsys)
    assert found["compared"] == "step time" and found["ratio"] == pytest.approx(1.15, rel=0.01)
    assert {env["COMMBENCH_BACKEND"] for env in asked} == {"record"} and not [*Path("results").glob("*/logs/*.trace")]
    lines = [json.loads(line) for line in Path("results/latest/launches.jsonl").read_text().splitlines()]
    assert all(line["steps"] == 3 and 1.5 < line["value"] < 2.1 for line in lines)


def test_a_profile_where_torch_does_not_load_commbench_is_refused(
    scripted: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else the answer would be that it is worth nothing."""
    file.save(profiles.profile(profiles.choice("all_to_all", "pairwise")), Path("p.json"))
    scripted(gain(1.0))
    assert _main(["ab", "--profile", "p.json", "--metric", "took ([0-9]+)", "--", "true"]) == 2
    assert "no process group of torch.distributed that commbench sees" in capsys.readouterr().err


def test_what_commbench_says_in_the_program_is_handed_on(scripted: Any, capsys: pytest.CaptureFixture[str]) -> None:
    file.save(profiles.profile(profiles.choice("all_to_all", "pairwise")), Path("p.json"))

    def launching(number: int, env: dict[str, str]) -> float:
        if "record" in env["COMMBENCH_BACKEND"]:
            record(env, [])
        log = max(Path("results").glob("*/logs/*.log"), key=lambda path: path.stat().st_mtime_ns)
        log.write_text("hello\n[rank0]:commbench: torch makes all calls itself: nodes\n" * 3)
        return 1 + NOISE[number % 6]

    asked = scripted(launching)
    assert _main(["ab", "--profile", "p.json", "--format", "json", "--no-plots", "rounds=2", "--", "true"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["said"] == ["torch makes all calls itself: nodes"]
    assert captured.err.count("candidate: torch makes all calls itself: nodes") == 1
    assert _main(["ab", "--resume", "results/latest", "-q", "--no-plots"]) == 0
    assert "# commbench said in the program: torch makes all calls itself: nodes\n" in capsys.readouterr().out
    assert [env["COMMBENCH_BACKEND"] for env in asked] == ["record", "unset", "profile", "profile", "unset"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("rounds=9",), "rounds=9 cannot change"),
        (("--metric", "(x)"), "--resume knows its program"),
        (("--", "true"), "--resume knows its program"),
    ],
)
def test_what_may_not_change_is_refused(
    words: tuple[str, ...], said: str, scripted: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted(gain(1.0))
    assert _main([*WORDS, "rounds=1", "--", "true"]) == 0
    assert _main(["ab", "--resume", "results/latest", *words]) == 2
    assert said in capsys.readouterr().err


def test_a_folder_of_another_machine_is_refused(scripted: Any, capsys: pytest.CaptureFixture[str]) -> None:
    scripted(gain(1.0))
    assert _main([*WORDS, "rounds=1", "--", "true"]) == 0
    path = Path("results/latest/ab.json")
    change_json(path, machine_text="another")
    assert _main(["ab", "--resume", "results/latest"]) == 2
    assert "machine changed meanwhile" in capsys.readouterr().err
    change_json(path, format="program-9")
    assert _main(["ab", "--resume", "results/latest"]) == 2
    assert _main(["ab", "--resume", "nowhere"]) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--", "no-such-program"), "in no folder of PATH"),
        (("--",), "no program to run"),
        ((), "no -- before the program"),
        (("rounds=0", "--", "true"), "rounds is 0"),
        (("budget=never", "--", "true"), "budget=never"),
        (("--metric", "(", "--", "true"), "--metric '('"),
        (("link=1gbit", "--", "true"), "link is set, but has no effect"),
    ],
)
def test_a_wrong_use_starts_nothing(
    words: tuple[str, ...], said: str, scripted: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = scripted(gain(1.0))
    assert _main(["ab", "env.X=a,b", *words]) == 2
    err = capsys.readouterr().err
    assert (
        said in err and err.count("error: ") == err.count("hint: ") == 1 and not asked and not Path("results").exists()
    )


def test_a_kill_leaves_nothing_and_it_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    """SIGKILL in the second round, then to its end: real launches, each of which writes down who it is."""
    script = "echo $$ >> pids; [ $(wc -l < pids) = 5 ] && exec sleep 600; echo took 1$X ms"
    words = [
        sys.executable,
        "-m",
        "commbench",
        "ab",
        "env.X=1,2",
        "rounds=2",
        "--metric",
        "took ([0-9]+)",
        "--no-plots",
    ]
    ours = subprocess.Popen([*words, "--", "sh", "-c", script], env=environment(), stderr=subprocess.DEVNULL)
    while not Path("pids").exists() or len(Path("pids").read_text().split()) < 5:
        assert ours.poll() is None
        time.sleep(0.02)
    ours.kill()
    ours.wait()
    assert _main(["ab", "--resume", "results/latest", "--format", "json", "--no-plots"]) == 0, "after it has ended"
    assert not any(Path(f"/proc/{pid}").exists() for pid in Path("pids").read_text().split() if int(pid) != os.getpid())
    found = answer(capsys)
    assert found["rounds"] == 2 and found["ratio"] == pytest.approx(11 / 12)
    assert len(Path("pids").read_text().split()) == 1 + 4 + 2, "the round in which it was killed was made again"
