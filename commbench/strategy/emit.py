"""A strategy in the words of trainers: ours, Megatron-LM, torchtitan, DeepSpeed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from commbench.strategy.ranking import PlanProblem
from commbench.strategy.setting import DROP, DUPLICATE, Setting
from commbench.strategy.stages import layers_of_stages
from commbench.train.config import TrainConfig

_OURS = {"duplicate": "duplicate", "drop": "drop", "drop_pipelined": "drop_pipelined"}


def commbench(problem: PlanProblem, setting: Setting, config: TrainConfig | None) -> str:
    """Return the command line of `commbench train`; config: of the recipe, None where the model is no recipe's."""
    words = ["commbench", "train", problem.model.name if config is not None else "RECIPE"]
    text = " ".join([*words, *train_words(problem, setting)])
    return text if config is not None else f"# RECIPE: this model's sizes as a recipe of commbench train\n{text}"


def train_words(problem: PlanProblem, setting: Setting) -> list[str]:
    """Return the keys of `commbench train` that make the strategy of a recipe."""
    cluster = problem.cluster
    words = [f"nodes={cluster.nodes}", f"ranks_per_node={cluster.gpus_per_node}", f"tp={setting.tp}"]
    words.append(f"parts={problem.work.batch // setting.micro_batch}")
    schedule = setting.schedule
    if schedule.tokens in (DUPLICATE, DROP) and not schedule.name.startswith("parm"):
        words += ["schedule=tensor_parallel", f"tp_tokens={_OURS[schedule.name]}"]
        words += [f"chunks={schedule.chunks}"] if schedule.chunks > 1 else []
    else:
        words.append(f"schedule={schedule.name}")
        count = {"pipelined": "chunks", "expert_groups": "groups"}.get(schedule.name)
        words += [f"{count}={schedule.chunks}"] if count else []
    words += [f"exchange={setting.exchange}"] if setting.exchange != "per_choice" else []
    return [*words, f"zero={'true' if setting.zero else 'false'}", f"recompute={setting.recompute}"]


