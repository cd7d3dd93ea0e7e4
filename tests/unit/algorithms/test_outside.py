"""Algorithms from outside: what is loaded and when, what is refused in which words, and where they go on to."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from commbench import algorithms, load_profile
from commbench.algorithms import outside
from commbench.algorithms.outside import OutsideAlgorithm
from commbench.cost_model import loads
from commbench.errors import UsageError
from commbench.profile import file
from commbench.run_folder import RunFolder
from commbench.sweep import keys
from commbench.variables import ALGORITHMS
from tests.conftest import REPOSITORY, here, only_run, rows_of
from tests.support import forked_command
from tests.support.profiles import choice, profile

EXAMPLE = (REPOSITORY / "examples" / "hypercube.py").read_text()
QUICK = ("quick", "transport=scripted", "nodes=2", "ranks_per_node=2", "-b", "1K", "-e", "1K", "launches=2", "iters=3",
         "--no-plots")  # fmt: skip


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    yield
    outside.forget()


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """The example, in a folder with a blank in its name."""
    folder = tmp_path / "my files"
    folder.mkdir()
    (folder / "my.py").write_text(EXAMPLE)
    return folder / "my.py"


def reason(path: Path, text: str, word: str = "") -> str:
    """Why a file is refused."""
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        outside.load(f"{path}{word}")
    assert caught.value.hint
    return str(caught.value).replace(str(path), "my.py")


def test_a_sweep_measures_it_like_ours_and_keeps_what_it_ran(mine: Path, tmp_path: Path) -> None:
    word = "algorithm=direct,'my files/my.py:Hypercube'"
    lines = rows_of(here("sweep", *QUICK, word, "--format", "json", cwd=tmp_path))
    rows = {line["algorithm"]: line for line in lines if "case_id" in line}
    assert set(rows) == {"direct", "hypercube"}
    assert rows["hypercube"]["inter_bytes"] == rows["hypercube"]["intra_bytes"] == 2048
    run = only_run(tmp_path / "results")
    (kept,) = json.loads((run / "run.json").read_text())["algorithms"]
    assert kept["file"] == str(mine) and kept["object"] == "Hypercube"
    assert (run / "algorithms" / f"hypercube-{kept['sha256'][:8]}.py").read_text() == EXAMPLE
    assert here("compare", str(run), str(run), cwd=tmp_path).returncode == 0, "readers need no code"
    assert [loads.of_case(item.case) is None for item in RunFolder(run).plan()] == [False, True]


def test_a_run_of_others_loads_nothing(mine: Path, tmp_path: Path) -> None:
    assert here("sweep", *QUICK, "algorithm='my files/my.py'", cwd=tmp_path).returncode == 0
    resumed = ("sweep", "--resume", "results/latest", "--no-plots")
    refused = here(*resumed, cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.splitlines() == [
        f"error: the run results/latest uses the algorithm hypercube of {mine}, and names no code to load by itself",
        f"hint: if you trust that file: --algorithms '{mine}:Hypercube'",
    ]
    assert here(*resumed, "--algorithms", str(mine), cwd=tmp_path).returncode == 0
    mine.write_text(EXAMPLE + "\n")
    changed = here(*resumed, "--algorithms", str(mine), cwd=tmp_path)
    assert changed.returncode == 2 and "was made with another hypercube than" in changed.stderr
    mine.unlink()
    gone = here(*resumed, cwd=tmp_path)
    assert "there is no such file here: say where yours is" in gone.stderr


def test_a_recipe_of_others_loads_nothing(tmp_path: Path) -> None:
    (tmp_path / "my.py").write_text("raise SystemExit('loaded')")
    (tmp_path / "r.yaml").write_text("algorithm: ['./my.py:Hypercube']\ntransport: scripted\n")
    refused = here("sweep", "r.yaml", cwd=tmp_path)
    assert refused.returncode == 2
    assert "a recipe names the file './my.py:Hypercube', and loads no code by itself" in refused.stderr
    assert (
        refused.stderr.splitlines()[-1] == "hint: if you trust that file, say so yourself: algorithm=./my.py:Hypercube"
    )


def test_a_profile_loads_nothing_until_the_user_says_so(mine: Path, tmp_path: Path) -> None:
    known = outside.load(str(mine))
    made = dataclasses.replace(profile(choice("all_to_all", "hypercube")), outside=[known])
    path = tmp_path / "p.json"
    file.save(made, path)
    assert file.load(path) == made
    outside.forget()
    uses = f"the profile {path} uses the algorithm hypercube of {mine}, and names no code to load by itself"
    with pytest.raises(UsageError, match=uses):
        load_profile(path)
    assert load_profile(path, algorithms=[str(mine)]).profile == made
    outside.forget()
    commands: dict[tuple[str, ...], tuple[str, ...]] = {
        ("exec", "--profile", "p.json", "--dry-run"): ("--", "true"),
        ("export", "p.json", "--format", "json"): (),
        ("ab", "--profile", "p.json", "rounds=1"): ("--", "true"),
        ("train", "tiny", "profile=p.json", "steps=1"): (),
    }
    for words, program in commands.items():
        refused = here(*words, *program, cwd=tmp_path)
        assert refused.returncode == 2 and "--algorithms" in refused.stderr.splitlines()[-1], words
    trusted = ("--algorithms", str(mine))
    told = forked_command.run("exec", "--profile", "p.json", "--dry-run", *trusted, "--", "true", cwd=tmp_path)
    assert f"{ALGORITHMS}='{mine}:Hypercube'" in told.stdout
    assert here("export", "p.json", "--format", "srun", "--out", "start", *trusted, cwd=tmp_path).returncode == 0
    assert f"{ALGORITHMS}={mine}:Hypercube" in (tmp_path / "start").read_text()
    mine.write_text(EXAMPLE + "\n")
    refused = here("exec", "--profile", "p.json", *trusted, "--", "true", cwd=tmp_path)
    assert "was made with another hypercube than" in refused.stderr and "sha256" in refused.stderr


def test_profiles_without_such_algorithms_are_as_before(tmp_path: Path) -> None:
    assert "outside" not in json.loads(file.dump(profile(choice("all_to_all", "direct"))))


def test_ranks_load_the_file_that_was_measured(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = outside.load(str(mine))
    outside.forget()
    outside.provide(known)
    assert algorithms.get("all_to_all", "hypercube").name == "hypercube"
    outside.forget()
    with pytest.raises(UsageError, match="is not the file that was measured before"):
        outside.provide(dataclasses.replace(known, sha256="0" * 64))
    monkeypatch.setenv(ALGORITHMS, f"{mine}:Hypercube")
    assert outside.of_environment() == [known]
    outside.hand_on([str(mine)])
    assert os.environ[ALGORITHMS] == f"{mine}:Hypercube"


def test_parameters_are_keys(tmp_path: Path) -> None:
    text = EXAMPLE.replace('    collective = "all_to_all"\n', '    collective = "all_to_all"\n    params = PARAMS\n')
    path = tmp_path / "my.py"
    path.write_text("PARAMS = {'fan_out': (2, 'how wide')}\n" + text.replace("from __future__ import annotations", ""))
    try:
        planned = rows_of(here("sweep", *QUICK, "algorithm=./my.py", "fan_out=2,3", "--dry-run", "--format", "json",
                               cwd=tmp_path))  # fmt: skip
    finally:
        del keys.PARAMS["fan_out"], keys.KEYS["fan_out"]
    assert [line["params"] for line in planned] == [{"fan_out": 2}, {"fan_out": 3}]
    path.write_text(path.read_text().replace("fan_out", "dtype"))
    refused = here("sweep", *QUICK, "algorithm=./my.py", cwd=tmp_path)
    assert "its parameter 'dtype' is another key of a sweep" in refused.stderr


class _Entry:
    """An entry point of an installed package."""

    group, name, value = outside.GROUP, "hypercube", "theirs:Hypercube"
    dist: Any = type("Package", (), {"name": "theirs", "version": "1.2"})

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> Any:
        cls = type(algorithms.get(*outside.load(str(self._path)).key))
        outside.forget()
        return cls


def test_an_installed_package_has_one(mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [_Entry(mine)]
    monkeypatch.setattr(
        importlib.metadata, "entry_points", lambda group, name: [one for one in entries if one.name == name]
    )
    planned = here("sweep", *QUICK, "algorithm=hypercube", "--dry-run", cwd=tmp_path)
    assert planned.returncode == 0 and "algorithms: hypercube" in planned.stdout
    known = outside.find_installed("hypercube")
    assert known is not None and known.word == "hypercube" and known.entry_point == "theirs 1.2"
    outside.forget()
    outside.require([known], "p.json")  # which is installed, and so is loaded
    outside.forget()
    entries.clear()
    with pytest.raises(UsageError, match=r"p.json uses the algorithm hypercube of theirs 1.2, which is not installed"):
        outside.require([known], "p.json")


def test_what_is_no_algorithm(tmp_path: Path) -> None:
    path = tmp_path / "my.py"
    assert reason(path, "x = (") == "my.py does not load: SyntaxError: '(' was never closed (my.py, line 1), in line 1"
    assert reason(path, "\nimport nothing_of_that_name").endswith("'nothing_of_that_name', in line 2")
    assert reason(path, "") == "my.py has 0 algorithms"
    assert reason(path, EXAMPLE, ":Other") == "my.py:Other: there is no Other"
    assert reason(path, EXAMPLE + "\n\nclass Two(Hypercube):\n    name = 'two'\n") == (
        "my.py has 2 algorithms: Hypercube, Two"
    )
    assert reason(path, EXAMPLE.replace('"hypercube"', '"direct"')).endswith(
        "is called 'direct', as one of commbench is"
    )
    edits = {
        'name = "Hyper Cube"': "its name 'Hyper Cube' is not 1 to 40 small letters, digits and _, or is `all`",
        "name = 3": "its name is 3, not a word",
        "name = 'h'\n    params = {'k': 3}": "its parameter 'k' is 3, not (default, what it means)",
        "name = 'h'\n    tries = {'k': (1,)}": "its tries name 'k', which is none of its params",
        "name = 'h'\n    demands = {'op': 'sum'}": "its demands name 'op', which is not an argument of all_to_all",
        "name = 'h'\n    concurrent = 1": "its concurrent is 1, not True or False",
        "name = 'h'\n    steps = 4": "it has no method steps; derive it from commbench.algorithms.base.AlgorithmBase",
    }
    text = EXAMPLE.partition("    def steps")
    for edit, expected in edits.items():
        body = text[0] if "steps" in edit else EXAMPLE
        assert reason(path, body.replace('name = "hypercube"', edit)) == f"my.py is not an algorithm: {expected}"
    told = reason(path, EXAMPLE.replace('"all_to_all"', '"alltoall"'))
    assert told.startswith("my.py is not an algorithm: its collective 'alltoall' is none of all_to_all, ")
    with pytest.raises(UsageError, match=r"cannot read the algorithm './none.py:A': No such file or directory"):
        outside.load("./none.py:A")


def test_two_files_with_one_name(mine: Path, tmp_path: Path) -> None:
    first = outside.load(str(mine))
    assert outside.load(f"{mine}:Hypercube") is first
    copy = tmp_path / "copy.py"
    copy.write_text(EXAMPLE)
    assert outside.load(str(copy)) is first, "a run's copy, in ranks that know the user's file too"
    mine.write_text(EXAMPLE + "\n")
    assert outside.load(str(mine)).sha256 != first.sha256, "an edited file is loaded again"
    assert "are both called 'hypercube'" in reason(tmp_path / "other.py", EXAMPLE + "\n\n")


def test_jobs_and_runs_are_checked() -> None:
    with pytest.raises(ValueError, match="`algorithms` is 3, not a list"):
        outside.read(3)
    with pytest.raises(ValueError, match="field 'name' of OutsideAlgorithm is missing"):
        outside.read([{"collective": "all_to_all"}])
    assert outside.read([]) == []
    assert OutsideAlgorithm.__dataclass_params__.frozen  # type: ignore[attr-defined]
