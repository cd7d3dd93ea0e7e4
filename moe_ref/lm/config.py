"""What the model is, and by formula how many parameters and how much arithmetic that makes."""

from __future__ import annotations

from dataclasses import dataclass, field

from commbench.errors import UsageError
from moe_ref.capacity import Capacity
from moe_ref.experts import ACTIVATIONS
from moe_ref.gate_config import GateConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class LMConfig:
    """The settings of the decoder of Table 1 of Tutel's announcement (fairseq's transformer_lm_gpt).

    layers, width (D), heads, hidden (H of the FFN and of each expert).
    context: S, the positions that there are vectors for.
    moe_freq: every so many-th block has experts, counted from 1 and so the last one too where it divides `layers`
        (fairseq's --moe-freq); 0: none has.
    experts (E), top_k (K), capacity, normalise, order, gate_dtype, losses: of the gate, see `GateConfig`.
    activation, tied: whether the head is the embedding.
    vocabulary (V): 256, since text is bytes.

    Raises `UsageError` for sizes that do not fit each other.
    """

    layers: int
    width: int
    heads: int
    hidden: int
    context: int
    moe_freq: int = 2
    experts: int = 8
    top_k: int = 2
    capacity: Capacity = field(default_factory=lambda: Capacity("tutel", 1.25))
    normalise: str = "after"
    order: str = "position"
    gate_dtype: str = "fp32"
    losses: tuple[str, ...] = ("gshard",)
    activation: str = "gelu"
    tied: bool = True
    vocabulary: int = 256

    def __post_init__(self) -> None:
        for name in ("layers", "width", "heads", "hidden", "context", "experts", "vocabulary"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}", hint=f"{name} is 1 or more")
        if self.moe_freq < 0:
            raise UsageError(f"moe_freq is {self.moe_freq}", hint="0: no experts; n: every n-th block has them")
        if self.width % self.heads:
            raise UsageError(f"width={self.width} does not divide among heads={self.heads}",
                             hint="heads that divide width, or width=N of a multiple of heads")  # fmt: skip
        if self.activation not in ACTIVATIONS:
            raise UsageError(f"unknown activation {self.activation!r}", hint=f"known: {', '.join(ACTIVATIONS)}")
        _ = self.gate  # checks what is its own

    @property
    def gate(self) -> GateConfig:
        """The settings of the gates."""
        return GateConfig(
            experts=self.experts,
            top_k=self.top_k,
            capacity=self.capacity,
            normalise=self.normalise,
            order=self.order,
            dtype=self.gate_dtype,
            losses=self.losses,
        )

    def has_experts(self, layer: int) -> bool:
        """Say whether block `layer`, counted from 0, has experts."""
        return self.moe_freq > 0 and (layer + 1) % self.moe_freq == 0

    @property
    def moe_layers(self) -> int:
        """The number of blocks that have experts."""
        return self.layers // self.moe_freq if self.moe_freq else 0


@dataclass(frozen=True, slots=True)
class Parameters:
    """Numbers of parameters. `replicated` are on every rank, `experts` are all experts' of all layers together.

    active: those that one token is multiplied with: K experts of a layer, and the head once, whether it is tied or
    not; vectors that are looked up or added (embedding, positions, biases, norms) are left out.
    """

    replicated: int
    experts: int
    active: int

    @property
    def total(self) -> int:
        """All parameters of the model."""
        return self.replicated + self.experts


def parameters(config: LMConfig) -> Parameters:
    """Count parameters, with d = D: attention 4 d^2 + 4 d, FFN or expert 2 d H + H + d, gate E d, norms 2 d each."""
    d, h = config.width, config.hidden
    attention, ffn = 4 * d * d, 2 * d * h
    dense, sparse = config.layers - config.moe_layers, config.moe_layers
    embedding = config.vocabulary * d
    replicated = (
        config.layers * (attention + 4 * d + 4 * d)
        + dense * (ffn + h + d)
        + sparse * config.experts * d
        + embedding * (1 if config.tied else 2)
        + config.context * d
        + 2 * d
    )
    active = config.layers * attention + dense * ffn + sparse * (config.top_k * ffn + config.experts * d) + embedding
    return Parameters(replicated, sparse * config.experts * (ffn + h + d), active)


def flops_per_token(config: LMConfig, *, positions: int | None = None, recompute: bool = False) -> int:
    """Count arithmetic of a training step per token: 6 active + 12 layers S D, a third more where blocks are redone.

    The count of PaLM (arXiv 2204.02311, appendix B): two for each multiply-add, backward twice forward, attention over
    all S positions though half of them are masked. All K choices count, those that are dropped too, and nothing that a
    dispatcher adds. For `mfu` recomputed work does not count, which is the default.
    """
    positions = config.context if positions is None else positions
    forward = 2 * parameters(config).active + 4 * config.layers * positions * config.width
    again = forward - 2 * config.vocabulary * config.width if recompute else 0
    return 3 * forward + again
