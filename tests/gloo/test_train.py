"""Training over ranks: the same losses on any number of them, exchanges counted, and runs that are killed and go on."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("torch")

import torch

import commbench
from commbench.collectives import routing_trace
from commbench.errors import UsageError
from commbench.profile import file
from commbench.serialise import unseal
from commbench.train.config import TrainConfig
from moe_ref.schedules import Shape
from moe_ref.training import build
from moe_ref.training.checkpoint import Checkpoint
from moe_ref.training.trainer import Trainer
from tests.conftest import PATIENCE_S, environment, here, only_run
from tests.support import forked_command, profiles
from tests.support.ranks import on_gloo

# fp64: what remains of another number of ranks is the order of sums.
TINY = TrainConfig(
    layers=2, width=16, heads=2, hidden=24, context=16, moe_freq=1, experts=4, top_k=2, capacity="tutel",
    capacity_factor=1.0, batch=8, parts=4, steps=4, warmup=1, lr=0.01, val_sequences=8, dtype="fp64",
    order="random", clip=0.5, ranks_per_node=1,
)  # fmt: skip


def run(config: TrainConfig, until: int, folder: Path | None = None, save: Path | None = None) -> list[float]:
    """On a rank, or alone: losses, the norms' effect in them, and bits at the end; from a checkpoint, and into one."""
    comm = commbench.communicator() if torch.distributed.is_initialized() else None
    trainer = Trainer(config, comm)
    if folder is not None:
        trainer.load(Checkpoint(folder))
    losses = []
    while trainer.done < until:
        losses.append(trainer.step()[0].loss)
    if save is not None:
        trainer.save(save)
    losses.append(trainer.evaluate())
    if comm is not None:
        comm.close()
    return losses


def on(ranks: int, config: TrainConfig, until: int, *paths: Path | None) -> list[float]:
    found: list[float] = on_gloo(ranks, lambda transport: run(config, until, *paths))
    return found


@pytest.fixture(scope="module")
def alone() -> list[float]:
    torch.set_num_threads(1)
    return run(TINY, 4)


VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "no ZeRO": {"zero": False, "bucket_mb": 0.001},
    "stash": {"recompute": "stash"},
    "redo": {"recompute": "redo"},
    "pipelined": {"schedule": "pipelined", "chunks": 2, "recompute": "stash"},
}


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_ranks_compute_what_one_does(variant: str, alone: list[float]) -> None:
    found = on(4, replace(TINY, **VARIANTS[variant]), 4)
    assert found == pytest.approx(alone, rel=1e-11)
    assert len({round(loss, 6) for loss in alone}) == 5, "each step has another loss"


def test_bf16_is_fp32_but_for_its_bits() -> None:
    wide, narrow = (on(2, replace(TINY, dtype=dtype, recompute="stash"), 3) for dtype in ("fp32", "bf16"))
    assert narrow == pytest.approx(wide, rel=5e-3) and narrow != wide
    shared = replace(TINY, dtype="bf16", recompute="redo", ranks_per_node=4, tp=2, parts=2, capacity_multiple=2)
    whole = replace(TINY, dtype="fp32", parts=2, capacity_multiple=2)
    assert on(4, shared, 3) == pytest.approx(on(2, whole, 3), rel=5e-3)


def test_experts_in_pieces_compute_the_same(alone: list[float]) -> None:
    whole = replace(TINY, experts=2)
    assert on(4, whole, 4) == pytest.approx(run(whole, 4), rel=1e-11)


def test_dropless_ranks_compute_what_one_does() -> None:
    config = replace(TINY, capacity="dropless", recompute="stash")
    assert on(2, config, 3) == pytest.approx(run(config, 3), rel=1e-11)


TP: dict[str, dict[str, Any]] = {
    "duplicate": {"tp_tokens": "duplicate", "zero": False},
    "by the profile": {"recompute": "stash"},
    "drop_pipelined": {"tp_tokens": "drop_pipelined", "chunks": 2, "recompute": "redo"},
    "parm_s2": {"schedule": "parm_s2"},
}


