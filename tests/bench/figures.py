"""`make figures`: every picture of README and docs, drawn from results/reference and from recorded machines.

The same files give the same pictures, so `git diff` shows what a change of the plots does to them.
"""

from __future__ import annotations

import dataclasses
import io
import json
import re
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from commbench.analysis.bounds import Told
from commbench.commands import plot
from commbench.emulated import ROUTINGS
from commbench.files import write_atomically
from commbench.links import parse_link_rates
from commbench.machine import sysfs
from commbench.output.answer import words
from commbench.output.combine import combine
from commbench.plots import before_after, machine
from commbench.plots.crossover import crossover
from commbench.plots.curves import curves
from commbench.plots.pairs import heat_maps
from commbench.plots.settings import FIGURE_KEYS
from commbench.plots.style import picture, title
from commbench.profile import file as profile_file
from commbench.units import format_size
from tests.bench import tables
from tests.conftest import REPOSITORY
from tests.support import machines

REFERENCE, IMAGES = REPOSITORY / "results/reference", REPOSITORY / "docs/images"
TUNED = REFERENCE / "tuned-2xH200"
NVLINK = "intra=18x26.5625GBps"  # of an H200: what its lanes carry
MOST_BYTES = 150_000
_TRAININGS = ("train-table1-2xH200", "train-table1-H100")
_SHOWN = ("-4x4-", "-1-MiB-")  # of several figures of a run
_PREFIX = re.compile("compare-[0-9a-f]{6}-")  # of pictures of several runs
_COLOURS = 128  # of a picture: lines, text and their soft edges need no more


def main() -> None:
    drawn_here = {"gpus": of_gpus(), "before-after": of_profile(), "routing": of_routing()}
    for name, figure in {**of_sweeps(), **drawn_here}.items():
        _write(IMAGES / f"{name}.png", picture(figure, "png"))
    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder) / "topology.png"
        machine.draw(sysfs.read(machines.unpack("dgx", Path(folder) / "dgx")), drawn)
        _write(IMAGES / "topology.png", drawn.read_bytes())
        for target, draw in BESIDE.items():
            for path in draw(Path(folder)):
                _write(target / _PREFIX.sub("", path.name), path.read_bytes())


def of_sweeps() -> dict[str, Figure]:
    """Return the figures of sweeps, by the name of their picture."""
    wanted: dict[str, tuple[str, Callable[..., dict[str, Figure]]]] = {
        "crossover": ("2d_rate-2cpu", crossover),
        "own-algorithm": ("own_algorithm-2cpu", crossover),
        "pairs": ("pairs-4x2-2cpu", heat_maps),
        "slow-link": ("slow_link-4x2-2cpu", heat_maps),
    }
    figures = {}
    for name, (run, function) in wanted.items():
        runs = combine([REFERENCE / run], Told(), FIGURE_KEYS, print)
        drawn = function(runs.rows, runs.about)
        figures[name] = next(
            figure for title, figure in drawn.items() if len(drawn) == 1 or any(word in title for word in _SHOWN)
        )
    return figures


def of_profile() -> Figure:
    """Return the bandwidth of two H200 without a profile and with it, outside of CUDA graphs."""
    profile = profile_file.load(TUNED / "profile.json")
    plain = dataclasses.replace(profile, choices=[choice for choice in profile.choices if not choice.captured])
    figure = before_after.of_profile(plain, before_after.declared_bounds(plain, parse_link_rates([NVLINK])))
    assert figure is not None
    return figure


