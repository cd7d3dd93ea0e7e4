"""SweepConfig: the settings of one sweep, and the checks of keys that depend on each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commbench import algorithms, collectives
from commbench.binding import policies
from commbench.errors import UsageError, unknown
from commbench.spec import Value
from commbench.sweep.key import NO_DEFAULT, Key, values_of
from commbench.sweep.keys import ARGUMENTS, KEYS, LAYER, LINK_RATES, LISTED, PARAMS, names
from commbench.sweep.recipes import Overrides
from commbench.sweep.sizes import Sizes, read_sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepConfig:
    """Lists are axes; every combination of their values is a case. Fields are in the order of a run's config.yaml."""

    recipe: str
    typed: frozenset[str]  # keys that the user set, and not a recipe
    part: bool = False  # whether it is one of several of a recipe: left out where it cannot be had
    transport: list[str]
    collective: list[str]
    in_place: list[bool]
    overlap: list[str]
    dtype: list[str]
    mode: list[str]
    buffers: list[str]
    cache: list[str]
    fabric: list[str]
    routing: list[str]
    binding: list[str]
    algorithm: list[str]
    groups: list[str]
    nodes: list[int]
    ranks_per_node: list[int]
    link: list[str]  # of an emulated fabric, as are routing and the next four
    message_overhead: list[int]
    spines: list[int]
    intra_link: list[str]  # or "none"
    slow_link: list[str]  # or "none"
    spine_rate: list[str]  # or "none"
    params: dict[str, list[int]]  # of algorithms
    arguments: dict[str, list[Value]]  # of collectives; files by their content
    link_rate: dict[str, str]  # inter, intra: declared rates, for the bound alone; empty without
    layer: dict[str, list[int]]  # tokens, model_dim, top_k: sizes from a Mixture-of-Experts layer; empty without
    layout: list[str]  # NxM; where there are some, nodes and ranks_per_node are not used
    env: dict[str, list[str]]
    cpu_masks: str  # of binding=explicit
    binding_memory: bool
    size_range: Sizes
    iters: int | None
    warmup: int
    samples_min: int
    samples_max: int
    precision: float
    cap: float
    launches: int
    timeout: float
    seed: int
    script: str

    def as_keys(self) -> dict[str, Any]:
        """Return the keys as a recipe would set them, so that a run's config.yaml is a recipe itself."""
        keys: dict[str, Any] = {}
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if item.name in ("params", "arguments", "layer"):  # which list what is set alone
                keys |= value
            elif item.name == "size_range":
                keys["sizes"] = value.as_keys()
            elif item.name == "env":
                keys["env"] = value
            elif item.name == "link_rate":
                keys |= {"link_rate": value} if value else {}
            elif item.name in _NAMES:
                setup, _, inner = _NAMES[item.name].partition(".")
                shown = None if value in ("", []) else value
                keys[setup] = {**keys.get(setup, {}), inner: shown} if inner else shown
        return keys

    @property
    def most_nodes(self) -> int:
        return max([int(text.split("x")[0]) for text in self.layout] or self.nodes)

    @property
    def sizes(self) -> list[int]:
        """Return bytes, ascending, before rounding to what a collective can split."""
        return self.size_range.bytes


_NAMES = {name.replace(".", "_"): name for name in LISTED}  # of their fields


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return {"sizes.min": 1} of {"sizes": {"min": 1}}; `env` stays a mapping."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and name != "env":
            flat.update({f"{name}.{inner}": item for inner, item in value.items()})
        else:
            flat[name] = value
    return flat


