"""What is compared: numbers of the output without the warm-up, or the time of it all."""

from __future__ import annotations

from pathlib import Path

import pytest

from commbench.ab.metric import Metric, Value, steady
from commbench.ab.turns import ArmFailed
from commbench.errors import UsageError

STEP = r"step took ([0-9.,e+]+) ms"


def log(folder: Path, *values: object) -> Path:
    path = folder / "log"
    path.write_text("starting\n" + "".join(f"rank 0: step took {value} ms\n" for value in values))
    return path


def test_it_is_the_median_after_the_warm_up(tmp_path: Path) -> None:
    metric = Metric(pattern=STEP)
    assert metric.of(9.0, log(tmp_path, 900, 800, 3, 1, 2)) == Value(2.0, 3)
    assert metric.of(9.0, log(tmp_path, *[100] * 4, *[2] * 16)) == Value(2.0, 16), "a fifth"
    assert metric.of(9.0, log(tmp_path, 7)) == Value(7.0, 1)
    assert metric.of(9.0, log(tmp_path, 9, "1,024.5")) == Value(1024.5, 1)
    assert Metric(pattern=STEP, warmup=0).of(9.0, log(tmp_path, 1, 2, 3)) == Value(2.0, 3)
    assert steady([1, 2], warmup=9) == Value(2.0, 1)


def test_without_a_pattern_it_is_the_time_of_it_all(tmp_path: Path) -> None:
    for metric in (Metric(), Metric(pattern="wall")):
        assert metric.of(9.0, tmp_path / "none", [1.0] * 9) == Value(9.0, 1) and metric.cost(9.0) == 9.0


def test_the_first_launch_tells_whether_steps_can_be_compared(tmp_path: Path) -> None:
    steps = [5.0, 4.0, 1.0, 2.0, 3.0]
    metric = Metric().settled(steps)
    assert metric.of(9.0, tmp_path / "none", steps) == Value(2.0, 3) and metric.text == "step time"
    assert Metric().settled(steps[:4]).text == "wall time" and Metric(pattern="wall").settled(steps).text == "wall time"
    with pytest.raises(ArmFailed, match="no step was seen"):
        metric.of(9.0, tmp_path / "none", [])


def test_more_may_be_better() -> None:
    metric = Metric(pattern=STEP, higher=True)
    assert metric.cost(2.0) / metric.cost(3.0) == pytest.approx(1.5), "the candidate, at 3, is better"


@pytest.mark.parametrize("values", [(), ("1.2.3",), (0, 0, 0), ("1e999",)])
def test_an_output_without_a_number_is_no_value(values: tuple[object, ...], tmp_path: Path) -> None:
    with pytest.raises(ArmFailed):
        Metric(pattern=STEP).of(9.0, log(tmp_path, *values))


@pytest.mark.parametrize(("pattern", "higher"), [("(", False), ("no group", False), ("(a)(b)", False), ("", True)])
def test_a_wrong_metric_is_one_error(pattern: str, higher: bool) -> None:
    with pytest.raises(UsageError) as raised:
        Metric(pattern=pattern, higher=higher)
    assert raised.value.hint