def of_routing() -> Figure:
    """Return the times of all launches over two spines, by routing: adaptive routing told apart from luck."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    said = []
    for axes, layout in zip(figure.subplots(1, len(tables.ROUTED)), tables.ROUTED, strict=True):
        run, by_routing = tables.routed(layout)
        for place, name in enumerate(ROUTINGS):
            times = sorted(run.times_ms(by_routing[name]))
            spread = [place + 0.3 * (index / max(1, len(times) - 1) - 0.5) for index in range(len(times))]
            axes.plot(spread, times, "o", markersize=3.5, alpha=0.7)
            axes.plot([place - 0.25, place + 0.25], [statistics.median(times)] * 2, color="black", linewidth=1.2)
        size = format_size(by_routing["static"].size_bytes)
        axes.set_title(f"{layout}, {size}: {len(times)} launches each", fontsize=8.5)
        axes.set_xticks(range(len(ROUTINGS)), ROUTINGS)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("ms")
        said.append(f"{layout}: {run.gain(by_routing['spray'], by_routing['ecmp'])}")
    figure.suptitle(
        f"Few connections tell spray from luck, many do not\nspray over ecmp: {', '.join(said)}", fontsize=9
    )
    return figure


def of_gpus() -> Figure:
    """Return all-to-all in a CUDA graph on symmetric buffers, beside nccl-tests': medians over four rounds."""
    lines = [json.loads(line) for line in (REFERENCE / "nccl_tests-2xH200/rows.jsonl").read_text().splitlines()]
    ours = [one for one in lines if one["way"].endswith(" graph symmetric")]
    theirs = [one for one in lines if one["way"] in ("-R 1 -G 20", "-R 2 -D 2 -G 20")]
    rows = [_row(ways, "" if ways[0]["tool"] == "commbench" else "nccl-tests ") for ways in _rounds([*ours, *theirs])]
    frame = pd.DataFrame(rows)
    about = json.loads((REFERENCE / "gpu_isolated-2xH200/run.json").read_text())
    (figure,) = curves(frame, about).values()
    best = frame.groupby(["foreign", "size_bytes"])["time_us"].min().unstack(0)
    ratios = (best[True] / best[False]).dropna().tolist()
    text = f"The best of commbench is {words.ratios(ratios, None, None)} as fast as the best of nccl-tests"
    title(figure, f"{text} (all_to_all, 2 H200, CUDA graph)", 0.985)
    return figure


def _rounds(lines: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Return the rounds of each way at each size."""
    by_way: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for one in lines:
        if one.get("time_us"):
            by_way.setdefault((one["way"], one["size_bytes"]), []).append(one)
    return list(by_way.values())


def _row(rounds: list[dict[str, Any]], prefix: str) -> dict[str, Any]:
    """Return the medians of some rounds as a line of a frame."""
    first, foreign = rounds[0], bool(prefix)
    time_us, busbw = (statistics.median(one[name] for one in rounds) for name in ("time_us", "busbw_gbps"))
    bound = first.get("bound_gbps")
    return {
        **dict.fromkeys(FIGURE_KEYS, ""),
        "what": "all_to_all", "collective": "all_to_all", "transport": "nccl", "nodes": 1, "ranks": 2, "group_size": 2,
        "groups": "world", "overlap": "none", "dtype": "fp32", "mode": "graph", "buffers": "symmetric", "cache": "warm",
        "message_overhead": 0, "spines": 0, "binding": "none", "binding_memory": True, "arguments": "{}",
        "status": "ok", "run": "", "case_id": None if foreign else first["case_id"], "foreign": foreign,
        "label": prefix + first["way"].removesuffix(" graph symmetric"), "algorithm": first.get("algorithm", ""),
        "size_bytes": first["size_bytes"], "launches": len(rounds), "interval_of": None, "baseline": None,
        "time_us": time_us, "time_us_low": None, "time_us_high": None, "algbw_gbps": 2 * busbw, "busbw_gbps": busbw,
        "bound_us": time_us * busbw / bound if bound else None, "bound_kind": "measured",
    }  # fmt: skip


def _of_trainings(*names: str) -> Callable[[Path], list[Path]]:
    return lambda folder: plot.draw_trainings([REFERENCE / name for name in names], _new(folder))


def _of_ab(name: str) -> Callable[[Path], list[Path]]:
    return lambda folder: plot.draw_ab([REFERENCE / name], _new(folder))


def _new(folder: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=folder))


def _runs(name: str) -> list[str]:
    return [f"{name}/{path.parent.name}" for path in sorted((REFERENCE / name).glob("*/run.json"))]


# Pictures that stand beside what they are drawn from.
BESIDE: dict[Path, Callable[[Path], list[Path]]] = {
    TUNED / "plots": lambda folder: plot.draw_profile(
        [TUNED / "profile.json"], _new(folder), parse_link_rates([NVLINK])
    ),
    **{
        REFERENCE / name / "plots": _of_trainings(*_runs(name)) for name in ("train-table1-2xH200", "train-table1-H100")
    },
    REFERENCE / "train_ab-tuned-2xH200/plots": _of_ab("train_ab-tuned-2xH200"),
    **{
        path.parent: _of_ab(str(path.parent.relative_to(REFERENCE)))
        for path in sorted((REFERENCE / "train_ab-2x4-2cpu").glob("*/ab.json"))
    },
}


def _write(path: Path, png: bytes) -> None:
    """Write a picture in as few colours as it needs. Raises `ValueError` where it is too large for the docs."""
    small = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE).save(
        small, "png", optimize=True
    )
    if len(small.getvalue()) > MOST_BYTES:
        raise ValueError(f"{path}: {len(small.getvalue())} bytes, {MOST_BYTES} are allowed")
    write_atomically(path, small.getvalue())
    print(f"{path.relative_to(REPOSITORY)}: {len(small.getvalue()) / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
