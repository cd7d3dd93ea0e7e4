"""The line that called: the program's own, not that of a library."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from commbench.record.sites import Sites

CALL = "def call(function):\n    return function()"


def called(*frames: tuple[str, str], names_only: bool = False) -> str:
    """The site that is found where functions of these modules and files call each other, the first outermost.

    In a thread, so that nothing of the tests is around them.
    """
    found: list[str] = []

    def find() -> None:
        found.append(Sites(names_only=names_only).find(sys._getframe(1)))

    function: Callable[[], None] = find
    for module, file in reversed(frames):
        space: dict[str, Any] = {"__name__": module}
        exec(compile(CALL, file, "exec"), space)  # noqa: S102 - a frame of another module
        function = partial(space["call"], function)
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()
    return found[0]


MOE = ("moe", str(Path.cwd() / "models/moe.py"))


@pytest.mark.parametrize(
    "library",
    ["torch", "torch.distributed.nn", "deepspeed.moe.sharded_moe", "megatron.core", "accelerate", "contextlib",
     "commbench.backend.group", "typing_extensions"],
)  # fmt: skip
def test_libraries_are_passed_over(library: str) -> None:
    assert called(MOE, (library, "library.py"), ("torch", "torch.py")) == "models/moe.py:2"


def test_a_folder_is_left_out_where_nobody_shall_know_it() -> None:
    assert called(MOE, names_only=True) == "moe.py:2"


def test_a_package_is_named_by_its_own_folder() -> None:
    assert called(("tutel", "/opt/x/site-packages/tutel/moe.py")) == "tutel/moe.py:2"


def test_code_that_was_made_up_is_passed_over() -> None:
    assert called(MOE, ("moe", "<eval_with_key>.3")) == "models/moe.py:2"


def test_where_libraries_alone_call_it_is_their_innermost_line() -> None:
    frames = [("megatron.training", "/x/train.py"), ("megatron.core", "/x/dispatcher.py"), ("torch", "/x/torch.py")]
    assert called(*frames) == "dispatcher.py:2"
    assert called(("torch", "/x/torch.py"), ("commbench.backend.group", "/x/group.py")) == ""
