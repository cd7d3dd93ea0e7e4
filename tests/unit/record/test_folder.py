"""The folder of a trace: it gives back what was written, and is refused with the reason where it is damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from commbench.errors import CorruptFile, UsageError
from commbench.record import folder, rank_file, recipe
from commbench.record.consolidate import consolidate
from commbench.record.trace import ProgramTrace
from tests.support import traces

COLUMNS = ["rank", "group", "collective", "dtype", "bytes", "sent", "received", "async", "site", "count", "host_us",
           "device_us", "wait_us"]  # fmt: skip


def written(path: Path, **more: Any) -> ProgramTrace:
    recording = folder.begin(path, command=["python", "train.py"])
    made = traces.planted(**more)
    folder.finish(recording, made, recipe.text(made, recipe.sent_cases(made)))
    return made


def test_what_is_written_is_read(tmp_path: Path) -> None:
    made = written(tmp_path / "trace")
    assert asdict(folder.read(tmp_path / "trace")) == asdict(made)
    assert {path.name for path in (tmp_path / "trace").iterdir()} == {
        ".lock", "trace.json", "calls.parquet", "steps.parquet", "recipe.yaml",
    }  # fmt: skip


def test_the_columns_that_other_programs_read(tmp_path: Path) -> None:
    written(tmp_path / "trace")
    table = pq.read_table(tmp_path / "trace/calls.parquet")
    assert table.column_names[: len(COLUMNS)] == COLUMNS
    assert pq.read_table(tmp_path / "trace/steps.parquet").column_names == ["rank", "step", "duration_us"]
    line = next(line for line in table.to_pylist() if line["collective"] == "all_to_all" and line["rank"] == 3)
    assert (line["bytes"], line["count"], line["async"], line["sent"], line["device_us"]) == (
        1 << 20,
        10,
        False,
        None,
        None,
    )
    assert line["wait_us"] == pytest.approx(10 * 403)
    about = json.loads((tmp_path / "trace/trace.json").read_text())
    assert about["format"] == "commbench-trace" and about["format_version"] == 1 and about["ranks"] == 4
    assert about["hosts"] == ["node0", "node0", "node1", "node1"]
    assert about["groups"][1] == {"group": 1, "name": "ep", "ranks": [0, 2], "stride": 2}


def test_a_folder_that_is_not_finished_is_what_ranks_have_written(tmp_path: Path) -> None:
    recording = folder.begin(tmp_path, command=["python", "train.py"], created="2026-11-30T00:00:00+00:00")
    with pytest.raises(UsageError, match="nothing of any rank yet"):
        folder.read(tmp_path)
    records = traces.records()
    for record in records[:3]:
        rank_file.write(tmp_path, record)
    read = folder.read(tmp_path)
    assert read.status == "unfinished" and read.missing == [3] and read.command == ["python", "train.py"]
    rank_file.write(tmp_path, records[3])
    recording.lock.release()  # as the kernel does when the parent is killed
    assert asdict(replace(folder.read(tmp_path), status="finished")) == asdict(traces.planted())


def test_a_folder_in_use_and_one_with_something_in_it(tmp_path: Path) -> None:
    held = folder.begin(tmp_path / "trace")
    with pytest.raises(UsageError, match="is in use"):
        folder.begin(tmp_path / "trace")
    held.lock.release()
    with pytest.raises(UsageError, match="is not empty"):
        folder.begin(tmp_path / "trace")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        folder.begin(tmp_path / "file")


def test_a_recording_of_nothing_leaves_nothing(tmp_path: Path) -> None:
    folder.abandon(folder.begin(tmp_path / "trace"))
    assert not (tmp_path / "trace").exists()


def _about(**more: Any) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        about = json.loads((path / "trace.json").read_text())
        (path / "trace.json").write_text(json.dumps({**about, **more}))

    return edit


def _column(name: str, values: Any) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        table = pq.read_table(path / "calls.parquet")
        made = pa.array([values] * table.num_rows)
        pq.write_table(table.set_column(table.column_names.index(name), name, made), path / "calls.parquet")

    return edit


def _without(name: str) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        pq.write_table(pq.read_table(path / "calls.parquet").drop_columns([name]), path / "calls.parquet")

    return edit


def _cut(name: str, size: int) -> Callable[[Path], None]:
    return lambda path: (path / name).write_bytes((path / name).read_bytes()[:size]) and None


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (_cut("trace.json", 40), "is not a trace"),
        (_cut("calls.parquet", 100), "is not a trace"),
        (_cut("steps.parquet", 0), "is not a trace"),
        (lambda path: (path / "calls.parquet").unlink(), "calls.parquet"),
        (_about(format="other"), "does not say that it is a commbench-trace"),
        (_about(ranks=5), "hosts are 4, and ranks 5"),
        (_about(ranks=10**12), "ranks is"),
        (_about(groups=[{"group": 0, "name": "", "ranks": [0, 9]}]), "group 0"),
        (_about(groups="x"), "is not a trace"),
        (_about(more=1), "unknown field 'more'"),
        (_without("count"), "no column 'count'"),
        (_column("rank", 7), "rank 7 is not in group"),
        (_column("rank", None), "no rank in some lines"),
        (_column("group", 99), "group 99 is none of the 3"),
        (_column("count", -1), "count is -1"),
        (_column("host_us", float("nan")), "times are"),
        (_column("wait_us", "many"), "is not a trace"),
        (_column("sent", [1]), "sent without received"),
        (_column("bytes", 2**60), "bytes is"),
        (_column("collective", "../x"), "collective"),
    ],
)  # fmt: skip
def test_a_damaged_trace_is_one_line(tmp_path: Path, damage: Callable[[Path], None], why: str) -> None:
    written(tmp_path / "trace")
    damage(tmp_path / "trace")
    with pytest.raises(CorruptFile) as caught:
        folder.read(tmp_path / "trace")
    assert why in str(caught.value) and "\n" not in str(caught.value) and caught.value.exit_code == 2


def test_a_trace_of_a_later_version(tmp_path: Path) -> None:
    written(tmp_path / "trace")
    _about(format_version=2)(tmp_path / "trace")
    with pytest.raises(UsageError, match="has version 2 of its format, this commbench reads 1"):
        folder.read(tmp_path / "trace")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 1}', "[" * 100_000, '{"rank": NaN}'])
def test_a_damaged_file_of_a_rank(tmp_path: Path, text: str) -> None:
    folder.begin(tmp_path)
    rank_file.path_of(tmp_path, 0).write_text(text)
    with pytest.raises(CorruptFile, match="rank-0"):
        folder.read(tmp_path)


def test_ranks_of_two_programs_are_no_trace() -> None:
    with pytest.raises(ValueError, match="several programs"):
        consolidate([traces.records()[0], traces.records(ranks=6, per_node=3)[1]])


def test_an_anonymous_trace_tells_hosts_apart_and_no_more() -> None:
    assert consolidate(traces.records(), anonymous=True).hosts == ["host-0", "host-0", "host-1", "host-1"]
