"""What can be read of a run before its last launch, and that all who read it say that it is a part."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from commbench import cost_model
from commbench.analysis import ratios, so_far
from commbench.analysis.best_so_far import BestSoFar
from commbench.commands import compare, plot, stragglers
from commbench.console import Console
from commbench.errors import EXIT_INTERRUPTED
from commbench.plots.style import caption
from commbench.run_folder import RunFolder, Tail
from commbench.sweep import session
from commbench.sweep.prepare import SweepRequest
from commbench.sweep.runner import LaunchProgress
from tests.support import fake_runs

PART = "6 of 12 measurements: launch 1, and a part of launch 2 of 3"


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Two sizes of two algorithms; of three launches the first is whole, and the second has half of its cases."""
    cases = fake_runs.planned("algorithm=direct,bruck", "sizes.min=1K", "sizes.max=4K", "sizes.factor=4", "launches=3")
    assert len(cases) == 4
    slow = {case.case_id: case.algorithm == "direct" for case in cases}
    made = fake_runs.measured(cases, lambda case: 200.0 if slow[case.case_id] else 100.0)
    made = [m for m in made if m.launch < 1 or (m.launch == 1 and m.case_id in [case.case_id for case in cases[:2]])]
    run, _ = fake_runs.folder(tmp_path_factory.mktemp("part"), cases, made, samples=20)
    run.cases_path.unlink()
    about = {**fake_runs.ABOUT, "format_version": 6, "run_id": run.run_id, "status": "running"}
    run.write_json("run.json", about)
    return run


def test_unfinished_cases_have_rows_of_the_launches_that_they_have(unfinished: RunFolder) -> None:
    known = so_far.of_run(unfinished)
    assert known.partial == PART
    assert sorted(row.launches for row in known.rows.values()) == [1, 1, 2, 2]
    assert all(row.time_us_low is not None for row in known.ok.values())
    compared = ratios.of_run(unfinished, known.rows.values())
    assert {round(one.speedup) for one in compared.values() if one.speedup} == {2}
    assert all(one.verdict is None or one.verdict == "not estimable" for one in compared.values())
    assert sorted(len(one.launches_us) for one in cost_model.observe(unfinished)) == [1, 1, 2, 2]


