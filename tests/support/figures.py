"""What every figure keeps to: nothing is cut off at its edge, and nothing lies over something else."""

from __future__ import annotations

import itertools

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def inside(figure: Figure) -> None:
    """No text is cut off at the figure's edge."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    edge = figure.bbox
    artists = [
        *figure.texts,
        *([figure._suptitle] if figure._suptitle else []),
        *(text for legend in figure.legends for text in legend.get_texts()),
    ]
    for axes in figure.axes:
        low, high = sorted(axes.get_ylim())  # ticks beyond are not drawn
        shown = [label for label in axes.get_yticklabels() if low <= label.get_position()[1] <= high]
        artists += [*axes.texts, *shown, *axes.get_xticklabels(), axes.xaxis.label]
    for artist in artists:
        box = artist.get_window_extent(renderer)
        if artist.get_text() and box.width:
            assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= edge.x1 + 1 and box.y1 <= edge.y1 + 1, artist.get_text()
    apart(figure)


def apart(figure: Figure) -> None:
    """No title, legend or caption lies over another, or over axes with their labels; no legend over its own lines."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    boxes = {"title": figure._suptitle.get_window_extent(renderer)} if figure._suptitle else {}
    boxes |= {f"legend {n}": legend.get_window_extent(renderer) for n, legend in enumerate(figure.legends)}
    texts = [text for text in figure.texts if text is not figure._suptitle]
    boxes |= {f"text {text.get_text()[:20]!r}": text.get_window_extent(renderer) for text in texts}
    for number, axes in enumerate(figure.axes):
        if legend := axes.get_legend():
            boxes[f"legend of axes {number}"] = legend.get_window_extent(renderer)
            legend.remove()
        boxes[f"axes {number}"] = axes.get_tightbbox(renderer)
        if legend:
            axes.add_artist(legend)
    for (one, first), (two, second) in itertools.combinations(boxes.items(), 2):
        width = min(first.x1, second.x1) - max(first.x0, second.x0)
        height = min(first.y1, second.y1) - max(first.y0, second.y0)
        assert width <= 2 or height <= 2, f"{one} over {two}: {width:.0f} x {height:.0f}"
