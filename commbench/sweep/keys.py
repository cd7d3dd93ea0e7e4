"""KEYS: every key of a sweep, with what its values may be, its default, and what help says of it."""

from __future__ import annotations

import json
import shlex
import textwrap
from pathlib import Path
from typing import Any

from commbench import algorithms, collectives, transports
from commbench.algorithms import outside
from commbench.binding import policies
from commbench.collectives.base import Argument
from commbench.emulated import MOST_OVERHEAD, MOST_SPINES, ROUTINGS, parse_rate, parse_slow_link
from commbench.errors import UsageError, unknown
from commbench.layout import LISTED as LISTED_GROUPS
from commbench.layout import block_size, listed_groups, listed_name
from commbench.links import parse_link_rate
from commbench.machine import cgroup
from commbench.spec import DTYPES, Value
from commbench.sweep.key import Key, KeyCheck, Number, OneOf, Parsed, explain

# Headings of the help. Each value of a key of RANKS or FABRIC, and of env.NAME, takes launches of its own.
WHAT, SIZES, RANKS, FABRIC = "What is measured", "Sizes", "Ranks", "An emulated fabric"
STOP, COLLECTIVE, ALGORITHM = "How long, and how often", "Of one collective", "Of one algorithm"
GROUPS = (WHAT, SIZES, RANKS, FABRIC, STOP, COLLECTIVE, ALGORITHM)


def _axis(check: KeyCheck, default: Any, group: str, help: str, **more: Any) -> Key:
    return Key(check, help, default=default, group=group, axis=True, **more)


def _single(check: KeyCheck, default: Any, group: str, help: str, **more: Any) -> Key:
    return Key(check, help, default=default, group=group, **more)


def _unlisted(check: KeyCheck, group: str, help: str, idle: str, *, optional: bool = True) -> Key:
    """Return an axis that is not listed with the others until it is set."""
    return Key(check, help, group=group, axis=True, optional=optional, idle=idle)


def _groups(name: str, value: Any) -> Any:
    if str(value).startswith(LISTED_GROUPS):
        return listed_name(listed_groups(str(value)))
    if value not in ("world", "rails"):
        block_size(str(value))
    return value


def _link(name: str, value: Any) -> str:
    parse_rate(str(value), name)
    return str(value).lower()


def _link_rate(name: str, value: Any) -> str:
    parse_link_rate("inter" if name.endswith("inter") else "intra", str(value))
    return str(value)


def _optional_link(name: str, value: Any) -> str:
    return "none" if value == "none" else _link(name, value)


def _defect(name: str, value: Any) -> str:
    if value != "none":
        parse_slow_link(str(value))
    return str(value).lower()


class _Algorithms(OneOf):
    """One of commbench's, of those that the user has loaded, or one that an installed package has."""

    def __call__(self, name: str, value: Any) -> Any:
        if isinstance(value, str) and outside.is_file(value):
            raise UsageError(
                f"a recipe names the file {value!r}, and loads no code by itself",
                hint=f"if you trust that file, say so yourself: algorithm={shlex.quote(value)}",
            )
        if value == "all" or any(value == known for _, known in algorithms.TABLE):
            return value
        if isinstance(value, str) and (installed := outside.find_installed(value)) is not None:
            add_parameters(installed)
            return value
        raise unknown(name, str(value), {"all", *(known for _, known in algorithms.TABLE)})


def typed_algorithm(value: Any) -> Any:
    """Return the name of what was typed; a file is loaded, as whoever types it means it. Raises `UsageError`."""
    if not (isinstance(value, str) and outside.is_file(value)):
        return value
    loaded = outside.load(value)
    add_parameters(loaded)
    return loaded.name


def add_parameters(loaded: outside.OutsideAlgorithm) -> None:
    """Make keys of the parameters of an algorithm from outside. Raises `UsageError` where a key is another thing."""
    for name, (_, text) in algorithms.get(*loaded.key).params.items():
        if name in KEYS and name not in PARAMS:
            raise UsageError(
                f"{loaded.word}: its parameter {name!r} is another key of a sweep", hint="give it another name"
            )
        PARAMS[name] = KEYS[name] = _param_key(name, PARAMS[name].help.partition(" (")[0] if name in PARAMS else text)


