"""The gate: scores, choices, capacity, slots and weights, in one readable pass over the rules of three systems."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from commbench.errors import UsageError
from moe_ref import compiled, fused_gate, losses, selection, slots
from moe_ref.gate_config import DTYPES, GateConfig
from moe_ref.routers import CosineRouter, LinearRouter
from moe_ref.routing import Routing, count


class Gate(nn.Module):
    """Makes the `Routing` of tokens [T, D]. Its parameters are the same on all ranks of a distributed layer."""

    def __init__(self, width: int, config: GateConfig, *, generator: torch.Generator | None = None) -> None:
        """width: D. generator: on the CPU, for the first weights, so that ranks can agree on them."""
        super().__init__()
        if width < 1:
            raise UsageError(f"width={width} is below 1", hint="the model dimension D of the tokens")
        self.width, self.config = width, config
        dtype = DTYPES[config.dtype]
        self.expert_bias_E: Tensor | None
        self.register_buffer("expert_bias_E", torch.zeros(config.experts) if config.expert_bias else None)
        self.router: nn.Module
        if config.router == "linear":
            self.router = LinearRouter(width, config.experts, dtype=dtype, generator=generator)
        else:
            self.router = CosineRouter(
                width, config.experts, config.cosine_dim,
                temperature=config.cosine_temperature, dtype=dtype, generator=generator,
            )  # fmt: skip

    def forward(
        self,
        x_TD: Tensor,
        padding_T: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        most_tokens: int | None = None,
        largest: Callable[[int], int] | None = None,
    ) -> Routing:
        """Return the routing of T tokens.

        padding_T: bool [T], true for tokens that are padding: they choose nothing and get 0. They count in T, so
            that C is the same on all ranks that pad to the same T.
        generator: of the input's device, for jitter, dropout, noise and draws.
        most_tokens: T of the rank that has most, where ranks differ, so that all have the same C.
        largest: where C depends on loads, gives the largest of a number over all ranks; None: there is one rank.
        Raises `UsageError` for shapes and dtypes that do not fit, with both.
        """
        config = self.config
        _check(x_TD, padding_T, self.width)
        real_T = None if padding_T is None else ~padding_T
        with torch.autocast(x_TD.device.type, enabled=False):
            if padding_T is not None:
                x_TD = x_TD.masked_fill(padding_T[:, None], 0)  # padding may hold anything, nan included
            clean_TE, noisy_TE = self._logits(x_TD, generator)
            if config.plain_choice and not fused_gate.unsupported(noisy_TE, order=config.order, second=config.second):
                return self._fused(clean_TE, noisy_TE, real_T, most_tokens, largest)
            return self._plain(clean_TE, noisy_TE, real_T, generator, most_tokens, largest)

    def _plain(
        self, clean_TE: Tensor, noisy_TE: Tensor, real_T: Tensor | None, generator: torch.Generator | None,
        most_tokens: int | None, largest: Callable[[int], int] | None,
    ) -> Routing:  # fmt: skip
        """Route in plain torch, by all rules: what `_fused` is held against."""
        config = self.config
        tokens = len(noisy_TE)
        scores_TE = selection.scores(noisy_TE, config.score)
        experts_TK = self._choose(noisy_TE, scores_TE, generator)
        chosen_TK = scores_TE.gather(1, experts_TK)
        if config.normalise == "before":
            chosen_TK = self._normalised(chosen_TK)
        valid_TK = self._valid(chosen_TK, real_T, generator)
        loads_E = count(experts_TK, valid_TK, config.experts)
        capacity = self._capacity(tokens, loads_E, most_tokens, largest)
        slots_TK = slots.assign(
            experts_TK, valid_TK, config.experts, capacity, config.order,
            scores_TK=chosen_TK.detach(), best_T=scores_TE.detach().amax(1),
            priority_T=_uniform(tokens, scores_TE, generator) if config.order == "random" else None,
        )  # fmt: skip
        weights_TK = torch.where(slots_TK >= 0, chosen_TK, 0)
        if config.normalise == "after":
            weights_TK = self._normalised(weights_TK)
        shares_TE = selection.shares(scores_TE, config.score)
        balance = {
            "gshard": lambda: losses.gshard(shares_TE, experts_TK, real_T),
            "gshard_all": lambda: losses.gshard(shares_TE, experts_TK, real_T, choices=config.top_k),
        }
        found = self._losses(clean_TE, noisy_TE, real_T, balance)
        rows = self._rows(tokens, loads_E, capacity, real_T)
        counts_E = loads_E if capacity is None else loads_E.clamp(max=capacity)
        return Routing(
            experts_TK, slots_TK, self._scaled(weights_TK), counts_E, loads_E, capacity, rows, found,
            logits_TE=noisy_TE, score=config.score,
        )  # fmt: skip

    def _fused(
        self, clean_TE: Tensor, noisy_TE: Tensor, real_T: Tensor | None, most_tokens: int | None,
        largest: Callable[[int], int] | None,
    ) -> Routing:  # fmt: skip
        """Do what `_plain` does by a few kernels."""
        config, tokens = self.config, len(noisy_TE)
        capacity: int | None = None

        def places(loads_E: Tensor) -> tuple[int | None, int]:
            nonlocal capacity
            capacity = self._capacity(tokens, loads_E, most_tokens, largest)
            return capacity, self._rows(tokens, loads_E, capacity, real_T)

        made = fused_gate.route(noisy_TE, real_T, places, top_k=config.top_k, normalise=config.normalise)
        many = tokens if real_T is None else real_T.sum().clamp(min=1)
        balance = {
            "gshard": lambda: losses.balance(made.sums_E, made.firsts_E, many, 1).to(noisy_TE.dtype),
            "gshard_all": lambda: losses.balance(made.sums_E, made.loads_E, many, config.top_k).to(noisy_TE.dtype),
        }
        found = self._losses(clean_TE, noisy_TE, real_T, balance)
        counts_E = made.loads_E if capacity is None else made.loads_E.clamp(max=capacity)
        return Routing(
            made.experts_TK, made.slots_TK, self._scaled(made.weights_TK), counts_E, made.loads_E, capacity,
            len(made.choice_R), found, (made.rows_TK, made.choice_R), logits_TE=noisy_TE,
        )  # fmt: skip

    def _rows(self, tokens: int, loads_E: Tensor, capacity: int | None, real_T: Tensor | None) -> int:
        """Return the rows of the buffer."""
        config = self.config
        if capacity is not None:
            return config.experts * capacity
        # Only choices that may be invalid make the host wait for their number.
        return tokens * config.top_k if real_T is None and config.second != "random" else int(loads_E.sum())

    def _logits(self, x_TD: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        config = self.config
        dtype = DTYPES[config.dtype] or x_TD.dtype
        if self.training and (config.jitter or config.dropout):
            x_TD = x_TD.to(dtype)
        if self.training and config.jitter:
            factors_TD = 1 + config.jitter * (2 * _uniform(x_TD.shape, x_TD, generator) - 1)
            x_TD = x_TD * factors_TD.to(x_TD.dtype)
        if self.training and config.dropout:
            kept_TD = _uniform(x_TD.shape, x_TD, generator) >= config.dropout
            x_TD = torch.where(kept_TD, x_TD / (1 - config.dropout), 0)
        clean_TE: Tensor = self.router(x_TD, dtype)
        if not (self.training and config.noise):
            return clean_TE, clean_TE
        normal_TE = torch.randn(clean_TE.shape, dtype=clean_TE.dtype, device=clean_TE.device, generator=generator)
        return clean_TE, clean_TE + config.noise / config.experts * normal_TE

    def balance(self, loads_E: Tensor, rate: float = 0.001) -> None:
        """Move `expert_bias_E` by `rate` towards equal loads: after each step, with the loads of all ranks together.

        Raises `UsageError` for a gate without one.
        """
        if self.expert_bias_E is None:
            raise UsageError("this gate has no bias of the choice", hint="GateConfig(expert_bias=True)")
        selection.balance(self.expert_bias_E, loads_E, rate)

    def _scaled(self, weights_TK: Tensor) -> Tensor:
        return weights_TK if self.config.route_scale == 1 else weights_TK * self.config.route_scale

    def _choose(self, logits_TE: Tensor, scores_TE: Tensor, generator: torch.Generator | None) -> Tensor:
        """Choose experts: int64 [T, K], best first; which of two equal logits comes first is torch's."""
        config = self.config
        if not config.plain_choice:
            groups, limit = config.expert_groups, config.groups_chosen_from
            numbers_TE = selection.biased(scores_TE, self.expert_bias_E, groups, limit)
            return numbers_TE.topk(config.top_k, dim=1).indices
        logits_TE = logits_TE.detach()
        if self.config.second != "sampling" or self.config.top_k == 1:
            return logits_TE.topk(self.config.top_k, dim=1).indices
        first_T1 = logits_TE.argmax(1, keepdim=True)
        # The Gumbel trick: the K - 1 largest of logit + noise are draws without replacement by softmax.
        exponential_TE = torch.empty_like(logits_TE).exponential_(generator=generator)
        drawn_TE = (logits_TE - exponential_TE.log()).scatter(1, first_T1, -math.inf)
        return torch.cat([first_T1, drawn_TE.topk(self.config.top_k - 1, dim=1).indices], dim=1)

    def _valid(self, chosen_TK: Tensor, real_T: Tensor | None, generator: torch.Generator | None) -> Tensor:
        valid_TK = torch.ones(chosen_TK.shape, dtype=torch.bool, device=chosen_TK.device)
        if self.config.second == "random":
            valid_TK = 2 * chosen_TK.detach() > _uniform(chosen_TK.shape, chosen_TK, generator)
            valid_TK[:, 0] = True
        return valid_TK if real_T is None else valid_TK & real_T[:, None]

    def _normalised(self, weights_TK: Tensor) -> Tensor:
        if self.config.top_k == 1:
            return weights_TK
        return weights_TK / weights_TK.sum(1, keepdim=True).clamp(min=torch.finfo(weights_TK.dtype).eps)

    def _capacity(
        self, tokens: int, loads_E: Tensor, most_tokens: int | None, largest: Callable[[int], int] | None
    ) -> int | None:
        rule, config = self.config.capacity, self.config
        if rule.dropless:
            return None
        if most_tokens is not None and most_tokens < tokens:
            raise UsageError(
                f"most_tokens={most_tokens}, but this rank has {tokens}", hint="the maximum over all ranks"
            )
        load = None
        if rule.needs_load(training=self.training):
            load = int(loads_E.max())
            load = load if largest is None else largest(load)
        most = tokens if most_tokens is None else most_tokens
        if load is None and torch.compiler.is_compiling():
            kept: int = compiled.slots(
                rule.rule, rule.factor, rule.fewest, rule.multiple_of, rule.eval_factor, rule.eval_fraction,
                most, config.experts, config.top_k, self.training,
            )  # fmt: skip
            return kept
        return rule.slots(most, config.experts, config.top_k, load=load, training=self.training)

    def _losses(
        self, clean_TE: Tensor, noisy_TE: Tensor, real_T: Tensor | None, balance: Mapping[str, Callable[[], Tensor]]
    ) -> dict[str, Tensor]:
        """Compute what is asked for. balance: the losses of how evenly tokens go, by name."""
        config = self.config
        functions: dict[str, Callable[[], Tensor]] = {
            **balance,
            "importance_load": lambda: losses.importance_load(
                clean_TE, noisy_TE, config.top_k, config.noise / config.experts, real_T
            ),
            "z": lambda: losses.z(clean_TE, real_T),
        }
        return {name: functions[name]() for name in config.losses}


def _uniform(shape: int | torch.Size, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw numbers in [0, 1): of fp32 at least, since bf16 has so few that many would be equal."""
    size = (shape,) if isinstance(shape, int) else shape
    dtype = torch.promote_types(like.dtype, torch.float32)
    return torch.rand(size, dtype=dtype, device=like.device, generator=generator)


def _check(x_TD: Tensor, padding_T: Tensor | None, width: int) -> None:
    if x_TD.dim() != 2 or x_TD.shape[1] != width:
        raise UsageError(f"tokens of shape {list(x_TD.shape)} for a gate of width {width}", hint=f"[T, {width}]")
    if not x_TD.is_floating_point():
        raise UsageError(f"tokens are {x_TD.dtype}", hint="a floating-point dtype")
    if padding_T is not None and (padding_T.shape != x_TD.shape[:1] or padding_T.dtype != torch.bool):
        raise UsageError(f"a padding mask of shape {list(padding_T.shape)} and {padding_T.dtype} "
                         f"for tokens of shape {list(x_TD.shape)}",
                         hint=f"[{len(x_TD)}] of bool, true for padding")  # fmt: skip
