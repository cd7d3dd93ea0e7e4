"""A machine as a picture: a box for each NUMA node with its CPUs, cards and GPUs, and the links between all of them."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

import commbench
from commbench.files import write_named
from commbench.machine import cpulist, paths
from commbench.machine.machine import Machine, NumaNode, NvLinks, PciDevice
from commbench.machine.paths import MEANING, Kind
from commbench.plots.shapes import (
    BEHIND_SWITCH,
    BOX,
    COLUMN,
    CPUS,
    FAR,
    GAP,
    GPU,
    GREY,
    NODE,
    SWITCH,
    box,
    columns,
    device,
    line,
    spread,
    text,
)
from commbench.plots.style import picture
from commbench.units import format_size

# All lengths are inches.
_HEAD, _NAME, _BAR, _SWITCH = 0.95, 0.34, 0.5, 0.24  # heights: of the title, a node's name, its CPUs, a switch
_WIRE, _SHORT_WIRE, _LEVEL = 0.36, 0.16, 0.3  # heights: of lines, and from one NVLink to the next
_PAD, _BETWEEN, _MARGIN = 0.14, 0.34, 0.3
_NARROWEST = 6.8
_NEAR = (Kind.PIX, Kind.PXB)


@dataclass
class _Place:
    """A box: a NUMA node, or the devices whose place is not known."""

    node: NumaNode | None
    above: list[PciDevice] = field(default_factory=list)  # cards that share no switch with a GPU
    groups: list[list[PciDevice]] = field(default_factory=list)  # the others: behind one switch, or a GPU alone
    left: float = 0.0

    @property
    def width(self) -> float:
        below = sum(map(_group_width, self.groups)) + GAP * max(0, len(self.groups) - 1)
        return 2 * _PAD + max(below, columns(len(self.above)), columns(2 if self.node else 1))

    @property
    def middle(self) -> float:
        return self.left + self.width / 2


def draw(machine: Machine, path: Path) -> None:
    """Draw a machine as PNG or SVG, by the file's name. Raises OSError where it cannot be written."""
    write_named(path, picture(figure(machine), path.suffix[1:].lower()))


def figure(machine: Machine) -> Figure:
    places = _places(machine)
    inside = sum(place.width for place in places) + _BETWEEN * (len(places) - 1)
    width = max(inside + 2 * _MARGIN, _NARROWEST)
    left = (width - inside) / 2
    for place in places:
        place.left = left
        left += place.width + _BETWEEN

    shown = [member.name for place in places for group in place.groups for member in group]  # from the left
    levels = [] if _all_alike(machine) else _levels(machine.nvlinks, shown)
    nvlink = 0.0 if not machine.nvlinks else 0.3 + _LEVEL * len(levels) if levels else 0.7
    switches = any(len(group) > 1 for place in places for group in place.groups)
    above = BOX + _WIRE if any(place.above for place in places) else 0.0
    below = _WIRE + BOX if machine.gpus else 0.0
    below += 2 * _PAD + BOX + _SWITCH + 2 * _SHORT_WIRE if switches else 0.0
    inner = _NAME + above + _BAR + below + _PAD
    spine = 0.5 if len(machine.nodes) > 1 else 0.1
    legend = _legend(machine, places, width)
    height = _HEAD + spine + inner + nvlink + 0.3 + 0.155 * len(legend)
    result = Figure(figsize=(width, height))
    axes = result.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
    axes.set_axis_off()
    top = height - _HEAD - spine
    picture = _Picture(
        axes=axes,
        machine=machine,
        top=top,
        bottom=top - inner,
        bar=top - _NAME - above - _BAR,
        gpus=top - inner + _PAD + (_PAD if switches else 0.0),
    )
    _title(axes, machine, width, height)
    picture.far([place for place in places if place.node])
    for place in places:
        picture.place(place)
    if levels:
        picture.brackets(levels)
    elif machine.nvlinks:
        picture.band()
    axes.text(_MARGIN, 0.12, "\n".join(legend), fontsize=7.5, color=GREY, va="bottom", ha="left", linespacing=1.4)
    return result


