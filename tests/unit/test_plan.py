"""Recipes, keys, cases and launches."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from commbench import config, plan, recipes
from commbench.errors import UsageError
from commbench.records import Case, from_dict
from tests.conftest import REPOSITORY


def planned(*words: str) -> list[plan.PlannedCase]:
    from commbench.commands.prepare import configure

    return plan.expand(configure(words)[1])


@pytest.mark.parametrize("recipe", recipes.groups()["recipe"])
def test_every_recipe_composes_and_plans(recipe: str) -> None:
    cases = planned(recipe)
    assert cases and all(not item.skip for item in cases)


@pytest.mark.parametrize("sizes", recipes.groups()["sizes"])
def test_every_size_group_composes(sizes: str) -> None:
    assert planned("quick", f"sizes={sizes}")


def test_quick_is_twenty_cases_or_more() -> None:
    assert len(planned("quick")) >= 20


def test_a_runs_config_is_a_recipe_that_plans_the_same_cases(tmp_path: Path) -> None:
    from commbench.commands.prepare import configure, show_config

    words = ("quick", "env.A=^ib,b", "window=1,2", "sizes=small", "dtype=bf16,fp32")
    path = tmp_path / "again.yaml"
    path.write_text(show_config(configure(words)[1]))
    assert [item.case.case_id for item in planned(str(path))] == [item.case.case_id for item in planned(*words)]


def test_hydras_grammar_means_what_its_users_expect() -> None:
    cases = planned("quick", "algorithm=direct,2d_intra_first", "dtype=choice(bf16,fp32)", "sizes.min=4K")
    assert {item.case.algorithm for item in cases} == {"direct", "2d_intra_first"}
    assert {item.case.dtype for item in cases} == {"bf16", "fp32"}
    assert min(item.case.size_bytes for item in cases) == 4096
    windows = planned("quick", "algorithm=pairwise", "window=range(1,4)")
    assert {item.case.params["window"] for item in windows} == {1, 2, 3}
    every = {item.case.algorithm for item in planned("quick", "algorithm=all")}
    assert every == {"direct", "pairwise", "bruck", "2d_intra_first"}


def test_environment_values_pass_raw() -> None:
    overrides = recipes.parse_overrides(["env.NCCL_IB_HCA=^ib,a=b", "env.X='a,b'", "env.Y="])
    assert overrides.env == {"NCCL_IB_HCA": ["^ib", "a=b"], "X": ["a,b"], "Y": [""]}
    outers = {str(item.case.outer) for item in planned("quick", "env.A=1,2", "env.B=x")}
    assert len(outers) == 2 and all(", B=x" in outer for outer in outers)


def test_case_ids_are_stable_and_tell_cases_apart() -> None:
    once, again = planned("quick"), planned("quick")
    ids = [item.case.case_id for item in once]
    assert ids == [item.case.case_id for item in again]
    assert len(set(ids)) == len(ids)
    assert not set(ids) & {item.case.case_id for item in planned("quick", "seed=1")}
    # A case survives its JSON.
    case = once[0].case
    import dataclasses

    assert from_dict(Case, json.loads(json.dumps(dataclasses.asdict(case)))) == case


def test_sizes_round_down_and_merge() -> None:
    cases = planned("quick", "algorithm=direct", "sizes.min=1", "sizes.max=130", "sizes.factor=1.1")
    assert [item.case.size_bytes for item in cases] == [0, 64, 128]
    assert [bool(item.skip) for item in cases] == [True, False, False]
    assert "rounds down to 0" in cases[0].skip


def test_launches_are_interleaved_in_seeded_order() -> None:
    cases = planned("quick", "env.A=1,2", "launches=3")
    order = list(plan.launches(cases, seed=4))
    assert [item.index for item in order] == [0, 0, 1, 1, 2, 2]
    assert all({order[i].outer.key, order[i + 1].outer.key} == {c.case.outer.key for c in cases} for i in (0, 2, 4))
    assert order == list(plan.launches(cases, seed=4))
    assert [c.case_id for c in order[0].cases] != [c.case_id for c in order[2].cases]
    assert sorted(c.case_id for c in order[0].cases) == sorted(
        c.case.case_id for c in cases if c.case.outer.key == order[0].outer.key
    )
    assert order != list(plan.launches(cases, seed=5))


def test_a_user_recipe_with_an_unknown_key(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("# @package _global_\nlaunchs: 3\n")
    with pytest.raises(UsageError, match="unknown key 'launchs'"):
        planned(str(path))
    path.write_text("a: [")
    with pytest.raises(UsageError, match="does not compose"):
        planned(str(path))


def test_every_key_of_the_base_recipe_is_known_and_explained() -> None:
    text = (recipes.root() / "config.yaml").read_text()
    base = config.flatten({key: value for key, value in yaml.safe_load(text).items() if key != "defaults"})
    assert set(base) - {"env"} <= set(config.keys())
    for line in text.splitlines()[1:]:
        if line and not line.startswith(("defaults", "  - ", "#", "samples:")):
            assert "#" in line, f"no explanation: {line}"


def test_dry_run_of_ten_thousand_cases_is_small() -> None:
    """Under 300 MiB; `make bench` times it."""
    words = ["quick", "sizes.min=1K", "sizes.max=1G", "sizes.factor=2", "dtype=fp32,fp16,bf16,int32,uint8"]
    words += ["mode=isolated,pipelined", "cache=warm,cold", "env.A=" + ",".join(map(str, range(6))), "algorithm=all"]
    # Not getrusage: its maximum includes what the process was before exec, a copy of this one.
    script = (
        "import sys\nfrom commbench.cli import _main\ncode = _main(sys.argv[1:])\n"
        "peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM:'))\n"
        "print(peak.split()[1], file=sys.stderr)\nsys.exit(code)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, "sweep", *words, "--dry-run"],
        capture_output=True, text=True, cwd=REPOSITORY, timeout=60, check=True,
    )  # fmt: skip
    assert int(result.stdout.split()[0]) >= 10_000
    assert int(result.stderr.split()[-1]) < 300 * 1024
