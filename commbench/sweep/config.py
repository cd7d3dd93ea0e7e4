"""SweepConfig: the schema of a sweep's keys, with the checks that make a wrong value one clear line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commbench import algorithms, collectives, transports
from commbench.binding import policies
from commbench.collectives import splits
from commbench.emulated import MOST_OVERHEAD, MOST_SPINES, ROUTINGS, parse_rate, parse_slow_link
from commbench.errors import UsageError, unknown
from commbench.layout import block_size
from commbench.spec import DTYPES, Value
from commbench.sweep.recipes import Overrides
from commbench.sweep.sizes import SIZE_KEYS, Sizes, read_sizes

MODES = ("isolated", "pipelined", "graph")
BUFFERS = ("plain", "registered", "symmetric")
CACHES = ("warm", "cold")
FABRICS = ("real", "emulated", "virtual")
EMULATION = ("link", "message_overhead", "spines", "intra_link", "slow_link", "routing")
OVERLAPS = ("none", "matmul")
LAYER = ("tokens", "model_dim", "top_k")


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepConfig:
    """Lists are axes; every combination of their values is a case."""

    recipe: str
    transport: list[str]
    collective: list[str]
    algorithm: list[str]
    params: dict[str, list[int]]  # of algorithms
    arguments: dict[str, list[Value]]  # of collectives; files by their content
    in_place: list[bool]
    groups: list[str]
    overlap: list[str]
    typed: frozenset[str]  # keys that the user set, and not a recipe
    layer: dict[str, list[int]]  # tokens, model_dim, top_k: sizes from a Mixture-of-Experts layer; empty without
    dtype: list[str]
    mode: list[str]
    buffers: list[str]
    cache: list[str]
    nodes: list[int]
    ranks_per_node: list[int]
    layout: list[str]  # NxM; where there are some, nodes and ranks_per_node are not used
    fabric: list[str]
    link: list[str]  # of an emulated fabric, as are the next five
    message_overhead: list[int]
    spines: list[int]
    intra_link: list[str]  # or "none"
    slow_link: list[str]  # or "none"
    routing: list[str]
    binding: list[str]
    cpu_masks: str  # of binding=explicit
    binding_memory: bool
    env: dict[str, list[str]]
    range: Sizes
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
        """The keys as a recipe would set them, so that a run's config.yaml is a recipe itself."""
        return {
            **{key: getattr(self, key) for key in _AXES},
            **self.params,
            **self.arguments,
            **self.layer,
            "layout": self.layout or None,
            "env": self.env,
            "cpu_masks": self.cpu_masks or None,
            "binding_memory": self.binding_memory,
            "sizes": self.range.as_keys(),
            "iters": self.iters,
            "warmup": self.warmup,
            "samples": {"min": self.samples_min, "max": self.samples_max},
            "precision": self.precision,
            "cap": self.cap,
            "launches": self.launches,
            "timeout": self.timeout,
            "seed": self.seed,
            "script": self.script or None,
        }

    @property
    def sizes(self) -> list[int]:
        """Bytes, ascending, before rounding to what a collective can split."""
        return self.range.bytes


_CHOICES: dict[str, tuple[Any, ...]] = {
    "transport": tuple(transports.TABLE),
    "collective": (*collectives.TABLE, "all"),
    "in_place": (False, True),
    "overlap": OVERLAPS,
    "dtype": tuple(DTYPES),
    "mode": MODES,
    "buffers": BUFFERS,
    "cache": CACHES,
    "fabric": FABRICS,
    "routing": ROUTINGS,
    "binding": policies.POLICIES,
}
# key -> (type, smallest, largest)
_NUMBERS: dict[str, tuple[type, float, float]] = {
    "iters": (int, 1, 10_000_000),
    "warmup": (int, 0, 1_000_000),
    "samples.min": (int, 1, 1_000_000),
    "samples.max": (int, 1, 10_000_000),
    "precision": (float, 0, 1),
    "cap": (float, 0.001, 86_400),
    "launches": (int, 1, 10_000),
    "timeout": (float, 0.1, 86_400),
    "seed": (int, 0, 2**63 - 1),
    "sizes.factor": (float, 1, 1e15),
    "nodes": (int, 1, 100_000),
    "message_overhead": (int, 0, MOST_OVERHEAD),
    "spines": (int, 1, MOST_SPINES),
    "ranks_per_node": (int, 1, 1024),
    "tokens": (int, 1, 1 << 40),
    "model_dim": (int, 1, 1 << 30),
    "top_k": (int, 1, 1 << 20),
    "root": (int, 0, 1 << 30),
    "alpha": (float, 0, 100),
    "tp": (int, 2, 1024),
    "experts": (int, 1, 1 << 30),
    "step": (int, 0, 1 << 40),
    "row_bytes": (int, 1, 1 << 40),
    "send_bytes": (int, 1, 1 << 50),
    "round": (int, 0, 1 << 40),
}
# Arguments that name a file, which is stored by its content: a run must not change with the file.
_FILES = {"matrix": splits.read_matrix, "trace": splits.read_trace}
_SCALARS = (
    "iters",
    "warmup",
    "samples.min",
    "samples.max",
    "precision",
    "cap",
    "launches",
    "timeout",
    "seed",
    "script",
    "cpu_masks",
    "binding_memory",
    *SIZE_KEYS[:3],
)
_AXES = (*_CHOICES, "algorithm", "groups", "nodes", "ranks_per_node", *EMULATION[:-1])