@pytest.mark.parametrize("variant", list(TP))
def test_tensor_parallel_ranks_compute_what_one_does(variant: str) -> None:
    """2 groups of 2 ranks, which share attention, FFN and experts: parts are as many as groups."""
    config = replace(TINY, moe_freq=2, parts=2, capacity_multiple=2)
    found = on(4, replace(config, ranks_per_node=4, tp=2, **TP[variant]), 4)
    assert found == pytest.approx(run(config, 4), rel=1e-11)


def test_slots_counted_by_slices_train_another_model() -> None:
    config = replace(TINY, parts=2, capacity_multiple=2, ranks_per_node=4, tp=2)
    slices = replace(config, schedule="parm_s1")
    assert slices.changed(config) == {"schedule": ("parm_s1", None)}
    assert replace(config, schedule="parm_s2").changed(config) == {}
    found, whole = on(4, slices, 3), on(4, config, 3)
    assert found == pytest.approx(whole, rel=0.01) and found != whole
    # With room for all, slices decide what the whole group decides, but for the balance loss, which is of a slice.
    roomy = {"capacity_factor": 4.0, "order": "position", "aux": 0.0, "recompute": "stash"}
    assert on(4, replace(slices, **roomy), 3) == pytest.approx(on(4, replace(config, **roomy), 3), rel=1e-11)


@pytest.mark.parametrize(("first", "second"), [((4, 2), (2, 1)), ((1, 1), (4, 2)), ((4, 2), (2, 2))])
def test_a_checkpoint_goes_on_with_another_tensor_parallel_degree(
    first: tuple[int, int], second: tuple[int, int], tmp_path: Path
) -> None:
    config = replace(TINY, moe_freq=2, parts=2, capacity_multiple=2)

    def part(ranks: int, tp: int, until: int, *paths: Path | None) -> list[float]:
        its = replace(config, ranks_per_node=ranks, tp=tp, zero=tp == 2)
        return run(its, until, *paths) if ranks == 1 else on(ranks, its, until, *paths)

    part(*first, 2, None, tmp_path)
    assert part(*second, 4, tmp_path / "step-00000002") == pytest.approx(run(config, 4)[2:], rel=1e-11)


def test_collectives_of_tensor_parallel_ranks_are_as_many_as_the_plans_say() -> None:
    """Of each layer with experts what its schedule plans; of each other block and each attention 2 sums."""
    config = replace(TINY, moe_freq=2, parts=2, capacity_multiple=2, ranks_per_node=4, tp=2, bucket_mb=100)

    def rank(transport: Any) -> list[dict[str, int]]:
        found = []
        comm = commbench.communicator()
        for variant in TP.values():
            trainer = Trainer(replace(config, **{**variant, "recompute": "none"}), comm)
            trainer.step()
            assert trainer.monitor is not None
            found.append(dict(trainer.monitor.calls))
        return found

    shape = Shape(T=32 * 2, D=16, E=4, K=2, C=32, W=4, tp=2)
    for variant, calls in zip(TP.values(), on_gloo(4, rank), strict=True):
        planned = Counter[str]()
        for message in build.make_schedule(replace(config, **variant)).traffic(shape):
            planned[message.collective] += message.calls
        planned["all_reduce"] += 2 * 2 + 2 + 2  # attention of two blocks, one FFN, two buckets
        assert calls == planned


@pytest.mark.parametrize(("first", "second"), [(4, 2), (2, 4), (4, 1), (1, 2)])
def test_a_checkpoint_goes_on_with_another_number_of_ranks(
    first: int, second: int, alone: list[float], tmp_path: Path
) -> None:
    if first == 1:
        run(TINY, 2, None, tmp_path)
    else:
        on(first, TINY, 2, None, tmp_path)
    folder = tmp_path / "step-00000002"
    found = run(TINY, 4, folder) if second == 1 else on(second, replace(TINY, zero=second != 4), 4, folder)
    assert found == pytest.approx(alone[2:], rel=1e-11)


