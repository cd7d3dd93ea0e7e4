"""fairseq's own MoE layer as one more way of `moe`: its files are read from a checkout of its branch moe.

`moe_layer.py` and `top2gate.py` run as they are. What they import of the rest of fairseq is replaced by what it means
in one process: a world of one rank. The experts are a module of ours, as fairseq takes any: two products and a ReLU.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from commbench.errors import UsageError
from moe_ref import FFN, MoE
from moe_ref.routers import LinearRouter

FILES = ("moe_layer.py", "top2gate.py")
PACKAGE = "fairseq.modules.moe"


def modules(folder: Path) -> tuple[types.ModuleType, types.ModuleType]:
    """Import `moe_layer` and `top2gate` of the checkout in `folder`; the packages around them are empty.

    Raises `UsageError` where the files are not there.
    """
    source = folder / "fairseq" / "modules"
    if missing := [name for name in FILES if not (source / "moe" / name).is_file()]:
        raise UsageError(
            f"no {', '.join(missing)} in {source / 'moe'}",
            hint="a checkout of fairseq's branch moe: git clone -b moe https://github.com/facebookresearch/fairseq",
        )
    alone: Any = types.ModuleType("fairseq.distributed_utils")
    alone.get_moe_group = alone.get_all2all_group = lambda experts: None
    alone.get_world_size = lambda group: 1
    alone.all_reduce = lambda tensor, group, op: tensor
    for name, path in (("fairseq", folder / "fairseq"), ("fairseq.modules", source), (PACKAGE, source / "moe")):
        package = types.ModuleType(name)
        package.__path__ = [str(path)]
        sys.modules[name] = package
    sys.modules["fairseq.distributed_utils"] = sys.modules["fairseq"].distributed_utils = alone  # type: ignore[attr-defined]
    layer, gate = (importlib.import_module(f"{PACKAGE}.{name.removesuffix('.py')}") for name in FILES)
    return layer, gate


class OneExpert(nn.Module):
    """One expert of `FFN` with parameters of its own: rows [.., D] to rows [.., D]."""

    def __init__(self, experts: FFN, number: int) -> None:
        super().__init__()
        assert experts.b1_EH is not None and experts.b2_ED is not None
        self.first = nn.Linear(experts.w1_EDH.shape[1], experts.w1_EDH.shape[2], dtype=experts.w1_EDH.dtype)
        self.second = nn.Linear(experts.w2_EHD.shape[1], experts.w2_EHD.shape[2], dtype=experts.w2_EHD.dtype)
        with torch.no_grad():
            self.first.weight.copy_(experts.w1_EDH[number].t())
            self.first.bias.copy_(experts.b1_EH[number])
            self.second.weight.copy_(experts.w2_EHD[number].t())
            self.second.bias.copy_(experts.b2_ED[number])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(torch.relu(self.first(x)))
        return out


class Router(nn.Module):
    """The product of fairseq's gate, in fp32 as ours, given back in the dtype of the tokens, as fairseq has it."""

    def __init__(self, router: LinearRouter) -> None:
        super().__init__()
        self.weight_ED = nn.Parameter(router.weight_ED.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return (x.float() @ self.weight_ED.t()).to(x.dtype)


@dataclass(frozen=True, slots=True)
class Losses:
    """Stands in for a `Routing`: what a step of the bench takes from it."""

    losses: dict[str, Tensor]


class Fairseq(nn.Module):
    """fairseq's `MOELayer` with `Top2Gate`, with the parameters of a `MoE` of ours, called as that is."""

    def __init__(self, folder: Path, like: MoE) -> None:
        super().__init__()
        config, experts, router = like.gate.config, like.experts, like.gate.router
        if not isinstance(experts, FFN) or experts.activation != "relu" or not isinstance(router, LinearRouter):
            raise UsageError("fairseq is compared with an FFN with ReLU behind a linear router")
        if config.top_k != 2 or config.capacity.rule != "fairseq" or config.capacity.factor != 1:
            raise UsageError(
                f"top_k={config.top_k}, {config.capacity}", hint="fairseq: top-2, factor 1 of its own rule"
            )
        layer, gate = modules(folder)
        chooses = gate.Top2Gate(like.gate.width, config.experts, use_fp32=True, second_expert_policy="all")
        chooses.wg = Router(router)
        each = nn.ModuleList(OneExpert(experts, number) for number in range(config.experts))
        args = types.SimpleNamespace(moe_expert_count=config.experts, batch_size=1, batch_size_valid=1)
        self.layer = layer.MOELayer(chooses, each, args)

    def forward(self, x: Tensor) -> tuple[Tensor, Losses]:
        y, found = self.layer(x[None])
        return y[0], Losses({"gshard": found["moe_gate_loss"]})

    def gradients(self) -> Iterator[Tensor]:
        """Give the gradients in the order and the shapes of those of a `MoE` of ours."""
        yield self.layer.gate.wg.weight_ED.grad
        each = self.layer.experts
        yield torch.stack([one.first.weight.grad.t() for one in each])
        yield torch.stack([one.second.weight.grad.t() for one in each])
        yield torch.stack([one.first.bias.grad for one in each])
        yield torch.stack([one.second.bias.grad for one in each])