def build(recipe: str, composed: Mapping[str, Any], overrides: Overrides, *, part: bool = False) -> SweepConfig:
    """Validate one composed recipe with the user's values on top. Raises `UsageError`."""
    flat = flatten(composed)
    env = flat.pop("env", None) or {}
    if not isinstance(env, Mapping) or not all(isinstance(name, str) and name.isidentifier() for name in env):
        raise UsageError(f"env is {env!r}", hint="env has variables and values, as in {OMP_NUM_THREADS: [1, 2]}")
    for name in [*flat, *overrides.values]:
        if name not in KEYS:
            raise unknown("key", name, [*names(), "env.NAME"])
    flat = {name: of.default for name, of in KEYS.items() if of.default is not NO_DEFAULT} | flat
    for name, typed in overrides.values.items():
        flat[name] = _typed(name, typed)
    if flat.get("tokens") is None and "top_k" not in overrides.values:  # tokens=null alone goes back to sizes
        flat.pop("top_k", None)
    values = {field: LISTED[name].read(name, flat[name]) for field, name in _NAMES.items()}
    layer, arguments = _read_set(LAYER, flat), _read_set(ARGUMENTS, flat)
    if "algorithm" not in overrides.values:
        values["algorithm"] = _able(values["algorithm"], values["collective"])
    if "nodes" in overrides.values or "ranks_per_node" in overrides.values:
        values["layout"] = _without_layout(values["layout"], overrides)
    values["cpu_masks"] = policies.check_keys(values["binding"], values["cpu_masks"] or None)
    if values["samples_min"] > values["samples_max"]:
        raise UsageError(
            f"samples.min {values['samples_min']} is above samples.max {values['samples_max']}",
            hint="lower one of them",
        )
    _check_layer(layer, overrides, values["collective"])
    _check_experts(layer, arguments)
    return SweepConfig(
        recipe=Path(recipe).stem,
        part=part,
        typed=frozenset(name for name in overrides.values if flat.get(name) is not None),
        params={name: of.read(name, flat[name]) for name, of in PARAMS.items() if name in flat},
        arguments=arguments,
        layer=layer,
        link_rate={name.partition(".")[2]: text for name, text in _read_set(LINK_RATES, flat).items()},
        env={**{name: [str(item) for item in values_of(name, value)] for name, value in env.items()}, **overrides.env},
        size_range=read_sizes(flat, [*overrides.values]),
        **values,
    )


def _typed(name: str, values: list[Any]) -> Any:
    """Return what a recipe would hold in place of the values that were typed."""
    if KEYS[name].axis:
        return None if values == [None] else values
    if len(values) != 1:
        raise UsageError(f"{name} takes one value, not {len(values)}", hint="run one sweep for each")
    return values[0]


def _read_set(keys: Mapping[str, Key], flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of those keys that are set."""
    return {name: of.read(name, flat[name]) for name, of in keys.items() if flat.get(name) is not None}


def _able(wanted: list[str], asked: list[str]) -> list[str]:
    """Return the recipe's algorithms that do what the user asks for: it may be another collective than the recipe's."""
    of = collectives.EVERY if "all" in asked else asked
    able = {"all", *(name for collective in of for name in algorithms.names(collective))}
    kept = [name for name in wanted if name in able]
    for collective in of:  # which may have none of them
        if not {"all", *algorithms.names(collective)} & {*kept}:
            kept.append(algorithms.names(collective)[0])
    return kept


def _without_layout(layouts: list[str], overrides: Overrides) -> list[str]:
    """Return no layout where the user's nodes and ranks_per_node replace a recipe's. Raises `UsageError`."""
    given = [name for name in ("nodes", "ranks_per_node") if name in overrides.values]
    if layouts and "layout" in overrides.values:
        raise UsageError(f"{given[0]} and layout are both set", hint="leave one of them out")
    if layouts and len(given) == 1:
        raise UsageError(
            f"{given[0]} is set, and the recipe sets layout={','.join(layouts)}", hint="write layout=NxM instead"
        )
    return []


def _check_layer(layer: Mapping[str, Any], overrides: Overrides, wanted: Sequence[str]) -> None:
    """Check that tokens, model_dim and top_k make sizes; model_dim alone says how long a token of a trace is.

    Where tokens are routed, top_k alone says to how many experts, and sizes say how many tokens there are.
    """
    routed = any(name in collectives.TABLE and collectives.get(name).routed for name in wanted)
    alone = ("tokens" in layer) != ("top_k" in layer) and not (routed and "top_k" in layer)
    if alone or ("tokens" in layer and "model_dim" not in layer):
        lacking = [key for key in LAYER if key not in layer]
        raise UsageError(
            f"the sizes of a layer need {', '.join(LAYER)}, not set: {', '.join(lacking)}",
            hint="set all three, or none to use sizes.min .. sizes.max",
        )
    if "tokens" in layer and (given := [key for key in overrides.values if key.startswith("sizes.")]):
        raise UsageError(
            f"{given[0]} is set, but tokens, model_dim and top_k make the sizes",
            hint="leave it out, or write tokens=null",
        )


def _check_experts(layer: Mapping[str, list[int]], arguments: Mapping[str, list[Value]]) -> None:
    """Check that a token does not go to more experts than there are."""
    top_k, experts = max(layer.get("top_k", [0])), [int(value) for value in arguments.get("experts", [])]
    if experts and top_k > min(experts):
        raise UsageError(
            f"top_k is {top_k}, but there are {min(experts)} experts", hint="a token goes to different experts"
        )
