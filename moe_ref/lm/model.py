"""The model: embedding, blocks (attention, then FFN or experts), head. Pre-norm, causal, one file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import record_function
from torch.utils.checkpoint import checkpoint

from commbench.errors import UsageError
from moe_ref.experts import ACTIVATIONS, FFN
from moe_ref.gate import Gate
from moe_ref.layer import MoE
from moe_ref.lm.config import LMConfig
from moe_ref.lm.tensor_parallel import TensorParallelModule
from moe_ref.routing import Routing

_STD = 0.02  # of embeddings and head, as in GPT-2
Contexts = tuple[AbstractContextManager[object], AbstractContextManager[object]]


# Makes the expert layer of a block, with first weights by a seed, both of which it gets.
MakeLayer = Callable[[int, int], nn.Module]


@dataclass(slots=True)
class LMOutput:
    """What the model gives.

    logits_BSV: of the next byte. losses: by name, the mean over expert layers, with gradient; empty without any.

    routings: of each expert layer, in order, without gradient.
    """

    logits_BSV: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)
    routings: list[Routing] = field(default_factory=list)


class Attention(TensorParallelModule):
    """Causal self-attention of all heads, or of those of this rank, by torch's scaled dot product."""

    shard_dims: ClassVar[Mapping[str, int]] = {"qkv_3ID": 1, "qkv_bias_3I": 1, "out.weight": 1}

    def __init__(self, width: int, heads: int, generator: torch.Generator) -> None:
        super().__init__()
        self.head = width // heads
        qkv = _linear(width, 3 * width, generator)
        self.qkv_3ID = nn.Parameter(qkv.weight.detach().view(3, width, width))
        self.qkv_bias_3I = nn.Parameter(qkv.bias.detach().view(3, width))
        self.out = _linear(width, width, generator)

    def forward(self, x_BSD: Tensor) -> Tensor:
        sequences, positions, _ = x_BSD.shape
        qkv = functional.linear(self.copy_to_tp(x_BSD), self.qkv_3ID.flatten(0, 1), self.qkv_bias_3I.flatten())
        q_BNSd, k_BNSd, v_BNSd = qkv.view(sequences, positions, 3, -1, self.head).permute(2, 0, 3, 1, 4)
        y_BNSd = functional.scaled_dot_product_attention(q_BNSd, k_BNSd, v_BNSd, is_causal=True)
        return self.reduce_from_tp(y_BNSd.transpose(1, 2).flatten(2), self.out)


