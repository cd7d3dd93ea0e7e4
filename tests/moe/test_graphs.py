"""Where there is no graph: passes and steps are the eager ones, and say why. tests/gpu has the rest."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from commbench.errors import UsageError
from moe_ref import FFN, Capacity, Gate, GateConfig, MoE
from moe_ref.captured_pass import flat
from moe_ref.capturing import Uncapturable
from moe_ref.graphs import LayerGraphs, gate_unsupported
from moe_ref.training import step_graph
from moe_ref.training.parallel_dims import ParallelDims
from moe_ref.training.trainer import Trainer
from tests.moe.test_training import TINY


def layer(config: GateConfig) -> MoE:
    return MoE(Gate(8, config), FFN(4, 8, 16))


CONFIG = GateConfig(experts=4, top_k=2, capacity=Capacity("tutel", 1.0), losses=("gshard",))


def test_a_layer_on_a_cpu_is_eager_and_says_why() -> None:
    moe, x = layer(CONFIG), torch.randn(3, 5, 8)
    right = moe(x).y
    assert "graphs" not in repr(moe) and moe.graph(2) is moe
    assert torch.equal(moe(x).y, right)
    assert "graphs=0 of at most 2 captured, 0 replays; 1 eager: tokens are on cpu, and CUDA graphs are a GPU's" in repr(
        moe
    )
    twin = copy.deepcopy(moe)
    assert twin.graphs is not moe.graphs and str(twin.graphs) == str(LayerGraphs(2)), "captured by nobody"
    assert moe.graph(None).graphs is None
    with pytest.raises(UsageError, match="passes=0"):
        moe.graph(0)


@pytest.mark.parametrize(
    ("changed", "padded", "said"),
    [
        ({"capacity": Capacity("tutel", 0)}, False, "follows from the loads"),
        ({"capacity": Capacity("tutel", -1.5)}, False, "follows from the loads"),
        ({"capacity": Capacity("dropless")}, True, "known on the GPU alone"),
        ({"capacity": Capacity("dropless"), "second": "random"}, False, "known on the GPU alone"),
        ({"order": "random"}, False, "draws at random, from a generator of the program"),
        ({"second": "sampling"}, False, "draws at random"),
        ({"jitter": 0.1}, False, "draws at random"),
        ({"capacity": Capacity("dropless")}, False, ""),
        ({}, True, ""),
    ],
)
def test_what_a_gate_cannot_do_in_a_graph(changed: dict[str, object], padded: bool, said: str) -> None:
    gate = Gate(8, replace(CONFIG, **changed))  # type: ignore[arg-type]
    reason = gate_unsupported(gate, padded=padded, seeded=True)
    assert said in reason and bool(said) == bool(reason)
    if "jitter" in changed:
        assert not gate_unsupported(gate.eval(), padded=padded, seeded=True), "there it draws in training alone"


def test_an_output_is_taken_apart_and_put_together_again() -> None:
    output = layer(CONFIG)(torch.randn(6, 8))
    tensors, whole = flat(output)
    again = whole([tensor + 0 for tensor in tensors])
    assert again.routing.capacity == output.routing.capacity and again.routing.maps is None
    for one, other in zip(flat(again)[0], tensors, strict=True):
        assert torch.equal(one, other) and one is not other
    assert list(again.routing.losses) == ["gshard"] and len(tensors) == 8


def test_a_training_on_a_cpu_is_eager_and_says_why() -> None:
    found = []
    for graphs in (False, True):
        trainer = Trainer(replace(TINY, graphs=graphs))
        found.append([trainer.step()[0].loss for _ in range(2)])
        assert trainer.graph is None
    assert found[0] == found[1]
    (note,) = trainer.notes
    assert note == ("graphs=true, and steps are made without: ranks compute on cpu, and CUDA graphs are a GPU's: "
                    "transport=nccl ranks_per_node=1")  # fmt: skip


def test_what_a_training_cannot_do_in_a_graph() -> None:
    gpu, model = torch.device("cuda"), Trainer(TINY).model
    assert step_graph.unsupported(ParallelDims(), gpu, model) == ""
    assert "4 ranks" in step_graph.unsupported(ParallelDims(size=4), gpu, model)
    random = Trainer(replace(TINY, order="random"))
    assert "draws at random" in step_graph.unsupported(ParallelDims(), gpu, random.model)


def test_a_training_whose_modules_have_hooks_is_eager_and_says_which() -> None:
    """As `record_routing` has them: in a replay nobody would call them."""
    trainer = Trainer(TINY)
    graph = step_graph.StepGraph(lambda inputs, targets: inputs + targets, trainer.model, trainer.optimizer, [], (1, 1))
    one = torch.ones(1, 1)
    for _ in range(step_graph.EAGER_STEPS - 1):
        assert not graph.ready(torch.device("cpu")) and graph.eager(one, one) == 2
    trainer.model.blocks[1].register_forward_hook(lambda *given: None)
    with pytest.raises(Uncapturable, match=r"blocks\.1 has hooks"):
        graph.eager(one, one)
