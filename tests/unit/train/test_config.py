"""Keys of `commbench train`: recipes, words, and what cannot be meant. Nothing here needs torch."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from commbench import cli
from commbench.cli import _main
from commbench.commands.options import TRAINERS
from commbench.errors import EnvironmentProblem, UsageError
from commbench.train import config as training
from commbench.train import launch
from commbench.train.launch import LAUNCHERS
from tests.conftest import PATIENCE_S, REPOSITORY


@pytest.mark.parametrize("name", training.names())
def test_recipes_are_settings(name: str) -> None:
    config, env = training.compose([name])
    assert config.recipe == name and env == {} and config.parts is not None
    assert training.TrainConfig.of(json.loads(config.to_json())) == config


def test_the_recipes_that_were_promised_are_there() -> None:
    assert {"tiny", "small", "tutel-fig1", "table1-scaled"} <= {*training.names()}


def test_words_change_keys() -> None:
    config, env = training.compose(["tiny", "lr=1", "profile=p.json", "tied=false", "env.A=^b", "peak_tflops=2"])
    assert (config.lr, config.tied, config.peak_tflops) == (1.0, False, 2.0)
    assert config.profile == str(Path("p.json").absolute())
    assert env == {"A": "^b"}
    assert training.compose([])[0].recipe == "tiny" and training.compose(["lr=1"])[0].recipe == "tiny"


def test_parts_stay_as_many_as_the_first_ranks() -> None:
    config, _ = training.compose(["tiny", "parts=null", "ranks_per_node=8"])
    assert config.parts == 8
    on, _ = training.compose(["ranks_per_node=2"], first=dataclasses.asdict(config))
    assert (on.parts, on.ranks, on.cut(on.ranks)) == (8, 2, (8, 2))
    assert not on.changed(config)
    assert training.compose(["seed=1"], first=dataclasses.asdict(config))[0].changed(config) == {"seed": (1, 0)}


def test_tensor_parallel_runs_go_on_as_the_same_training() -> None:
    config, _ = training.compose(["tiny", "tp=2", "parts=null"])
    assert (config.parts, config.capacity_multiple, config.schedule) == (2, 2, "tensor_parallel")
    first = dataclasses.asdict(config)
    on, _ = training.compose(["tp=1", "ranks_per_node=2", "schedule=sequential"], first=first)
    assert on.capacity_multiple == 2 and not on.changed(config)
    slices, _ = training.compose(["schedule=parm_s1"], first=first)
    assert slices.changed(config).keys() == {"schedule"}
    more, _ = training.compose(["tp=4", "ranks_per_node=8"], first=dataclasses.asdict(slices))
    assert more.changed(slices) == {"tp": (4, 2)}, "slices are as many as tp"
    whole, _ = training.compose(["tiny", "batch=16"])
    assert training.compose(["tp=2"], first=dataclasses.asdict(whole))[0].capacity_multiple == 1


def test_a_file_is_a_recipe_too(tmp_path: Path) -> None:
    text = (REPOSITORY / "sweeps/train/tiny.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(text.replace("layers: 4", "layers: 6"))
    config, _ = training.compose([str(tmp_path / "mine.yaml")])
    assert config.layers == 6 and config.recipe == "mine"
    (tmp_path / "less.yaml").write_text("layers: 4\n")
    with pytest.raises(UsageError, match="the recipe lacks 'batch'"):
        training.compose([str(tmp_path / "less.yaml")])


BAD = {
    "train tiy": ("unknown recipe 'tiy'", "tiny"),
    "train ./none.yaml": ("no recipe file './none.yaml'", "tiny"),
    "train tiny typo=1": ("unknown key 'typo'", ""),
    "train tiny stpes=1": ("unknown key 'stpes'", "steps"),
    "train tiny record_routing=r.npz tp=2": ("record_routing with tp=2", "tp=1"),
    "train tiny record_routing=none/r.npz": ("there is no folder", "make it first"),
    "train tiny steps=0": ("steps is 0", "1 or more"),
    "train tiny steps=1,2": ("steps takes one value, not 2", "one training for each"),
    "train tiny steps=x": ("steps is 'x'", "a whole number"),
    "train tiny steps=1.5": ("steps is 1.5", "a whole number"),
    "train tiny tied=1": ("tied is 1", "true or false"),
    "train tiny lr=-1": ("lr is -1", "0 or more"),
    "train tiny clip=0": ("clip is 0", "above 0"),
    "train tiny beta1=2": ("beta1 is 2", "0 <= beta1 < 1"),
    "train tiny beta2=1": ("beta2 is 1", "0 <= beta2 < 1"),
    "train tiny peak_tflops=0": ("peak_tflops is 0", "above 0"),
    "train tiny bucket_mb=inf": ("bucket_mb is inf", "a finite number"),
    "train tiny seed=9223372036854775808": ("seed is 9223372036854775808", "below 2^63"),
    "train tiny binding=pic": ("unknown binding 'pic'", "pci"),
    "train tiny binding=explicit": ("unknown binding 'explicit'", ""),
    "train ab tiny candidat=default": ("unknown key 'candidat'", "candidate"),
    "train ab tiny candidate.tp=2": (
        "different models: capacity_multiple (1 and 2)",
        "capacity_multiple=VALUE for both",
    ),
    "train tiny dtype=fp8": ("unknown dtype 'fp8'", "fp64"),
    "train tiny recompute=all": ("unknown recompute 'all'", "redo"),
    "train tiny transport=mpi": ("unknown transport 'mpi'", "gloo"),
    "train tiny transport=nccl": ("transport nccl needs GPUs", "CUDA_VISIBLE_DEVICES"),
    "train tiny ranks_per_node=3": ("parts=4 of a batch do not divide among 3 ranks", "of 4 parts: 1, 2 or 4"),
    "train tiny batch=6": ("batch=6 sequences do not divide into 4 parts", "a multiple of parts=4"),
    "train tiny tp=3": ("tp=3 does not divide ranks_per_node=4", "consecutive"),
    "train tiny tp=4 heads=6 width=24": ("heads=6 does not divide among tp=4", "divides heads"),
    "train tiny tp=2 tp_tokens=drop capacity_multiple=3": (
        "capacity_multiple=3 is not a multiple of tp=2",
        "tp_tokens",
    ),
    "train tiny fabric=emulated link=fast": ("fast", ""),
    "train tiny sizes=tiny": ("unknown sizes 'tiny'", ""),
    "train tiny profile=none.json": ("none.json", ""),
    "train --resume nowhere": ("no run in 'nowhere'", "results/latest"),
    "train --out /proc/nowhere": ("cannot write '/proc/nowhere'", "--out"),
    "train --launcher slurm": ("'slurm' is not one of", "--help"),
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


def test_no_new_flags() -> None:
    """As for the other commands: a new setting is a key. What may load code no recipe shall decide."""
    options = {name for option in cli.cli.commands["train"].params for name in option.opts if name.startswith("-")}
    assert options == {"--out", "--resume", "--show-config", "--launcher", "--format", "--no-plots", "-q", "--quiet",
                       "--allow-env", "--algorithms"}  # fmt: skip
    assert set(TRAINERS) == set(LAUNCHERS)
    both = {name for option in cli.cli.commands["train ab"].params for name in option.opts if name.startswith("-")}
    assert both == options - {"--resume", "--no-plots"}, "an A/B starts trainings of its own"


def test_ab_is_a_command_of_two_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert _main(["train", "ab", "--help"]) == 0 and "baseline=FILE candidate=FILE" in capsys.readouterr().out
    assert _main(["train", "ab", "--resume", "results/latest", "candidate=p.json"]) == 2
    assert "--resume" in capsys.readouterr().err
    assert _main(["train", "-q", "ab", "tiny"]) == 2
    assert "commbench train ab [RECIPE]" in capsys.readouterr().err


def test_show_config_lists_every_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import yaml

    assert _main(["train", "tiny", "lr=0.5", "--show-config"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["lr"] == 0.5 and training.TrainConfig.of(shown) == training.compose(["tiny", "lr=0.5"])[0]


def test_an_old_name_of_a_key_is_read_and_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training._say_renamed.cache_clear()
    new, _ = training.compose(["tiny", "permute=loop"])
    assert capsys.readouterr().err == ""
    assert training.compose(["tiny", "dispatch=loop"])[0] == training.compose(["tiny", "dispatch=loop"])[0] == new
    said = capsys.readouterr().err
    assert said.count("dispatch is called permute now") == 1 == len(said.splitlines())
    # Of a run folder or a checkpoint from before: in silence.
    old = {{"permute": "dispatch"}.get(key, key): value for key, value in json.loads(new.to_json()).items()}
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert training.load(tmp_path / "config.json") == new and capsys.readouterr().err == ""
    with pytest.raises(UsageError, match="dispatch and permute are one key"):
        training.compose(["tiny", "dispatch=loop", "permute=loop"])


def test_help_explains_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert _main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    assert [name for name in training.KEYS if f"\n  {name}" not in text] == []
    assert all(key.help and key.group in training.GROUPS for key in training.KEYS.values())


def test_every_key_is_in_the_docs() -> None:
    text = (REPOSITORY / "docs/reference/keys.md").read_text()
    missing = [field.name for field in dataclasses.fields(training.TrainConfig) if f"`{field.name}`" not in text]
    assert missing == []


def test_the_parent_imports_no_torch() -> None:
    code = (
        "import sys\nfrom commbench.train import config, launch\n"
        "config.compose(['tiny'])\nassert 'torch' not in sys.modules and 'moe_ref' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, timeout=PATIENCE_S)


def test_nothing_in_commbench_imports_moe_ref() -> None:
    for path in REPOSITORY.glob("commbench/**/*.py"):
        lines = [line.strip() for line in path.read_text().splitlines()]
        assert not [line for line in lines if line.startswith(("import moe_ref", "from moe_ref"))], path


def test_each_rank_needs_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch.transports, "check", lambda name: None)
    monkeypatch.setattr(launch.gpus, "count", lambda environ: 1)
    config, _ = training.compose(["tiny", "transport=nccl"])
    with pytest.raises(EnvironmentProblem, match="4 ranks and 1 GPU: each rank needs its own"):
        launch.check(config)
    launch.check(training.compose(["tiny", "transport=nccl", "ranks_per_node=1"])[0])
    launch.check(config, joined=True)  # its launcher has seen to that, perhaps on other hosts