class FeedForward(TensorParallelModule):
    """The FFN of a block without experts."""

    shard_dims: ClassVar[Mapping[str, int]] = {"up.weight": 0, "up.bias": 0, "down.weight": 1}

    def __init__(self, config: LMConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.up = _linear(config.width, config.hidden, generator)
        self.down = _linear(config.hidden, config.width, generator)

    def forward(self, x_BSD: Tensor) -> Tensor:
        return self.reduce_from_tp(self.activation(self.up(self.copy_to_tp(x_BSD))), self.down)


class TransformerBlock(nn.Module):
    """Attention, then an FFN or experts, each on a norm and beside a residual."""

    def __init__(self, config: LMConfig, layer: int, moe: nn.Module | None, generator: torch.Generator) -> None:
        """moe: the expert layer; None: the block has an FFN."""
        super().__init__()
        self.layer = layer
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = Attention(config.width, config.heads, generator)
        self.norm = nn.LayerNorm(config.width)
        self.moe = moe
        self.ffn = None if moe is not None else FeedForward(config, generator)

    def forward(self, x_BSD: Tensor, seed: int | None) -> tuple[Tensor, Routing | None]:
        with record_function("lm::attention"):
            x_BSD = x_BSD + self.attention(self.attention_norm(x_BSD))
        inner_BSD = self.norm(x_BSD)
        if self.moe is None:
            assert self.ffn is not None
            with record_function("lm::ffn"):
                return x_BSD + self.ffn(inner_BSD), None
        generator = None
        if seed is not None:  # made here, so that a block that is redone draws the same again
            generator = torch.Generator(x_BSD.device).manual_seed((seed * 1009 + self.layer) % 2**63)
        with record_function("lm::moe"):
            y_BSD, routing = self.moe(inner_BSD, generator=generator)
        return x_BSD + y_BSD.to(x_BSD.dtype), routing


class LM(nn.Module):
    """Predicts the next byte: bytes in, logits out."""

    def __init__(
        self, config: LMConfig, make: MakeLayer | None = None, *, seed: int = 0, dtype: torch.dtype | None = None
    ) -> None:
        """make: of expert layers; None: `moe_ref.MoE`, all experts here. seed: of the first weights.

        What ranks share depends on the seed alone, and so do experts that `init_experts` draws, on any number of ranks.
        """
        super().__init__()
        self.config = config
        generator = torch.Generator().manual_seed(seed)
        make = make or local_experts(config)
        self.embedding_VD = nn.Parameter(_normal(config.vocabulary, config.width, generator))
        self.positions_SD = nn.Parameter(_normal(config.context, config.width, generator))
        self.blocks = nn.ModuleList(
            TransformerBlock(config, layer, make(layer, seed) if config.has_experts(layer) else None, generator)
            for layer in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.width)
        self.head_VD = (
            self.embedding_VD if config.tied else nn.Parameter(_normal(config.vocabulary, config.width, generator))
        )
        with torch.no_grad():  # residual branches add up: GPT-2's scale
            for name, weight in self.named_parameters():
                if name.endswith(("out.weight", "down.weight", "w2_EHD", "down_EHD")):
                    weight.mul_((2 * config.layers) ** -0.5)
        if dtype is not None:
            self.to(dtype)

    def forward(
        self,
        bytes_BS: Tensor,
        *,
        seed: int | None = None,
        draws: bool = True,
        contexts: Callable[[], Contexts] | None = None,
    ) -> LMOutput:
        """Return the logits of the next bytes.

        bytes_BS: integers below V, S at most the context. seed: of the gates' draws; None: torch's own generator.
        draws: whether there are any; where not, a block that is redone sets no generator back.

        contexts: blocks keep their inputs alone and are redone in backward; each block calls it once for the context
            of its first pass and that of the second one. None: everything is kept.
        Raises `UsageError` for a shape or dtype that does not fit.
        """
        if bytes_BS.dim() != 2 or bytes_BS.shape[1] > self.config.context or bytes_BS.is_floating_point():
            raise UsageError(f"bytes of shape {list(bytes_BS.shape)} and {bytes_BS.dtype}",
                             hint=f"[B, S] of integers, S <= context={self.config.context}")  # fmt: skip
        with record_function("lm::embedding"):
            x_BSD = functional.embedding(bytes_BS, self.embedding_VD) + self.positions_SD[: bytes_BS.shape[1]]
        routings = []
        for block in self.blocks:
            if contexts is None or not torch.is_grad_enabled():
                x_BSD, routing = block(x_BSD, seed)
            else:
                x_BSD, routing = checkpoint(
                    block,
                    x_BSD,
                    seed,
                    use_reentrant=False,
                    context_fn=contexts,
                    preserve_rng_state=draws and seed is None,
                )
            if routing is not None:
                routings.append(routing)
        with record_function("lm::head"):
            logits_BSV = functional.linear(self.norm(x_BSD), self.head_VD)
        return LMOutput(logits_BSV, _mean_losses(routings), routings)


def local_experts(config: LMConfig, permute: str = "auto") -> MakeLayer:
    """Return what makes expert layers with all experts on this rank."""

    def make(layer: int, seed: int) -> nn.Module:
        gate = Gate(config.width, config.gate, generator=seeded_generator(seed, layer))
        ffn = FFN(config.experts, config.width, config.hidden, activation=config.activation)
        moe = MoE(gate, ffn, permute=permute)
        init_experts(moe.experts, seed, layer)
        return moe

    return make


def init_experts(experts: nn.Module, seed: int, layer: int, first: int = 0) -> None:
    """Draw the first weights of experts `first`, `first` + 1, ..: each expert has its own draws, wherever it is."""
    for name, weight in experts.named_parameters():
        if weight.dim() == 3:  # [E_g, inside, out]; biases are 0
            salt = sum(map(ord, name))
            for index, part in enumerate(weight.data):
                bound = part.shape[0] ** -0.5
                part.uniform_(-bound, bound, generator=seeded_generator(seed, layer, 1 + first + index, salt))


def seeded_generator(*numbers: int) -> torch.Generator:
    """Make a generator on the CPU that depends on these numbers, all below 2^31, and nothing else."""
    state = 0
    for number in numbers:
        state = (state * 6364136223846793005 + number + 1442695040888963407) % 2**63
    return torch.Generator().manual_seed(state)


def _mean_losses(routings: list[Routing]) -> dict[str, Tensor]:
    names: Mapping[str, Tensor] = routings[0].losses if routings else {}
    return {name: torch.stack([routing.losses[name] for routing in routings]).mean() for name in names}


def _linear(inside: int, out: int, generator: torch.Generator) -> nn.Linear:
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, inside, out)  # type: ignore[no-untyped-call]
    bound = inside**-0.5
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        layer.bias.zero_()
    return layer


def _normal(rows: int, width: int, generator: torch.Generator) -> Tensor:
    return torch.empty(rows, width).normal_(0, _STD, generator=generator)
