"""Which algorithm is fastest at which size and set-up: a map, with how much faster and where that is not known."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from commbench.analysis.ratios import describe_pairs
from commbench.output.answer import words
from commbench.plots.settings import (
    FIGURE_KEYS,
    algorithm_label,
    complete,
    file_name,
    file_words,
    join,
    layout_text,
    title_words,
)
from commbench.plots.style import algorithm_colour, caption, thinned, title
from commbench.records import network_note
from commbench.stats import Verdict, verdict
from commbench.units import format_size

if TYPE_CHECKING:
    import pandas as pd

_MAP_KEYS = ["what", "transport", "dtype", "mode"]  # one map for each combination of these
_ROW_KEYS = [*(key for key in FIGURE_KEYS if key not in _MAP_KEYS), "run"]  # and in it one row for each of these
_ALGORITHMS, _SIZES = 2, 3  # at least; what is less shows in a table
_MOST_ROWS, _MOST_COLUMNS = 40, 24  # of a map: more is no picture
_SAME_SIZE = 1.4  # sizes that were rounded for different numbers of ranks share a column
_FULL_COLOUR = 4.0  # the ratio from which colours get no darker
HATCHES = {Verdict.NO_DIFFERENCE: "////", Verdict.NOT_ESTIMABLE: "...."}
_FONT = 8.0
_LAYOUT = "nodes x ranks"
_NO_BREAK = "\u00a0"
_CELL_WIDTH = 1.2  # inches
_NARROWEST, _BROADEST = 8.6, 16.0  # inches of a figure


@dataclass(frozen=True, slots=True)
class CrossoverCell:
    """Who is faster at one size of one set-up: the baseline or the fastest other."""

    algorithm: str
    label: str  # the winner's name
    ratio: float | None  # how many times faster than the other it is
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossoverMap:
    """Cells by row and column: rows are set-ups, columns are sizes."""

    setups: Sequence[pd.DataFrame]
    settings: Sequence[Mapping[str, Any]]
    left_out: Sequence[str]  # in words
    names: Sequence[str]  # of set-ups
    sizes: Mapping[int, int]  # by column: what was asked for
    cells: Mapping[tuple[int, int], CrossoverCell]

    @property
    def heading(self) -> str:
        """Return what is the same in all of it."""
        first = self.settings[0]
        shared = _shared([title_words(setting) for setting in self.settings])
        return join(f"{first['what']} over {first['transport']}", *shared.values())

    @property
    def title(self) -> str:
        return f"{_conclusion(self.cells, self.sizes)} ({self.heading})"

    @property
    def note(self) -> str:
        """Return how to read it, and how far to trust it."""
        return " ".join([_note(self.setups), *self.left_out])


def crossover(frame: pd.DataFrame, meta: Mapping[str, Any]) -> dict[str, Figure]:
    """Draw maps, by file name, none where there is too little to compare.

    `frame` has the columns of `Row` and `Speedup`.
    """
    return {name: _figure(one, meta) for name, one in maps(frame).items()}


def maps(frame: pd.DataFrame) -> dict[str, CrossoverMap]:
    """Return the maps of `crossover`, by file name."""
    if "baseline" not in frame:
        return {}
    known = complete(frame[(frame["status"] == "ok") & frame["baseline"].notna()])
    found = {}
    for _, rows in known.groupby(_MAP_KEYS, sort=False):
        if rows["algorithm"].nunique() >= _ALGORITHMS and rows["size_bytes"].nunique() >= _SIZES:
            setups = [members for _, members in rows.groupby(_ROW_KEYS, sort=False)]
            setups.sort(key=lambda members: members[["ranks", "nodes"]].to_numpy()[0].tolist())
            setups, left_out = _thinned(setups)
            settings: list[dict[Any, Any]] = [members.iloc[0].to_dict() for members in setups]
            shared = _shared([file_words(setting) for setting in settings])
            name = file_name(["crossover", settings[0]["what"], settings[0]["transport"], *shared.values()])
            found[name] = _map(setups, settings, left_out)
    return found


def _shared(words: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return what is the same of all."""
    return {key: text for key, text in words[0].items() if all(other[key] == text for other in words)}