def test_all_who_read_it_say_that_it_is_a_part(
    unfinished: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = unfinished.path
    compare.run(path, path, threshold=0.05, allow_mismatch=False, format_="table", plot=None)
    assert capsys.readouterr().out.startswith(f"# partial, before: {PART}\n# partial, after: {PART}\n")
    stragglers.run([path], "text", 1.3)
    assert f"partial, {unfinished.run_id}: {PART}" in capsys.readouterr().err
    plot.run([path], tmp_path)
    assert f"partial: {PART}" in capsys.readouterr().err and list(tmp_path.glob("*.png"))
    figure = Figure()
    caption(figure, {**fake_runs.META, "partial": PART}, "points")
    assert figure.texts[0].get_text().startswith(f"PARTIAL: {PART}. points")


def test_a_finished_run_says_nothing_of_it(tmp_path: Path) -> None:
    cases = fake_runs.planned("algorithm=direct", "sizes.min=1K", "sizes.max=1K", "launches=2")
    run, rows = fake_runs.folder(tmp_path, cases, fake_runs.measured(cases, lambda case: 10.0), samples=20)
    assert so_far.of_run(run) == so_far.RowsSoFar(rows={row.case_id: row for row in rows})
    assert so_far.partial_runs([run]) == []


@pytest.mark.parametrize("format_", ["table", "json", "nccl-tests"])
def test_an_interrupt_shows_what_there_is(
    unfinished: RunFolder, format_: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)  # where it is a file, the screen says it too
    request = dataclasses.replace(SweepRequest(), format=format_)
    console = Console()
    sweep = session.of_run(request, unfinished, unfinished.plan(), console)
    sweep.load()

    def stop() -> None:
        raise KeyboardInterrupt

    def draw(*_: Any) -> list[Path]:
        raise AssertionError("pictures take a while, and somebody waits")

    sweep.run = stop  # type: ignore[method-assign]
    assert session.measure(request, unfinished, sweep, console, draw) == EXIT_INTERRUPTED
    said = capsys.readouterr()
    assert "interrupted; 6 of 12 measurements are kept" in said.err
    hint = f"commbench sweep --resume {unfinished.path}"
    typed = [line for line in (said.out + said.err).splitlines() if hint in line and not line.startswith("{")]
    assert len(typed) == 1, "once"
    if format_ == "table":
        assert f"# PARTIAL: {PART}\n" in said.out and f"#         partial: {PART}\n" in said.out
        assert said.out.splitlines()[-1].startswith("# next: go on: commbench sweep --resume ")
        assert sum(line.lstrip()[:1].isdigit() for line in said.out.splitlines()) == 4  # rows: the others begin with #
    elif format_ == "json":  # rows are printed when they are final, and none is
        (line,) = said.out.splitlines()
        assert f"partial: {PART}" in json.loads(line)["answer"]["sentence"]
    else:
        assert said.out.count("float") == 4


def test_a_line_is_in_the_pipe_when_its_case_is_final(
    unfinished: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the last launch, and not at its end: the other cases have nothing of it yet."""
    folder = RunFolder(Path(shutil.copytree(unfinished.path, tmp_path / "run")))
    request = dataclasses.replace(SweepRequest(), format="json")
    reading, writing = os.pipe()
    with open(reading, "rb", buffering=0) as reader, open(writing, "w") as writer:  # buffered, as to any pipe
        monkeypatch.setattr(sys, "stdout", writer)
        sweep = session.of_run(request, folder, folder.plan(), Console(quiet=True))
        sweep.load()
        tail = Tail(folder.measurements_path)
        first = next(m for m in folder.measurements() if m.launch == 1)
        lines = folder.samples_path(first.attempt).read_bytes()
        folder.samples_path("again").write_bytes(lines)
        folder.append_measurement(dataclasses.replace(first, launch=2, attempt="again"))
        sweep._collect(tail, LaunchProgress())
        os.set_blocking(reading, False)
        row = json.loads(reader.read() or b"null")
        assert row["case_id"] == first.case_id and row["launches"] == 3 and len(sweep.rows) == 1


def test_the_line_of_progress_says_what_leads(unfinished: RunFolder) -> None:
    cases = {item.case.case_id: item.case for item in unfinished.plan()}
    best = BestSoFar()
    assert str(best) == ""
    measurements = unfinished.measurements()
    direct = [m for m in measurements if cases[m.case_id].algorithm == "direct"]
    for measurement in direct:
        best.add(cases[measurement.case_id], measurement)
    assert str(best).startswith("so far up to 0.0")
    for measurement in measurements:
        best.add(cases[measurement.case_id], dataclasses.replace(measurement, status="error"))
    assert str(best).startswith("so far up to 0.0"), "what failed leads nothing"
    for measurement in measurements:
        best.add(cases[measurement.case_id], measurement)
    assert str(best).startswith("so far bruck ") and str(best).endswith(", ahead in 2 of 2 comparisons")
    for measurement in measurements:
        alike = dataclasses.replace(measurement, time_us=100.0)
        best.add(cases[measurement.case_id], alike)
    assert str(best) == "so far nothing is 3 % faster than direct"
    noisy = BestSoFar()
    for measurement, factor in itertools.product(measurements, (1.0, 20.0)):
        case = cases[measurement.case_id]
        time_us = 100.0 * (factor if case.algorithm == "bruck" else 1.0)
        noisy.add(case, dataclasses.replace(measurement, attempt=f"{measurement.attempt}{factor}", time_us=time_us))
    assert str(noisy) == "so far too noisy to tell"
