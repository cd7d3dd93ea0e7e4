"""The pieces of a machine's picture: boxes, lines, texts, devices. All lengths are inches."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from commbench.machine.cards import DOWN
from commbench.machine.machine import PciDevice

COLUMN, GAP, BOX = 1.02, 0.12, 0.5  # a device's width, what is between two, a device's height
GPU, RDMA, ETHERNET = ("#D9EFE5", "#009E73"), ("#FCE5D4", "#D55E00"), ("#F6EFCF", "#9A7B1F")  # inside, edge
CPUS, NODE, ABSENT = ("#DAE8F5", "#0072B2"), ("#F8F8F9", "#9AA0A6"), ("#FFFFFF", "#B0B0B0")
SWITCH, BEHIND_SWITCH = ("#FFFFFF", "#56606B"), ("#EDEFF1", "#C3C8CE")
DARK, GREY, FAR = "#222222", "#555555", "#3F4A6B"
_AROUND, _LINE, _IN_FRONT, _TEXT = 1, 2, 3, 4  # what covers what


def columns(count: int) -> float:
    """Return the width of some devices side by side."""
    return count * COLUMN + max(0, count - 1) * GAP


def spread(count: int, middle: float) -> list[float]:
    """Return where the middles of devices side by side are."""
    first = middle - columns(count) / 2 + COLUMN / 2
    return [first + at * (COLUMN + GAP) for at in range(count)]


def box(
    axes: Axes, corner: tuple[float, float], size: tuple[float, float], colours: tuple[str, str], *,
    around: bool = False, dashed: bool = False,
) -> None:  # fmt: skip
    """Draw a box; `around`: other things are in it."""
    patch = FancyBboxPatch(
        corner, *size, boxstyle="round,pad=0,rounding_size=0.06", facecolor=colours[0], edgecolor=colours[1],
        linewidth=1.0, linestyle="--" if dashed else "-", zorder=_AROUND if around else _IN_FRONT,
    )  # fmt: skip
    axes.add_patch(patch)


def line(axes: Axes, points: list[tuple[float, float]], colour: str = SWITCH[1], width: float = 1.3) -> None:
    x, y = zip(*points, strict=True)
    axes.plot(x, y, color=colour, linewidth=width, zorder=_LINE, solid_joinstyle="round")


def text(
    axes: Axes, x: float, y: float, words: str, size: float, *, colour: str = DARK, bold: bool = False,
    align: str = "center", width: float = 0.0, background: str = "none",
) -> None:  # fmt: skip
    """Write text, with `width` as much smaller as it must be to fit."""
    if width:
        size = min(size, (width - 0.08) * 72 / (0.64 * max(1, len(words))))
    axes.text(
        x, y + size / 600, words, fontsize=size, color=colour, weight="bold" if bold else "normal", ha=align,
        va="center_baseline",
        linespacing=1.3, bbox={"facecolor": background, "edgecolor": "none", "pad": 1.5}, zorder=_TEXT,
    )  # fmt: skip


def device(axes: Axes, of: PciDevice, x: float, bottom: float) -> None:
    """Draw a device: its name, and below that where a GPU is on the bus and how fast a card is."""
    down = of.speed == DOWN
    colours = ABSENT if down else GPU if of.kind == "gpu" else ETHERNET if of.link == "Ethernet" else RDMA
    box(axes, (x - COLUMN / 2, bottom), (COLUMN, BOX), colours, dashed=down)
    small = of.pci_bus_id.removeprefix("0000:") if of.kind == "gpu" else of.speed or of.link
    text(axes, x, bottom + 0.33, of.name, 9.5, bold=True, width=COLUMN)
    text(axes, x, bottom + 0.14, small, 7.5, colour=GREY, width=COLUMN)
