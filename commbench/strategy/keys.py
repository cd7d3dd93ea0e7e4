"""The keys of `commbench plan`: what a model, a cluster and the space of strategies may be asked for."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any

from commbench.errors import UsageError, unknown
from commbench.strategy.cluster import ROUTINGS
from commbench.strategy.known import GPUS
from commbench.strategy.setting import EXCHANGES, RECOMPUTE, SCHEDULES, ZERO
from commbench.sweep.key import Key, Number, OneOf, Parsed, explain
from commbench.units import parse_seconds

GROUPS = ("The model", "The training", "The cluster", "The space")
DTYPES = {"bf16": 2, "fp16": 2, "fp32": 4}
TRAINERS = ("any", "commbench", "megatron", "torchtitan", "deepspeed", "all")
DEFAULT_BATCH = 256  # sequences of a step, where neither a recipe nor a key says


def _count(group: str, text: str, smallest: int = 1) -> Key:
    return Key(Number(int, smallest, 1 << 30), text, default=None, optional=True, group=group)


def _number(group: str, text: str, smallest: float, largest: float) -> Key:
    return Key(Number(float, smallest, largest), text, default=None, optional=True, group=group)


def _model(text: str, smallest: int = 1) -> Key:
    return _count(GROUPS[0], text, smallest)


def _cluster(text: str, largest: float) -> Key:
    return _number(GROUPS[2], text, 1e-6, largest)


def _axis(text: str, most: int = 1 << 20) -> Key:
    return Key(Number(int, 1, most), text, default=None, optional=True, axis=True, group=GROUPS[3])


def _words(name: str, value: Any) -> str:
    return str(value)


def _time(name: str, value: Any) -> float:
    return parse_seconds(name, str(value))


_FILE = Parsed(_words, "the name of a file")
_FLAG = OneOf((True, False))
KEYS: dict[str, Key] = {
    "layers": _model("blocks"),
    "width": _model("D, elements of a token"),
    "heads": _model("heads of the attention"),
    "kv_heads": _model("heads of keys and values; without it, heads"),
    "head_dim": _model("elements of a head; without it, width / heads"),
    "hidden": _model("H of the dense FFN"),
    "expert_hidden": _model("H of an expert; without it, hidden"),
    "shared_hidden": _model("H of shared experts together; 0: none", 0),
    "vocabulary": _model("tokens that there are; without it, 32000"),
    "context": _model("S, tokens of a sequence; without it, 4096"),
    "moe_freq": _model("every so many-th layer has experts; 0: none", 0),
    "first_dense": _model("so many layers at first have no experts", 0),
    "experts": _model("E, experts of a layer"),
    "top_k": _model("experts to which a token goes"),
    "capacity_factor": _number(GROUPS[0], "slots of experts over even tokens; 0: dropless", 0, 1000),
    "gated": Key(_FLAG, "whether FFNs have a gate (SwiGLU): three matrices", default=None, optional=True,
                 group=GROUPS[0]),
    "tied": Key(_FLAG, "whether the head is the embedding", default=None, optional=True, group=GROUPS[0]),
    "batch": _count(GROUPS[1], f"sequences of a step, on all GPUs; without it the recipe's, or {DEFAULT_BATCH}"),
    "dtype": Key(OneOf(tuple(DTYPES)), "type of products and of what is sent", default=None, optional=True,
                 group=GROUPS[1]),
    "state_bytes": _number(GROUPS[1], "bytes of a parameter with its gradient and states, in place of 18 (mixed "
                           "precision) or 16 (fp32)", 1, 64),
    "skew": _number(GROUPS[1], "tokens of the fullest expert over their mean, of a dropless layer; without it, 1.5",
                    1, 1e6),
    "trace": Key(_FILE, "a routing trace (.npz, JSON lines), or a program's (record), which says the skew",
                 default=None, optional=True, group=GROUPS[1]),
    "cluster": Key(_FILE, "a YAML file: nodes, gpus_per_node, memory_gb, peak_tflops, links", default=None,
                   optional=True, group=GROUPS[2]),
    "gpu": Key(OneOf(tuple(GPUS)), "a GPU by name: its memory, its peak and its links inside a node, by default",
               default=None, optional=True, group=GROUPS[2]),
    "nodes": _count(GROUPS[2], "hosts"),
    "gpus_per_node": _count(GROUPS[2], "GPUs of each"),
    "memory_gb": _cluster("memory of a GPU, as cards are named (80, 141): GiB", 1e5),
    "peak_tflops": _cluster("peak of a GPU, in the type of products, dense", 1e6),
    "memory_gbs": _cluster("GB/s of a GPU's memory; without it, by the peak", 1e6),
    "intra_gbs": _cluster("GB/s of a GPU inside its node, each way", 1e6),
    "intra_alpha_us": _cluster("us of a message inside a node", 1e6),
    "inter_gbs": _cluster("GB/s of a node to the others, each way, all its cards together", 1e6),
    "inter_alpha_us": _cluster("us of a message between nodes", 1e6),
    "fabric_routing": Key(OneOf(ROUTINGS), "of the switches between nodes", default=None, optional=True,
                          group=GROUPS[2]),
    "nodes_per_leaf": _count(GROUPS[2], "nodes on one switch, between which nothing collides; without it, 8"),
    "cores": _count(GROUPS[2], "CPUs that all ranks share, as on an emulated cluster; 0: each has its own", 0),
    "efficiency": _number(GROUPS[2], "part of the peak that large products reach; without it, 0.6", 1e-3, 1),
    "launch_us": _cluster("us of the host to launch a kernel; without it, 5", 1e6),
    "step_us": _number(GROUPS[2], "us of the host in a step beside its micro-batches; without it, 0", 0, 1e9),
    "calls": Key(_FILE, "collectives as measured: lines of commbench sweep calls --format json", default=None,
                 optional=True, group=GROUPS[2]),
    "host_gbs": _cluster("GB/s between a GPU and its host's memory, each way (commbench sweep host_copies): layers may "
                         "be swapped", 1e5),
    "row_us": _number(GROUPS[2], "us of a network card for each row of per_rank and per_node, where each is a message "
                      "of its own; without it, 0", 0, 1e6),
    "costs": Key(_FILE, "of commbench model --out: takes the place of links", default=None, optional=True,
                 group=GROUPS[2]),
    "gemm": Key(_FILE, "measured products, a JSON line each: m, n, k, tflops", default=None, optional=True,
                group=GROUPS[2]),
    "tp": _axis("ranks that share attention and FFNs"),
    "cp": _axis("ranks that share a sequence"),
    "pp": _axis("stages of the pipeline"),
    "vpp": _axis("parts of a stage (interleaved)"),
    "ep": _axis("ranks that share a layer's experts"),
    "etp": _axis("ranks that share an expert"),
    "micro_batch": _axis("sequences of a micro-batch"),
    "schedule": Key(OneOf(tuple(dict.fromkeys(one.name for one in SCHEDULES))), "of expert layers", default=None,
                    optional=True, axis=True, group=GROUPS[3]),
    "exchange": Key(OneOf(EXCHANGES), "how tokens travel to experts", default=None, optional=True, axis=True,
                    group=GROUPS[3]),
    "zero": Key(OneOf(ZERO), "what of states ranks share: 1 the optimizer's, 3 all", default=None, optional=True,
                axis=True, group=GROUPS[3]),
    "recompute": Key(OneOf(RECOMPUTE), "of activations", default=None, optional=True, axis=True, group=GROUPS[3]),
    "trainer": Key(OneOf(TRAINERS), "who can run it; any: one of them at least, all: whoever", default="any",
                   group=GROUPS[3]),
    "current_ms": _number(GROUPS[3], "what a step of current takes: all steps are scaled so that it takes that", 1e-6,
                          1e9),
    "current": Key(Parsed(_words, "tp2,pp4,ep8,micro_batch1,sequential"), "what you run now: its rank; sizes that are "
                   "not named are 1", default=None, optional=True, group=GROUPS[3]),
    "budget": Key(Parsed(_time, "90s, 30m, 2h"), "time for the launches of --validate", default="10m", group=GROUPS[3]),
    "seed": Key(Number(int, 0, 1 << 31), "of the draws", default=0, group=GROUPS[3]),
}  # fmt: skip
AXES = tuple(name for name, key in KEYS.items() if key.axis)


def explain_keys(width: int) -> str:
    """Return what help says of every key, in lines of `width` letters."""
    return "\nKEYs; a model needs none beside its recipe or config.json.\n" + explain(KEYS, GROUPS, width)


def read_words(words: Sequence[str]) -> dict[str, Any]:
    """Return the values of KEY=VALUE words, checked; of an axis a list. Keys that are not typed are not in it.

    Raises `UsageError`.
    """
    found: dict[str, Any] = {}
    for word in words:
        name, separator, text = word.partition("=")
        if not separator:
            raise UsageError(f"unexpected argument {word!r}", hint="one MODEL first, then KEY=VALUE, e.g. nodes=2")
        if name not in KEYS:
            raise unknown("key", name, list(KEYS), hint="commbench plan --help lists them")
        found[name] = read_value(name, text)
    return found


def read_value(name: str, text: Any) -> Any:
    """Return the checked value of a key, as typed or as a file has it. Raises `UsageError`."""
    key = KEYS[name]
    if key.axis:
        parts = text.split(",") if isinstance(text, str) else text if isinstance(text, list) else [text]
        return key.read(name, [_plain(part) for part in parts])
    return key.read(name, text if isinstance(key.check, Parsed) else _plain(text))


def _plain(text: Any) -> Any:
    """Return a number or a word of what was typed."""
    if not isinstance(text, str):
        return text
    for word, value in (("true", True), ("false", False), ("null", None)):
        if text == word:
            return value
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            number = kind(text)
            if math.isfinite(number):
                return number
    return text
