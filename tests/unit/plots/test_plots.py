"""The crossover map and the traffic split, from frames as a sweep gives them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from commbench import algorithms, plots
from commbench.analysis.pair_matrices import Matrix
from commbench.analysis.summary import Samples, row
from commbench.plots.crossover import CrossoverCell, _conclusion, crossover
from commbench.plots.curves import curves
from commbench.plots.pairs import heat_maps
from commbench.plots.settings import FABRIC_SETTINGS
from commbench.plots.style import ALGORITHM, MARKERS, algorithm_colour, thinned
from commbench.plots.traffic import traffic
from commbench.records import Case
from commbench.run_folder import RunFolder
from commbench.stats import Verdict
from tests.support.fake_runs import META, frame, measured, planned
from tests.support.figures import inside

SIZES = ("sizes.min=1K", "sizes.max=64K", "sizes.factor=8")
EMULATED = ("transport=gloo", "fabric=emulated", "link=1gbit")


def rule(case: Case) -> float:
    """2d_intra_first wins at 1 KiB, is as good as direct at 8 KiB, and loses at 64 KiB."""
    two_d = 0.5 if case.size_bytes <= 1024 else 1.0 if case.size_bytes <= 8192 else 3.0
    factor = two_d if case.algorithm == "2d_intra_first" else 1.0
    return case.size_bytes / 10 * factor * (1.2 if case.algorithm == "pairwise" else 1.0)


def made(*words: str, **how: Any) -> pd.DataFrame:
    cases = planned("nodes=4", "ranks_per_node=4", "algorithm=direct,2d_intra_first", *SIZES, *words)
    return frame(cases, measured(cases, rule, **how))


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def hatched(figure: Figure) -> int:
    patches = figure.axes[0].patches
    return sum(bool(patch.get_hatch()) for patch in patches if isinstance(patch, Rectangle))


def notes(figure: Figure) -> str:
    return " ".join(" ".join(text.get_text() for text in figure.texts).split())


def test_the_map_names_the_winner_and_hatches_what_nobody_can_tell() -> None:
    (figure,) = crossover(made("algorithm=direct,pairwise,2d_intra_first"), META).values()
    first, second, third = texts(figure)
    assert first.startswith("2d_intra_first\n2.0") and third.startswith("direct\n1."), "against the fastest other"
    assert "= 1.0" in second and hatched(figure) == 1
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["2d_intra_first", "direct", "= no difference"]
    assert "over 6 launches" in notes(figure) and "a verdict takes 6 launches, a gain in a profile 10" in notes(figure)
    assert "up to 2 others was picked from the same data" in notes(figure)
    (two,) = crossover(made("launches=10"), META).values()
    assert "over 10 launches" in notes(two) and "claim" not in notes(two) and "picked" not in notes(two)


def test_a_cell_without_data_is_blank_and_layouts_are_rows() -> None:
    rows = pd.concat([made(), made("nodes=2", "ranks_per_node=8")], ignore_index=True)
    kept = rows[~((rows["nodes"] == 2) & (rows["size_bytes"] == 1024) & (rows["algorithm"] == "direct"))]
    (figure,) = crossover(kept, META).values()
    assert len(texts(figure)) == 5
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["2x8", "4x4"]


def test_the_title_says_who_is_fastest_or_in_how_many_cells_each_is() -> None:
    def cell(name: str, ratio: float, found: Verdict = Verdict.FASTER) -> CrossoverCell:
        return CrossoverCell(name, name, ratio, found)

    sizes = {0: 1024, 1: 4096, 2: 2**20}
    tie = cell("direct", 1.01, Verdict.NO_DIFFERENCE)
    apart = {(0, 0): cell("bruck", 2.0), (1, 0): cell("bruck", 1.5), (0, 1): tie, (0, 2): cell("direct", 1.2)}
    assert _conclusion(apart, sizes) == "bruck 1.50x to 2.00x at 1 KiB; direct 1.20x at 1 MiB"
    mixed = {**apart, (1, 0): cell("direct", 1.5)}
    assert _conclusion(mixed, sizes) == "Fastest of 4 cells: bruck in 1 (2.00x), direct in 2 (1.20x to 1.50x)"
    assert _conclusion({(0, 0): tie}, sizes) == "nothing is proven faster"


def test_parameters_and_few_samples_are_in_the_cell() -> None:
    rows = made("algorithm=direct,pairwise", "window=2")
    rows.loc[rows["size_bytes"] == 1024, ["speedup_low", "speedup_high"]] = None
    (figure,) = crossover(rows.assign(speedup=rows["speedup"] * 2), META).values()
    first, second, *_ = texts(figure)
    assert first.startswith("pairwise\nwindow=2\n? 1.") and second.startswith("pairwise\nwindow=2\n1.")
    assert "? not estimable" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_sizes_rounded_for_other_ranks_share_a_column() -> None:
    rows = pd.concat([made(), made("nodes=2", "ranks_per_node=3").assign(ranks=6)], ignore_index=True)
    (figure,) = crossover(rows, META).values()
    assert len(figure.axes[0].get_xticks()) == 3 and len(texts(figure)) == 6


@pytest.mark.parametrize("words", [("algorithm=direct",), ("algorithm=pairwise", "window=1,2"), ("sizes.max=8K",)])
def test_no_map_where_there_is_little_to_compare(words: tuple[str, ...]) -> None:
    assert crossover(made(*words), META) == {}
    assert crossover(made(*words).drop(columns=["baseline"]), META) == {}


def test_set_ups_and_fabrics_are_told_apart() -> None:
    spines = ("spines=2", "routing=spray")
    rows = pd.concat([made(*EMULATED, "message_overhead=30000"), made(*EMULATED, *spines)], ignore_index=True)
    assert set(curves(rows, META)) == {
        "all_to_all-gloo-4x4-emulated-1gbit-30000-B-fp32-isolated",
        "all_to_all-gloo-4x4-emulated-1gbit-2-spines-spray-fp32-isolated",
    }
    (map_name,) = crossover(rows, META)
    assert map_name == "crossover-all_to_all-gloo-fp32-isolated"
    labels = [label.get_text() for label in crossover(rows, META)[map_name].axes[0].get_yticklabels()]
    assert labels == ["4x4\nemulated: 1gbit links,\n30000 B per packet", "4x4\nemulated: 1gbit links,\n2 spines, spray"]
    titles = {figure.get_suptitle().replace("\n", " ") for figure in curves(rows, META).values()}
    assert any("emulated: 1gbit links, 30000 B per packet" in title for title in titles) and len(titles) == 2
    assert len(traffic(rows, META)) == 2


def test_a_frame_without_fabric_settings_is_one_of_real_links() -> None:
    old = made().drop(columns=[*FABRIC_SETTINGS, "wire_bytes"])
    assert set(curves(old, META)) == {"all_to_all-scripted-4x4-fp32-isolated"}
    assert len(crossover(old, META)) == len(traffic(old, META)) == 1


def widths(figure: Figure) -> list[float]:
    return [round(patch.get_width(), 4) for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]


def test_traffic_is_in_multiples_of_the_data() -> None:
    """4 x 4 ranks, blocks of 1/16: 12 of them leave the node; 3 stay in it, or 12 and 12 where nodes gather first."""
    (figure,) = traffic(made(), META).values()
    assert widths(figure) == [12 / 16, 3 / 16, 12 / 16, 12 / 16]
    assert "768 KiB" in notes(figure) and "192 KiB" in notes(figure) and "64 KiB" in notes(figure)
    assert traffic(made("nodes=1", "algorithm=direct,pairwise"), META) == {}


def test_unknown_steps_are_left_out_with_a_note_and_counters_are_marked() -> None:
    rows = made(*EMULATED, wire=13.0)
    rows.loc[rows["algorithm"] == "direct", ["inter_bytes", "intra_bytes"]] = None
    (figure,) = traffic(rows, META).values()
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["2d_intra_first"]
    assert "not shown, as a library chooses the way: direct" in notes(figure) and "832 KiB" in notes(figure)
    marks = [line.get_xdata() for line in figure.axes[0].lines if len(line.get_xdata())]
    assert [float(mark[0]) for mark in marks] == [13 / 16]
    rows[["inter_bytes", "intra_bytes"]] = None
    assert traffic(rows, META) == {}


def test_an_algorithm_has_one_colour_and_no_other_of_its_collective_has_it() -> None:
    for collective in {of for of, _ in algorithms.TABLE}:
        names = algorithms.names(collective)
        assert len({algorithm_colour(name) for name in names}) == len(names)
    assert algorithm_colour("never_heard_of") == algorithm_colour("never_heard_of")
    rows = made("algorithm=direct,pairwise", "window=1,2")
    (figure,) = curves(rows, META).values()
    drawn = {text.get_text(): text for text in figure.legends[0].get_texts()}
    assert set(drawn) >= {"direct", "pairwise window=1", "pairwise window=2"}
    colours = {to_rgb(line.get_color()) for line in figure.axes[1].lines}
    assert {to_rgb(algorithm_colour("direct")), to_rgb(algorithm_colour("pairwise"))} <= colours


LAYOUTS = (("nodes=4", "ranks_per_node=4"), ("nodes=2", "ranks_per_node=8"), ("nodes=8", "ranks_per_node=2"))


ALL, TWO = ("algorithm=all", "window=1,2"), (*EMULATED, "algorithm=direct,2d_intra_first")


def of_layouts(layouts: int, sizes: int, words: tuple[str, ...]) -> pd.DataFrame:
    span = ("sizes.min=1K", f"sizes.max={2 ** (sizes - 1)}K", "sizes.factor=2")
    cases = [case for layout in LAYOUTS[:layouts] for case in planned(*layout, *words, *span)]
    return frame(cases, measured(cases, lambda case: case.size_bytes + len(case.label) * 1000.0, noise=0.1))


@pytest.mark.parametrize("layouts", [1, 3])
def test_a_map_and_two_figures_of_each_layout_are_drawn(layouts: int, tmp_path: Path) -> None:
    assert len(plots.draw(of_layouts(layouts, 3, ALL), META, tmp_path)) == 1 + 2 * layouts


@pytest.mark.parametrize(("layouts", "sizes", "words"), [(1, 3, ALL), (3, 6, TWO), (3, 8, ALL), (1, 20, TWO)])
def test_nothing_is_cut_off(layouts: int, sizes: int, words: tuple[str, ...]) -> None:
    rows = of_layouts(layouts, sizes, words)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for function in (crossover, traffic):
            figures = function(rows, META)
            assert len(figures) == (1 if function is crossover else layouts)
            for figure in figures.values():
                inside(figure)


def test_what_there_is_no_room_for_is_left_out_and_said() -> None:
    sizes = ("sizes.min=64K", "sizes.max=64M", "sizes.factor=1.02")
    cases = [case for layout in LAYOUTS[:1] for case in planned(*layout, "algorithm=direct,bruck", *sizes)]
    rows = frame(cases, measured(cases, lambda case: case.size_bytes / 1e3 + (case.label == "bruck")))
    count = rows["size_bytes"].nunique()
    assert count > 300
    (figure,) = curves(rows, META).values()
    marked = [line for line in figure.axes[1].get_lines() if line.get_marker() in MARKERS]
    lines = [np.log2(np.asarray(line.get_xdata(), float)) for line in marked]
    drawn = [line.size for line in lines]
    assert len(drawn) == 2 and 24 < drawn[0] == drawn[1] <= 32
    assert {round(2 ** float(at)) for line in lines for at in line} <= set(rows["size_bytes"]), "each at its size"
    assert f"of {count} sizes {drawn[0]} are drawn" in notes(figure)
    (figure,) = crossover(rows, META).values()
    assert len(figure.axes[0].get_xticks()) <= 24 and f"Of {count} sizes" in notes(figure)
    inside(figure)
    first, last = rows["size_bytes"].min(), rows["size_bytes"].max()
    assert [thinned(set(rows["size_bytes"]), most)[:: most - 1] for most in (2, 9)] == [[first, last]] * 2

    ways = [rows[rows["label"] == "direct"].assign(label=f"way {way:02}", time_us=way + 1.0) for way in range(40)]
    (figure,) = curves(pd.concat(ways, ignore_index=True), META).values()
    named = {text.get_text() for text in figure.legends[0].get_texts()}
    assert {"way 00", "way 31"} <= named and "way 32" not in named and "of 40 lines 32 are drawn" in notes(figure)


def test_a_collective_without_busbw_is_drawn_by_its_algbw() -> None:
    words = ("collective=tp_all_to_all", "algorithm=duplicated,drop_gather", *EMULATED)
    cases = planned("nodes=2", "ranks_per_node=4", *words, *SIZES)
    rows = frame(cases, measured(cases, lambda case: case.size_bytes / 50.0))
    assert rows["busbw_gbps"].isna().all()
    for function in (crossover, traffic):
        for figure in function(rows, META).values():
            inside(figure)
    figure, *_ = curves(rows, META).values()
    assert figure.axes[0].get_ylabel() == ALGORITHM and figure.axes[0].lines


@pytest.mark.parametrize(("nodes", "per_node", "size"), [(4, 2, 1 << 20), (1, 8, 1024), (2, 8, 4096), (16, 8, 1 << 20)])
def test_the_heat_map_has_all_pairs_and_names_its_nodes(nodes: int, per_node: int, size: int) -> None:
    words = (f"nodes={nodes}", f"ranks_per_node={per_node}", f"sizes.min={size}", f"sizes.max={size}")
    cases = planned("collective=pairs", "algorithm=direct", "round=0", *words)
    made_rows = frame(cases, measured(cases, lambda case: 10.0))
    times = np.random.default_rng(1).uniform(10, 30, (2, nodes * per_node, nodes * per_node))
    times[:, np.arange(nodes * per_node), np.arange(nodes * per_node)] = np.nan
    apart = np.arange(nodes * per_node)[:, None] // per_node != np.arange(nodes * per_node) // per_node
    times[:, apart] *= 10  # between nodes: another class, compared with itself
    row_of_case = row(cases[0], measured(cases, lambda case: 10.0), Samples(RunFolder(Path("/nowhere"))))
    matrix = Matrix(key="k", row=row_of_case, layout=cases[0].setup.layout, time_us=times)
    ((name, figure),) = heat_maps(made_rows, {**META, "pairs": [matrix]}).items()
    assert name.startswith("pairs-schedule-tournament-") and f"{nodes}x{per_node}" in name
    axes, bar = figure.axes
    assert axes.images[0].get_array().shape == (nodes * per_node,) * 2
    shown = np.ma.filled(axes.images[0].get_array(), np.nan)
    classes = [shown[cells & np.isfinite(shown)] for cells in (apart, ~apart)]
    assert [np.median(values) for values in classes if values.size] == pytest.approx([1.0] * (1 + (nodes > 1)))
    numbers = [text for text in axes.texts if text.get_text().replace(".", "").isdigit()]
    ranks = nodes * per_node
    assert len(numbers) == (ranks * (ranks - 1) if ranks <= 16 else 0)
    if ranks <= 32 and nodes > 1:
        assert {f"node {node}" for node in range(nodes)} <= {text.get_text() for text in axes.texts}
    assert bar.get_ylabel().startswith("time / usual time of its class of link")
    assert len(bar.get_yticks()) >= 2
    inside(figure)


def test_rounds_of_pairs_have_no_curves(tmp_path: Path) -> None:
    cases = planned("collective=pairs", "algorithm=direct", "round=all", "nodes=2", "ranks_per_node=2")
    assert plots.draw(frame(cases, measured(cases, lambda case: 10.0)), META, tmp_path) == []
