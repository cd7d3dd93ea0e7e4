"""What is drawn of trainings, from run folders as `commbench train` leaves them, and what TensorBoard gets."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from commbench.commands import plot, train
from commbench.errors import EnvironmentProblem, UsageError
from commbench.plots import training
from commbench.train import ab, launch, results, tensorboard
from commbench.train.results import Training, labels, read
from tests.support.fake_runs import META
from tests.unit.train.test_ab import launches

CONFIG = {"recipe": "tiny", "nodes": 1, "ranks_per_node": 2, "transport": "gloo", "fabric": "real",
          "schedule": "sequential", "chunks": None, "profile": None}  # fmt: skip
TOOK = {"attention": 40e3, "a2a": 30e3, "experts": 20e3, "idle": 10e3, "gate": 0.0}


def line(step: int, **more: Any) -> dict[str, Any]:
    base = {"step": step, "loss": 3 * math.log(2), "val_bits_per_byte": None, "tokens_per_s": 100.0, "mfu": None}
    return {**base, "profiled": False, **more}


def folder(parent: Path, name: str = "run", config: dict[str, Any] = {}, **about: Any) -> Path:  # noqa: B006 - only read
    """Ten steps, of which 3 and 4 were profiled and the last was evaluated."""
    path = parent / name
    path.mkdir()
    (path / "run.json").write_text(json.dumps({**META, "format_version": "train-1", "entropy": 4.3, **about}))
    (path / "config.json").write_text(json.dumps({**CONFIG, **config}))
    lines = [line(n, profiled=n in (3, 4), tokens_per_s=1.0 if n in (3, 4) else 100.0 + n) for n in range(1, 10)]
    lines.append(line(10, val_bits_per_byte=2.5, tokens_per_s=110.0))
    (path / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    steps = [{"step": n, "rank": 0, "device": "cpu", "step_us": 100e3, "parts": {p: f * t for p, t in TOOK.items()}}
             for n, f in ((3, 0.8), (4, 1.2))]  # fmt: skip
    (path / "breakdown.jsonl").write_text("".join(json.dumps(one) + "\n" for one in steps))
    return path


def legend(axes: Axes) -> list[str]:
    return axes.get_legend_handles_labels()[1]


def words(figure: Figure) -> str:
    texts = [*figure.texts, *(text for axes in figure.axes for text in axes.texts)]
    return " ".join(" ".join(text.get_text().split()) for text in texts)


def test_loss_is_in_bits_with_the_held_out_text_and_the_entropy(tmp_path: Path) -> None:
    (axes,) = training._loss([read(folder(tmp_path))], ["tiny"]).axes
    each, running, held, entropy = axes.lines
    assert list(each.get_ydata()) == pytest.approx([3.0] * 10) and list(running.get_ydata()) == pytest.approx(
        [3.0] * 10
    )
    assert list(held.get_xdata()) == [10] and list(held.get_ydata()) == [2.5]
    assert set(entropy.get_ydata()) == {4.3} and entropy.get_linestyle() == "--"
    assert legend(axes) == ["tiny", "held out", "unigram entropy of the text"]
    assert axes.figure.get_suptitle().replace("\n", " ") == (
        "Loss does not fall: 3 to 3 bits a byte in 10 steps; 2.5 on text that it does not learn from "
        "(tiny, 1x2 ranks, gloo)"
    )
    without = json.loads((tmp_path / "run" / "run.json").read_text())
    del without["entropy"]  # of a run before that was told
    (tmp_path / "run" / "run.json").write_text(json.dumps(without))
    assert len(training._loss([read(tmp_path / "run")], ["tiny"]).axes[0].lines) == 3


def test_steps_under_the_profiler_are_no_throughput(tmp_path: Path) -> None:
    figure = training._throughput([read(folder(tmp_path))], ["tiny"])
    (axes,) = figure.axes
    assert list(axes.lines[0].get_xdata()) == [1, 2, 5, 6, 7, 8, 9, 10] and min(axes.lines[0].get_ydata()) > 100
    assert figure.get_suptitle() == "106 tokens a second (tiny, 1x2 ranks, gloo)"
    assert legend(axes) == ["tiny: median 106"] and "without 2 steps under the profiler" in words(figure)
    known = [{**one, "mfu": 0.25} for one in results.steps(tmp_path / "run")]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in known))
    below = training._throughput([read(tmp_path / "run")], ["tiny"]).axes[1]
    assert set(below.lines[0].get_ydata()) == {25.0} and legend(below) == ["tiny: median 25 %"]


def bars(figure: Figure) -> list[tuple[float, float, float]]:
    """Row, start and length of each piece."""
    found = []
    for container in figure.axes[0].containers:
        for piece in container:
            found.append((round(piece.get_y() + piece.get_height() / 2), piece.get_x(), piece.get_width()))
    return found


def test_bars_are_milliseconds_one_after_the_other(tmp_path: Path) -> None:
    runs = [read(folder(tmp_path, name)) for name in ("one", "two")]
    figure = training._breakdown(runs[:1], ["one"])
    expected = [(0, 0, 40), (0, 40, 30), (0, 70, 20), (0, 90, 10)]
    assert [pytest.approx(piece) for piece in bars(figure)] == expected
    told = words(figure)
    assert "attention 40 ms 40 %" in told and "a2a 30 ms 30 %" in told and "step 100 ms" in told and "gate" not in told
    keys = [text.get_text() for text in figure.legends[0].get_texts()]
    assert keys == ["attention 40 ms", "a2a 30 ms", "experts 20 ms", "idle 10 ms"]
    assert figure.get_suptitle() == "Of a step 40 % is attention and 30 % is all-to-all (tiny, 1x2 ranks, gloo)"
    both = training._breakdown(runs, ["one", "two"])
    assert both.get_suptitle() == "Of a step 40 % is attention and 30 % is all-to-all (2 runs of tiny)"
    assert training._throughput(runs, ["one", "two"]).get_suptitle() == (
        "one has 1.00x the throughput of two; one launch each: nothing is proven (2 runs of tiny)"
    )
    assert training._loss(runs, ["one", "two"]).get_suptitle() == (
        "The same loss: 3 bits a byte at step 10, which all have (2 runs of tiny)"
    )
    assert [row for row, *_ in bars(both)] == [0] * 4 + [1] * 4
    assert [text.get_text() for text in both.legends[0].get_texts()] == ["attention", "a2a", "experts", "idle"]


def test_every_part_has_a_look_of_its_own() -> None:
    assert len(set(training.PARTS.values())) == len(training.PARTS)
    light = [(0.2126 * r + 0.7152 * g + 0.0722 * b, hatch) for (r, g, b), hatch in (
        ([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)], hatch) for colour, hatch in training.PARTS.values()
    )]  # fmt: skip
    for (one, hatched), (two, other) in itertools.pairwise(light):
        assert abs(one - two) > 0.1 or hatched != other, "neighbours are told apart in grey"


def test_labels_are_what_differs(tmp_path: Path) -> None:
    def of(*configs: dict[str, Any]) -> list[str]:
        about: dict[str, Any] = {"about": {}, "steps": [], "breakdown": []}
        return labels([Training(run_id=f"r{i}", config={**CONFIG, **one}, **about) for i, one in enumerate(configs)])

    assert of({}) == ["tiny"]
    assert of({}, {"schedule": "pipelined", "chunks": 2}) == ["schedule=sequential", "schedule=pipelined chunks=2"]
    assert of({}, {"profile": "/a/b/p.json"}) == ["profile=default", "profile=p.json"]
    assert of({}, {}) == ["r0", "r1"]
    assert of({"chunks": 2}, {"chunks": 2}, {}) == ["chunks=2 r0", "chunks=2 r1", "chunks=default"]
    assert of(
        {},
        {"recipe": "small", "nodes": 2, "schedule": "x", "chunks": 1, "profile": "p", "transport": "t", "fabric": "f"},
    ) == [
        "recipe=tiny",
        "recipe=small",
    ]


def test_plot_draws_trainings_and_refuses_a_mixture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = folder(tmp_path, "one")
    two = folder(tmp_path, "two", {"schedule": "pipelined", "chunks": 2})
    assert plot.run([one], None) == 0
    names = {"loss", "throughput", "breakdown"}
    assert {path.name for path in (one / "plots").iterdir()} == {f"{n}.{s}" for n in names for s in ("png", "svg")}
    assert plot.run([one, two], tmp_path / "out") == 0
    found = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert len(found) == 6 and all(name.startswith("compare-") for name in found)
    assert "compare-" in capsys.readouterr().err
    (two / "breakdown.jsonl").unlink()
    assert [path.stem for path in plot.draw_trainings([two])] == ["loss", "throughput"]
    other = tmp_path / "other.txt"
    other.write_text("# nccl-tests\n")
    with pytest.raises(UsageError, match=r"other.txt' is not a training, and others here are"):
        plot.run([one, other], None)
    (two / "metrics.jsonl").write_text("")
    with pytest.raises(UsageError, match="has no step yet"):
        plot.run([two], None)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        plot.run([one], tmp_path / "file")
    with pytest.raises(UsageError, match="--link-rate says nothing of a training"):
        plot.run([one], None, link_rate=["inter=100gbit"])
    with pytest.raises(UsageError, match="--nodes says nothing of a training"):
        plot.run([one], None, nodes=2)


def test_an_ab_is_drawn_again(tmp_path: Path) -> None:
    made = launches(1.1, 4)
    (tmp_path / "launches.jsonl").write_text("".join(json.dumps(dataclasses.asdict(one)) + "\n" for one in made))
    arms = {arm: {**CONFIG, "profile": profile} for arm, profile in zip(ab.ARMS, (None, "/x/p.json"), strict=True)}
    (tmp_path / "ab.json").write_text(json.dumps({"predicted": 1.05, "arms": arms}))
    assert plot.run([tmp_path], None) == 0
    svg = " ".join(re.findall("<!-- (.*?) -->", (tmp_path / "plots" / "ab.svg").read_text()))
    assert (tmp_path / "plots" / "ab.png").is_file() and "profile=default against p.json" in svg and "predicted" in svg
    assert "Nothing is proven: 4 rounds, 6 are needed; candidate 1.10x in throughput" in svg
    (tmp_path / "launches.jsonl").write_text('{"arm": "baseline"}\n')
    with pytest.raises(UsageError, match=r"is of another version"):
        plot.run([tmp_path], None)
    (tmp_path / "launches.jsonl").write_text(json.dumps(dataclasses.asdict(made[0])))
    (tmp_path / "ab.json").write_text("{}")
    with pytest.raises(UsageError, match=r"is of another version: 'arms'"):
        plot.run([tmp_path], None)
    with pytest.raises(UsageError, match="2 folders, one of them of an A/B"):
        plot.run([tmp_path, tmp_path], None)
    with pytest.raises(UsageError, match="--link-rate says nothing of an A/B"):
        plot.run([tmp_path], None, link_rate=["inter=100gbit"])


def test_tensorboard_gets_each_number_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    def there() -> dict[str, list[tuple[int, float]]]:
        found = EventAccumulator(str(tmp_path / "tb"), size_guidance={"tensors": 0})
        found.Reload()
        return {tag: [(one.step, float(make_ndarray(one.tensor_proto))) for one in found.Tensors(tag)]
                for tag in found.Tags()["tensors"]}  # fmt: skip

    lines = [line(1), line(2, val_bits_per_byte=2.5, drop_rate=0), line(3)]
    first = tensorboard.Scalars(tmp_path / "tb")
    first.add(lines)
    assert set(there()) == {"loss", "val_bits_per_byte", "tokens_per_s", "drop_rate"}, (
        "no step, nothing that is yes or no"
    )
    assert there()["val_bits_per_byte"] == [(2, 2.5)] and there()["drop_rate"] == [(2, 0.0)]
    assert there()["loss"] == [(step, pytest.approx(3 * math.log(2))) for step in (1, 2, 3)]
    first.close()
    again = tensorboard.Scalars(tmp_path / "tb", lines[:2])  # a checkpoint of step 2, and step 3 is made again
    again.add([line(3, loss=1.0)])
    assert there()["loss"][2] == (3, 1.0) and len(there()["loss"]) == 3
    again.close()


def test_without_tensorboard_nothing_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = tensorboard.importlib.util.find_spec
    monkeypatch.setattr(
        tensorboard.importlib.util, "find_spec", lambda name: None if name == "tensorboard" else found(name)
    )
    request = launch.TrainRequest(words=("tiny", "tensorboard=true"), out=tmp_path)
    with pytest.raises(EnvironmentProblem, match="tensorboard is not installed") as error:
        train.run(request)
    assert error.value.exit_code == 2 and "pip install 'commbench[tb]'" in error.value.hint
    assert not list(tmp_path.iterdir())
