"""Which model is meant: a recipe of `plan`, one of `train`, a Hugging Face config.json, or keys."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from commbench.errors import UsageError, unknown
from commbench.strategy.keys import DEFAULT_BATCH, DTYPES, GROUPS, KEYS, read_value
from commbench.strategy.model_shape import ModelShape
from commbench.strategy.workload import FP32_STATES, MIXED, Workload
from commbench.sweep import recipes
from commbench.train import config as train
from commbench.train.config import TrainConfig

_OF_MODEL = tuple(name for name, key in KEYS.items() if key.group in GROUPS[:2])
_NEEDED = ("layers", "width", "heads", "hidden")
_CONTEXT, _VOCABULARY = 4096, 32_000


class PlannedModel(NamedTuple):
    """What is planned. config: of a recipe of `train`, which ours can run. notes: what nobody said."""

    shape: ModelShape
    work: Workload
    config: TrainConfig | None
    notes: tuple[str, ...]


def names() -> list[str]:
    """Return the models that come with commbench: those of `plan`, then recipes of `train`."""
    return sorted(file.stem for file in (recipes.root() / "plan").glob("*.yaml")) + train.names()


def read_model(name: str | None, typed: Mapping[str, Any]) -> PlannedModel:
    """Return the model of the first word and what keys change of it. Raises `UsageError`."""
    typed = {key: value for key, value in typed.items() if key in _OF_MODEL and value is not None}
    if name is None:
        return _of_keys("keys", "keys", typed)
    path = Path(name)
    file = path / "config.json" if path.is_dir() else path
    if file.suffix == ".json":
        return _of_huggingface(file, typed)
    planned = recipes.root() / "plan" / f"{name}.yaml"
    if planned.is_file():
        values = recipe_values(planned)
        return _of_keys(name, f"recipe {name}", {**values, **typed})
    if file.suffix in (".yaml", ".yml") or file.is_file():
        values = recipe_values(file)
        if not {"steps", "warmup"} & values.keys():
            return _of_keys(file.stem, f"recipe {name}", {**values, **typed})
    elif name not in train.names():
        raise unknown("model", name, names(), hint="or a config.json, a YAML file, or keys: layers=32 width=4096 ..")
    return _of_training(name, typed)


def recipe_values(path: Path) -> dict[str, Any]:
    """Return the keys of a YAML file. Raises `UsageError`."""
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"{path}: {recipes.reason(error) if isinstance(error, yaml.YAMLError) else error}",
                         hint="a YAML file of keys: layers: 32") from error  # fmt: skip
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UsageError(f"{path} has no keys", hint="a YAML file of keys: layers: 32")
    return values


def _of_keys(name: str, source: str, values: Mapping[str, Any]) -> PlannedModel:
    for key in values:
        if key not in _OF_MODEL:
            raise unknown("key of a model", key, _OF_MODEL)
    found = {key: read_value(key, value) for key, value in values.items() if value is not None}
    if missing := [key for key in _NEEDED if key not in found]:
        raise UsageError(f"the model lacks {', '.join(missing)}",
                         hint="a recipe, a config.json, or layers=32 width=4096 heads=32 hidden=16384")  # fmt: skip
    notes = [f"{key}={default} (nobody said)" for key, default in
             (("context", _CONTEXT), ("batch", DEFAULT_BATCH)) if key not in found]  # fmt: skip
    experts = found.get("experts", 1)
    freq = found.get("moe_freq", 1 if experts > 1 else 0)
    first = found.get("first_dense", 0)
    layers, heads = found["layers"], found["heads"]
    shape = ModelShape(
        name=name, source=source, layers=layers, width=found["width"], heads=heads,
        kv_heads=found.get("kv_heads", heads), head_dim=found.get("head_dim", max(found["width"] // heads, 1)),
        hidden=found["hidden"], vocabulary=found.get("vocabulary", _VOCABULARY),
        context=found.get("context", _CONTEXT),
        has_experts=tuple(freq > 0 and layer >= first and (layer + 1) % freq == 0 for layer in range(layers)),
        experts=experts, top_k=found.get("top_k", min(2, experts)),
        expert_hidden=found.get("expert_hidden", found["hidden"]), shared_hidden=found.get("shared_hidden", 0),
        gated=found.get("gated", True), tied=found.get("tied", False),
        capacity_factor=found.get("capacity_factor", 0.0),
    )  # fmt: skip
    return PlannedModel(shape, _workload(found, MIXED), None, tuple(notes))


def _workload(found: Mapping[str, Any], states: Mapping[str, Any], batch: int = DEFAULT_BATCH) -> Workload:
    values: dict[str, Any] = {"batch": found.get("batch", batch), **states}
    if (dtype := found.get("dtype")) is not None:
        values["itemsize"] = DTYPES[dtype]
        if dtype == "fp32":
            own = ("all_reduces", "whole_embedding", "lean_drop")
            values |= FP32_STATES | {name: states.get(name, False) for name in own}
    if (total := found.get("state_bytes")) is not None:
        weights = min(values["weight_bytes"], total / 4)
        grads = min(values["grad_bytes"], total / 4)
        values |= {"weight_bytes": weights, "grad_bytes": grads, "optimizer_bytes": total - weights - grads}
    return Workload(**values)


def _of_training(name: str, typed: Mapping[str, Any]) -> PlannedModel:
    own = {key: value for key, value in typed.items() if key in train.KEYS}
    config, _ = train.compose([name, *(f"{key}={_typed(value)}" for key, value in own.items())])
    other = {key: value for key, value in typed.items() if key not in own}
    dropless = config.capacity == "dropless"
    values: dict[str, Any] = {"hidden": config.hidden, "expert_hidden": config.hidden, **other}
    shape = ModelShape(
        name=name, source=f"recipe {name}", layers=config.layers, width=config.width, heads=config.heads,
        kv_heads=values.get("kv_heads", config.heads), head_dim=values.get("head_dim", config.width // config.heads),
        hidden=config.hidden, vocabulary=values.get("vocabulary", 256), context=config.context,
        has_experts=tuple(config.moe_freq > 0 and (layer + 1) % config.moe_freq == 0 for layer in range(config.layers)),
        experts=config.experts, top_k=config.top_k, expert_hidden=values["expert_hidden"],
        shared_hidden=values.get("shared_hidden", 0), gated=values.get("gated", False), tied=config.tied,
        capacity_factor=0.0 if dropless else config.capacity_factor,
    )  # fmt: skip
    work = _workload(other | {"dtype": config.dtype}, {**MIXED, **FP32_STATES}, config.batch)
    changed = [key for key in other if key not in ("state_bytes", "skew", "trace")]
    return PlannedModel(shape, work, None if changed else config, ())


def _typed(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _of_huggingface(path: Path, typed: Mapping[str, Any]) -> PlannedModel:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: {error}", hint="a config.json as Hugging Face's models have it") from error
    if isinstance(raw, dict) and isinstance(raw.get("text_config"), dict):
        raw = raw["text_config"]
    if not isinstance(raw, dict):
        raise UsageError(f"{path} holds no object", hint="a config.json as Hugging Face's models have it")

    def number(*known: str, default: int | None = None) -> int:
        for name in known:
            value = raw.get(name)
            if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
                return value
            if value is not None:
                raise UsageError(f"{path}: {name} is {value!r}", hint="a whole number, 0 or more")
        if default is None:
            raise UsageError(f"{path} lacks {' or '.join(known)}", hint="type it as a key, or take keys alone")
        return default

    layers, width = number("num_hidden_layers", "n_layer"), number("hidden_size", "n_embd")
    heads = number("num_attention_heads", "n_head")
    hidden = number("intermediate_size", "n_inner", default=4 * width)
    experts = number("num_experts", "num_local_experts", "n_routed_experts", default=1)
    inner = number("moe_intermediate_size", default=hidden)
    shared = number("shared_expert_intermediate_size", default=number("n_shared_experts", default=0) * inner)
    kv_lora = number("kv_lora_rank", default=0)
    shape: dict[str, Any] = {
        "layers": layers, "width": width, "heads": heads, "hidden": hidden, "experts": max(experts, 1),
        "expert_hidden": inner,
        "kv_heads": heads if kv_lora else number("num_key_value_heads", default=heads),
        "head_dim": number("qk_nope_head_dim", "head_dim", default=width // heads), "shared_hidden": shared,
        "vocabulary": number("vocab_size"), "top_k": number("num_experts_per_tok", default=min(2, max(experts, 1))),
        "tied": bool(raw.get("tie_word_embeddings", False)), "gated": "silu" in str(raw.get("hidden_act", "silu")),
        "context": _CONTEXT, "capacity_factor": 0.0, "kv_lora": kv_lora, "q_lora": number("q_lora_rank", default=0),
        "rope_dim": number("qk_rope_head_dim", default=0) if kv_lora else 0,
        "value_dim": number("v_head_dim", default=0) if kv_lora else 0,
    }  # fmt: skip
    first, every = (
        number("first_k_dense_replace", default=0),
        number("decoder_sparse_step", "moe_layer_freq", default=1),
    )
    plain = raw.get("mlp_only_layers") or []
    pattern = tuple(
        experts > 1 and layer >= first and every > 0 and (layer + 1) % every == 0 and layer not in plain
        for layer in range(layers)
    )
    other = {key: value for key, value in typed.items() if key in shape}
    shape |= other
    if {"layers", "moe_freq", "first_dense"} & typed.keys():
        first, every = typed.get("first_dense", first), typed.get("moe_freq", every)
        pattern = tuple(experts > 1 and layer >= first and every > 0 and (layer + 1) % every == 0
                        for layer in range(shape["layers"]))  # fmt: skip
    notes = [f"{key}={default} (nobody said)" for key, default in
             (("context", _CONTEXT), ("batch", DEFAULT_BATCH)) if key not in typed]  # fmt: skip
    name = str(raw.get("_name_or_path") or raw.get("model_type") or path.parent.name or "model")
    found = ModelShape(name=name, source=str(path), has_experts=pattern, **shape)
    return PlannedModel(found, _workload(typed, MIXED), None, tuple(notes))


def choices(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the model's word, where there is one, and the words that follow."""
    if words and "=" not in words[0]:
        return words[0], list(words[1:])
    return None, list(words)