@dataclass
class _Picture:
    """Where things are, from the bottom of the picture."""

    axes: Axes
    machine: Machine
    top: float  # of the boxes of NUMA nodes
    bottom: float
    bar: float  # lower edge of the CPUs
    gpus: float  # lower edge
    centres: dict[str, float] = field(default_factory=dict)  # of GPUs, from the left

    def far(self, places: Sequence[_Place]) -> None:
        """Draw the line that joins NUMA nodes; distances beside it, where they are not all the same."""
        if len(places) < 2:
            return
        level, middles = self.top + 0.24, [place.middle for place in places]
        line(self.axes, [(middles[0], level), (middles[-1], level)], FAR, 2.2)
        nodes = [place.node for place in places if place.node]
        others = {far for at, node in enumerate(nodes) for to, far in enumerate(node.distances) if at != to}
        for middle, node in zip(middles, nodes, strict=True):
            line(self.axes, [(middle, self.top), (middle, level)], FAR, 2.2)
            if len(others) > 1:
                distances = " ".join(map(str, node.distances))
                text(self.axes, middle + 0.08, self.top + 0.11, distances, 7.5, colour=FAR, align="left")
        words = "SYS" if not others else f"SYS, distance {min(others)}"
        words = words if len(others) < 2 else "SYS, with the distance to each node"
        text(self.axes, (middles[0] + middles[-1]) / 2, level + 0.13, words, 8.5, colour=FAR)

    def place(self, place: _Place) -> None:
        axes, node, middle, inside = self.axes, place.node, place.middle, place.width - 2 * _PAD
        size = (place.width, self.top - self.bottom)
        box(axes, (place.left, self.bottom), size, NODE, around=True, dashed=node is None)
        name = f"NUMA node {node.index}" if node else "node unknown"
        text(axes, place.left + _PAD, self.top - 0.19, name, 9.5 if node else 8, bold=True, align="left")
        for card, x in zip(place.above, spread(len(place.above), middle), strict=True):
            if node:
                line(axes, [(x, self.bar + _BAR), (x, self.bar + _BAR + _WIRE)])
            device(axes, card, x, self.top - _NAME - BOX)
        if node:
            memory = "" if node.memory_bytes is None else f", {format_size(node.memory_bytes)}"
            box(axes, (place.left + _PAD, self.bar), (inside, _BAR), CPUS)
            text(axes, middle, self.bar + 0.33, f"{len(node.cpus) or 'no'} CPUs{memory}", 8.5, width=inside)
            text(axes, middle, self.bar + 0.14, cpulist.text(node.cpus), 7.5, colour=GREY, width=inside)
        left = middle - (sum(map(_group_width, place.groups)) + GAP * (len(place.groups) - 1)) / 2
        for group in place.groups:
            centre = left + _group_width(group) / 2
            if len(group) > 1:
                self.switch(group, centre, wired=node is not None)
            else:
                self.alone(group[0], centre, wired=node is not None)
            left += _group_width(group) + GAP

    def alone(self, gpu: PciDevice, x: float, *, wired: bool) -> None:
        self.centres[gpu.name] = x
        device(self.axes, gpu, x, self.gpus)
        if wired:
            line(self.axes, [(x, self.gpus + BOX), (x, self.bar)])
            text(
                self.axes,
                x + 0.06,
                self.bar - _WIRE / 2,
                _card_path(self.machine, gpu),
                7.5,
                colour=GREY,
                align="left",
            )

    def switch(self, group: Sequence[PciDevice], middle: float, *, wired: bool) -> None:
        """Draw cards above, GPUs below, and the switch in between."""
        axes, width = self.axes, _group_width(group)
        gpus = [member for member in group if member.kind == "gpu"]
        nics = [member for member in group if member.kind != "gpu"]
        switch = self.gpus + BOX + _SHORT_WIRE
        cards = switch + _SWITCH + _SHORT_WIRE
        low, high = self.gpus - _PAD, (cards + BOX if nics else switch + _SWITCH) + _PAD
        box(axes, (middle - width / 2, low), (width, high - low), BEHIND_SWITCH, around=True)
        if wired:
            line(axes, [(middle, high), (middle, self.bar)])
        for gpu, x in zip(gpus, spread(len(gpus), middle), strict=True):
            self.centres[gpu.name] = x
            line(axes, [(x, self.gpus + BOX), (x, switch)])
            device(axes, gpu, x, self.gpus)
        for nic, x in zip(nics, spread(len(nics), middle), strict=True):
            line(axes, [(x, switch + _SWITCH), (x, cards)])
            device(axes, nic, x, cards)
        kinds = {paths.pcie(self.machine, gpu, other) for gpu in gpus for other in nics or gpus if other != gpu}
        words = f"switch: {', '.join(kind for kind in Kind if kind in kinds)}"
        box(axes, (middle - width / 2 + _PAD, switch), (width - 2 * _PAD, _SWITCH), SWITCH)
        text(axes, middle, switch + _SWITCH / 2, words, 7.5, colour=SWITCH[1], width=width - 2 * _PAD)

    def band(self) -> None:
        """Draw NVLinks where all pairs of GPUs have the same number of them."""
        low, high = min(self.centres.values()), max(self.centres.values())
        for x in self.centres.values():
            line(self.axes, [(x, self.gpus), (x, self.bottom - 0.3)], GPU[1], 1.8)
        box(self.axes, (low - COLUMN / 2, self.bottom - 0.62), (high - low + COLUMN, 0.34), (GPU[1], GPU[1]))
        words = (
            f"NVLink: NV{self.machine.nvlinks[0].count} between {'any two' if len(self.centres) > 2 else 'both'} GPUs"
        )
        text(self.axes, (low + high) / 2, self.bottom - 0.45, words, 9, bold=True, colour="white")

    def brackets(self, levels: Sequence[Sequence[NvLinks]]) -> None:
        """Draw NVLinks pair by pair."""
        for level, members in enumerate(levels):
            y = self.bottom - 0.25 - _LEVEL * level
            for links in members:
                low, high = sorted((self.centres[links.first], self.centres[links.second]))
                line(self.axes, [(low, self.gpus), (low, y), (high, y), (high, self.gpus)], GPU[1], 1.5)
                self.axes.plot([low, high], [y, y], "o", color=GPU[1], markersize=4)
                x = low + min(high - low, COLUMN + GAP) / 2  # where no line of another GPU is
                text(self.axes, x, y, f"NV{links.count}", 8, bold=True, colour=GPU[1], background="white")


