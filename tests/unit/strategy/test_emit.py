"""Strategies in the words of trainers: files that were read by hand, and
that torchtitan's and DeepSpeed's own readers take (tests/programs/test_plans.py)."""

from __future__ import annotations

import json
import math
import re

import pytest

from commbench.strategy import emit, planned
from commbench.strategy.setting import SCHEDULES, Setting
from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "tests/data/plan"
BY_LABEL = {one.label: one for one in SCHEDULES}
CASES = {
    "megatron-overlap.txt": ("megatron", ["qwen3-30b-a3b", "gpu=h100", "nodes=2", "inter_gbs=400"], Setting(
        tp=2, dp=8, ep=16, micro_batch=1, schedule=BY_LABEL["overlap_1f1b"], exchange="per_node")),
    "megatron-pipeline.txt": ("megatron", ["qwen3-30b-a3b", "gpu=h100", "nodes=8", "inter_gbs=400"], Setting(
        tp=2, dp=8, pp=4, vpp=3, ep=16, micro_batch=2, recompute="selective")),
    "megatron-uneven.txt": ("megatron", ["qwen3-30b-a3b", "gpu=h100", "nodes=5", "inter_gbs=400", "layers=47"], Setting(
        dp=8, pp=5, ep=8, recompute="redo", exchange="all_gather")),
    "torchtitan.txt": ("torchtitan", ["qwen3-30b-a3b", "gpu=h100", "nodes=2", "inter_gbs=400"], Setting(
        tp=2, dp=4, pp=2, ep=8, zero=3, micro_batch=2, recompute="redo")),
    "deepspeed.json": ("deepspeed", ["qwen3-30b-a3b", "gpu=h100", "nodes=2", "inter_gbs=400"], Setting(
        tp=2, dp=8, ep=16, micro_batch=2, schedule=BY_LABEL["drop"])),
    "deepspeed-deepep.json": ("deepspeed", ["qwen3-30b-a3b", "gpu=h100", "nodes=2", "inter_gbs=400"], Setting(
        dp=16, ep=16, exchange="per_node", zero=3)),
    "commbench-drop.txt": ("commbench", ["emulated-2x4", "gpu=h100", "nodes=2", "gpus_per_node=4", "inter_gbs=1"],
        Setting(tp=4, dp=2, ep=2, etp=4, micro_batch=4, schedule=BY_LABEL["drop_pipelined(4)"], recompute="stash")),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_as_recorded(name: str) -> None:
    trainer, words, setting = CASES[name]
    request = planned.read(words)
    assert emit.TABLE[trainer](request.problem, setting, request.model.config) + "\n" == (FOLDER / name).read_text()


def test_batches_and_ranks_multiply() -> None:
    options = dict(re.findall(r"--\S+\.(\S+) (\S+)", (FOLDER / "torchtitan.txt").read_text()))
    ranks = ("data_parallel_shard_degree", "tensor_parallel_degree", "context_parallel_degree",
             "pipeline_parallel_degree")  # fmt: skip
    assert math.prod(int(options[one]) for one in ranks) == 16
    deepspeed = json.loads((FOLDER / "deepspeed.json").read_text())
    parts = deepspeed["train_micro_batch_size_per_gpu"] * deepspeed["gradient_accumulation_steps"]
    assert parts * 16 // deepspeed["tensor_parallel"]["autotp_size"] == deepspeed["train_batch_size"]


def test_a_line_of_ours_is_a_training_that_can_be() -> None:
    from commbench.train import config

    words = (FOLDER / "commbench-drop.txt").read_text().split()
    assert words[:2] == ["commbench", "train"]
    settings, _ = config.compose([*words[2:], "fabric=emulated"])
    assert (settings.tp_tokens, settings.chunks, settings.parts) == ("drop_pipelined", 4, 2)