def keys() -> list[str]:
    """Every key that KEY=VALUE may name, but for env.NAME."""
    return sorted(
        [*_SCALARS, *_AXES, "layout", "sizes.list", *LAYER, *algorithms.parameters(), *collectives.arguments()]
    )


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """{"sizes": {"min": 1}} -> {"sizes.min": 1}; `env` stays a mapping."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and key != "env":
            flat.update({f"{key}.{inner}": item for inner, item in value.items()})
        else:
            flat[key] = value
    return flat


def build(recipe: str, composed: Mapping[str, Any], overrides: Overrides) -> SweepConfig:
    """Validate one composed recipe with the user's values on top. Raises `UsageError`."""
    flat = flatten(composed)
    env = flat.pop("env", None) or {}
    if not isinstance(env, Mapping) or not all(isinstance(name, str) and name.isidentifier() for name in env):
        raise UsageError(f"env is {env!r}", hint="env holds variables and values, as in {OMP_NUM_THREADS: [1, 2]}")
    for key in [*flat, *overrides.values]:
        if key not in keys():
            raise unknown("key", key, [*keys(), "env.NAME"])
    for key, values in overrides.values.items():
        if key in _SCALARS and len(values) != 1:
            raise UsageError(f"{key} takes one value, not {len(values)}", hint="run one sweep for each")
        flat[key] = values[0] if key in _SCALARS else None if values == [None] else values
    axes = {key: _axis(key, flat.get(key)) for key in _AXES}
    for key, choices in _CHOICES.items():
        for value in axes[key]:
            if value not in choices:
                # As they are typed: false and true.
                raise unknown(key, str(value), [str(c).lower() if isinstance(c, bool) else c for c in choices])
    known = sorted({name for _, name in algorithms.TABLE})
    for value in axes["algorithm"]:
        if value != "all" and value not in known:
            raise unknown("algorithm", str(value), [*known, "all"])
    if "algorithm" not in overrides.values:  # a recipe's algorithms may be of another collective than the user's
        wanted = collectives.EVERY if "all" in axes["collective"] else axes["collective"]
        able = {"all", *(name for of in wanted for name in algorithms.names(of))}
        axes["algorithm"] = [name for name in axes["algorithm"] if name in able]
        for of in wanted:  # which may have none of them
            if not {"all", *algorithms.names(of)} & {*axes["algorithm"]}:
                axes["algorithm"].append(algorithms.names(of)[0])
    for value in axes["groups"]:
        if value not in ("world", "rails"):
            block_size(str(value))
    numbers = {key: _number(key, flat[key]) for key in _NUMBERS if key in _SCALARS and key != "iters"}
    wanted_sizes = read_sizes(flat, numbers["sizes.factor"], [*overrides.values])
    if numbers["samples.min"] > numbers["samples.max"]:
        raise UsageError(
            f"samples.min {numbers['samples.min']} is above samples.max {numbers['samples.max']}",
            hint="lower one of them",
        )
    params = {
        key: [_whole(key, value) for value in _axis(key, flat[key])] for key in algorithms.parameters() if key in flat
    }
    arguments = {
        key: [_argument(key, value) for value in _axis(key, flat[key])]
        for key in collectives.arguments()
        if flat.get(key) is not None
    }
    if "tokens" not in flat or flat["tokens"] is None:  # tokens=null alone goes back to sizes
        flat = {key: value for key, value in flat.items() if key != "top_k" or key in overrides.values}
    layer = {
        key: [_number(key, value) for value in _axis(key, flat[key])] for key in LAYER if flat.get(key) is not None
    }
    _check_layer(layer, overrides)
    _check_experts(layer, arguments)
    for value in axes["link"]:
        parse_rate(str(value))
    for value in axes["intra_link"]:
        if value != "none":
            parse_rate(str(value), "intra_link")
    for value in axes["slow_link"]:
        if value != "none":
            parse_slow_link(str(value))
    layouts = [] if flat.get("layout") is None else [_layout(value) for value in _axis("layout", flat["layout"])]
    if layouts and (given := [key for key in ("nodes", "ranks_per_node") if key in overrides.values]):
        if "layout" in overrides.values:
            raise UsageError(f"{given[0]} and layout are both set", hint="leave one of them out")
        if len(given) == 1:
            raise UsageError(
                f"{given[0]} is set, and the recipe sets layout={','.join(layouts)}", hint="write layout=NxM instead"
            )
        layouts = []  # a recipe's
    return SweepConfig(
        recipe=Path(recipe).stem,
        transport=axes["transport"],
        collective=axes["collective"],
        algorithm=axes["algorithm"],
        params=params,
        arguments=arguments,
        in_place=axes["in_place"],
        groups=axes["groups"],
        overlap=axes["overlap"],
        layer=layer,
        typed=frozenset(key for key in overrides.values if flat.get(key) is not None),
        dtype=axes["dtype"],
        mode=axes["mode"],
        buffers=axes["buffers"],
        cache=axes["cache"],
        nodes=[_number("nodes", value) for value in axes["nodes"]],
        ranks_per_node=[_number("ranks_per_node", value) for value in axes["ranks_per_node"]],
        layout=layouts,
        fabric=axes["fabric"],
        link=[str(value).lower() for value in axes["link"]],
        message_overhead=[_number("message_overhead", value) for value in axes["message_overhead"]],
        spines=[_number("spines", value) for value in axes["spines"]],
        intra_link=[str(value).lower() for value in axes["intra_link"]],
        slow_link=[str(value).lower() for value in axes["slow_link"]],
        routing=axes["routing"],
        binding=axes["binding"],
        cpu_masks=policies.check_keys(axes["binding"], flat.get("cpu_masks")),
        binding_memory=policies.memory_wanted(flat.get("binding_memory")),
        env={**{name: [str(v) for v in _axis(name, value)] for name, value in env.items()}, **overrides.env},
        range=wanted_sizes,
        iters=None if flat["iters"] is None else _number("iters", flat["iters"]),
        warmup=numbers["warmup"],
        samples_min=numbers["samples.min"],
        samples_max=numbers["samples.max"],
        precision=numbers["precision"],
        cap=numbers["cap"],
        launches=numbers["launches"],
        timeout=numbers["timeout"],
        seed=numbers["seed"],
        script=_script(flat.get("script")),
    )


