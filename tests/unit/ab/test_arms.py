"""How arms are typed, and what each of them starts the program with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from commbench.ab import arms
from commbench.ab.pairs import BASELINE, CANDIDATE
from commbench.errors import CommbenchError, UsageError
from commbench.profile import file
from tests.support import profiles

RUN = ("run", "--x", "--", "y")


@pytest.fixture
def tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        file.save(profiles.profile(profiles.choice("all_to_all", "pairwise")), Path(f"{name}.json"))


def both(*typed: str, program: Any = RUN, words: Any = (), env: Any = None) -> tuple[arms.ProgramArm, arms.ProgramArm]:
    _, own = arms.split(words)
    found = arms.arms_of(program, typed, env or {}, own)
    return found[BASELINE], found[CANDIDATE]


def test_a_profile_against_none_sets_two_variables(tuned: None) -> None:
    one, two = both("a.json", env={"X": ["1"]})
    names = ("COMMBENCH_BACKEND", "COMMBENCH_PROFILE", "COMMBENCH_SCOPE", "COMMBENCH_REDUCTIONS")
    assert one.environment() == {"X": "1", **dict.fromkeys(names, "unset")}
    env = two.environment()
    assert env["X"] == "1" and env["COMMBENCH_BACKEND"] == "profile"
    assert env["COMMBENCH_PROFILE"] == str(Path("a.json").absolute())
    assert one.command == two.command == RUN
    assert arms.differences({BASELINE: one, CANDIDATE: two}) == "no profile against a.json"


def test_sums_go_by_the_profile_of_an_arm_that_has_one(tuned: None) -> None:
    one, two = arms.arms_of(RUN, ["a.json"], {}, arms.split(())[1], reductions=True).values()
    assert one.environment()["COMMBENCH_REDUCTIONS"] == "unset" and two.environment()["COMMBENCH_REDUCTIONS"] == "1"
    assert two.settings()["reductions"] is True and "reductions" not in one.settings()
    assert both("a.json")[1].environment()["COMMBENCH_REDUCTIONS"] == "unset"
    with pytest.raises(UsageError, match="--reductions lets sums go by a profile, and no arm has one"):
        arms.arms_of(RUN, (), {"X": ["1", "2"]}, arms.split(())[1], reductions=True)


def test_settings_and_binding_of_a_profile_are_an_arms(tmp_path: Path) -> None:
    """As `commbench exec` above a launcher sets them."""
    for name, more in (
        ("s", {"env": {"NCCL_ALGO": "Ring"}}),
        ("c", {"env": {"LD_PRELOAD": "x"}}),
        ("b", {"binding": "pci"}),
    ):
        made = profiles.profile(profiles.choice("all_to_all", "pairwise"), **more)  # type: ignore[arg-type]
        file.save(made, tmp_path / f"{name}.json")
    assert both(str(tmp_path / "s.json"))[1].environment()["NCCL_ALGO"] == "Ring"
    with pytest.raises(UsageError, match="LD_PRELOAD=x: programs load code"):
        both(str(tmp_path / "c.json"))
    with pytest.raises(UsageError, match="'run' is not a launcher of torch programs"):
        both(str(tmp_path / "b.json"))
    bound = both(str(tmp_path / "b.json"), program=("torchrun", "x.py"))[1].environment()
    assert bound["COMMBENCH_SCOPE"] and bound["COMMBENCH_BINDING"] == "unset", "each rank binds itself"


def test_two_bindings_are_two_profiles_that_say_nothing_else(tmp_path: Path) -> None:
    _, own = arms.split(())
    found = arms.arms_of(("torchrun", "x.py"), (), {}, own, (), ("none", "block"))
    one, two = (found[name].bound_in(tmp_path) for name in (BASELINE, CANDIDATE))
    assert one.environment()["COMMBENCH_BINDING"] == "none" and two.environment()["COMMBENCH_BINDING"] == "unset"
    assert two.environment()["COMMBENCH_SCOPE"] == "binding" and two.needs_commbench
    (scope,) = file.load(Path(two.environment()["COMMBENCH_PROFILE"])).scopes
    assert scope.binding == "block" and arms.differences(found) == "binding=none against binding=block"
    for program, typed, env, said in (
        (RUN, (), {}, "'run' is not a launcher of torch programs"),
        (("torchrun", "x.py"), ("none", "none"), {}, "in several ways"),
        (("torchrun", "x.py"), (), {"A": ["1", "2"]}, "in several ways"),
    ):
        with pytest.raises(UsageError, match=said):
            arms.arms_of(program, typed, env, own, (), ("none", "block"))


def test_a_recording_is_beside_what_an_arm_asks_for(tuned: None, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = both("a.json")
    assert one.environment(Path("/t"))["COMMBENCH_BACKEND"] == "record"
    assert two.environment(Path("/t"))["COMMBENCH_BACKEND"] == "profile,record"
    assert two.environment(Path("/t"))["COMMBENCH_RECORD"] == "/t"
    monkeypatch.setenv("COMMBENCH_BACKEND", "profile")
    one, two = both(env={"A": ["1", "2"]})
    assert one.environment(Path("/t"))["COMMBENCH_BACKEND"] == "profile,record", "an export of the user's"


def test_two_profiles_and_one_against_itself(tuned: None) -> None:
    one, two = both("a.json", "b.json")
    assert Path(one.profile).name == "a.json" and Path(two.profile).name == "b.json"
    one, two = both("a.json", "a.json")
    assert one.environment() == two.environment()
    assert arms.differences({BASELINE: one, CANDIDATE: two}) == "both arms are the same"
    assert both("none", "b.json")[0].profile == both(words=["candidate=b.json"])[0].profile == ""


def test_variables_and_programs() -> None:
    one, two = both(env={"A": ["x", "unset"], "B": ["for both"]})
    assert one.environment() == {"A": "x", "B": "for both"} and two.environment() == {"A": "unset", "B": "for both"}
    one, two = both(words=["candidate.env.A=1,2", "candidate.env.B=3"], env={"A": ["0"]})
    assert one.env == {"A": "0"} and two.env == {"A": "1,2", "B": "3"}
    assert arms.names({BASELINE: one, CANDIDATE: two}) == {"baseline": "A=0, B as it is", "candidate": "A=1,2, B=3"}
    one, two = both(program=("old", "--", "x", ":::", "new", "y z"))
    assert one.command == ("old", "--", "x") and two.command == ("new", "y z")
    assert arms.differences({BASELINE: one, CANDIDATE: two}) == "old -- x against new 'y z'"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, "there is one arm"),
        ({"program": None, "env": {"A": ["1", "2"]}}, "no -- before the program"),
        ({"program": ("a", ":::")}, "no program on one side"),
        ({"program": ("a", ":::", "b", ":::", "c")}, "3 programs"),
        ({"env": {"A": ["1", "2", "3"]}}, "env.A has 3 values"),
        ({"env": {"A": ["1", "2"]}, "program": ("a", ":::", "b")}, "in several ways"),
        ({"env": {"A": ["1", "2"]}, "words": ["candidate.env.B=1"]}, "in several ways"),
        ({"words": ["candidate.layers=2"]}, "unknown setting of candidate 'layers'"),
        ({"words": ["candidate.env.A"]}, "cannot read candidate.env.A"),
        ({"words": ["candidate.profile="]}, "candidate has no profile"),
        ({"words": ["candidate=nope.json"]}, "nope.json"),
    ],
)
def test_a_wrong_use_is_one_error(more: dict[str, Any], said: str) -> None:
    with pytest.raises(CommbenchError) as raised:
        both(**more)
    assert said in str(raised.value) and raised.value.hint


def test_three_profiles_or_a_profile_and_two_values_are_too_many(tuned: None) -> None:
    for typed, env, said in (
        (("a.json", "b.json", "a.json"), {}, "3 profiles"),
        (("a.json",), {"A": ["1", "2"]}, "in several ways"),
    ):
        with pytest.raises(CommbenchError, match=said):
            both(*typed, env=env)
