"""Traces that torch wrote, read as the trace of a program: real ones (tests/data/torch_traces), and of NCCL by hand."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from commbench.cli import _main
from commbench.errors import UsageError
from commbench.record import describe, folder, recipe
from commbench.record.exchanges import exchanges, sent_matrices
from commbench.record.imports import files
from commbench.record.imports.files import Imported
from tests.conftest import REPOSITORY

DATA = REPOSITORY / "tests/data/torch_traces"
PROFILES = [DATA / "gloo-rank-0.pt.trace.json", DATA / "gloo-rank-1.pt.trace.json.gz"]
OBSERVED = [DATA / "gloo-et-0.json", DATA / "gloo-et-1.json"]
SENT = {
    "all_to_all": [256], "all_to_allv": [176, 192, 256], "all_reduce": [400], "all_gather": [256],
    "reduce_scatter": [256], "broadcast": [40], "barrier": [0],
}  # fmt: skip


def sizes(made: Imported) -> dict[str, list[int]]:
    found: dict[str, set[int]] = {}
    for one in made.trace.calls:
        found.setdefault(one.collective, set()).add(one.nbytes)
    return {name: sorted(values) for name, values in found.items()}


@pytest.mark.parametrize("paths", [PROFILES, OBSERVED], ids=["profiler", "observer"])
def test_what_gloo_sent_is_what_the_program_called(paths: list[Path]) -> None:
    made = files.read(paths, None, None)
    assert sizes(made) == SENT and made.trace.ranks == 2 and made.trace.transport == "gloo"
    assert {one.count for one in made.trace.calls if one.collective == "all_gather"} == {4}
    sent = recipe.sent_cases(made.trace)
    matrices = [one.matrix.tolist() for one in sent_matrices(made.trace)]
    assert matrices == [[[64, 80], [112, 144]], [[80, 80], [112, 144]]] and not sent.left_out


def test_a_profile_has_steps_and_waits_and_an_observer_has_none() -> None:
    profiled, observed = files.read(PROFILES, None, None), files.read(OBSERVED, None, None)
    found = {(one.collective, one.async_op): one for one in exchanges(profiled.trace)}
    even = found["all_to_all", False]
    assert even.calls == 1 and even.exposed_us and profiled.trace.step_us()
    assert found["all_reduce", True].exposed_us is None  # nobody knows when the program waited
    said = describe.table(profiled.trace, list(found.values()))
    assert said[0].startswith("# 2 ranks, gloo, 2 steps of") and "first" not in said[0]
    assert not any("backward" in line for line in said)
    assert observed.trace.step_us() is None and any("no steps" in note for note in observed.notes)
    assert all(one.exposed_us is None for one in exchanges(observed.trace))


def test_a_public_profile_of_nccl_tells_kernels_and_what_hides_them() -> None:
    made = files.read([DATA / "nccl-resnet.pt.trace.json"], 2, 1)
    events = json.loads((DATA / "nccl-resnet.pt.trace.json").read_text())["traceEvents"]
    took = sum(one["dur"] for one in events if one["name"].startswith("ncclKernel_AllReduce"))
    [reduced] = [one for one in exchanges(made.trace) if one.collective == "all_reduce"]
    assert reduced.calls == 5 and reduced.most_bytes == 7_875_584 * 4 and reduced.time_us == pytest.approx(took)
    assert reduced.exposed_us is not None and 0 < reduced.exposed_us < took
    assert made.trace.transport == "nccl" and made.trace.hosts == ["node-0", "node-1"]
    assert any("no file of rank 1" in note for note in made.notes)


def test_a_public_observers_file_of_nccl() -> None:
    made = files.read([DATA / "nccl-resnet-et.json.gz"], None, None)
    assert made.trace.ranks == 2 and made.trace.transport == "nccl"
    counts = {one.collective: 0 for one in made.trace.calls}
    for one in made.trace.calls:
        counts[one.collective] += one.count if one.rank == 0 else 0
    assert counts == {"all_reduce": 15, "broadcast": 6}


# Structures of NCCL's profiles, written by hand after public ones: uneven exchanges in two groups, their kernels.


def comms(number: int, name: str, ranks: Sequence[int], given: int, out: int, **more: Any) -> list[dict[str, Any]]:
    args = {
        "External id": number, "Collective name": name, "dtype": "BFloat16", "In msg nelems": given,
        "Out msg nelems": out, "In split size": "[]", "Out split size": "[]", "Group size": len(ranks),
        "Process Group Name": str(ranks[0] + 1), "Process Group Description": "ep",
        "Process Group Ranks": str(list(ranks)), **more,
    }  # fmt: skip
    called = {"ph": "X", "cat": "cpu_op", "name": "record_param_comms", "ts": 100.0 * number, "dur": 5.0, "args": args}
    kernel = {"ph": "X", "cat": "kernel", "name": "ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)"}
    return [called, {**kernel, "ts": 100.0 * number + 10, "dur": 40.0, "args": {"External id": number}}]


def profile(path: Path, rank: int, events: Sequence[dict[str, Any]], ranks: int = 4) -> Path:
    step = {"ph": "X", "cat": "user_annotation", "name": "ProfilerStep#7", "ts": 0.0, "dur": 1000.0, "args": {}}
    about = {"backend": "nccl", "rank": rank, "world_size": ranks}
    text = json.dumps({"distributedInfo": about, "traceEvents": [step, *events], "traceName": "x"})
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


ROWS = {0: [1, 3], 1: [2, 2], 2: [1, 3], 3: [2, 2]}  # to the two ranks of a group, and so back


def uneven(folder: Path, ranks: Sequence[int] = range(4)) -> list[Path]:
    paths = []
    for rank in ranks:
        group = [rank % 2, rank % 2 + 2]
        mine = group.index(rank)
        back = [ROWS[other][mine] for other in group]
        splits = {"In split size": str(ROWS[rank]), "Out split size": str(back)}
        events = comms(1, "all_to_allv", group, 8 * sum(ROWS[rank]), 8 * sum(back), **splits)
        events += comms(2, "all_to_allv", group, 128, 128)  # no splits: equal blocks
        events.append({"ph": "X", "cat": "kernel", "name": "gemm", "ts": 120.0, "dur": 20.0, "args": {}})
        events += comms(3, "wait", group, 0, 0)
        paths.append(profile(folder / f"{rank}.json.gz", rank, events))
    return paths


def test_uneven_exchanges_of_groups_over_nccl(tmp_path: Path) -> None:
    made = files.read(uneven(tmp_path), None, None)
    sent = recipe.sent_cases(made.trace)
    assert {(one.collective, one.groups, one.dtype) for one in sent.cases} == {
        ("all_to_all", "ranks:0,2;1,3", "bf16"), ("all_to_allv", "ranks:0,2;1,3", "bf16"),
    }  # fmt: skip
    matrices = {one.group: one.matrix.tolist() for one in sent_matrices(made.trace)}
    assert matrices == {group: [[16 * n for n in ROWS[group]], [16 * n for n in ROWS[group + 2]]] for group in (0, 1)}
    assert not sent.left_out
    found = {one.collective: one for one in exchanges(made.trace)}
    assert (found["all_to_allv"].time_us, found["all_to_allv"].exposed_us) == (40.0, 20.0)  # half is behind the gemm
    assert (found["all_to_all"].time_us, found["all_to_all"].exposed_us) == (40.0, 40.0)
    assert found["all_to_all"].skew is None and (found["all_to_allv"].skew or 0) > 1.1
    assert found["all_to_all"].nbytes == 256 and found["all_to_all"].groups == 2 and "wait" not in found
    assert [group.ranks for group in made.trace.groups] == [[0, 2], [1, 3]]


def test_what_ranks_without_a_file_send_is_filled_in_where_it_can_be_told(tmp_path: Path) -> None:
    made = files.read(uneven(tmp_path, [0, 1]), None, None)
    sent = recipe.sent_cases(made.trace)
    assert [(one.collective, one.calls) for one in sent.cases] == [("all_to_all", 1.0)]
    assert any("splits are not known" in why for why in sent.left_out)
    assert any("no file of rank 2, 3" in note for note in made.notes)


def test_long_lists_that_torch_has_cut(tmp_path: Path) -> None:
    """Of more than 30 ranks it writes `[0, 1, .., 63]`: ranks follow from start and stride, splits are lost."""
    cut = {"Process Group Ranks": "[0, 1, ..., 63]", "In split size": "[1, 2, ..., 3]", "Group size": 64}
    events = comms(1, "all_to_allv", [0], 640, 640, **cut, **{"Global rank start": 0, "Global rank stride": 1})
    events += comms(2, "allreduce", [0], 8, 8, **cut, **{"Global rank start": -1, "Global rank stride": -1})
    made = files.read([profile(tmp_path / "a.json", 5, events, ranks=64)], 8, 8)
    [one] = made.trace.calls
    assert (one.rank, one.collective, one.nbytes, one.sent) == (5, "all_to_allv", 1280, None)
    assert made.trace.groups[0].ranks == list(range(64)) and made.trace.layout() == (8, 8)
    assert any("passed over 1 calls" in note for note in made.notes)


def test_the_command_writes_what_sweep_and_tune_take(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "trace"
    paths = [str(path) for path in uneven(tmp_path)]
    assert _main(["record", "--import", *paths, "nodes=2", "--out", str(out), "--no-plots"]) == 0
    said = capfd.readouterr()
    assert said.out.startswith("# 4 ranks on 2 x 2, nccl, 1 step of 1 ms\n") and "commbench tune" in said.out
    documents = list(yaml.safe_load_all((out / "recipe.yaml").read_text()))
    assert {one["collective"] for one in documents} == {"all_to_all", "all_to_allv"}
    assert all((one["nodes"], one["ranks_per_node"], one["transport"]) == (2, 2, "nccl") for one in documents)
    assert folder.read(out).versions["imported"] == "torch.profiler"


def rank_in_name(folder: Path) -> list[Path]:
    path = folder / "host.json"
    path.write_text(json.dumps({"traceEvents": comms(1, "allreduce", [0, 1], 8, 8)}))
    return [path]


def written(text: str | bytes) -> Any:
    def make(folder: Path) -> list[Path]:
        path = folder / "rank0.json"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return [path]

    return make


WHOLE = PROFILES[0].read_bytes()
BAD = {
    "missing": (lambda folder: [folder / "none.json"], "cannot read"),
    "no JSON": (written("step 1, loss 2\n"), "is no JSON: it begins with 's'"),
    "broken": (written(WHOLE.replace(b'"ph":', b'"ph"=', 1)), "is no JSON"),
    "empty": (written(""), "ends too early"),
    "cut": (written(WHOLE[:5000]), "ends too early"),
    "cut between events": (written(WHOLE[: WHOLE.rindex(b"\n{") - 1]), "ends too early"),
    "cut gzip": (written(PROFILES[1].read_bytes()[:900]), "ends too early"),
    "not gzip": (written(b"\x1f\x8b" + WHOLE[:900]), "is no JSON"),
    "other JSON": (written('{"a": [1, 2]}'), "has no events in it"),
    "no calls": (written('{"traceEvents": [{"ph": "X", "name": "aten::mm", "ts": 1, "dur": 2}]}'), "no communication"),
    "a text for a number": (
        written(
            WHOLE.replace(b'"Record function id":', b'"Record function id":"x",', 1).replace(b'"x",', b'"x","_":', 1)
        ),
        "not as torch writes them",
    ),
    "no rank": (rank_in_name, "which rank is"),
    "twice": (lambda folder: [PROFILES[0], OBSERVED[0]], "are both of rank 0"),
    "two worlds": (lambda folder: [*uneven(folder, [1]), PROFILES[0]], "is of 4 ranks, and"),
    "other rank": (lambda f: [profile(f / "a.json", 3, comms(1, "allreduce", [0, 1], 8, 8))], "is of rank 3, which"),
    "larger rank": (lambda f: [profile(f / "a.json", 9, comms(1, "allreduce", [0, 1], 8, 8))], "is of rank 9, of 4"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_one_error_and_one_hint(case: str, tmp_path: Path) -> None:
    make, why = BAD[case]
    with pytest.raises(UsageError, match=why) as error:
        files.read(make(tmp_path), None, None)
    assert error.value.hint and "\n" not in str(error.value)


def test_nodes_that_do_not_fit() -> None:
    with pytest.raises(UsageError, match=r"nodes=3 ranks_per_node=0|is not 2"):
        files.read(PROFILES, 3, None)


def test_words_of_the_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert _main(["record", "--import"]) == 2
    assert _main(["record", "--import", str(PROFILES[0]), "--", "python", "x.py"]) == 2
    said = capfd.readouterr().err
    assert "which files?" in said and "starts no program" in said
