"""The command line as people meet it: cheap help, a frozen list of flags, wrong input in one line with a hint."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from commbench import cli
from commbench.cli import _main
from commbench.commands.options import SHORT
from tests.conftest import PATIENCE_S, REPOSITORY, commbench, environment

HEAVY = {"torch", "pandas", "scipy", "matplotlib", "numpy", "hydra", "pyarrow", "rich"}


def test_help_imports_nothing_heavy() -> None:
    code = "import sys\nfrom commbench.cli import _main\n_main(['--help'])\nprint(*sys.modules, file=sys.stderr)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True, timeout=PATIENCE_S
    )
    assert "commbench sweep" in result.stdout
    assert not HEAVY & set(result.stderr.split())


def test_a_scripted_sweep_imports_no_torch_in_the_parent_or_in_the_ranks(tmp_path: Path) -> None:
    poisoned = tmp_path / "poison" / "torch"
    poisoned.mkdir(parents=True)
    (poisoned / "__init__.py").write_text("raise ImportError('torch was imported')")
    result = commbench(
        *("sweep", "quick", "transport=scripted", "launches=1", "iters=3", "-e", "1K"),
        cwd=tmp_path,
        env=environment(poisoned.parent),
    )
    assert result.returncode == 0, result.stderr


FLAGS = {
    "sweep": {
        "-b", "--min-bytes", "-e", "--max-bytes", "-f", "--factor", "-n", "--iters", "-w", "--warmup",
        "-d", "--dtype", "-o", "--op", "-r", "--root", "-g", "--ranks-per-node", "--out", "--resume",
        "--retry-failed", "--allow-env", "--algorithms", "--dry-run", "--show-config", "--launcher", "--format",
        "--columns", "--no-plots", "-q", "--quiet", "-v", "--verbose",
    },
    "plot": {"--out", "--ranks", "--nodes", "--link-rate"},
    "doctor": {"--format"},
    "stragglers": {"--effect", "--format"},
    "model": {"--format", "--columns", "--out"},
    "topo": {"--format", "--plot", "--record", "--root"},
    "export": {"--format", "--scope", "--out", "--allow-env", "--algorithms"},
    "ab": {
        "--profile", "--reductions", "--allow-env", "--algorithms", "--metric", "--resume", "--out", "--format",
        "--no-plots", "-q", "--quiet",
    },
    "exec": {"--profile", "--scope", "--dry-run", "--reductions", "--allow-env", "--algorithms"},
    "record": {"--out", "--import", "--anonymous", "--format", "--no-plots", "-q", "--quiet"},
    "keys": set(),
    "recipes": set(),
    "explain": set(),
    "advise": {"--format"},
    "prove": {"--format"},
}  # fmt: skip


@pytest.mark.parametrize("command", list(FLAGS))
def test_no_new_flags(command: str) -> None:
    """Flags grow without end unless a test says no: a new setting is a key of a recipe."""
    options = {name for option in cli.cli.commands[command].params for name in option.opts if name.startswith("-")}
    assert options == FLAGS[command]


def test_choices_of_the_cli_are_those_of_the_tables() -> None:
    """They are written twice only because --help must not import the tables."""
    from commbench import launch
    from commbench.output import writers

    assert cli._FORMATS == writers.FORMATS
    from commbench.sweep.keys import KEYS

    assert set(launch.TABLE) | {"print"} == set(cli._LAUNCHERS)
    assert SHORT.keys() <= KEYS.keys()


EXAMPLES = {  # a line that its help has, or the shortest
    "exec": "commbench exec --profile p.json -- torchrun --nproc-per-node=8 train.py",
    "compare": "commbench compare results/20260301-before results/latest",
    "stragglers": "commbench stragglers results/latest",
    "model": "commbench model results/latest",
    "plot": "commbench plot alltoall_perf.log --link-rate inter=8x400gbit",
}
BAD = {
    "swep": ("No such command 'swep'", "--help"),
    "sweep quik": ("unknown recipe 'quik'", "quick"),
    "sweep ./none.yaml": ("no recipe file './none.yaml'", "name of a recipe"),
    "sweep quick quick": ("unexpected argument 'quick'", "KEY=VALUE"),
    "sweep quick typo=1": ("unknown key 'typo'", ""),
    "sweep quick samples.mn=1": ("unknown key 'samples.mn'", "samples.min"),
    "sweep quick +typo=1": ("'+typo=1'", "--show-config"),
    "sweep quick ~seed": ("'~seed'", "--show-config"),
    "sweep quick algorithm=brukc": ("unknown algorithm 'brukc'", "bruck"),
    "sweep quick transport=glo": ("unknown transport 'glo'", "gloo"),
    "sweep quick transport=nccl": ("transport nccl needs GPUs", "CUDA_VISIBLE_DEVICES"),
    "sweep gpu": ("transport nccl needs GPUs", "nvidia-smi"),
    "sweep quick collective=all2all": ("unknown collective 'all2all'", "all_to_all"),
    "sweep quick dtype=fp8": ("unknown dtype 'fp8'", "fp16"),
    "sweep quick mode=pipeline": ("unknown mode 'pipeline'", "pipelined"),
    "sweep quick transport=gloo mode=graph": ("no case of this sweep can run", "gloo has no mode graph"),
    "sweep quick transport=gloo algorithm=symm_store buffers=symmetric": (
        "no case of this sweep can run",
        "gloo has no symmetric buffers",
    ),
    "sweep quick sizes=tiny": ("unknown sizes 'tiny'", "small"),
    "sweep quick -b 12Q": ("bad size '12Q'", "32K"),
    "sweep quick -b 0": ("sizes.min has 0", "1 byte"),
    "sweep quick sizes.list=0": ("sizes.list has 0", "1 byte"),
    "sweep quick sizes.list=1K -b 4K": ("sizes.list and sizes.min are both set", "a list, or a range"),
    "sweep quick sizes.list=[]": ("sizes.list is empty", "1K,1M"),
    "sweep quick -b 1M -e 1K": ("sizes.min 1M is above sizes.max 1K", "-b and -e"),
    "sweep quick -f 1": ("sizes.factor is 1", "above 1"),
    "sweep quick launches=0": ("launches is 0", "from 1"),
    "sweep quick launches=abc": ("launches is 'abc'", "whole number"),
    "sweep quick iters=0": ("iters is 0", "from 1"),
    "sweep quick seed=1,2": ("seed takes one value, not 2", "one sweep for each"),
    "sweep quick samples.min=50 samples.max=5": ("samples.min 50 is above samples.max 5", ""),
    "sweep quick window=2 algorithm=direct": ("has no effect in this sweep", "pairwise"),
    "sweep quick window=0 algorithm=pairwise": ("no case of this sweep can run", "window=0"),
    "sweep quick nodes=1 ranks_per_node=1": ("no case of this sweep can run", "one rank"),
    "sweep quick dtype=fp32,": ("cannot read 'dtype=fp32,'", "quote"),
    "sweep quick env.A": ("cannot read 'env.A'", "env.NAME=value"),
    "sweep quick transport=scripted --launcher torchrun": ("does not run under --launcher torchrun", "local"),
    "sweep quick transport=scripted script=none.json": ("cannot read the script 'none.json'", "script="),
    "sweep --out /proc/nowhere": ("cannot write '/proc/nowhere'", "--out"),
    "sweep --resume nowhere": ("no run in 'nowhere'", "results/latest"),
    "sweep --resume . quick": ("--resume takes no recipe", "new run"),
    "sweep --retry-failed": ("needs a run to go on with", "--resume"),
    "sweep -c 1": ("No such option '-c'", "every timed call is compared"),
    "tune quick -G 20": ("No such option '-G'", "mode=graph"),
    "sweep --minbytes 8": ("No such option '--minbytes'", "-b SIZE"),
    "sweep quick -d double": ("-d double: there is no such type here", "-d uint8"),
    "sweep quick -o avg": ("-o avg: there is no such operation here", "-o sum"),
    "compare -c 1": ("No such option '-c'", "--help"),
    "sweep --bogus": ("No such option '--bogus'", "--help"),
    "sweep --format xml": ("'xml' is not one of", "--help"),
    **{command: ("Missing", f"{example}; see commbench {command} --help") for command, example in EXAMPLES.items()},
    "tune quick --out /proc/p.json": ("cannot write '/proc/p.json'", "in a folder of yours"),
    "export p.json": ("Missing option '--format'. Choose from: json, env,", "--format env"),
    "plot nowhere": ("no run in 'nowhere'", "results/latest"),
}


@pytest.mark.parametrize("line", list(BAD))
def test_bad_input_is_one_clear_line_and_a_hint(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _main(line.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    error, hint = captured.err.splitlines()
    message, advice = BAD[line]
    assert error.startswith("error: ") and message in error
    assert hint.startswith("hint: ") and advice in hint
    assert not list(tmp_path.iterdir()), "something was started or written"


def test_a_missing_transport_is_a_line_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert _main(["sweep", "quick"]) == 2
    assert "pip install torch" in capsys.readouterr().err
    assert _main(["sweep", "quick", "transport=gloo,scripted", "--dry-run"]) == 0
    captured = capsys.readouterr()
    assert "gloo needs torch" in captured.err and "scripted" in captured.out