def test_one_ranks_wish_to_stop_is_heard_by_all() -> None:
    def rank(transport: Any) -> list[bool]:
        comm = commbench.communicator()
        trainer = Trainer(TINY, comm)
        heard = [trainer.step()[1], trainer.step(stop=comm.rank == 1)[1]]
        comm.close()
        return heard

    assert on_gloo(2, rank) == [False, True]


DEEP = replace(TINY, layers=32, moe_freq=2, width=8, hidden=8, context=8, dtype="fp32", parts=2, batch=2,
               val_sequences=2, order="position", capacity_factor=2.0)  # fmt: skip


@pytest.mark.parametrize(
    ("recompute", "exchanges", "given_again"), [("none", 64, 0), ("redo", 96, 0), ("stash", 64, 32)]
)
def test_all_to_alls_of_a_step_are_as_many_as_the_formula_says(
    recompute: str, exchanges: int, given_again: int
) -> None:
    """32 layers, every second with experts: there and back, forward and backward; once more where blocks are redone."""

    def rank(transport: Any) -> list[Any]:
        trainer = Trainer(replace(DEEP, recompute=recompute), commbench.communicator())
        metrics, _ = trainer.step()
        monitor = trainer.monitor
        assert monitor is not None
        return [monitor.a2a_calls, sum(monitor.stashed.values()), metrics.a2a_bytes, dict(monitor.calls)]

    calls, stashed, sent, by_name = on_gloo(2, rank)
    assert (calls, stashed) == (exchanges, given_again)
    # E C D w: capacity is 2 x floor(2 x 8 / 4) = 8 slots of 4 experts for the 8 tokens of each rank, in fp32.
    assert sent == exchanges * 4 * 8 * 8 * 4
    assert by_name == {"all_to_all": exchanges, "all_reduce": 1}, "gradients go in one bucket"


def test_what_ranks_cannot_do_is_refused() -> None:
    def rank(transport: Any) -> list[str]:
        comm = commbench.communicator()
        said = []
        for wrong in ({"experts": 3}, {"parts": 3, "batch": 9, "val_sequences": 9}, {"schedule": "sideways"},
                      {"path": "none.txt"}):  # fmt: skip
            try:
                Trainer(replace(TINY, **wrong), comm)
            except UsageError as error:
                said.append(str(error))
        comm.close()
        return said

    experts, parts, schedule, path = on_gloo(2, rank)
    assert "experts=3 and 2 ranks" in experts and "parts=3" in parts
    assert "unknown schedule 'sideways'" in schedule and "none.txt" in path


# The command line: a model of no use, in fp64 so that losses can be compared between numbers of ranks.
WORDS = ("train", "tiny", "layers=2", "width=16", "heads=2", "hidden=16", "context=32", "experts=4", "dtype=fp64",
         "val_sequences=8", "batch=4", "warmup=2", "--no-plots")  # fmt: skip


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(unseal(line)) for line in path.read_bytes().splitlines()] if path.exists() else []