def _layout(name: str, value: Any) -> str:
    """Return `4x2` as it is. Raises `UsageError` for what is no layout."""
    nodes, _, per_node = str(value).partition("x")
    if not (nodes.isdigit() and per_node.isdigit()):
        raise UsageError(f"layout is {value!r}", hint="nodes x ranks per node, as in layout=4x4 or layout=2x8,4x4")
    return f"{_NODES('nodes', int(nodes))}x{_RANKS_PER_NODE('ranks_per_node', int(per_node))}"


def _ranks_per_node(name: str, value: Any) -> int:
    """Return the number that `cpus` stands for, too: a CPU for each rank, if there are two."""
    if value == "cpus":
        return min(max(cgroup.usable_cpus(), _FEWEST_RANKS), _ENOUGH_RANKS)
    number: int = _RANKS_PER_NODE(name, value)
    return number


def _script(name: str, value: Any) -> str:
    """Return the script's JSON, canonical, so that equal scripts make equal case ids."""
    text = str(value)
    if not text.lstrip().startswith("{"):  # a run's config.yaml holds the script itself
        try:
            text = Path(text).read_text()
        except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a name that no file can have
            why = getattr(error, "strerror", None) or error
            raise UsageError(f"cannot read the script {value!r}: {why}", hint="script=FILE.json") from error
        if not text.strip():
            raise UsageError(f"the script {value!r} is empty", hint="script=FILE.json, a JSON object: {} at least")
    from commbench.transports.scripted.transport import Script

    Script.from_json(text)
    return json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))


_FEWEST_RANKS, _ENOUGH_RANKS = 2, 4  # of `cpus`
_NODES, _RANKS_PER_NODE = Number(int, 1, 100_000), Number(int, 1, 1024)
_ALGORITHMS = _Algorithms((*sorted({name for _, name in algorithms.TABLE}), "all"))
_EMULATED = "it belongs to fabric=emulated"
_RATE = Parsed(_link, "1mbit to 400gbit")
_FIXED = "the splits of this sweep fix its sizes"
_READ_TOGETHER = Parsed(lambda name, value: value, "8, 32K, 1MiB")

