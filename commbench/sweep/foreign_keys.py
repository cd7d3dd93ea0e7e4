"""KEY=VALUE words before `--`: of an emulated cluster, as sweeps have them, of the command itself, and env.NAME."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from commbench.emulated import ROUTINGS, Emulated, parse_slow_link
from commbench.errors import UsageError, unknown
from commbench.launch.foreign import Cluster
from commbench.sweep.key import NO_DEFAULT, Key, OneOf, explain
from commbench.sweep.keys import FABRIC, LISTED
from commbench.sweep.recipes import parse_overrides

_OF_CLUSTER = ("nodes", "ranks_per_node", "link", "message_overhead", "intra_link", "slow_link", "spines", "routing")
# One value each: a program runs on one cluster.
KEYS: dict[str, Key] = {
    "fabric": Key(
        OneOf(("real", "emulated")),
        "emulated: the program runs once in each of several network namespaces of this machine (Linux)",
        default="real",
        group=FABRIC,
    ),
    **{name: dataclasses.replace(LISTED[name], axis=False, group=FABRIC) for name in _OF_CLUSTER},
}
KEYS["nodes"] = dataclasses.replace(KEYS["nodes"], default=2, help="on each of which the program runs once")
KEYS["ranks_per_node"] = dataclasses.replace(
    KEYS["ranks_per_node"], default=NO_DEFAULT, help="ranks that the program starts there; has to be set"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignWords:
    """What the words before `--` say. cluster: None: this machine as it is. own: the command's own keys, all."""

    cluster: Cluster | None = None
    env: Mapping[str, list[str]] = field(default_factory=dict)  # the values of each env.NAME
    own: Mapping[str, Any] = field(default_factory=dict)


def read(words: Sequence[str], own: Mapping[str, Key] | None = None) -> ForeignWords:
    """Sort out words, for a command with `own` keys. Raises `UsageError` for one that cannot be meant."""
    own = own or {}
    if not words:  # a program is started at once: no Hydra for nothing
        return ForeignWords(own={name: key.default for name, key in own.items() if key.default is not NO_DEFAULT})
    for word in words:
        if "=" not in word or word.startswith("="):
            raise UsageError(
                f"unexpected argument {word!r}", hint="settings are written KEY=VALUE; the program stands after --"
            )
    overrides = parse_overrides(words)
    known = {**KEYS, **own}
    for name in [*overrides.values, *overrides.choices]:
        if name not in known:
            raise unknown("key", name, [*known, "env.NAME"])
    values = {name: key.default for name, key in known.items() if key.default is not NO_DEFAULT}
    for name, typed in overrides.values.items():
        if not known[name].axis and len(typed) != 1:
            raise UsageError(f"{name} takes one value, not {len(typed)}", hint="run the command once for each")
        values[name] = known[name].read(name, typed if known[name].axis else typed[0])
    return ForeignWords(
        cluster=_cluster(values, overrides.values),
        env=overrides.env,
        own={name: values[name] for name in own if name in values},
    )


def _cluster(values: Mapping[str, Any], typed: Mapping[str, Any]) -> Cluster | None:
    if values["fabric"] != "emulated":
        if idle := [name for name in _OF_CLUSTER if name in typed]:
            raise UsageError(f"{idle[0]} is set, but has no effect", hint="it belongs to fabric=emulated")
        return None
    if "ranks_per_node" not in values:
        raise UsageError(
            "fabric=emulated without ranks_per_node", hint="ranks_per_node=N: the ranks that the program starts on each"
        )
    nodes, slow, inside = (values[name] for name in ("nodes", "slow_link", "intra_link"))
    if slow != "none" and parse_slow_link(slow)[0] >= nodes:
        raise UsageError(f"slow_link={slow}: the nodes are 0 .. {nodes - 1}", hint="slow_link=node1:3")
    emulated = Emulated(
        nodes=nodes,
        link=values["link"],
        message_overhead=values["message_overhead"],
        spines=values["spines"],
        routing=values["routing"] if values["spines"] > 1 else ROUTINGS[0],  # one spine leaves nothing to route
        intra_link="" if inside == "none" else inside,
        slow_link="" if slow == "none" else slow,
    )
    return Cluster(emulated=emulated, ranks_per_node=values["ranks_per_node"])


def explain_keys(width: int, own: Mapping[str, Key] | None = None, groups: Sequence[str] = ()) -> str:
    """Return what help says of the keys of a command with `own` ones, which are in `groups`."""
    return "\n" + explain({**(own or {}), **KEYS}, [*groups, FABRIC], width).lstrip("\n")
