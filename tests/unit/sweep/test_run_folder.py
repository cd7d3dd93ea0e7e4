"""Sweeps over the scripted transport, end to end: what is on disk, what is printed, and what a resume accepts."""

from __future__ import annotations

import csv
import dataclasses
import errno
import io
import json
import os
import pty
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from commbench.cli import _main
from commbench.errors import CorruptFile
from commbench.files import write_atomically
from commbench.machine import metadata
from commbench.records import Row, Status
from commbench.run_folder import RunFolder, append_line, read_lines, repair
from commbench.serialise import is_sealed
from tests.conftest import PATIENCE_S, cases_in, commbench, environment, here, only_run, rows_of
from tests.support.edits import change_json, without_checksums

QUICK = ("sweep", "quick", "transport=scripted", "-e", "8K", "-f", "8")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One finished run of 8 cases in 6 launches, with its stdout beside it."""
    parent = tmp_path_factory.mktemp("finished")
    (parent / "script.json").write_text(json.dumps({"noise": 0.05, "jitter_us": 3.0, "launch_noise": 0.02}))
    result = here(*QUICK, "script=script.json", "--out", "out", "--format", "json", cwd=parent)
    assert result.returncode == 0, result.stderr
    run = only_run(parent / "out")
    (run / "stdout").write_text(result.stdout)
    return run


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / finished.name))


DESIGNED = {
    "case_id", "status", "collective", "algorithm", "params", "transport", "mode", "buffers", "dtype", "size_bytes",
    "ranks", "nodes", "launches", "samples", "time_us", "time_us_low", "time_us_high", "interval_of", "time_us_p95",
    "host_us", "algbw_gbps", "busbw_gbps", "bound_gbps", "bound_fraction", "inter_bytes", "intra_bytes",
    "scratch_bytes", "wrong", "stop_reason", "time_us_mean",
}  # fmt: skip


def test_json_has_one_object_a_case_with_every_promised_field(finished: Path) -> None:
    *lines, last = (finished / "stdout").read_text().splitlines()
    rows = cases_in("\n".join(lines))
    assert len(rows) == len(lines) == 8 and json.loads(last)["format"] == 1
    for row in rows:
        assert row.keys() >= DESIGNED
        assert row["status"] == "ok" and row["launches"] == 6 and row["interval_of"] == "launches"
        assert row["time_us_low"] <= row["time_us"] <= row["time_us_high"]
        assert row["time_us_mean"] < row["time_us"]
        assert row["algbw_gbps"] == pytest.approx(row["size_bytes"] / row["time_us"] / 1e3)
        assert row["busbw_gbps"] == pytest.approx(row["algbw_gbps"] * 3 / 4)
        assert row["bound_fraction"] == pytest.approx(row["busbw_gbps"] / row["bound_gbps"])
        assert row["stop_reason"] in ("precision", "samples", "cap")


def test_the_rows_are_what_the_samples_say(finished: Path) -> None:
    """Recomputed from samples.parquet alone: median over launches of the median of the maximum over ranks."""
    samples = pd.read_parquet(finished / "samples.parquet")
    results = pd.read_parquet(finished / "results.parquet").set_index("case_id")
    timed = samples[~samples["warmup"]]
    slowest = timed.groupby(["case_id", "launch", "sample"])["time_us"].max()
    expected = slowest.groupby(["case_id", "launch"]).median().groupby("case_id").median()
    assert np.allclose(expected.loc[results.index], results["time_us"], atol=1e-3)
    mean = timed.groupby(["case_id", "launch", "sample"])["time_us"].mean()
    assert not np.allclose(mean.groupby(["case_id", "launch"]).median().groupby("case_id").median(), expected)
    assert (samples[samples["warmup"]].groupby(["case_id", "launch", "rank"]).size() == 3).all()
    assert timed.groupby("case_id").size().loc[results.index].eq(results["samples"] * 4).all()


def test_traffic_split_of_a_row(finished: Path) -> None:
    rows = [json.loads(line) for line in (finished / "cases.jsonl").read_text().splitlines()]
    direct = next(row for row in rows if row["algorithm"] == "direct" and row["size_bytes"] == 1024)
    # 2 x 2 ranks, blocks of 256 B: each rank sends 1 block inside its node and 2 to the other
    assert (direct["intra_bytes"], direct["inter_bytes"]) == (4 * 256, 8 * 256)
    two_d = next(row for row in rows if row["algorithm"] == "2d_intra_first" and row["size_bytes"] == 1024)
    assert (two_d["intra_bytes"], two_d["inter_bytes"]) == (8 * 256, 8 * 256)
    assert two_d["scratch_bytes"] == 1024 and direct["scratch_bytes"] == 0


def test_the_folder_holds_what_it_should(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names >= {"run.json", "config.yaml", "env.json", "topology.json", "plan.jsonl", "measurements.jsonl",
                     "cases.jsonl", "samples.parquet", "results.parquet", "plots", "logs"}  # fmt: skip
    assert sorted(path.name for path in (finished / "plots").glob("*.png")) == [
        "all_to_all-scripted-2x2-fp32-isolated.png",
        "traffic-all_to_all-scripted-2x2.png",
    ], "two sizes are no map"
    assert json.loads((finished / "run.json").read_text())["status"] == "finished"
    assert (finished.parent / "latest").resolve() == finished
    ranks = [json.loads(path.read_text()) for path in (finished / "logs").glob("000-*/rank-*.json")]
    assert len(ranks) == 4 and all(rank["affinity"] for rank in ranks)


def test_plot_draws_again_and_compares_two(finished: Path, tmp_path: Path) -> None:
    assert _main(["plot", str(finished), "--out", str(tmp_path / "one")]) == 0
    assert _main(["plot", str(finished), str(finished), "--out", str(tmp_path / "two")]) == 0
    assert len(list((tmp_path / "one").glob("*.png"))) == 2
    assert len(list((tmp_path / "two").glob("*.svg"))) == 3, "of two runs there is one before and after"


def test_table_and_csv_on_stdout_only_data(tmp_path: Path) -> None:
    result = here(*QUICK, "launches=1", "iters=6", "--no-plots", cwd=tmp_path)
    data = [line for line in result.stdout.splitlines() if not line.startswith("#")]
    header = next(line for line in result.stdout.splitlines() if line.startswith("#") and "time_us" in line)
    assert len(data) == 8 and {len(line.split()) for line in data} == {len(header.lstrip("#").split())}
    assert "spread between launches is NOT in it" in result.stdout
    result = here(*QUICK, "launches=1", "iters=4", "--no-plots", "--format", "csv", "-q", cwd=tmp_path)
    assert result.stderr == ""
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert len(rows) == 8 and set(rows[0]) == {f.name for f in dataclasses.fields(Row)}


def test_a_case_that_cannot_run_is_skipped_with_its_reason(tmp_path: Path) -> None:
    result = here(
        *QUICK, "nodes=1", "ranks_per_node=4", "launches=1", "iters=3", "--format", "json", "--no-plots", cwd=tmp_path
    )
    assert result.returncode == 0
    rows = rows_of(result)
    skipped = [row for row in rows if row["status"] == "skipped"]
    assert {row["algorithm"] for row in skipped} == {"2d_intra_first"} and len(skipped) == 2
    assert all("two levels need" in row["reason"] and row["time_us"] is None for row in skipped)


FAULTS = {"flip": "wrong_result", "out_of_memory": "out_of_memory", "crash": "error", "hang": "timeout"}


@pytest.mark.parametrize("kinds", [("flip", "out_of_memory"), ("crash", "hang")], ids="-".join)
def test_bad_cases_end_alone(tmp_path: Path, kinds: tuple[str, str], write_script: Callable[..., Path]) -> None:
    cases = dict(zip(kinds, (("bruck", 1024), ("pairwise", 8192)), strict=True))
    faults = [
        {"kind": kind, "rank": 2, "algorithm": algorithm, "size_bytes": size}
        | ({} if kind == "out_of_memory" else {"from_op": 5})
        for kind, (algorithm, size) in cases.items()
    ]
    words = (f"script={write_script(faults=faults)}", "launches=2", "iters=3", "timeout=2")
    result = here(*QUICK, *words, "--format", "json", "--no-plots", cwd=tmp_path)
    assert result.returncode == 1, result.stderr
    rows = {(row["algorithm"], row["size_bytes"]): row for row in rows_of(result)}
    assert len(rows) == 8
    for kind, case in cases.items():
        bad = rows.pop(case)
        assert bad["status"] == FAULTS[kind] and bad["reason"] and bad["time_us"] is None
        if kind == "crash":
            assert "rank 2 exited with code 7" in bad["reason"] and "rank-2.log" in result.stderr
    assert {row["status"] for row in rows.values()} == {"ok"} and {row["launches"] for row in rows.values()} == {2}


def test_a_launch_that_never_starts_fails_its_cases_only_after_a_second_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = commbench(
        *QUICK, "launches=1", "iters=3", "--format", "json", "--no-plots", cwd=tmp_path,
        env=environment(_sabotage(tmp_path)),
    )  # fmt: skip
    assert result.returncode == 1
    rows = rows_of(result)
    assert {row["status"] for row in rows} == {"error"} and "the launch did not start" in rows[0]["reason"]
    assert len(list((only_run(tmp_path / "results") / "logs").iterdir())) == 2


def _sabotage(tmp_path: Path) -> Path:
    """A sitecustomize that ends every launcher process at once."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import sys\nif 'commbench.measure.fork' in sys.orig_argv: raise SystemExit('sabotaged')\n"
    )
    return folder


