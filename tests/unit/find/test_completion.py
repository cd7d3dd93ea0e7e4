"""The tab key: commands, recipes, keys and their values, in shells that break words at `=` and in others."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from click.shell_completion import BashComplete

from commbench import cli
from commbench.commands import completing
from tests.conftest import PATIENCE_S, REPOSITORY


def offered(line: str) -> list[str]:
    """What is offered at the end of a line, whose last word is what was begun."""
    *args, incomplete = line.split(" ")[1:]
    complete = BashComplete(cli.cli, {}, "commbench", completing.VARIABLE)
    return [item.value for item in complete.get_completions(args, incomplete)]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("commbench expl", ["explain"]),
        ("commbench recipes quick_", ["quick_gpu"]),
        ("commbench keys sizes.m", ["sizes.max", "sizes.min"]),
        ("commbench explain bound_f", ["bound_fraction"]),
        ("commbench sweep qui", ["quick", "quick_gpu"]),
        ("commbench sweep quick qui", []),  # the recipe is the first word
        ("commbench sweep quick transp", ["transport="]),
        ("commbench sweep quick env", ["env."]),
        ("commbench sweep quick dtype=b", ["dtype=bf16"]),
        ("commbench sweep quick dtype = b", ["bf16"]),
        ("commbench sweep quick in_place =", ["false", "true"]),
        ("commbench sweep quick dtype = fp32 mo", ["mode=", "model_dim="]),
        ("commbench sweep quick dtype=fp32,b", ["dtype=fp32,bf16"]),
        ("commbench sweep quick dtype = fp32,b", ["fp32,bf16"]),
        ("commbench sweep quick nosuch=b", []),
        ("commbench sweep quick bud", []),
        ("commbench tune quick bud", ["budget="]),
        ("commbench train tin", ["tiny"]),
        ("commbench train tiny transport=", ["transport=gloo", "transport=nccl"]),
        ("commbench train ab tiny dtype = f", ["fp32", "fp64"]),
        ("commbench ab better=h", ["better=higher"]),
        ("commbench advise model", ["model_dim="]),
    ],
)
def test_what_is_offered(line: str, expected: list[str]) -> None:
    assert offered(line) == expected


def test_nothing_here_loads_what_is_heavy() -> None:
    """Of completion, and of all commands that say what there is."""
    code = """
import os, sys
from commbench.cli import _main
layer = "tokens=4096 model_dim=4096 top_k=2 experts=16 ep=8".split()
for words in (["keys"], ["keys", "link"], ["recipes"], ["recipes", "pairs"], ["explain", "busbw"], ["advise", *layer]):
    assert _main(words) == 0
os.environ.update(_COMMBENCH_COMPLETE="bash_complete", COMP_WORDS="commbench sweep quick dtype=b", COMP_CWORD="3")
try:
    _main([])
finally:
    print(*sys.modules, file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, timeout=PATIENCE_S
    )
    assert done.stdout.endswith("plain,dtype=bf16\n")
    assert not {"torch", "pandas", "scipy", "matplotlib"} & set(done.stderr.split())


def test_bash_puts_no_space_behind_an_equals_sign() -> None:
    environment = {**os.environ, completing.VARIABLE: "bash_source"}
    code = "from commbench.cli import _main; _main([])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        timeout=PATIENCE_S,
    )
    assert "*= ]] && compopt -o nospace" in done.stdout and "complete -o nosort -F" in done.stdout