def _layout(value: Any) -> str:
    """`4x2` as it is. Raises `UsageError` for what is no layout."""
    nodes, _, per_node = str(value).partition("x")
    if not (nodes.isdigit() and per_node.isdigit()):
        raise UsageError(f"layout is {value!r}", hint="nodes x ranks per node, as in layout=4x4 or layout=2x8,4x4")
    return f"{_number('nodes', int(nodes))}x{_number('ranks_per_node', int(per_node))}"


def _argument(key: str, value: Any) -> Value:
    choices = collectives.arguments()[key].choices
    if choices and value not in choices:
        raise unknown(key, str(value), choices)
    if key in _FILES:
        text = str(value)
        return text if text.startswith("[") else _FILES[key](text)  # a run's config.yaml holds the content itself
    if key in _NUMBERS and not (key == "round" and value == "all"):
        number: Value = _number(key, value)
        return number
    return str(value)


def _check_layer(layer: Mapping[str, Any], overrides: Overrides) -> None:
    """tokens and top_k make sizes, with model_dim; model_dim alone says how long a token of a trace is."""
    if ("tokens" in layer) != ("top_k" in layer) or ("tokens" in layer and "model_dim" not in layer):
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
    """A token cannot go to more experts than there are."""
    top_k, experts = max(layer.get("top_k", [0])), [int(value) for value in arguments.get("experts", [])]
    if experts and top_k > min(experts):
        raise UsageError(
            f"top_k is {top_k}, but there are {min(experts)} experts", hint="a token goes to different experts"
        )


def _axis(key: str, value: Any) -> list[Any]:
    values = list(value) if isinstance(value, list | tuple) else [value]
    if not values or any(item is None for item in values):
        raise UsageError(f"{key} has no value", hint=f"write {key}=VALUE")
    if odd := [item for item in values if not isinstance(item, str | int | float)]:
        raise UsageError(f"{key} holds {odd[0]!r}", hint=f"write {key}=VALUE, or {key}=A,B for several")
    return list(dict.fromkeys(values))


def _whole(key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(f"{key} is {value!r}", hint="a whole number")
    return value


def _number(key: str, value: Any) -> Any:
    kind, smallest, largest = _NUMBERS[key]
    fits = isinstance(value, int | float) and not isinstance(value, bool) and (kind is float or isinstance(value, int))
    if not fits or not smallest <= value <= largest:
        noun = "a whole number" if kind is int else "a number"
        raise UsageError(f"{key} is {value!r}", hint=f"{noun} from {smallest} to {largest:.0f}")
    return kind(value)


def _script(value: Any) -> str:
    """The script's JSON, canonical, so that equal scripts make equal case ids."""
    if value is None:
        return ""
    text = str(value)
    if not text.lstrip().startswith("{"):  # a run's config.yaml holds the script itself
        try:
            text = Path(text).read_text()
        except OSError as error:
            raise UsageError(f"cannot read the script {value!r}: {error.strerror}", hint="script=FILE.json") from error
    from commbench.transports.scripted.transport import Script

    Script.from_json(text)
    return json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