# fmt: off
# Those that every config has: a field each of `SweepConfig`, with _ for a dot.
LISTED: dict[str, Key] = {
    "transport": _axis(OneOf(tuple(transports.TABLE)), "gloo", WHAT, "what carries the messages"),
    "collective": _axis(OneOf((*collectives.TABLE, "all")), "all_to_all", WHAT,
                        "what is done; all: what programs call, without dispatch and combine"),
    "algorithm": _axis(_ALGORITHMS, "direct", WHAT,
                       "how it is done; all: in every way there is; ./FILE.py:CLASS: yours, from a file"),
    "dtype": _axis(OneOf(tuple(DTYPES)), "fp32", WHAT, "type of the elements"),
    "mode": _axis(OneOf(("isolated", "pipelined", "graph")), "isolated", WHAT,
                  "isolated: one call is one sample; pipelined: calls back to back, divided; graph: 20 calls in a CUDA "
                  "graph, divided"),
    "buffers": _axis(OneOf(("plain", "registered", "symmetric")), "plain", WHAT,
                     "over nccl also registered (with NCCL) and symmetric (its windows, or peer memory)"),
    "in_place": _axis(OneOf((False, True)), False, WHAT,
                      "true: input and output share a buffer, where the collective defines how"),
    "groups": _axis(Parsed(_groups, "world, rails, blocks:K, ranks:0,2;1,3"), "world", WHAT,
                    "groups of ranks that do the collective at the same time"),
    "overlap": _axis(OneOf(("none", "matmul")), "none", WHAT, "matmul: a matrix product beside the collective"),
    "cache": _axis(OneOf(("warm", "cold")), "warm", WHAT,
                   "warm: one pair of buffers, or two by turns; cold: buffers rotate past the last-level cache"),
    "script": _single(Parsed(_script, "FILE.json"), None, WHAT, "of transport=scripted", optional=True, unset=""),

    "nodes": _axis(_NODES, 1, RANKS, "hosts; declared where one machine stands for several"),
    "ranks_per_node": _axis(Parsed(_ranks_per_node, "a whole number, or cpus"), 4, RANKS,
                            "ranks on each of them; cpus: one for each CPU that may be used, from 2 to 4"),
    "layout": _axis(Parsed(_layout, "4x4, 2x8, ..."), None, RANKS,
                    "nodes x ranks per node, in place of the two above", optional=True),
    "fabric": _axis(OneOf(("real", "emulated", "virtual")), "real", RANKS,
                    "emulated: each node is a network namespace of this machine (Linux); virtual: NCCL believes that "
                    "each node is a host, and uses its network transport"),
    "binding": _axis(OneOf(policies.POLICIES), "none", RANKS,
                     "which CPUs and memory ranks get: none: as started; pci: those beside a rank's GPU or network "
                     "card; block, round_robin: NUMA nodes in order; worst: the node farthest from pci's; explicit: "
                     "cpu_masks"),
    "cpu_masks": _single(Parsed(lambda name, value: str(value), "'0-3;4-7'"), None, RANKS,
                         "a list of CPUs for each rank of a host", optional=True, unset="",
                         idle="it belongs to binding=explicit"),
    "binding_memory": _single(Parsed(lambda name, value: policies.memory_wanted(value), "true, on, false, off"), True,
                              RANKS, "off: bind CPUs alone, as where a container forbids set_mempolicy",
                              idle="it belongs to a binding other than none"),

    "link": _axis(_RATE, "1gbit", FABRIC, "rate of a node's link to each spine, in each direction", idle=_EMULATED),
    "message_overhead": _axis(Number(int, 0, MOST_OVERHEAD), 0, FABRIC,
                              "bytes that each packet is charged above its own, as a message costs something",
                              idle=_EMULATED),
    "intra_link": _axis(Parsed(_optional_link, f"none, {_RATE}"), "none", FABRIC,
                        "rate inside a node, all its ranks together; none: as fast as memory is", idle=_EMULATED),
    "slow_link": _axis(Parsed(_defect, "none, node2:3, node2:3:out"), "none", FABRIC,
                       "a defect to find: node2:3 makes node 2's links three times slower, node2:3:out those out of it",
                       idle=_EMULATED),
    "spine_rate": _axis(Parsed(_optional_link, f"none, {_RATE}"), "none", FABRIC,
                        "rails: each rank has a card of rate link to the switch of its place, and each such switch a "
                        "link of this rate to the spine; none: ranks of a node share its links", idle=_EMULATED),
    "spines": _axis(Number(int, 1, MOST_SPINES), 1, FABRIC, "switches between the nodes; each node has a link to each",
                    idle=_EMULATED),
    "routing": _axis(OneOf(ROUTINGS), "static", FABRIC,
                     "with several spines: static by destination, ecmp by connection, spray by packet",
                     idle=f"{_EMULATED} with spines above 1"),

    "iters": _single(Number(int, 1, 10_000_000), None, STOP,
                     "fixes the number of samples and turns the adaptive stop off", optional=True),
    "warmup": _single(Number(int, 0, 1_000_000), 5, STOP,
                      "untimed calls before the first sample of each measurement; kept, and marked"),
    "samples.min": _single(Number(int, 1, 1_000_000), 20, STOP, "samples of a measurement, at least"),
    "samples.max": _single(Number(int, 1, 10_000_000), 1000, STOP, "and at most"),
    "precision": _single(Number(float, 0, 1), 0.02, STOP,
                         "stop when the median's 95 % interval within a launch is this narrow (relative half-width)"),
    "cap": _single(Number(float, 0.001, 86_400), 5, STOP, "seconds of a measurement, warm-ups included"),
    "launches": _single(Number(int, 1, 10_000), 12, STOP,
                        "fresh process groups; 6 and more have verdicts, 12 tell 10 % where a case is off by 5 %"),
    "timeout": _single(Number(float, 0.1, 86_400), 120, STOP, "seconds without progress after which a case is cut off"),
    "seed": _single(Number(int, 0, 2**63 - 1), 0, STOP, "of the data, the order of cases and the bootstrap"),
}
# Their defaults are files, sweeps/sizes/*.yaml; `read_sizes` reads them together.
SIZE_KEYS = {
    "sizes.min": Key(_READ_TOGETHER, "the smallest size", group=SIZES, idle=_FIXED),
    "sizes.max": Key(_READ_TOGETHER, "the largest size", group=SIZES, idle=_FIXED),
    "sizes.factor": Key(Number(float, 1, 1e15), "from one size to the next", group=SIZES, idle=_FIXED),
    "sizes.list": Key(_READ_TOGETHER, "sizes one by one, not the three above", group=SIZES, axis=True, idle=_FIXED),
}
LAYER = {
    "tokens": _unlisted(Number(int, 1, 1 << 40), SIZES,
                        "with model_dim and top_k: the sizes of a Mixture-of-Experts layer, per rank", "leave it out"),
    "model_dim": _unlisted(Number(int, 1, 1 << 30), SIZES, "elements of a token", "leave it out"),
    "top_k": _unlisted(Number(int, 1, 1 << 20), SIZES, "experts to which a token goes", "leave it out"),
}
# What the user knows of the links: for the bound alone, so that no case depends on it.
LINK_RATES = {
    "link_rate.inter": _single(Parsed(_link_rate, "400gbit, 8x400gbit, 50GBps"), None, RANKS,
                               "for the bound: rate between nodes, of all cards of a node, in each direction; null: "
                               "what the machines say", optional=True),
    "link_rate.intra": _single(Parsed(_link_rate, "450GBps"), None, RANKS,
                               "for the bound: rate of a rank inside its node; null: as measured, or as the machines "
                               "say", optional=True),
}
# fmt: on