def _thinned(setups: Sequence[pd.DataFrame]) -> tuple[list[pd.DataFrame], list[str]]:
    """Return the set-ups and sizes that there is room for, evenly apart, and in words what is left out."""
    said = []
    kept = list(setups)
    if len(setups) > _MOST_ROWS:
        kept = [setups[round(place)] for place in np.linspace(0, len(setups) - 1, _MOST_ROWS)]
        said.append(f"Of {len(setups)} set-ups {_MOST_ROWS} are shown.")
    columns = _columns(kept)
    largest = {column: size for size, column in sorted(columns.items())}
    if len(largest) > _MOST_COLUMNS:
        shown = set(thinned(set(largest.values()), _MOST_COLUMNS))
        kept = [of[of["size_bytes"].map(lambda size: largest[columns[int(size)]] in shown)] for of in kept]
        said.append(f"Of {len(largest)} sizes {len(shown)} are shown, evenly apart; all are in results.parquet.")
    return [of for of in kept if len(of)], said


def _map(
    setups: Sequence[pd.DataFrame], settings: Sequence[Mapping[str, Any]], left_out: Sequence[str]
) -> CrossoverMap:
    columns = _columns(setups)
    cells = {
        (index, columns[int(of_size["size_bytes"].iloc[0])]): cell
        for index, members in enumerate(setups)
        for _, of_size in members.groupby("size_bytes")
        if (cell := _cell(of_size)) is not None
    }
    largest = {column: size for size, column in sorted(columns.items())}
    return CrossoverMap(setups=setups, settings=settings, left_out=left_out, names=_names(settings), sizes=largest,
                        cells=cells)  # fmt: skip


