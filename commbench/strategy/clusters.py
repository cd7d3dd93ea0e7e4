"""Which cluster is meant: a file, a GPU by name, keys, and costs that were fitted; each number with its source."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from commbench.cost_model import Model
from commbench.cost_model.costs import Fitted
from commbench.errors import CorruptFile, UsageError, unknown
from commbench.strategy.cluster import GpuCluster, LinkCost, default_memory_gbs
from commbench.strategy.keys import read_value
from commbench.strategy.known import GPUS, INTER_ALPHA_US, INTRA_ALPHA_US
from commbench.strategy.models import recipe_values
from commbench.strategy.tagged import Source, Tagged

_SCALARS = ("memory_gb", "peak_tflops", "memory_gbs")
_PLAIN = ("nodes", "gpus_per_node", "fabric_routing", "nodes_per_leaf", "cores", "row_us")
_LINKS = {"gbs": "gbs", "alpha_us": "alpha_us"}
_HINT = "nodes, gpus_per_node, memory_gb, peak_tflops, links: {intra: {gbs, alpha_us}, inter: {gbs, alpha_us}}"


def read_cluster(typed: Mapping[str, Any]) -> GpuCluster:
    """Return the cluster of `cluster=FILE`, `gpu=NAME` and the keys beside them. Raises `UsageError`."""
    found: dict[str, Any] = {}
    if (gpu := typed.get("gpu")) is not None:
        card = GPUS[gpu]
        found |= {"memory_gb": Tagged(card.memory_gb, "declared", 1.0),
                  "peak_tflops": Tagged(card.peak_tflops, "declared", 1.0),
                  "memory_gbs": Tagged(card.memory_gbs, "declared", 1.1),
                  "intra_gbs": Tagged(card.intra_gbs, "default", 1.25), "gpus_per_node": 8}  # fmt: skip
    if (name := typed.get("cluster")) is not None:
        found |= _of_file(Path(name))
    found |= {key: Tagged(value, "declared") if key.endswith(("_gbs", "_us")) else value
              for key, value in typed.items() if value is not None and key in _known()}  # fmt: skip
    costs = None if typed.get("costs") is None else read_costs(Path(typed["costs"]))
    for key, what in (("nodes", "how many nodes"), ("gpus_per_node", "how many GPUs a node has"),
                      ("memory_gb", "how much memory a GPU has"), ("peak_tflops", "a GPU's peak")):  # fmt: skip
        if key not in found:
            raise UsageError(f"nobody says {what}", hint=f"{key}=.., gpu={'|'.join(GPUS)}, or cluster=FILE: {_HINT}")
    links = {}
    for link, alpha in (("intra", INTRA_ALPHA_US), ("inter", INTER_ALPHA_US)):
        if f"{link}_gbs" in found:
            links[link] = LinkCost(gbs=found[f"{link}_gbs"],
                                   alpha_us=found.get(f"{link}_alpha_us", Tagged(alpha, "default")))  # fmt: skip
    peak = _exact(found["peak_tflops"])
    return GpuCluster(
        **{key: found[key] for key in ("nodes", "gpus_per_node")},
        memory_gib=_exact(found["memory_gb"]),
        peak_tflops=peak,
        memory_gbs=_tagged(found.get("memory_gbs"), default_memory_gbs(peak.value)),
        links=links,
        costs=costs,
        routing=found.get("fabric_routing", "unknown"),
        nodes_per_leaf=found.get("nodes_per_leaf", 8),
        cores=found.get("cores", 0),
        row_us=_tagged(found.get("row_us"), Tagged(0.0, "default")),
        measured_gpus=0 if costs is None else costs.scales.ranks,
        source=str(typed.get("cluster") or typed.get("gpu") or "keys"),
    )


def _known() -> tuple[str, ...]:
    return (*_SCALARS, *_PLAIN, *(f"{link}_{name}" for link in ("intra", "inter") for name in _LINKS))


def _exact(value: Any) -> Tagged:
    """Return what a card's data sheet says, which is not off."""
    return value if isinstance(value, Tagged) else Tagged(float(value), "declared", 1.0)


def _tagged(value: Any, default: Tagged) -> Tagged:
    return default if value is None else value if isinstance(value, Tagged) else Tagged(float(value), "declared")


def _of_file(path: Path) -> dict[str, Any]:
    values = recipe_values(path)
    found: dict[str, Any] = {}
    for key, value in values.items():
        if key == "links":
            found |= _links(path, value)
        elif key in _SCALARS:
            tagged = _number(path, key, value)
            found[key] = tagged if key == "memory_gbs" or isinstance(value, dict) else _exact(tagged.value)
        elif key in _PLAIN:
            found[key] = read_value(key, value)
        else:
            raise unknown(f"key in {path}", key, [*_SCALARS, *_PLAIN, "links"])
    return found


def _links(path: Path, value: Any) -> dict[str, Tagged]:
    if not isinstance(value, dict):
        raise UsageError(f"{path}: links is {value!r}", hint=_HINT)
    found = {}
    for link, numbers in value.items():
        if link not in ("intra", "inter"):
            raise unknown(f"class of links in {path}", str(link), ["intra", "inter"])
        if not isinstance(numbers, dict) or "gbs" not in numbers:
            raise UsageError(f"{path}: links of {link} have no number: {numbers!r}", hint=_HINT)
        for name, number in numbers.items():
            if name not in _LINKS:
                raise unknown(f"number of links {link} in {path}", str(name), list(_LINKS))
            found[f"{link}_{name}"] = _number(path, f"{link}_{name}", number)
    return found


def _number(path: Path, key: str, value: Any) -> Tagged:
    """Return the number of `80`, or of `{value: 80, source: measured}`."""
    source: Source = "declared"
    if isinstance(value, dict):
        if set(value) != {"value", "source"} or value["source"] not in get_args(Source):
            raise UsageError(f"{path}: {key} is {value!r}",
                             hint=f"a number, or {{value: .., source: {'|'.join(get_args(Source))}}}")  # fmt: skip
        source, value = value["source"], value["value"]
    return Tagged(float(read_value(key, value)), source)


def read_costs(path: Path) -> Fitted:
    """Return the costs of the one setting that a file of `commbench model` has. Raises `UsageError`, `CorruptFile`."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"costs={path}: {error}", hint="a file of commbench model RUN... --out FILE") from error
    if not isinstance(raw, dict):
        raise CorruptFile(f"costs={path} holds no cost model", hint="fit one: commbench model RUN... --out FILE")
    model = Model.from_dict(raw)
    if len(model.settings) != 1:
        raise UsageError(f"costs={path} has {len(model.settings)} settings", hint="fit a model to runs of one")
    (fitted,) = model.settings.values()
    return fitted


def scaled(cluster: GpuCluster, *, nodes: int | None = None, inter: float = 1.0) -> GpuCluster:
    """Return a cluster with another number of nodes, or with links between nodes so many times as fast."""
    links = dict(cluster.links)
    if "inter" in links and inter != 1.0:
        gbs = links["inter"].gbs
        links["inter"] = dataclasses.replace(links["inter"], gbs=gbs._replace(value=gbs.value * inter))
    return dataclasses.replace(cluster, nodes=nodes or cluster.nodes, links=links)
