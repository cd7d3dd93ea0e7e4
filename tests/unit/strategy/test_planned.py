"""What `commbench plan` reads: models, clusters, keys; and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commbench.errors import UsageError
from commbench.strategy import planned
from commbench.strategy.clusters import read_cluster
from commbench.strategy.models import names, read_model
from commbench.strategy.uneven import read_uneven
from tests.conftest import REPOSITORY

CLUSTER = """
nodes: 2
gpus_per_node: 8
memory_gb: 80
peak_tflops: 989
links: {intra: {gbs: 360, alpha_us: 5}, inter: {gbs: {value: 180, source: measured}, alpha_us: 12}}
"""
QWEN = {
    "model_type": "qwen3_moe", "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32,
    "num_key_value_heads": 4, "head_dim": 128, "intermediate_size": 6144, "moe_intermediate_size": 768,
    "num_experts": 128, "num_experts_per_tok": 8, "vocab_size": 151936, "hidden_act": "silu",
    "tie_word_embeddings": False, "decoder_sparse_step": 1, "mlp_only_layers": [],
}  # fmt: skip
DEEPSEEK = {
    "model_type": "deepseek_v3", "hidden_size": 7168, "num_hidden_layers": 61, "num_attention_heads": 128,
    "num_key_value_heads": 128, "intermediate_size": 18432, "moe_intermediate_size": 2048, "n_routed_experts": 256,
    "num_experts_per_tok": 8, "n_shared_experts": 1, "first_k_dense_replace": 3, "moe_layer_freq": 1,
    "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "vocab_size": 129280, "hidden_act": "silu",
}  # fmt: skip


@pytest.fixture
def cluster_file(tmp_path: Path) -> str:
    path = tmp_path / "cluster.yaml"
    path.write_text(CLUSTER)
    return str(path)


def config(folder: Path, values: dict[str, Any]) -> str:
    path = folder / "config.json"
    path.write_text(json.dumps(values))
    return str(path)


@pytest.mark.parametrize(("values", "total", "active"), [(QWEN, 30.5e9, 3.35e9), (DEEPSEEK, 671e9, 37.5e9)])
def test_a_config_of_hugging_face_has_its_published_size(
    values: dict[str, Any], total: float, active: float, tmp_path: Path
) -> None:
    shape = read_model(config(tmp_path, values), {}).shape
    assert shape.parameters == pytest.approx(total, rel=0.01)
    # Published counts of active parameters have the embedding too, or not.
    assert shape.active_parameters == pytest.approx(active, rel=0.1)


def test_a_recipe_of_qwen_is_its_config(tmp_path: Path) -> None:
    ours, theirs = read_model("qwen3-30b-a3b", {}).shape, read_model(config(tmp_path, QWEN), {}).shape
    for name in ("layers", "width", "heads", "kv_heads", "hidden", "experts", "top_k", "expert_hidden", "has_experts"):
        assert getattr(ours, name) == getattr(theirs, name), name


def test_every_model_that_comes_with_it_can_be_read() -> None:
    for name in names():
        assert read_model(name, {}).shape.parameters > 0


def test_a_recipe_of_ours_has_its_types_and_states() -> None:
    found = read_model("table1-scaled", {"layers": 4})
    assert found.config is not None and found.shape.layers == 4
    assert (found.work.itemsize, found.work.state_bytes, found.shape.gated) == (2, 16, False)
    assert read_model("table1-scaled", {"vocabulary": 50_000}).config is None, "which ours cannot train"


def test_numbers_have_their_sources(cluster_file: str) -> None:
    found = read_cluster({"cluster": cluster_file, "intra_gbs": 400.0})
    assert [found.links[one].gbs.source for one in ("intra", "inter")] == ["declared", "measured"]
    assert found.links["intra"].gbs.value == 400, "a key stands in place of the file's"
    assert found.memory_gbs.source == "default"
    assert found.links["inter"].gbs.factor < found.links["intra"].gbs.factor < found.memory_gbs.factor


def test_a_trace_says_the_skew(tmp_path: Path) -> None:
    qwen = read_model("qwen3-30b-a3b", {"experts": 4, "top_k": 1}).shape
    lines = tmp_path / "trace.jsonl"
    lines.write_text(json.dumps({"counts": [[10, 0, 5, 5], [10, 10, 0, 0]]}) + "\n")
    found = read_uneven(qwen, {"trace": str(lines)})
    assert found is not None and (found.value, found.source) == (2.0, "measured")
    packed = tmp_path / "trace.npz"
    np.savez(packed, experts=np.array([[[[0], [0], [0], [1]]]], dtype=np.int32))
    assert read_uneven(qwen, {"trace": str(packed)}).value == 3.0  # type: ignore[union-attr]
    assert read_uneven(qwen, {}).source == "default"  # type: ignore[union-attr]
    assert read_uneven(read_model("tiny", {}).shape, {"trace": str(lines)}) is None, "slots are fixed there"


def test_what_runs_now_is_read(cluster_file: str) -> None:
    its = planned.read(["qwen3-30b-a3b", f"cluster={cluster_file}", "current=tp2,ep8,mb4,overlap_1f1b,redo"]).current
    assert its is not None
    assert (its.tp, its.dp, its.ep, its.edp, its.micro_batch, its.recompute) == (2, 8, 8, 2, 4, "redo")
    assert its.schedule.name == "overlap_1f1b"


BAD: list[tuple[list[str], str]] = [
    (["gpu=h100", "nodes=2", "inter_gbs=400"], "the model lacks layers"),
    (["nosuch", "gpu=h100", "nodes=2", "inter_gbs=400"], "unknown model"),
    (["qwen3-30b-a3b", "nodes=2"], "nobody says how many GPUs"),
    (["qwen3-30b-a3b", "gpu=h100", "nodes=2"], "no number for its links inter"),
    (["qwen3-30b-a3b", "gpu=h100", "nodes=2", "inter_gbs=0"], "inter_gbs is 0"),
    (["qwen3-30b-a3b", "gpu=tpu", "nodes=2", "inter_gbs=400"], "unknown gpu"),
    (["qwen3-30b-a3b", "gpu=h100", "nodes=two", "inter_gbs=400"], "nodes is 'two'"),
    (["qwen3-30b-a3b", "gpu=h100", "nodes=2", "inter_gbs=400", "tp=3"], "tp=3 does not divide"),
    (["qwen3-30b-a3b", "gpu=h100", "nodes=2", "inter_gbs=400", "ep=7"], "ep=7 does not divide"),
    (["qwen3-30b-a3b", "gpu=h100", "nodes=2", "inter_gbs=400", "batch=7", "tp=1", "pp=1"], "batch=7"),
    (["qwen3-30b-a3b", "gpu=h100", "nodes=2", "inter_gbs=400", "current=tp3"], "does not divide the 16 GPUs"),
    (["qwen3-30b-a3b", "gpu=h100", "nodes=2", "inter_gbs=400", "current=fast"], "'fast' is no size"),
    (["qwen3-30b-a3b", "gpu=h100", "nodes=2", "inter_gbs=400", "current_ms=9"], "current_ms=9 of nothing"),
    (["qwen3-30b-a3b", "gpu=h100", "nodes=2", "inter_gbs=400", "calls=/nonexistent"], "calls=/nonexistent"),
    (["qwen3-30b-a3b", "cluster=/nonexistent.yaml"], "/nonexistent.yaml"),
    (["qwen3-30b-a3b", "gpu=h100", "nodes=2", "inter_gbs=400", "costs=/nonexistent.json"], "costs=/nonexistent.json"),
    (["qwen3-30b-a3b", "gpu=h100", "nodes=2", "inter_gbs=400", "gemm=/nonexistent"], "gemm=/nonexistent"),
    (["qwen3-30b-a3b", "gpu=h100", "nodes=2", "inter_gbs=400", "trace=/nonexistent"], "trace=/nonexistent"),
    (["/nonexistent/config.json", "gpu=h100", "nodes=2", "inter_gbs=400"], "/nonexistent/config.json"),
    (["qwen3-30b-a3b", "gpu=h100", "nodes=2", "inter_gbs=400", "speed=9"], "unknown key 'speed'"),
    (["layers=4", "width=64", "heads=4", "hidden=64", "kv_heads=3", "gpu=h100", "nodes=1"], "kv_heads=3"),
    (["layers=4", "width=64", "heads=4", "hidden=64", "experts=2", "top_k=3", "gpu=h100", "nodes=1"], "top_k=3"),
]


@pytest.mark.parametrize(("words", "said"), BAD)
def test_what_cannot_be_meant_is_refused_with_what_to_do(words: list[str], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        planned.read(words).problem.settings()
    assert said in str(caught.value)
    assert caught.value.hint and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nodes: 2\nsped: 3\n", "unknown key in"),
        ("links: {inter: {alpha_us: 3}}\n", "have no number"),
        ("links: {outer: {gbs: 3}}\n", "unknown class of links"),
        ("memory_gb: {value: 3, source: guessed}\n", "memory_gb is"),
        ("nodes: -1\n", "nodes is -1"),
        ("- 1\n", "has no keys"),
        ("a: [\n", "cluster.yaml"),
    ],
)
def test_a_damaged_cluster_file_is_refused(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_cluster({"cluster": str(path)})
    assert said in str(caught.value) and caught.value.hint


def test_a_cluster_far_beyond_what_was_measured_wants_extrapolate() -> None:
    """Costs of eight ranks hold for 64; more than that is asked for by name."""
    costs = REPOSITORY / "results/reference/train_ab-2x4-2cpu/model.json"
    words = ["qwen3-30b-a3b", "gpu=h100", f"costs={costs}", "gpus_per_node=4"]
    assert planned.read([*words, "nodes=16"]).problem.cluster.gpus == 64
    with pytest.raises(UsageError) as caught:
        planned.read([*words, "nodes=32"])
    assert "128 GPUs are 16 times the 8" in str(caught.value) and "--extrapolate" in caught.value.hint
    assert planned.read([*words, "nodes=32"], extrapolate=True).problem.cluster.gpus == 128
