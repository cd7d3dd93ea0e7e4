"""`commbench train ab` from its first launch to its last, whatever ends it; the trainings themselves are made up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from commbench.commands import plot, train_ab
from commbench.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, UsageError
from commbench.profile import file
from commbench.profile.scope import OutOfScope
from commbench.serialise import unseal
from commbench.train import launch
from tests.support import profiles
from tests.unit.train.test_ab import lines

Ending = Callable[[int], launch.Ended | None]
WORDS = ("tiny", "candidate.permute=loop", "rounds=3")


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Callable[[Ending], list[launch.TrainRequest]]:
    """Launches that `ending` ends by their number: null, as they should."""

    def stub(ending: Ending) -> list[launch.TrainRequest]:
        asked: list[launch.TrainRequest] = []

        def once(request: launch.TrainRequest) -> launch.Ended:
            asked.append(request)
            folder = request.out / f"run-{len(asked)}"
            folder.mkdir()
            (folder / "run.json").write_text('{"fabric": "none"}')
            rate = 1100.0 if any("loop" in word for word in request.words) else 1000.0
            (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines(rate)))
            return ending(len(asked)) or launch.Ended(EXIT_OK, folder, False)

        monkeypatch.setattr(launch, "once", once)
        return asked

    return stub


def ab(tmp_path: Path, *words: str, **more: Any) -> int:
    return train_ab.run(launch.TrainRequest(words=words or WORDS, out=tmp_path, **more))


def about(tmp_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(unseal((tmp_path / "latest" / "ab.json").read_bytes()))
    return found


def test_rounds_alternate_and_all_is_kept(launched: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = launched(lambda number: None)
    assert ab(tmp_path) == EXIT_OK
    loops = ["candidate.permute=loop" in WORDS and "permute=loop" in request.words for request in asked]
    assert loops == [False, False, True, True, False, False, True], "one before the rounds, then by turns"
    assert all(request.resume is None and request.quiet for request in asked)
    found = about(tmp_path)
    assert found["status"] == "finished" and found["pairs"] == found["rounds"] == 3 and found["stopped"] == "rounds"
    assert found["answer"].startswith("There is no verdict: 1.100x") and found["verdict"] == "not estimable"
    assert found["ratio"] == pytest.approx(1.1)
    assert found["calibration"]["round"] == -1 and found["calibration"]["run"] == "run-1"
    assert found["arms"]["candidate"]["permute"] == "loop" and found["predicted"] is None
    captured = capsys.readouterr()
    assert "1.100x" in captured.out and "it knows exchanges alone" in captured.err
    assert plot.run([tmp_path / "latest"], None) == 0


@pytest.mark.parametrize(
    ("code", "asked", "status", "gives"),
    [
        (EXIT_FAILED, False, "failed", EXIT_FAILED),
        (EXIT_INTERRUPTED, True, "interrupted", EXIT_INTERRUPTED),
        (EXIT_OK, True, "interrupted", EXIT_INTERRUPTED),  # the signal came in its last step
    ],
)
def test_what_was_measured_before_an_end_is_kept_and_told(
    launched: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], code: int, asked: bool, status: str, gives: int
) -> None:
    launched(lambda number: launch.Ended(code, tmp_path, asked) if number == 5 else None)
    assert ab(tmp_path) == gives
    captured = capsys.readouterr()
    assert "1 pair of launches" in captured.out
    assert f"{status} at baseline, round 2; 1 whole round of 3 kept in" in captured.err
    assert about(tmp_path)["status"] == status and about(tmp_path)["pairs"] == 1
    assert len((tmp_path / "latest" / "launches.jsonl").read_text().splitlines()) == 3


def test_what_ranks_refuse_in_the_middle_is_told_after_what_was_measured(
    launched: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def ending(number: int) -> None:
        if number == 5:
            raise UsageError("the loss is nan")

    launched(ending)
    with pytest.raises(UsageError, match="the loss is nan"):
        ab(tmp_path)
    captured = capsys.readouterr()
    assert "1 pair of launches" in captured.out and "failed at baseline, round 2; 1 whole round of 3" in captured.err
    assert about(tmp_path)["status"] == "failed" and (tmp_path / "latest" / "plots" / "ab.png").is_file()


def test_an_end_before_the_first_round(launched: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    launched(lambda number: launch.Ended(EXIT_FAILED, tmp_path, False))
    assert ab(tmp_path, format="json") == EXIT_FAILED
    captured = capsys.readouterr()
    assert captured.out == "" and "failed at the baseline's launch before the rounds; 0 whole rounds" in captured.err
    assert about(tmp_path)["status"] == "failed" and "ratio" not in about(tmp_path)


def test_json_is_one_object(launched: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    launched(lambda number: None)
    assert ab(tmp_path, format="json") == EXIT_OK
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == about(tmp_path)


def test_arms_that_ranks_would_refuse_start_nothing(launched: Any, tmp_path: Path) -> None:
    """The candidate's too, and before the first launch of the baseline."""
    asked = launched(lambda number: None)
    made = profiles.profile(profiles.choice("all_to_all", "pairwise"), nodes=2, ranks_per_node=2)
    file.save(made, tmp_path / "p.json")
    for words, message in (
        (("candidate=nope.json",), "nope.json"),
        (("candidate.schedule=nonsense",), "nonsense"),
        (("candidate.path=/nope", "path=/nope", "candidate.permute=loop"), "no text"),
        (("heads=3", "candidate.permute=loop"), "heads=3"),
    ):
        with pytest.raises(UsageError, match=message):
            ab(tmp_path / "runs", "tiny", *words)
    with pytest.raises(OutOfScope, match=r"nodes: the profile is for 2, here is 1; ranks per node: .* 2, here is 4"):
        ab(tmp_path / "runs", "tiny", f"candidate={tmp_path / 'p.json'}")
    assert not asked and not (tmp_path / "runs").exists()