# Resume


def test_resume_of_a_finished_run_measures_nothing(copy: Path) -> None:
    before = (copy / "measurements.jsonl").read_bytes()
    result = here("sweep", "--resume", str(copy), "--format", "json", cwd=copy)
    assert result.returncode == 0, result.stderr
    assert len(rows_of(result)) == 8
    assert (copy / "measurements.jsonl").read_bytes() == before


def test_resume_finishes_what_is_missing_and_nothing_else(copy: Path) -> None:
    lines = (copy / "measurements.jsonl").read_text().splitlines(keepends=True)
    kept = lines[:31]
    (copy / "measurements.jsonl").write_text("".join(kept) + lines[31][:40])  # the last one torn
    (copy / "cases.jsonl").unlink()
    result = here("sweep", "--resume", str(copy), "--format", "json", cwd=copy)
    assert result.returncode == 0, result.stderr
    assert "cut off when the run was killed" in result.stderr
    after = (copy / "measurements.jsonl").read_text().splitlines(keepends=True)
    assert after[:31] == kept and len(after) == 48
    assert len({(m["case_id"], m["launch"]) for m in map(json.loads, after)}) == 48
    assert len(rows_of(result)) == 8


@pytest.mark.parametrize("change", ["cpu", "host", "packages"])
def test_resume_refuses_another_machine_and_says_what_changed(
    copy: Path, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    about = json.loads((copy / "run.json").read_text())
    about["machine"][change] = {"torch": "0.1"} if change == "packages" else "another"
    change_json(copy / "run.json", machine=about["machine"])
    session = next((copy / "logs").iterdir()) / "session"
    session.mkdir()
    with open(copy / "measurements.jsonl", "a") as file:
        file.write("torn")
    assert _main(["sweep", "--resume", str(copy)]) == 2
    error = capsys.readouterr().err
    assert f"{change} was " in error and "hint: " in error
    assert session.exists() and (copy / "measurements.jsonl").read_text().endswith("torn"), "first it is looked at"


def test_resume_refuses_an_edited_plan(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = (copy / "plan.jsonl").read_text()
    (copy / "plan.jsonl").write_text(plan.replace('"seed":0', '"seed":1', 1))
    assert _main(["sweep", "--resume", str(copy)]) == 2
    assert "plan.jsonl:1: its checksum does not fit" in capsys.readouterr().err
    (copy / "plan.jsonl").write_text(plan)
    plan = without_checksums(copy / "plan.jsonl")
    (copy / "plan.jsonl").write_text(plan.replace('"seed":0', '"seed":1', 1))
    assert _main(["sweep", "--resume", str(copy)]) == 2
    assert "plan.jsonl was changed" in capsys.readouterr().err
    (copy / "plan.jsonl").write_text(plan.replace('"dtype":"fp32"', '"dtype":5', 1))
    assert _main(["sweep", "--resume", str(copy)]) == 2
    assert "plan.jsonl:1: field 'dtype' is 5" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["plots", "plots/x.png"])
def test_figures_of_a_run_from_elsewhere_stay_in_it(
    copy: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    if name != "plots":
        (copy / "plots").mkdir(exist_ok=True)
    elif (copy / "plots").exists():
        (copy / "plots").rename(tmp_path / "moved")
    (copy / name).symlink_to(tmp_path / "mine")
    assert _main(["plot", str(copy)]) == 2
    assert f"{name} is a link" in capsys.readouterr().err and not list((tmp_path / "mine").iterdir())


def test_resume_refuses_a_run_in_progress(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = RunFolder(copy)
    assert folder.lock.take()
    assert _main(["sweep", "--resume", str(copy)]) == 2
    assert "is in use by another" in capsys.readouterr().err
    folder.lock.release()


def test_resume_waits_for_ranks_that_still_end(
    copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("commbench.launch.supervise.RANKS_END_S", 0.2)
    folder = RunFolder(copy)
    assert folder.ranks_lock.take(shared=True)
    assert _main(["sweep", "--resume", str(copy)]) == 2
    assert "still alive" in capsys.readouterr().err
    folder.ranks_lock.release()
    assert _main(["sweep", "--resume", str(copy), "--no-plots"]) == 0


@pytest.mark.parametrize("file", ["measurements.jsonl", "cases.jsonl"])
@pytest.mark.parametrize("damage", ["not json\n", "{}\n", '{"case_id": 5}\n'])
def test_a_corrupt_row_is_named_by_file_and_line(
    copy: Path, file: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (copy / file).read_text().splitlines(keepends=True)
    lines[2] = damage
    (copy / file).write_text("".join(lines))
    assert _main(["plot", str(copy)]) == 2
    told = capsys.readouterr().err
    assert f"{file}:3: " in told and "sweep --resume" in told


def test_a_resume_takes_damaged_lines_out_and_measures_again(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of each file one line; what was there is kept beside it."""
    rows = {path: path.read_text() for path in (copy / "cases.jsonl", copy / "measurements.jsonl")}
    samples = sorted((copy / "samples").glob("*.jsonl"))[-1]
    for path in (*rows, samples):
        lines = path.read_text().splitlines(keepends=True)
        place = lines[2].index('"launch') + len('"launch')
        lines[2] = lines[2][:place] + "x" + lines[2][place:]
        path.write_text("".join(lines))
    assert _main(["compare", str(copy), str(copy)]) == 2
    assert "measurements.jsonl:3: its checksum does not fit" in capsys.readouterr().err
    assert _main(["sweep", "--resume", str(copy), "--no-plots", "--format", "json"]) == 0
    told = capsys.readouterr().err
    assert told.count(":3: its checksum does not fit; dropped") == 3
    for path, before in rows.items():
        assert path.with_name(f"{path.name}.damaged").read_text() != before
    assert len(rows[copy / "measurements.jsonl"].splitlines()) == 48
    # The measurement whose line was damaged, and that whose samples were; the row is made of what is there.
    assert len((copy / "measurements.jsonl").read_text().splitlines()) == 49
    assert _main(["plot", str(copy)]) == 0


def test_a_run_without_checksums_is_read_and_resumed(copy: Path) -> None:
    """As versions up to format 5 wrote it. What is added has them."""
    for path in (*copy.glob("*.jsonl"), *(copy / "samples").glob("*.jsonl")):
        path.write_text(without_checksums(path))
    change_json(copy / "run.json", format_version=5)
    assert _main(["plot", str(copy), "--out", str(copy / "drawn")]) == 0
    lines = (copy / "measurements.jsonl").read_text().splitlines(keepends=True)
    (copy / "measurements.jsonl").write_text("".join(lines[:-1]))
    (copy / "cases.jsonl").unlink()
    assert _main(["sweep", "--resume", str(copy), "--no-plots"]) == 0
    after = (copy / "measurements.jsonl").read_bytes().splitlines()
    assert [is_sealed(line) for line in after] == [False] * 47 + [True]
    assert _main(["compare", str(copy), str(copy)]) == 0


def test_newer_format_is_refused(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_json(copy / "run.json", format_version=99)
    assert _main(["plot", str(copy)]) == 2
    assert "has format 99" in capsys.readouterr().err
    (copy / "run.json").write_text("{")
    assert _main(["plot", str(copy)]) == 2
    assert "run.json" in capsys.readouterr().err


# The store's own promises


def test_lines_and_torn_lines(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    assert list(read_lines(path, json.loads)) == [] and not repair(path)
    append_line(path, '{"a": 1}')
    assert not repair(path)
    with open(path, "a") as file:
        file.write('{"a": ')
    assert list(read_lines(path, json.loads)) == [{"a": 1}]
    assert repair(path) and path.read_text() == '{"a": 1}\n'
    with open(path, "a") as file:
        file.write('{"a": \n{"a": 2}\n')
    with pytest.raises(CorruptFile, match=r"lines\.jsonl:2"):
        list(read_lines(path, json.loads))


def test_atomic_write_leaves_no_part(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")
    with pytest.raises(TypeError):
        write_atomically(path, 5)  # type: ignore[arg-type]
    assert path.read_text() == "old"


def test_secrets_are_not_stored() -> None:
    environ = {"NCCL_DEBUG": "INFO", "HOME": "/x", "CUDA_API_TOKEN": "t", "SLURM_JWT_KEY": "k", "OMP_NUM_THREADS": "1"}
    assert metadata.environment(environ) == {"NCCL_DEBUG": "INFO", "OMP_NUM_THREADS": "1"}


def test_rows_refuse_nan() -> None:
    from commbench.records import Measurement
    from commbench.serialise import to_json

    bad = Measurement(case_id="a", launch=0, attempt="a", order=0, status=Status.OK, time_us=float("nan"))
    with pytest.raises(ValueError, match="JSON compliant"):
        to_json(bad)


# What reviewers broke, so that it stays mended


def test_rows_reach_a_file_while_stderr_is_a_terminal(tmp_path: Path) -> None:
    """A live progress display must not take stdout along."""

    leader, follower = pty.openpty()
    variables = {key: value for key, value in environment(TERM="xterm").items() if key not in ("CI", "NO_COLOR")}
    with open(tmp_path / "rows.jsonl", "w") as rows:
        words = [*QUICK, "launches=1", "iters=6", "--format", "json", "--no-plots"]
        process = subprocess.Popen(
            [sys.executable, "-m", "commbench", *words], cwd=tmp_path, env=variables, stdout=rows, stderr=follower
        )
        os.close(follower)
        said = b""
        while True:
            try:
                piece = os.read(leader, 65536)
            except OSError:  # the other end is closed
                break
            if not piece:
                break
            said += piece
        assert process.wait(timeout=PATIENCE_S) == 0
    os.close(leader)
    assert len(cases_in((tmp_path / "rows.jsonl").read_text())) == 8
    assert b"measurements" in said or b"launch 1" in said
    assert b"case_id" not in said


@pytest.mark.parametrize("launches", [1, 2])
def test_one_launch_without_noise_is_drawn(tmp_path: Path, launches: int) -> None:
    """Samples are rounded, medians are not: the interval still holds the time."""
    result = here(*QUICK, f"launches={launches}", "iters=20", "--format", "json", cwd=tmp_path)
    assert result.returncode == 0 and "plot: " in result.stderr, result.stderr
    for row in rows_of(result):
        assert row["time_us_low"] <= row["time_us"] <= row["time_us_high"]


def test_a_closed_stdout_does_not_end_the_sweep(tmp_path: Path) -> None:

    words = " ".join(
        [sys.executable, "-m", "commbench", *QUICK, "launches=1", "iters=6", "--no-plots", "--format", "json"]
    )
    for end in ("| head -1", "| true", ">&-"):
        folder = tmp_path / end.strip("|> &-")
        folder.mkdir(exist_ok=True)
        result = subprocess.run(
            ["bash", "-c", f"{words} {end}"],
            cwd=folder,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        run = only_run(folder / "results")
        assert json.loads((run / "run.json").read_text())["status"] == "finished", (end, result.stderr)
        assert (run / "results.parquet").exists() and "Traceback" not in result.stderr
        shutil.rmtree(folder)


def test_markup_and_strange_signs_in_values(tmp_path: Path) -> None:
    result = here(*QUICK, "env.X=[/a],^b,b", "launches=1", "iters=6", "algorithm=direct", "-e", "1K", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "X=[/a]" in result.stderr
    run = only_run(tmp_path / "results")
    assert len(list((run / "plots").glob("all_to_all-*.png"))) == 3, "figures took each other's place"


def test_modules_in_the_current_folder_do_not_reach_the_ranks(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "numpy.py").write_text("raise ImportError('the wrong numpy')")
    code = "import sys; from commbench.cli import main; sys.argv[0] = 'commbench'; main()"

    result = subprocess.run(
        [sys.executable, "-P", "-c", code, *QUICK, "launches=1", "iters=6", "--no-plots"],
        cwd=tmp_path / "work", env=environment(),
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", ["quick.yaml", "my recipe (1),a.yaml", "a=b.yaml", "inf.yaml", "\u00e9t\u00e9.yaml"])
def test_recipe_files_may_have_any_name(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / name
    path.write_text("# @package _global_\ndefaults:\n  - override /sizes: small\nalgorithm: bruck\nlaunches: 2\n")
    assert _main(["sweep", str(path), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "11 cases" in out and "bruck" in out and "2 launches" in out


def test_a_config_of_several_groups_and_of_dollars_is_a_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sweep", "quick", "sizes=small,quick", "env.X='${HOME}'"]
    assert _main([*words, "--show-config"]) == 0
    (tmp_path / "again.yaml").write_text(capsys.readouterr().out)
    plans = []
    for recipe in (words, ["sweep", str(tmp_path / "again.yaml")]):
        assert _main([*recipe, "--dry-run", "--format", "json"]) == 0
        plans.append([json.loads(line)["case_id"] for line in capsys.readouterr().out.splitlines()])
    assert plans[0] == plans[1] and len(plans[0]) > 20


@pytest.mark.parametrize(
    "text",
    ["dtype: [[fp32]]", "dtype: {a: b}", "env: FOO", "env: {A: {B: 1}}", "env: {1: x}", "- a", "", "a: [", "\xff"],
)
def test_odd_recipes_are_one_line(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "odd.yaml"
    path.write_bytes(f"# @package _global_\n{text}\n".encode("latin-1"))
    assert _main(["sweep", str(path), "--dry-run"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("error: ") and lines[1].startswith("hint: ") and len(lines) == 2


def test_a_torn_line_before_the_parents_own_is_cut_off(tmp_path: Path) -> None:
    """A rank killed while it writes leaves half a line; the parent's note of the failure must not be glued to it."""
    fault = {"kind": "hang", "rank": 1, "algorithm": "bruck", "from_op": 3}
    (tmp_path / "script.json").write_text(json.dumps({"faults": [fault]}))

    words = [*QUICK, "script=script.json", "algorithm=bruck", "-e", "1K", "launches=1", "iters=6", "timeout=3"]
    sweep = subprocess.Popen(
        [sys.executable, "-m", "commbench", *words, "--no-plots"], cwd=tmp_path,
        env=environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while not list(tmp_path.glob("results/*/logs/*/events.jsonl")):
        time.sleep(0.05)
    path = only_run(tmp_path / "results") / "measurements.jsonl"
    with open(path, "a") as file:
        file.write('{"case_id":"abc","laun')
    assert sweep.wait(timeout=PATIENCE_S) == 1
    (line,) = path.read_text().splitlines()
    assert json.loads(line)["status"] == "timeout"


def test_a_full_disk_ends_the_sweep_and_a_resume_goes_on(copy: Path) -> None:
    """Measurements whose samples did not reach the disk are measured again."""
    victim = sorted((copy / "samples").glob("*.jsonl"))[0]
    lines = victim.read_text().splitlines(keepends=True)
    victim.write_text("".join(lines[:-1]) + lines[-1][:30])
    (copy / "cases.jsonl").unlink()
    result = here("sweep", "--resume", str(copy), "--format", "json", "--no-plots", cwd=copy)
    assert result.returncode == 0, result.stderr
    assert len((copy / "measurements.jsonl").read_text().splitlines()) == 49
    assert len(rows_of(result)) == 8


def test_a_disk_without_room_is_no_fault_of_the_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **named: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "samples")

    words = (*QUICK, "algorithm=direct", "-e", "1K", "launches=1", "iters=3", "--no-plots")
    with monkeypatch.context() as patched:
        patched.setattr("commbench.measure.rank.write_samples", full)  # of ranks too, which are forked from here
        result = here(*words, cwd=tmp_path)
    run = only_run(tmp_path / "results")
    assert result.returncode == 2 and "no space left on the disk" in result.stderr
    assert f"commbench sweep --resume {Path('results') / run.name}" in result.stderr
    assert not (run / "measurements.jsonl").exists(), "nothing is said of the case"
    assert here("sweep", "--resume", str(run), "--no-plots", cwd=tmp_path).returncode == 0