def _figure(one: CrossoverMap, meta: Mapping[str, Any]) -> Figure:
    setups, names, cells = one.setups, one.names, one.cells
    sizes = [format_size(size) for size in one.sizes.values()]
    handles = _legend(cells.values())

    # All in inches: a map has as many rows and columns as it has, and text does not grow with it.
    left = 0.3 + _wide([_LAYOUT, *(line for name in names for line in name.split("\n"))], 9)
    width = min(_BROADEST, max(_NARROWEST, left + len(sizes) * _CELL_WIDTH + 0.2))
    cell_width = (width - left - 0.2) / len(sizes)
    cell_height = max(0.62, 0.17 * max(name.count("\n") + 1 for name in names) + 0.08)
    said = [
        one.note,
        *dict.fromkeys(network_note(setting["fabric"]) for setting in one.settings),
    ]
    note = [line for text in said for line in textwrap.wrap(text, int((width - 0.2) / (7.5 * 0.52 / 72)))]
    legend_columns = max(1, int(width / (_wide([str(handle.get_label()) for handle in handles], 9) + 0.55)))
    top = 0.98 + 0.2 * ((len(handles) - 1) // legend_columns)
    tilt = _wide(sizes, 9) > cell_width
    bottom = (0.8 if tilt else 0.58) + 0.125 * (len(note) + 1)
    height = top + len(setups) * cell_height + bottom

    text = one.title
    figure = Figure(figsize=(width, height))
    above = title(figure, text, 1.0)
    top, height = top + above, height + above
    figure.set_size_inches(width, height)
    axes = figure.add_axes(
        (left / width, bottom / height, (width - left - 0.2) / width, len(setups) * cell_height / height)
    )
    for (row, column), cell in cells.items():
        _draw(axes, row, column, cell, cell_width)
    axes.set_xlim(0, len(sizes))
    axes.set_ylim(len(setups), 0)
    axes.set_xticks([index + 0.5 for index in range(len(sizes))], sizes, rotation=35 if tilt else 0)
    axes.set_yticks([index + 0.5 for index in range(len(setups))], names)
    axes.tick_params(length=0, labelsize=9)
    axes.set_xlabel("size (bytes of one rank's buffer)")
    figure.text((left - 0.05) / width, 1 - (top - 0.13) / height, _LAYOUT, fontsize=8, color="#555555", ha="right")
    for spine in axes.spines.values():
        spine.set_color("#bbbbbb")
    title(figure, text, 1 - 0.16 / height)
    figure.legend(
        handles=handles, loc="upper center", ncols=legend_columns, frameon=False, fontsize=9, handlelength=1.6,
        handleheight=1.1, columnspacing=1.4, bbox_to_anchor=(0.5, 1 - (0.38 + above) / height),
    )  # fmt: skip
    caption(figure, meta, "\n".join(note))
    return figure


def _conclusion(cells: Mapping[tuple[int, int], CrossoverCell], sizes: Mapping[int, int]) -> str:
    """Return who is proven fastest, at which sizes, and by how much: `direct 1.15x to 1.38x at 4 MiB`.

    Of algorithms that win at the same sizes, on several layouts, it says in how many cells each does.
    """
    found: dict[str, list[tuple[int, float]]] = {}
    for (_, column), cell in sorted(cells.items(), key=lambda item: item[0][1]):
        if cell.verdict not in HATCHES and cell.ratio is not None:
            found.setdefault(cell.algorithm, []).append((sizes[column], cell.ratio))
    spans = [[size for size, _ in wins] for wins in found.values()]
    if any(min(one) <= max(two) and min(two) <= max(one) for one, two in itertools.combinations(spans, 2)):
        counts = [f"{name} in {len(wins)} ({words.ratios([ratio for _, ratio in wins], None, None)})"
                  for name, wins in found.items()]  # fmt: skip
        return f"Fastest of {len(cells)} cells: {', '.join(counts)}"
    said = [
        f"{name} {words.ratios([ratio for _, ratio in wins], None, None)} {words.sizes([size for size, _ in wins])}"
        for name, wins in found.items()
    ]
    return "; ".join(said) or "nothing is proven faster"


def _wide(texts: Sequence[str], size: float) -> float:
    """Return inches of the longest, in a font of this size."""
    return max(map(len, texts), default=0) * size * 0.62 / 72


def _columns(setups: Sequence[pd.DataFrame]) -> dict[int, int]:
    """Return size -> column. Sizes next to each other share one if each set-up has one of them at the most."""
    of_setup = [{int(size) for size in members["size_bytes"]} for members in setups]
    columns: dict[int, int] = {}
    shared: list[int] = []
    for size in sorted(set().union(*of_setup)):
        alike = bool(shared) and size <= _SAME_SIZE * shared[0]
        if alike and not any(size in sizes and sizes & set(shared) for sizes in of_setup):
            shared.append(size)
        else:
            shared = [size]
        columns[size] = len(set(columns.values())) - (len(shared) > 1)
    return columns


def _names(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the layouts, and what else differs between the rows of a map."""
    words = [{**title_words(setting), "run": str(setting["run"])} for setting in settings]
    shared = _shared(words)
    names = []
    for setting, of in zip(settings, words, strict=True):
        differing = ", ".join(text for key, text in of.items() if key not in shared and text)
        fixed = ", ".join(text.replace(" ", _NO_BREAK) for text in differing.split(", "))  # lines end at commas
        more = [line.replace(_NO_BREAK, " ") for line in textwrap.wrap(fixed, 30)]
        names.append("\n".join([layout_text(setting), *more]))
    return names


def _cell(rows: pd.DataFrame) -> CrossoverCell | None:
    """Return the baseline against the fastest of the others; None if one of them has no numbers."""
    others, baselines = rows[rows["pairs"].notna()], rows[rows["pairs"].isna()]
    if not len(others) or not len(baselines):
        return None
    best, baseline = others.sort_values("time_us").iloc[0], baselines.iloc[0]
    speedup = _number(best["speedup"])
    winner_verdict = verdict(*(_number(best.get(name)) for name in ("speedup_low", "speedup_high", "speedup_p")))
    wins = best if (best["time_us"] < baseline["time_us"] if speedup is None else speedup > 1) else baseline
    ratio = None if speedup is None else max(speedup, 1 / speedup)
    return CrossoverCell(wins["algorithm"], algorithm_label(wins["algorithm"], wins["params"]), ratio, winner_verdict)


def _number(value: Any) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


def _draw(axes: Axes, row: int, column: int, cell: CrossoverCell, width: float) -> None:
    known = cell.verdict not in HATCHES
    face = shade(cell.algorithm, cell.ratio) if known else "#f1f1f1"
    axes.add_patch(
        Rectangle(
            (column, row), 1, 1, facecolor=face, edgecolor="#ffffff" if known else "#c4c4c4",
            hatch=HATCHES.get(cell.verdict), linewidth=0,
        )
    )  # fmt: skip
    axes.add_patch(Rectangle((column, row), 1, 1, facecolor="none", edgecolor="#ffffff", linewidth=1.6))
    name, *params = cell.label.split(" ", 1)
    lines = [name, *params, ratio_text(cell)]
    if _wide(lines, _FONT) > width:  # the colour says which
        lines = [*(line for line in params if _wide([line], _FONT) <= width), lines[-1]]
    box = None if known else {"facecolor": "#f1f1f1", "edgecolor": "none", "pad": 1.2}
    axes.text(
        column + 0.5, row + 0.5, "\n".join(lines), ha="center", va="center", fontsize=_FONT, linespacing=1.25,
        color=ink(face) if known else "#333333", bbox=box,
    )  # fmt: skip


def ratio_text(cell: CrossoverCell) -> str:
    """Return `1.58x`, with a mark where it is not proven: `= 1.01x`, `? 1.2x`."""
    mark = {Verdict.NO_DIFFERENCE: "= ", Verdict.NOT_ESTIMABLE: "? "}.get(cell.verdict, "")
    if cell.ratio is None:
        return mark
    digits = 2 if cell.ratio < 1.5 else 1 if cell.ratio < 9.95 else 0
    return f"{mark}{cell.ratio:.{digits}f}x"


def shade(algorithm: str, ratio: float | None) -> tuple[float, float, float]:
    """Return a colour from pale at a ratio of 1 to the full one, by the logarithm."""
    part = 0.38 + 0.62 * min(1.0, math.log(ratio or 1.0) / math.log(_FULL_COLOUR))
    red, green, blue = (1 + part * (channel - 1) for channel in to_rgb(algorithm_colour(algorithm)))
    return red, green, blue


def ink(face: tuple[float, float, float] | str) -> str:
    """Return the colour of letters that are read on `face`."""
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(face))
    return "#ffffff" if 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.3 else "#111111"


def _legend(cells: Any) -> list[Patch]:
    kinds = {cell.verdict for cell in cells}
    winners = sorted({cell.algorithm for cell in cells if cell.verdict not in HATCHES})
    patches = [Patch(facecolor=shade(name, 2.0), label=name) for name in winners]
    for kind, hatch in HATCHES.items():
        if kind in kinds:
            label = f"{'=' if kind is Verdict.NO_DIFFERENCE else '?'} {kind.value}"
            patches.append(Patch(facecolor="#f1f1f1", edgecolor="#c4c4c4", hatch=hatch, linewidth=0, label=label))
    return patches


def _note(setups: Sequence[pd.DataFrame]) -> str:
    """Return what a cell says, and how far to trust it."""
    baselines = list(dict.fromkeys(str(name) for rows in setups for name in rows["baseline"]))
    pairs = sorted({int(count) for rows in setups for count in rows["pairs"].dropna()})
    spread = describe_pairs(pairs, {str(kind) for rows in setups for kind in rows["speedup_of"].dropna()})
    picked = ""
    most = max(len(members[["algorithm", "params"]].drop_duplicates()) for members in setups) - 1
    if most > 1:
        picked = (
            f" The fastest of up to {most} others was picked from the same data, so its ratio is a little too good "
            "(winner's curse): confirm it in a run of its own."
        )
    return (
        f"How to read this: a cell names {' or '.join(baselines)} or the fastest other, and how many times faster it "
        "is than the other of both (median over launches of the ratio of times; darker: more). Hatched: no difference, "
        "or nothing that chance could not do among all ratios of the run. "
        f"The intervals: {spread}.{picked}"
    )