def compared(one: list[dict[str, Any]], other: list[dict[str, Any]], rel: float) -> None:
    assert [line["step"] for line in one] == [line["step"] for line in other]
    for key in ("loss", "val_bits_per_byte"):
        for a, b in zip(one, other, strict=True):
            assert (a[key] is None) == (b[key] is None)
            if a[key] is not None:
                assert a[key] == pytest.approx(b[key], rel=rel), (key, a["step"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """An uninterrupted run of 30 steps on 4 ranks."""
    folder = tmp_path_factory.mktemp("whole")
    result = here(*WORDS, "steps=30", "val_every=10", "save_every=10", "--format", "json", cwd=folder)
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    run_folder = only_run(folder / "results")
    assert lines_of(run_folder / "metrics.jsonl") == rows
    assert [path.name for path in sorted((run_folder / "checkpoints").glob("step-*"))] == [
        "step-00000020", "step-00000030",
    ]  # fmt: skip
    assert json.loads((run_folder / "run.json").read_text())["status"] == "finished"
    assert "all_to_all" in next(run_folder.glob("logs/*/communicator.txt")).read_text()
    return rows


def test_every_step_is_a_line_with_the_promised_keys(whole: list[dict[str, Any]]) -> None:
    assert [line["step"] for line in whole] == list(range(1, 31))
    assert all(
        set(line) == {
            "step", "loss", "val_bits_per_byte", "tokens_per_s", "mfu", "a2a_us", "a2a_calls", "a2a_bytes",
            "exposed_comm_us", "exposed_comm_min_us", "exposed_moe_us", "drop_rate", "expert_balance",
            "memory_bytes", "profiled",
        }
        for line in whole
    )  # fmt: skip
    assert [line["step"] for line in whole if line["val_bits_per_byte"] is not None] == [10, 20, 30]
    assert all(
        line["mfu"] is None and line["a2a_us"] > 0 and line["exposed_comm_us"] >= line["a2a_us"] for line in whole
    )
    assert all(line["exposed_comm_us"] >= line["exposed_comm_min_us"] > 0 for line in whole)
    # One layer with experts, 4 exchanges of E C D w: capacity is 2 x floor(1.25 x 32 / 4) = 20.
    assert {line["a2a_bytes"] for line in whole} == {4 * 4 * 20 * 16 * 8}
    assert {line["a2a_calls"] for line in whole} == {4}
    assert whole[0]["loss"] == pytest.approx(math.log(256), abs=0.3) and whole[-1]["loss"] < whole[0]["loss"]


@pytest.mark.parametrize("then", [4, 2])
def test_a_killed_run_goes_on_as_if_nothing_had_been(then: int, whole: list[dict[str, Any]], tmp_path: Path) -> None:
    words = (*WORDS, "steps=30", "val_every=10", "save_every=10", "-q")
    with forked_command.start(*words, cwd=tmp_path, stdout=subprocess.DEVNULL) as process:
        metrics = after_steps(13, tmp_path, process)
        process.send_signal(signal.SIGKILL)
    before = {path.name for path in metrics.parent.glob("checkpoints/*")}
    assert "step-00000010" in before
    result = here("train", "--resume", "results/latest", f"ranks_per_node={then}", "--format", "json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    compared(lines_of(metrics), whole, rel=0 if then == 4 else 1e-10)
    first = json.loads(result.stdout.splitlines()[0])["step"]
    assert first in (11, 21) and first == len(whole) + 1 - len(result.stdout.splitlines())
    assert here("train", "--resume", "results/latest", cwd=tmp_path).returncode == 0, "nothing is left to do"


def started(own: bool, *words: str, **options: Any) -> subprocess.Popen[Any]:
    """In an interpreter of its own, or forked from this one, which has imported everything."""
    if own:
        return subprocess.Popen([sys.executable, "-m", "commbench", *words], env=environment(), **options)
    return forked_command.start(*words, **options)


def wait_for(find: Any, process: subprocess.Popen[Any], seconds: float = 90) -> Any:
    deadline = time.monotonic() + seconds
    while (found := find()) is None:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    return found


def after_steps(steps: int, folder: Path, process: subprocess.Popen[Any]) -> Path:
    """Wait until a training has made `steps` steps, and its parent, which may get a CPU late, has heard of it.

    Return its metrics.jsonl.
    """
    metrics: Path = wait_for(lambda: next(folder.glob("results/2*/metrics.jsonl"), None), process)
    wait_for(lambda: len(lines_of(metrics)) >= steps or None, process)
    wait_for(lambda: (folder / "results/latest").exists() or None, process)
    return metrics


# Shared memory that the ranks of every launch have mapped, as those of libraries that make some have.
PLANTED = """
import mmap, os, sys
if "commbench.measure.fork" in sys.orig_argv:
    _file = open("/dev/shm/commbench-test-" + os.environ["COMMBENCH_PLANTED"], "w+b")
    _file.truncate(4096)
    _shared = mmap.mmap(_file.fileno(), 4096)
"""


def test_a_killed_training_leaves_nothing(tmp_path: Path) -> None:
    """Each rank has told what it has, be it what a resume then has to remove."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(PLANTED)
    words = (*WORDS, "ranks_per_node=2", "steps=100000", "save_every=90000", "val_every=0", "-q")
    shared = Path(f"/dev/shm/commbench-test-{os.getpid()}")
    env = environment(tmp_path / "site", COMMBENCH_PLANTED=str(os.getpid()))
    with subprocess.Popen([sys.executable, "-m", "commbench", *words], cwd=tmp_path, env=env) as process:
        metrics = after_steps(1, tmp_path, process)
        process.kill()
    ranks = [json.loads(path.read_text()) for path in sorted(metrics.parent.glob("logs/000/rank-*.json"))]
    for rank, told in enumerate(ranks):
        assert (told["rank"], told["size"], told["launcher"]) == (rank, 2, "local")
        assert told["versions"]["torch"] == torch.__version__ and told["device"] == {}
        assert told["dispatch"].startswith("auto (sparse: fused needs a GPU")
        assert told["affinity"] == sorted(os.sched_getaffinity(0)) and told["binding"]["policy"] == "none"
        assert told["shared_memory"] == [str(shared)]
    deadline = time.monotonic() + PATIENCE_S
    while any(psutil.pid_exists(told["pid"]) for told in ranks):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert len(ranks) == 2 and shared.exists()
    result = here("train", "--resume", "results/latest", "steps=2", "--no-plots", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert not shared.exists() and len(list(metrics.parent.glob("logs/001/rank-*.json"))) == 2


@pytest.mark.parametrize("whom", ["parent", "all"])
def test_sigterm_saves_and_ends(whom: str, tmp_path: Path) -> None:
    """Service managers and batch systems send it to every process of a job."""
    words = (*WORDS, "steps=100000", "save_every=0", "val_every=0")
    with started(whom == "all", *words, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        metrics = after_steps(3, tmp_path, process)
        told = psutil.Process(process.pid).children(recursive=True) if whom == "all" else []
        assert whom == "parent" or len(told) >= 5, "the launcher and four ranks"
        for one in [psutil.Process(process.pid), *told]:
            one.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130 and "and saved; go on with: commbench train --resume" in said
    done = lines_of(metrics)[-1]["step"]
    assert [path.name for path in metrics.parent.glob("checkpoints/step-*")] == [f"step-{done:08d}"]
    assert json.loads((metrics.parent / "run.json").read_text())["status"] == "interrupted"
    result = here("train", "--resume", "results/latest", f"steps={done + 2}", "--format", "json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert [json.loads(line)["step"] for line in result.stdout.splitlines()] == [done + 1, done + 2]


def test_what_ranks_refuse_is_told_in_one_line(tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("too short")
    for words, message in (
        (["path=short.txt"], "each part needs more than context=32"),
        (["lr=1e30", "steps=5"], "the loss is"),
    ):
        result = here(*WORDS, *words, cwd=tmp_path)
        assert result.returncode == (1 if "lr=1e30" in words else 2), result.stderr
        errors = [line for line in result.stderr.splitlines() if line.startswith(("error: ", "hint: "))]
        assert len(errors) == 2 and message in " ".join(errors), result.stderr


def test_a_run_does_not_go_on_as_another_one(tmp_path: Path) -> None:
    assert here(*WORDS, "steps=2", cwd=tmp_path).returncode == 0
    for word, message in (("seed=1", "the run that goes on has seed=0"), ("hidden=8", "hidden=16")):
        result = here("train", "--resume", "results/latest", word, cwd=tmp_path)
        assert result.returncode == 2 and message in result.stderr
    result = here("train", "--resume", "results/latest", "steps=1", cwd=tmp_path)
    assert result.returncode == 2 and "steps=1, and results/latest has made 2" in result.stderr
    # What ranks refuse leaves the run as it was.
    result = here("train", "--resume", "results/latest", "steps=3", "permute=foo", cwd=tmp_path)
    assert result.returncode == 2 and "foo" in result.stderr
    assert here("train", "--resume", "results/latest", "steps=3", cwd=tmp_path).returncode == 0
    assert json.loads((tmp_path / "results/latest/config.json").read_text())["steps"] == 3
    checkpoint = max(only_run(tmp_path / "results").glob("checkpoints/step-*"))
    shards = sorted(checkpoint.glob("*.safetensors"))
    shards[-1].write_bytes(shards[-1].read_bytes()[:100])
    result = here("train", "--resume", "results/latest", "steps=4", cwd=tmp_path)
    assert result.returncode == 2 and "the checkpoint is damaged" in result.stderr
    result = here(*WORDS, "steps=2", "heads=3", cwd=tmp_path)
    assert result.returncode == 2 and (tmp_path / "results/latest").resolve() == checkpoint.parent.parent.resolve()
    told = [json.loads(path.read_text())["status"] for path in sorted(tmp_path.glob("results/2*/run.json"))]
    assert told == ["finished", "failed"], "one that finished stays so whatever is refused later"
    shutil.rmtree(checkpoint.parent)
    before = (checkpoint.parent.parent / "metrics.jsonl").read_bytes()
    result = here("train", "--resume", "results/latest", "steps=10", cwd=tmp_path)
    assert result.returncode == 2 and "no checkpoints to go on from (they have been removed)" in result.stderr
    assert (checkpoint.parent.parent / "metrics.jsonl").read_bytes() == before
    result = here("sweep", "--resume", "results/latest", cwd=tmp_path)
    assert result.returncode == 2 and "is a training" in result.stderr


def test_a_run_that_was_stopped_before_its_first_checkpoint_begins_again(tmp_path: Path) -> None:
    words = (*WORDS, "steps=100000", "save_every=90000", "val_every=0", "-q", "env.COMMBENCH_TRIED=yes")
    with forked_command.start(*words, cwd=tmp_path) as process:
        metrics = after_steps(3, tmp_path, process)
        process.kill()
    result = here("train", "--resume", "results/latest", "steps=2", "--no-plots", cwd=tmp_path)
    assert result.returncode == 0 and "has no checkpoint yet: it begins again" in result.stderr
    assert [line["step"] for line in lines_of(metrics)] == [1, 2]
    orders = [json.loads(path.read_text()) for path in sorted(metrics.parent.glob("logs/*/order.json"))]
    assert [order["outer"]["env"] for order in orders] == [{"COMMBENCH_TRIED": "yes"}] * 2


def test_a_run_without_checkpoints_does_not_go_on(tmp_path: Path) -> None:
    assert here(*WORDS, "steps=2", "save_every=null", cwd=tmp_path).returncode == 0
    before = (only_run(tmp_path / "results") / "metrics.jsonl").read_bytes()
    result = here("train", "--resume", "results/latest", "steps=3", cwd=tmp_path)
    assert result.returncode == 2 and "no checkpoints to go on from (save_every=null)" in result.stderr
    assert (only_run(tmp_path / "results") / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("form", ["table", "json"])
def test_a_reader_of_stdout_that_goes_away_ends_nothing(form: str, tmp_path: Path) -> None:
    words = (*WORDS, "steps=8", "val_every=1", "--format", form, "-q")
    with started(form == "json", *words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                 text=True) as process:  # fmt: skip
        assert process.stdout is not None and process.stderr is not None
        assert "1" in process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == "" and process.wait(timeout=PATIENCE_S) == 0
    assert len(lines_of(only_run(tmp_path / "results") / "metrics.jsonl")) == 8


def test_a_profile_changes_the_way_and_not_the_losses(whole: list[dict[str, Any]], tmp_path: Path) -> None:
    made = profiles.profile(profiles.choice("all_to_all", "pairwise"), env={"COMMBENCH_TRIED": "yes"})
    file.save(made, tmp_path / "p.json")
    words = (*WORDS, "steps=30", "profile=p.json", "schedule=pipelined", "chunks=2", "recompute=stash",
             "save_every=null", "record_routing=r.npz")  # fmt: skip
    result = here(*words, "--format", "json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["loss"] for line in found] == pytest.approx([line["loss"] for line in whole], rel=1e-12)
    folder = only_run(tmp_path / "results")
    told = next(folder.glob("logs/*/communicator.txt")).read_text()
    assert "pairwise" in told and "the profile's choice" in told
    assert not list(folder.glob("checkpoints/*"))
    # What gates chose is a trace that sweeps read: 30 steps and evaluations on 4 ranks of 32 tokens, top-2 of 4.
    steps = [routing_trace.unpack(step) for step in json.loads(routing_trace.read(str(tmp_path / "r.npz")))]
    assert len(steps) >= 30 and {step.shape for step in steps} == {(4, 32, 2)} and "routing trace: " in result.stderr
    assert {expert for step in steps for expert in step.ravel().tolist()} == {-1, 0, 1, 2, 3}  # -1: of full experts
    file.save(replace(made, scopes=[replace(made.scopes[0], versions={"torch": "0.1"})]), tmp_path / "p.json")
    result = here(*words, cwd=tmp_path)
    assert result.returncode == 2 and "was not made for this set-up" in result.stderr


def test_under_torchrun_a_rank_that_does_not_go_on_ends_all(tmp_path: Path) -> None:
    """No parent watches joined ranks: rank 0 does."""
    words = (*WORDS, "steps=100000", "timeout=3")
    with forked_command.start_torchrun(2, *words, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        metrics = after_steps(3, tmp_path, process)
        ranks = psutil.Process(process.pid).children()
        other = max(ranks, key=lambda one: (one.create_time(), one.pid))  # torchrun starts rank 1 after rank 0
        other.suspend()
        about = metrics.parent / "run.json"
        wait_for(lambda: json.loads(about.read_text())["status"] == "failed" or None, process)
        other.kill()  # torchrun would give it half a minute
        _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1 and "no step for 3 s" in said


def test_under_torchrun_the_reason_is_that_of_the_rank_that_has_it(tmp_path: Path) -> None:
    """Rank 1 alone cannot read its part: rank 0 sees a closed connection, and tells what rank 1 said."""
    first = forked_command.torchrun(2, *WORDS, "steps=2", "zero=false", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    shard = next(tmp_path.glob("results/2*/checkpoints/step-*/rank-0001.safetensors"))
    shard.write_bytes(b"\xff" * shard.stat().st_size)  # of the length that the manifest says
    result = forked_command.torchrun(2, "train", "--resume", "results/latest", "steps=4", cwd=tmp_path)
    assert result.returncode == 1 and "rank-0001.safetensors" in result.stderr
    assert "the checkpoint is damaged" in result.stderr
    ended = re.findall(r"rank +: (\d).*\n +exitcode +: (-?\d+)", result.stderr)
    assert dict(ended)["1"] == str(-signal.SIGTERM), "it waits for rank 0 only until its launcher ends it"


def test_under_torchrun_it_joins(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "commbench"]
    words += [*WORDS, "steps=3", "--format", "json"]
    result = subprocess.run(
        words, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert result.returncode == 0, result.stderr
    assert [json.loads(line)["step"] for line in result.stdout.splitlines()] == [1, 2, 3]
    config = json.loads((only_run(tmp_path / "results") / "config.json").read_text())
    assert (config["nodes"], config["ranks_per_node"], config["parts"]) == (1, 2, 4)
