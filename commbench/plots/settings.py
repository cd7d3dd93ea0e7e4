"""Settings that each have a figure of their own, and their words in titles and file names."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from commbench import algorithms
from commbench.output.describe import describe_emulated, describe_layout
from commbench.records import NOMINAL, Fabric, binding_text
from commbench.serialise import digest

if TYPE_CHECKING:
    import pandas as pd

# Of an emulated fabric; what a frame without these columns means.
FABRIC_SETTINGS: dict[str, Any] = {
    "link": "",
    "message_overhead": 0,
    "spines": 0,
    "routing": "",
    "intra_link": "",
    "slow_link": "",
    "spine_rate": "",
}
# And of what ranks were bound to.
BINDING_SETTINGS: dict[str, Any] = {"binding": "none", "cpu_masks": "", "binding_memory": True}
# One figure of curves for each combination of these.
FIGURE_KEYS = [
    *("what", "transport", "nodes", "ranks", "groups", "group_size", "overlap", "fabric", *FABRIC_SETTINGS),
    *("dtype", "mode", "buffers", "cache", *BINDING_SETTINGS, "env"),
]


def complete(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with all of `FIGURE_KEYS`, and the defaults in those that old runs lack.

    Rows that have none there would be in no group.
    """
    columns: dict[str, Any] = {}
    for name, default in {**FABRIC_SETTINGS, **BINDING_SETTINGS}.items():
        values = frame[name] if name in frame else [None] * len(frame)
        columns[name] = [default if value is None or value != value else value for value in values]
    return frame.assign(**columns)


def layout_text(setting: Mapping[str, Any]) -> str:
    """Return `4x2`: nodes x ranks of each."""
    return f"{setting['nodes']}x{setting['ranks'] // setting['nodes']}"


def emulated_text(setting: Mapping[str, Any]) -> str:
    """Return `emulated: 1gbit links, 30000 B per packet`; "" of another fabric."""
    return describe_emulated(setting) if setting["fabric"] == Fabric.EMULATED else ""


def _bound(setting: Mapping[str, Any]) -> str:
    """Return `binding=pci`; "" where ranks were as they were started, or it makes no difference."""
    return binding_text(**{name: setting.get(name, default) for name, default in BINDING_SETTINGS.items()})


def file_words(setting: Mapping[str, Any]) -> dict[str, str]:
    """Return by key what a file's name says of a setting; nothing of what is usual."""
    emulated = re.sub(r"[^A-Za-z0-9.]+", "-", emulated_text(setting))
    return {
        "fabric": emulated.replace("-links", "").replace("-per-packet", "").replace("-inside-nodes", "-inside"),
        "groups": setting["groups"] if setting["groups"] != "world" else "",
        "overlap": setting["overlap"] if setting["overlap"] != "none" else "",
        "dtype": setting["dtype"],
        "mode": setting["mode"],
        "cache": setting["cache"] if setting["cache"] != "warm" else "",
        "buffers": setting["buffers"] if setting["buffers"] != "plain" else "",
        "binding": _bound(setting).removeprefix("binding="),
        "env": setting["env"],
    }


def title_words(setting: Mapping[str, Any]) -> dict[str, str]:
    """Return by key what a title says of a setting besides its layout; nothing of what is usual."""
    fabric = emulated_text(setting) or NOMINAL.get(setting["fabric"], "")
    groups = f"groups of {setting['group_size']} ({setting['groups']})" if setting["groups"] != "world" else ""
    return {
        "fabric": fabric,
        "dtype": setting["dtype"],
        "mode": setting["mode"],
        "groups": groups,
        "overlap": f"beside a {setting['overlap']}" if setting["overlap"] != "none" else "",
        "buffers": f"{setting['buffers']} buffers" if setting["buffers"] != "plain" else "",
        "cache": "cold cache" if setting["cache"] == "cold" else "",
        "binding": _bound(setting),
        "env": setting["env"],
    }


def nodes_text(setting: Mapping[str, Any]) -> str:
    """Return `4 nodes x 2 ranks`."""
    return describe_layout(setting["nodes"], setting["ranks"], "")


def join(*texts: str) -> str:
    return ", ".join(text for text in texts if text)


def file_name(words: Sequence[str]) -> str:
    """Return a safe and short name; a hash keeps names apart that would have become the same."""
    text = "-".join(word for word in words if word)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text)
    return name if name == text and len(name) <= 120 else f"{name[:100]}-{digest(text)[:6]}"


def algorithm_label(algorithm: str, params: str) -> str:
    """Return a short label of an algorithm with its parameters (a column of JSON): `2d_pipelined chunks=4`."""
    return " ".join([algorithm, *(f"{key}={value}" for key, value in json.loads(params).items())])


def sort_key(algorithm: str, params: str) -> tuple[int, str, list[float]]:
    """Return what sorts algorithms with their parameters as the table of algorithms has them."""
    names = list(dict.fromkeys(name for _, name in algorithms.TABLE))
    known = names.index(algorithm) if algorithm in names else len(names)
    return known, algorithm, list(json.loads(params).values())