def _argument(name: str, value: Any) -> Value:
    argument = collectives.arguments()[name]
    if argument.limits is not None and value not in argument.choices:
        number: Value = Number(*argument.limits)(name, value)
        return number
    if argument.choices and value not in argument.choices:
        raise unknown(name, str(value), argument.choices)
    text = str(value)
    if argument.read is None or text.startswith("["):  # a run's config.yaml holds the content itself
        return text
    return argument.read(text)


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(f"{name} is {value!r}", hint="a whole number")
    if not -(2**63) <= value < 2**63:
        raise UsageError(f"{name} is {value}", hint="a whole number below 2^63")
    return value


def _param_key(name: str, text: str) -> Key:
    takers = dict.fromkeys(of for (_, of), algorithm in algorithms.TABLE.items() if name in algorithm.params)
    hint = f"it belongs to {', '.join(takers)}"
    return _unlisted(Parsed(_whole, "a whole number"), ALGORITHM, f"{text} ({', '.join(takers)})", hint, optional=False)


def _argument_key(name: str, argument: Argument) -> Key:
    takers = [of for of, collective in collectives.TABLE.items() if name in collective.arguments]
    allowed = "a file" if argument.read else "" if argument.limits else ", ".join(argument.choices)
    hint = f"it belongs to {', '.join(takers)}: {argument.text}"
    return _unlisted(Parsed(_argument, allowed), COLLECTIVE, f"{', '.join(takers)}: {argument.text}", hint)


PARAMS = {name: _param_key(name, text) for name, text in algorithms.parameters().items()}
ARGUMENTS = {name: _argument_key(name, argument) for name, argument in collectives.arguments().items()}
KEYS: dict[str, Key] = {**LISTED, **SIZE_KEYS, **LAYER, **LINK_RATES, **PARAMS, **ARGUMENTS}


def names() -> list[str]:
    """Return every key that KEY=VALUE may name, but for env.NAME."""
    return sorted(KEYS)


def explain_keys(width: int) -> str:
    """Return what help says of every key, in lines of `width` letters."""
    head = (
        "KEYs, each with what it is where no recipe sets it. Each value of an [axis] makes cases of its own: KEY=A,B,C."
    )
    env = ["", "Environment variables:", "  env.NAME=A,B            [axis] a launch for each value"]
    return "\n".join(["", *textwrap.wrap(head, width), explain(KEYS, GROUPS, width).rstrip(), *env]) + "\n"
