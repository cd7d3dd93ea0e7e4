"""Profiles made in code, as tuning would write them."""

from __future__ import annotations

from typing import Any

from commbench import algorithms
from commbench.profile import AlgorithmConfig, Choice, Evidence, Profile, Scope

EVIDENCE = Evidence(
    size_bytes=4096, dtype="fp32", default="direct", default_us=150.0, chosen_us=100.0, ratio=1.5, low=1.4, high=1.6,
    interval_of="launches", pairs=12, p=0.001, apparent=1.01, candidates=5, run="r1", verdict="confirmed",
)  # fmt: skip


def config(collective: str, algorithm: str, **params: int) -> AlgorithmConfig:
    """With the algorithm's defaults."""
    known = {key: default for key, (default, _) in algorithms.get(collective, algorithm).params.items()}
    return AlgorithmConfig(algorithm=algorithm, params={**known, **params})


def choice(collective: str, algorithm: str, first: int = 0, last: int | None = None, **more: Any) -> Choice:
    taken = config(collective, algorithm, **more.pop("params", {}))
    values: dict[str, Any] = {"scope": "s", "evidence": [EVIDENCE], **more}
    return Choice(
        collective=collective, min_bytes=first, max_bytes=last, algorithm=algorithm, params=taken.params, **values
    )


def profile(
    *choices: Choice, transport: str = "gloo", nodes: int | None = None, ranks_per_node: int | None = None, **more: Any
) -> Profile:
    """Of one scope, `s`, which asks for nothing but the transport if nothing is said."""
    scope = Scope(id="s", transport=transport, nodes=nodes, ranks_per_node=ranks_per_node, **more)
    return Profile(scopes=[scope], choices=list(choices), created="2026-01-01T00:00:00+00:00")
