"""Published figures against their bands: what is inside, what is not, and what cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from commbench.errors import UsageError
from commbench.strategy import papers
from commbench.strategy.papers import parm
from commbench.strategy.papers.figure import PaperFigure
from tests.conftest import here

AT = (8, 64, 512)


@pytest.fixture(scope="module")
def figures() -> dict[str, PaperFigure]:
    return {name: papers.predict(name, AT) for name in papers.FIGURES}


def inside(figure: PaperFigure) -> dict[str, bool]:
    return {row.what: row.inside for row in figure.rows if row.inside is not None}


def test_tutels_layer_and_all_to_all_follow_from_its_machine(figures: dict[str, PaperFigure]) -> None:
    assert inside(figures["tutel-layer"]) == {"8 GPUs": True, "512 GPUs": True}
    assert list(inside(figures["tutel-all-to-all"]).values()) == [True, True]


def test_tutels_training_on_8_gpus_does_not(figures: dict[str, PaperFigure]) -> None:
    """Nothing is fitted to it: our own measurement, 1.43 on one GPU, is in the band; the published 2.31 is not."""
    eight = figures["tutel-training"].rows[0]
    assert inside(figures["tutel-training"]) == {"8 GPUs": False, "512 GPUs": True}
    assert eight.band.holds(1.43) and eight.band.high < 2.31
    assert "0.61 % of draws" in figures["tutel-training"].says[0]


def test_gains_of_tuning_shrink_with_size_and_grow_with_gpus(figures: dict[str, PaperFigure]) -> None:
    middles = {row.what: row.band.middle for row in figures["tutel-all-to-all"].rows}
    by_size = [middles[f"512 GPUs, {mib} MiB"] for mib in (64, 128, 256, 512, 1024)]
    assert by_size == sorted(by_size, reverse=True)
    assert middles["64 GPUs, 256 MiB"] < middles["512 GPUs, 256 MiB"]


def test_montas_13_percent_is_mostly_dropping(figures: dict[str, PaperFigure]) -> None:
    found = inside(figures["monta"])
    assert [what for what in found if found[what]] == [
        f"{gbs} GB/s a node, experts in {layers}: {name}"
        for gbs, layers in ((200, "each layer"), (100, "every second layer"))
        for name in ("drop", "drop_pipelined(4)")
    ]
    middles = [row.band.middle for row in figures["monta"].rows]
    overlap = [over / drop for drop, over in zip(middles[::2], middles[1::2], strict=True)]
    assert max(overlap) < 1.05, "overlap adds little"


def test_parms_grid_spans_what_it_published(figures: dict[str, PaperFigure]) -> None:
    least, largest = figures["parm"].rows[-2:]
    assert least.band.high < 1.13 and largest.band.low > 5.77
    assert len(parm._Layers.of_grid().p) * len(parm.clusters()) == 1296
    assert 2 < figures["parm"].rows[1].band.middle < 3.5, "about 3x on its models"


def test_measured_steps_on_b200_are_inside(figures: dict[str, PaperFigure]) -> None:
    steps, ratios = figures["simumax"].rows[:6], figures["simumax"].rows[6:]
    assert all(row.inside and abs(row.band.middle - 1) < 0.13 for row in steps)
    assert all(row.published is not None and abs(row.band.middle / row.published - 1) < 0.12 for row in ratios)
    assert all(row.band.low > 1 for row in ratios), "ep 8 is the faster, as measured"


def test_the_command_prints_tables_or_json(tmp_path: Path) -> None:
    text = here("predict", "tutel-training", "monta", "--gpus", "8,512", cwd=tmp_path).stdout
    assert "2.31x" in text and "# answer: Tutel, Figure 3: training Meta's 1.1T model:" in text
    lines = here("predict", "tutel-training", "--format", "json", cwd=tmp_path).stdout.splitlines()
    figure, answer = map(json.loads, lines)
    assert figure["rows"][0]["published"] == 2.31 and answer["answer"]["sentence"].startswith("Tutel, Figure 3")


@pytest.mark.parametrize("name, gpus", [("tutel", AT), ("tutel-layer", (9,)), ("tutel-layer", (8192,))])
def test_what_there_is_not_is_refused(name: str, gpus: tuple[int, ...]) -> None:
    with pytest.raises(UsageError):
        papers.predict(name, gpus)