def _group_width(group: Sequence[PciDevice]) -> float:
    gpus = sum(member.kind == "gpu" for member in group)
    return columns(max(gpus, len(group) - gpus)) + (2 * _PAD if len(group) > 1 else 0.0)


def _places(machine: Machine) -> list[_Place]:
    """Return a box for each NUMA node, and one more for devices that are near none, as far as is known."""
    places = []
    for node in (*machine.nodes, None):
        members = [member for member in (*machine.gpus, *machine.nics) if machine.near(member) == node]
        place = _Place(node)
        for group in _behind_switches(machine, members):
            if any(member.kind == "gpu" for member in group):
                place.groups.append(group)
            else:
                place.above += group
        if node or members:
            places.append(place)
    return places


def _behind_switches(machine: Machine, members: Iterable[PciDevice]) -> list[list[PciDevice]]:
    """Return devices that reach each other without a host bridge, in the order of their first ones."""
    groups: list[list[PciDevice]] = []
    for member in members:
        near = [group for group in groups if any(paths.pcie(machine, member, other) in _NEAR for other in group)]
        if near:
            near[0].append(member)
        else:
            groups.append([member])
    return groups


def _card_path(machine: Machine, gpu: PciDevice) -> str:
    """Return the kind of path to the nearest card, "" where there is none."""
    nearest = paths.nearest_nics(machine, gpu)
    return str(paths.pcie(machine, gpu, nearest[0])) if nearest else ""


def _all_alike(machine: Machine) -> bool:
    """Return whether the same number of NVLinks joins any two GPUs."""
    pairs = len(machine.gpus) * (len(machine.gpus) - 1) // 2
    return len(machine.nvlinks) == pairs and len({links.count for links in machine.nvlinks}) == 1


def _levels(nvlinks: Iterable[NvLinks], shown: Sequence[str]) -> list[list[NvLinks]]:
    """Return the NVLinks to draw on each level, short ones first; those on one level do not touch."""

    def ends(links: NvLinks) -> tuple[int, int]:
        first, second = sorted((shown.index(links.first), shown.index(links.second)))
        return first, second

    levels: list[list[NvLinks]] = []
    for links in sorted(nvlinks, key=lambda links: (ends(links)[1] - ends(links)[0], ends(links))):
        first, second = ends(links)
        for level in levels:
            if all(second < ends(other)[0] or first > ends(other)[1] for other in level):
                level.append(links)
                break
        else:
            levels.append([links])
    return levels


def _title(axes: Axes, machine: Machine, width: float, height: float) -> None:
    counts = [(len(machine.gpus), "GPU"), (len(machine.nics), "network card"), (len(machine.nodes), "NUMA node"),
              (len(machine.cpus), "CPU")]  # fmt: skip
    words = ", ".join(f"{count or 'no'} {noun}{'' if count == 1 else 's'}" for count, noun in counts)
    text(axes, width / 2, height - 0.28, words, 13, bold=True)
    devices = (*machine.gpus, *machine.nics)
    kinds = Counter(" ".join(filter(None, (of.model, of.link, of.speed))) for of in devices)
    listed = _wrap([f"{count} x {kind or 'unknown'}" for kind, count in kinds.items()], width, 8.5)
    text(axes, width / 2, height - 0.63, "\n".join(listed[:2]), 8.5, colour=GREY)


def _legend(machine: Machine, places: Iterable[_Place], width: float) -> list[str]:
    devices = (*machine.gpus, *machine.nics)
    used = {paths.kind(machine, first, second) for first in devices for second in devices} - {Kind.SELF}
    words = [f"{kind}: {meaning}" for kind, meaning in MEANING.items() if kind in used]
    if machine.nics and any(len(group) == 1 for place in places for group in place.groups if place.node):
        words.append("above a GPU: its way to the nearest card")
    lines = _wrap(words, width, 7.5)
    for note in machine.notes:
        lines += textwrap.wrap(f"note: {note}", int((width - 2 * _MARGIN) * 72 / (0.54 * 7.5)))
    return [*lines, f"commbench {commbench.__version__} topo"]


def _wrap(parts: Iterable[str], width: float, size: float) -> list[str]:
    """Return lines of whole parts that fit."""
    most = int((width - 2 * _MARGIN) * 72 / (0.54 * size))
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(part) + 5 <= most:
            lines[-1] += f"  |  {part}"
        else:
            lines.append(part)
    return lines
