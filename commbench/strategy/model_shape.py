"""ModelShape: the sizes of a transformer with or without experts, and how many parameters and FLOP these make."""

from __future__ import annotations

from dataclasses import dataclass

from commbench.errors import UsageError

_COUNTED = ("layers", "width", "heads", "kv_heads", "head_dim", "hidden", "vocabulary", "context")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Sizes of a decoder. Raises `UsageError` for sizes that do not fit each other.

    layers, width (D), heads, kv_heads, head_dim: of the attention; of multi-head latent attention (`kv_lora` above 0,
    DeepSeek) head_dim is of queries and keys without rope, and q_lora, rope_dim, value_dim are its own.
    hidden: H of dense FFNs; expert_hidden: of one expert; shared_hidden: of shared experts together, 0: none.
    experts (E), top_k (K); has_experts: of each layer. gated: SwiGLU's three matrices in place of two.
    capacity_factor: slots over even tokens; 0: dropless. context: S, tokens of a sequence. source: whose sizes.
    """

    name: str
    source: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocabulary: int
    context: int
    has_experts: tuple[bool, ...]
    experts: int = 1
    top_k: int = 1
    expert_hidden: int = 0
    shared_hidden: int = 0
    gated: bool = True
    tied: bool = False
    capacity_factor: float = 0.0
    q_lora: int = 0
    kv_lora: int = 0
    rope_dim: int = 0
    value_dim: int = 0

    def __post_init__(self) -> None:
        for name in _COUNTED:
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}", hint=f"{name} is 1 or more")
        if len(self.has_experts) != self.layers:
            raise UsageError(f"{len(self.has_experts)} layers of {self.layers} say whether they have experts",
                             hint="one word for each layer")  # fmt: skip
        if self.heads % self.kv_heads:
            raise UsageError(f"heads={self.heads} do not divide among kv_heads={self.kv_heads}",
                             hint="kv_heads divides heads")  # fmt: skip
        if self.moe_layers and (self.expert_hidden < 1 or not 1 <= self.top_k <= self.experts):
            raise UsageError(f"top_k={self.top_k} of experts={self.experts} with expert_hidden={self.expert_hidden}",
                             hint="1 <= top_k <= experts, and expert_hidden is 1 or more")  # fmt: skip
        if self.capacity_factor < 0:
            raise UsageError(f"capacity_factor is {self.capacity_factor:g}", hint="0: dropless; else above 0")

    @property
    def moe_layers(self) -> int:
        return sum(self.has_experts)

    @property
    def query_dim(self) -> int:
        """Elements of a head's query and key."""
        return self.head_dim + (self.rope_dim if self.kv_lora else 0)

    @property
    def out_dim(self) -> int:
        """Elements of a head's value and output."""
        return self.value_dim or self.head_dim

    @property
    def matrices(self) -> int:
        """Matrices of an FFN: 3 with a gate, 2 without."""
        return 3 if self.gated else 2

    @property
    def attention_parameters(self) -> int:
        """Parameters of one layer's attention."""
        out = self.heads * self.out_dim * self.width
        if not self.kv_lora:
            return self.width * (self.heads + 2 * self.kv_heads) * self.head_dim + out
        query = self.width * self.q_lora + self.q_lora * self.heads * self.query_dim if self.q_lora else (
            self.width * self.heads * self.query_dim)  # fmt: skip
        down = self.width * (self.kv_lora + self.rope_dim)
        return query + down + self.kv_lora * self.heads * (self.head_dim + self.out_dim) + out

    @property
    def ffn_parameters(self) -> int:
        """Parameters of one dense FFN."""
        return self.matrices * self.width * self.hidden

    @property
    def expert_parameters(self) -> int:
        """Parameters of one expert."""
        return self.matrices * self.width * self.expert_hidden

    @property
    def shared_parameters(self) -> int:
        """Parameters of a layer's shared experts and its gate."""
        return self.matrices * self.width * self.shared_hidden + self.width * self.experts

    @property
    def embedding_parameters(self) -> int:
        """Parameters of the embedding; the head has as many more where it is not tied."""
        return self.vocabulary * self.width

    @property
    def parameters(self) -> int:
        """All parameters, without biases and norms."""
        dense = self.layers - self.moe_layers
        experts = self.moe_layers * (self.experts * self.expert_parameters + self.shared_parameters)
        heads = self.embedding_parameters * (1 if self.tied else 2)
        return self.layers * self.attention_parameters + dense * self.ffn_parameters + experts + heads

    @property
    def active_parameters(self) -> int:
        """Parameters that one token is multiplied with: K experts of a layer, and the head."""
        dense = self.layers - self.moe_layers
        experts = self.moe_layers * (self.top_k * self.expert_parameters + self.shared_parameters)
        return (
            self.layers * self.attention_parameters + dense * self.ffn_parameters + experts + self.embedding_parameters
        )

    @property
    def score_flops(self) -> int:
        """FLOP of causal scores and their products with values, of one token in one layer, forward."""
        return self.context * self.heads * (self.query_dim + self.out_dim)

    @property
    def flops_per_token(self) -> float:
        """FLOP of a training for one token, forward and backward; what is recomputed does not count."""
        return 3.0 * (2 * self.active_parameters + self.layers * self.score_flops)
