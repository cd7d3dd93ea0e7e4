"""What is done wrong with any torch program, and the test of its one clear error: none may go."""

from __future__ import annotations

import ast

import pytest

from tests.conftest import REPOSITORY

BACKEND, START, EXEC = "gloo/test_backend.py", "gloo/test_backend_start.py", "unit/commands/test_exec.py"
WRONG_USES = {  # the test, and what it expects to be said
    "a profile of another world size": (BACKEND, "test_a_profile_that_cannot_hold_is_said_once", "profile is for 4"),
    "a profile of another torch": (BACKEND, "test_a_profile_that_cannot_hold_is_said_once", "profile is for 1.0"),
    "two profiles": (EXEC, "test_a_program_goes_by_one_profile", "two profiles: COMMBENCH_PROFILE is"),
    "a group too small": (BACKEND, "test_a_group_that_is_too_small_is_said_once", "the profile is for 2, here is 1"),
    "a trace folder in use": ("unit/commands/test_record.py", "test_a_folder_that_is_used", "is in use"),
    "the backend asked for twice": (BACKEND, "test_a_backend_that_is_asked_for_twice_is_one", "of_environment"),
    "ranks by spawn": (START, "test_what_is_too_late_is_refused_in_words", "not by torch.multiprocessing.spawn"),
    "a program that never inits": (START, "test_a_program_that_makes_no_group_is_told_once", "no process group"),
    "a rank that is killed": (BACKEND, "test_a_rank_that_is_killed_ends_the_calls_of_the_others", "SIGKILL"),
    "a module of ours that raises": (START, "test_import_torch_never_fails", "the program runs without it"),
    "exec with a binding above what is no launcher": (
        EXEC, "test_without_a_launcher_there_is_no_rank_to_bind", "no launcher has started it",
    ),
    "an emulated node too many": (EXEC, "test_a_cluster_around_the_program", "nodes=65"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG_USES)
def test_a_test_says_so(what: str) -> None:
    file, test, said = WRONG_USES[what]
    text = (REPOSITORY / "tests" / file).read_text()
    bodies = {node.name: ast.get_source_segment(text, node) for node in ast.parse(text).body
              if isinstance(node, ast.FunctionDef)}  # fmt: skip
    assert said in (bodies.get(test) or ""), f"{file} has no {test} that expects {said!r}"
