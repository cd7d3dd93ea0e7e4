"""What a check measures, how long and how often, and which keys it takes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from commbench.check import keys, plan
from commbench.errors import UsageError
from commbench.records import Case
from commbench.sweep import prepare
from commbench.sweep.keys import KEYS
from tests.conftest import here
from tests.support import drawn_checks


def cases(*words: str, budget_s: float = 180, joined: bool = False) -> list[Case]:
    _, configs = prepare.configure(["check", "transport=scripted", "nodes=2", "ranks_per_node=2", *words], {})
    return [item.case for item in plan.expand(configs, budget_s, joined=joined)]


def test_every_pair_at_two_sizes_and_the_all_to_all_twice() -> None:
    found = Counter((case.collective, case.size_bytes, case.seed) for case in cases())
    assert found == {
        ("pairs", 1024, 0): 6, ("pairs", 1 << 20, 0): 6, ("all_to_all", 1 << 20, 0): 1, ("all_to_all", 1 << 20, 1): 1
    }  # fmt: skip
    assert {case.size_bytes for case in cases("sizes.min=512K", "sizes.max=512K")} == {512 << 10}


def test_the_arms_of_the_control_are_told_apart_by_their_seeds() -> None:
    for seed in (0, 7, 2**63 - 1):
        twice = [case for case in cases(f"seed={seed}") if case.collective == plan.ALL_TO_ALL]
        assert sorted(plan.arm(case, seed) for case in twice) == [0, 1]


def test_the_budget_says_how_long_a_case_takes_and_the_user_comes_first() -> None:
    short, long, endless = ([case.policy.cap_s for case in cases(budget_s=s)] for s in (20, 60, 1e5))
    assert all(one < other < most for one, other, most in zip(short, long, endless, strict=True))
    assert [(case.policy.cap_s, case.policy.samples_min) for case in cases(budget_s=1e5)][-3:] == [
        (1.0, 3), (5.0, 10), (5.0, 10)
    ]  # fmt: skip
    assert {case.policy.launches for case in cases()} == {plan.MOST_LAUNCHES}
    (typed,) = {case.policy for case in cases("cap=0.5", "launches=7", "samples.min=3")}
    assert (typed.cap_s, typed.launches) == (0.5, 7)


def test_ranks_of_a_launcher_measure_all_of_it_several_times() -> None:
    found = cases("launches=1", joined=True)
    assert len(found) == plan.REPEATS * len(cases()) and len({case.case_id for case in found}) == len(found)
    assert {case.policy.launches for case in found} == {1}


def test_a_budget_that_is_too_short_is_said() -> None:
    _, configs = prepare.configure(list(drawn_checks.WORDS), {})
    planned = plan.expand(configs, 5)
    assert plan.short(planned, 5, joined=False).startswith("budget=5.0 s is short for 8 ranks: it takes about ")
    assert plan.short(planned, 60, joined=False) == ""


def test_the_layout_is_that_of_the_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert plan.layout(["check"], None) == {"nodes": 1}
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "16")
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "8")
    assert plan.layout(["check"], None) == {"nodes": 16, "ranks_per_node": 8}


def test_keys_of_a_check_are_those_that_say_where() -> None:
    assert keys.read(("nodes=4", "budget=30s", "env.A=b,c")) == (("nodes=4", "env.A=b,c"), 30.0)
    assert keys.taken().keys() < KEYS.keys() and "algorithm" not in keys.taken()


@pytest.mark.parametrize(
    ("words", "said", "hint"),
    [
        (["quick"], "takes no recipe, but 'quick'", "KEY=VALUE"),
        (["algorithm=bruck"], "algorithm is a key of commbench sweep", "commbench sweep pairs algorithm=bruck"),
        (["nodez=4"], "unknown key 'nodez'", "did you mean nodes"),
        (["budget=never"], "budget=never", "a time above 0"),
        (["nodes=2,4"], "nodes takes one value in a check, not '2,4'", "one check for each"),
        (["env.A=1,2", "transport=scripted"], "one set-up, and these keys make 2", "one value"),
        (["--anonymous"], "--anonymous needs a file", "--bundle FILE.tar.gz"),
        (["--bundle", "a.zip", "transport=scripted"], "unknown kind of file", "end the name in .tar.gz"),
        (["--bundle", "no/a.tar.gz", "transport=scripted"], "cannot write 'no/a.tar.gz'", "a folder that is there"),
        (["--machine", "node9=.", "transport=scripted"], "no machine under '.'", "topo --record"),
        (["--machine", "nowhere", "transport=scripted"], "'nowhere' is not there", "topo --record"),
        (["--against", "nowhere", "transport=scripted"], "no run in 'nowhere'", "results/latest"),
        (["--resume", "nowhere"], "no run in 'nowhere'", "results/latest"),
        (["--resume", "x", "--against", "y"], "--resume takes no", "start a new one"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_one_error_and_one_hint(tmp_path: Path, words: list[str], said: str, hint: str) -> None:
    done = here("check", *words, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    first, second, *more = done.stderr.strip().splitlines()
    assert not more and first.startswith("error: ") and said in first and second.startswith("hint: ") and hint in second
    assert not (tmp_path / "results").exists()


def test_a_key_of_no_check_is_refused() -> None:
    with pytest.raises(UsageError, match="mode is a key of commbench sweep"):
        keys.read(("mode=pipelined",))