def megatron(problem: PlanProblem, setting: Setting, config: TrainConfig | None) -> str:
    """Return the options of Megatron-LM's pretrain_gpt.py that make the strategy; those of the model are yours."""
    options: list[tuple[str, object]] = [
        ("tensor-model-parallel-size", setting.tp),
        ("pipeline-model-parallel-size", setting.pp),
        ("context-parallel-size", setting.cp),
    ]
    flags = ["sequence-parallel"] if setting.tp > 1 else []
    model = problem.model
    if setting.vpp > 1:
        options.append(("num-layers-per-virtual-pipeline-stage", model.layers // (setting.pp * setting.vpp)))
    elif model.layers % setting.pp:
        stages = ["t*" + str(count) for count in layers_of_stages(model.layers, setting.pp)]
        options.append(("pipeline-model-parallel-layout", f"'E{'|'.join(stages)}L'"))
    if model.moe_layers:
        options += [("expert-model-parallel-size", setting.ep), ("expert-tensor-parallel-size", setting.etp)]
        dispatcher = {"all_gather": "allgather", "per_node": "flex"}.get(setting.exchange, "alltoall")
        options.append(("moe-token-dispatcher-type", dispatcher))
        options += [("moe-flex-dispatcher-backend", "deepep")] if dispatcher == "flex" else []
        flags += ["overlap-moe-expert-parallel-comm"] if setting.schedule.name == "overlap_1f1b" else []
    options += [("micro-batch-size", setting.micro_batch), ("global-batch-size", problem.work.batch)]
    flags += ["use-distributed-optimizer"] if setting.zero else []
    if setting.recompute == "redo":
        options += [("recompute-granularity", "full"), ("recompute-method", "uniform"), ("recompute-num-layers", 1)]
    if setting.recompute == "selective":
        modules = [*(["mla_up_proj"] if model.kv_lora else []), "layernorm", *(["moe_act"] if model.moe_layers else [])]
        options += [("recompute-granularity", "selective"), ("recompute-modules", " ".join(modules))]
    lines = [*(f"--{name} {value}" for name, value in options), *(f"--{name}" for name in flags)]
    return " \\\n".join(lines)


def torchtitan(problem: PlanProblem, setting: Setting, config: TrainConfig | None) -> str:
    """Return torchtitan's options (0.3), behind its own --module and --config, that make the strategy; its ranks of dp,
    cp and tp hold the experts too."""
    model = problem.model
    # With a pipeline a rank's batch is cut into micro-batches; without, each is a batch of its own.
    local = problem.work.batch // setting.dp if setting.pp > 1 else setting.micro_batch
    options: list[tuple[str, object]] = [
        ("training.local_batch_size", local),
        ("training.global_batch_size", problem.work.batch),
        ("training.seq_len", model.context),
        ("parallelism.data_parallel_replicate_degree", 1),
        ("parallelism.data_parallel_shard_degree", setting.dp),
        ("parallelism.tensor_parallel_degree", setting.tp),
        ("parallelism.context_parallel_degree", setting.cp),
        ("parallelism.pipeline_parallel_degree", setting.pp),
    ]
    if setting.pp > 1:
        options += [("parallelism.pipeline_parallel_schedule", "Interleaved1F1B" if setting.vpp > 1 else "1F1B"),
                    ("parallelism.pipeline_parallel_microbatch_size", setting.micro_batch)]  # fmt: skip
    if model.moe_layers:
        options.append(("parallelism.expert_parallel_degree", setting.ep))
    flags = ["--training.disable_cuda_graphs"] if setting.pp > 1 else []  # which it refuses beside pipelines
    again = "full" if setting.recompute == "redo" else "none"
    lines = [*(f"--{name} {value}" for name, value in options), *flags, f"activation-checkpoint:{again}"]
    return " \\\n".join(lines)


def deepspeed(problem: PlanProblem, setting: Setting, config: TrainConfig | None) -> str:
    """Return DeepSpeed's JSON (0.19, AutoTP and AutoEP) that makes the strategy; layers are redone by the model."""
    work = problem.work
    found: dict[str, Any] = {
        "train_batch_size": work.batch,
        "train_micro_batch_size_per_gpu": setting.micro_batch,
        "gradient_accumulation_steps": work.batch // (setting.dp * setting.micro_batch),
        "bf16": {"enabled": work.itemsize == 2},
        "zero_optimization": {"stage": setting.zero},
    }
    if setting.tp > 1:
        found["tensor_parallel"] = {"autotp_size": setting.tp}
    if problem.model.moe_layers:
        experts: dict[str, Any] = {"enabled": True, "autoep_size": setting.ep, "expert_tensor_parallel_size": 1}
        if setting.exchange == "per_node":
            most = setting.micro_batch * problem.model.context
            experts |= {"comm_backend": "deepep", "comm_max_tokens_per_rank": most}
        found["expert_parallel"] = experts
    return json.dumps(found, indent=2)


TABLE: dict[str, Callable[[PlanProblem, Setting, TrainConfig | None], str]] = {
    "commbench": commbench,
    "megatron": megatron,
    "torchtitan": torchtitan,
    "deepspeed": deepspeed,
}


def emitted(name: str, problem: PlanProblem, runnable: dict[str, Any], config: TrainConfig | None) -> str:
    """Return the best strategy that a trainer can run, in its words, under a line that says which one.

    runnable: of each trainer the first `Ranked` that it runs; None: it runs none of those that were drawn.
    """
    best = runnable.get(name)
    if best is None:
        return f"# {name}: runs none of the strategies that were ranked; trainer={name} ranks its own"
    text = TABLE[name](problem, best.setting, config)
    return f"# {name}: rank {best.rank}, {best.setting.label}\n{text}"
