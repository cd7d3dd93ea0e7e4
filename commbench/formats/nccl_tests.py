"""nccl-tests and rccl-tests: the text that they print and the JSON that -J writes, read into results."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from commbench.errors import UsageError
from commbench.formats import consistency
from commbench.formats.consistency import ListedRank
from commbench.formats.log import Log, lines_of
from commbench.formats.result import Result, dtype_name

HEADER = re.compile(r"#\s*size\s+count\s+type\s")
_RANK = re.compile(
    r"#\s+Rank\s+(?P<rank>\d+)(?:\s+Group\s+(?P<group>\d+))?\s+(?:Pid\s+(?P<pid>\d+)\s+on\s+(?P<host>\S+))?"
)
_PER_PROCESS = re.compile(r"# nThreads?:? (\d+) nGpus:? (\d+)\b")
_PROGRAM = re.compile(r"\b([a-z_]+)_perf(?:_mpi)?\b")
_STARTING = "Collective test starting:"
_COLLECTIVES = {"alltoall": "all_to_all", "alltoallv": "all_to_allv"}
_TIMES = ("time", "cputime")
_GRAPH = re.compile(r"^# nThread .*\bgraph: (\d+)")  # calls in a graph
_PROGRAM_VERSION = re.compile(r"#?\s*(nccl|rccl)-tests:? version (\S+)", re.IGNORECASE)
_AMD = re.compile(r"\bAMD\b|\bgfx\d|\bVega\b|Radeon|Instinct")
_FAILED = re.compile(r"#\s*Out of bounds values\s*:\s*\d+ FAILED")
_OURS = re.compile(r"#\s*commbench: ([^,]+)(?:, (.*))?")


@dataclass
class _Test:
    """What the lines above a table say of it."""

    source: str = "nccl-tests"
    setting: str = ""  # ours, in words
    collective: str | None = None
    devices: list[ListedRank] = field(default_factory=list)
    per_process: int | None = None  # ranks in each process
    graph: bool | None = None
    title: str = ""  # the line that names the halves of the table
    columns: list[str] = field(default_factory=list)
    first: int = 0  # which of the log's results is the table's first
    errors: list[float] = field(default_factory=list)  # what an old version prints in place of a count


def read_text(text: str, ranks: int | None = None) -> Log:
    """Results of one or several tests in `text`, in its order; a line gives one for each half that has a time.

    Columns are taken by the names in the header, so versions may differ in them; values behind the last named column
    are passed over, and so are lines of other origin and rows that are not whole, which the log counts. `ranks` is for
    files without device lines. Old versions do not print the collective: then the last `NAME_perf` above the table
    names it, or nothing does. With -C, `time_us` is None, since the time is the CPU's. Raises `UsageError`, with the
    number of the line, where the log contradicts itself, and where none of its rows is as its header says.
    """
    log = Log()
    says_collective = _STARTING in text
    test = _Test()
    for number, line in enumerate(lines_of(text), start=1):
        if (not says_collective or _STARTING in line) and (match := _PROGRAM.search(line)):
            test.collective = _collective(match[1])
        cells = line.split()
        if line.lstrip().startswith("#") or _PROGRAM_VERSION.match(line):
            if HEADER.match(line.lstrip()):
                test.columns = [name for name in line.lstrip("# ").split() if name != "timestamp"]
                test.first = len(log.results)
                _check_header(test, number)
            else:
                _comment(test, line.strip(), number)
            if _FAILED.match(line.lstrip()):
                log.results[test.first :] = _failed(log.results[test.first :], test.errors)
            if "Avg bus bandwidth" in line:
                test = _Test()
        elif test.columns and len(cells) > 2 and cells[0].isdigit() and cells[1].isdigit():
            try:
                log.results += _row(test, cells, number, ranks)
            except ValueError as error:
                columns = len(test.columns)
                log.passed_over.append(f"line {number}: {error} where nccl-tests prints a row of {columns}")
    log.require_results(f"expected {' '.join(test.columns or ['the rows of nccl-tests'])}")
    return log


def _failed(results: Sequence[Result], errors: Sequence[float]) -> list[Result]:
    """Return a table's results where its last line says that the check failed: some of them are wrong then.

    errors: the differences that an old version prints beside them. Where it marks none as too large, all that are not
    0 count; where it prints none, all results do.
    """
    if any(result.wrong for result in results):
        return list(results)
    blamed = [error != 0 for error in errors] if len(errors) == len(results) and any(errors) else [True] * len(results)
    return [replace(result, wrong=1) if wrong else result for result, wrong in zip(results, blamed, strict=True)]


def _comment(test: _Test, line: str, number: int) -> None:
    if match := _PROGRAM_VERSION.match(line):
        test.source = f"{match[1].lower()}-tests {match[2]}"
    elif match := _OURS.match(line):
        test.source, test.setting = f"commbench {match[1]}", match[2] or ""
    elif match := _PER_PROCESS.match(line):
        test.per_process = int(match[1]) * int(match[2])
        if match := _GRAPH.search(line):
            test.graph = match[1] != "0"
    elif line.startswith("# Using devices"):
        test.devices = []
    elif match := _RANK.match(line):
        known = int(match["pid"] or 0)  # ours has none
        process = f"pid {known} on {match['host']}" if known else ""
        device = ListedRank(int(match["rank"]), int(match["group"] or 0), process, match["host"] or "")
        _refuse(number, consistency.repeated_rank(test.devices, device))
        test.devices.append(device)
        if test.source == "nccl-tests" and _AMD.search(line):
            test.source = "rccl-tests"
    elif re.search(r"\b(in|out-of)-place\b", line):
        test.title = line


def _refuse(number: int, problem: str) -> None:
    """Raise what a log says twice, and not the same."""
    if problem:
        raise UsageError(f"line {number}: {problem}", hint=consistency.SEPARATE_WORLDS)


def _check_header(test: _Test, number: int) -> None:
    if not set(_TIMES) & set(test.columns):
        raise UsageError(
            f"line {number}: no column of times among {', '.join(test.columns)}",
            hint="expected the header of nccl-tests: size count type redop root time algbw busbw #wrong",
        )


def _row(test: _Test, cells: Sequence[str], number: int, ranks: int | None) -> list[Result]:
    """Raise `ValueError` where this is no whole row, `UsageError` where it contradicts itself or what stands above."""
    starts = [index for index, name in enumerate(test.columns) if name in _TIMES]
    _refuse(number, consistency.world_problem(test.devices, test.per_process))
    shown_group = _first_group(test.devices)
    ranks = len(shown_group) or ranks
    if len(cells) < len(test.columns):
        raise ValueError(f"{len(cells)} values")
    about = dict(zip(test.columns[: starts[0]], cells, strict=False))
    size, count, type_ = int(about["size"]), int(about["count"]), about["type"]
    _refuse(number, consistency.count_problem(test.collective, ranks, size, count, type_))
    of_one_half = len(starts) == 1 and "out-of-place" not in test.title
    results = []
    for half, start in enumerate(starts):
        end = [*starts, len(test.columns)][half + 1]
        values = dict(zip(test.columns[start:end], cells[start:end], strict=True))
        numbers = {name: _number(values[name]) for name in ("time", "algbw", "busbw") if name in values}
        if all(value is None for value in numbers.values()):
            continue  # not measured
        shown = [values[name] if numbers.get(name) is not None else None for name in ("time", "algbw", "busbw")]
        _refuse(number, consistency.bandwidth_problem(test.collective, ranks, size, *shown))
        results.append(
            _result(
                test.source,
                test.collective,
                ranks,
                about,
                in_place=half == 1 or of_one_half,
                time_us=numbers.get("time"),
                algbw_gbps=numbers.get("algbw"),
                busbw_gbps=numbers.get("busbw"),
                wrong=_wrong(values),
                graph=test.graph,
                setting=test.setting,
                per_node=_per_node([device.host for device in shown_group]),
                **_company(test),
            )
        )
        if "error" in values:
            test.errors.append(_number(values["error"].rstrip("*")) or 0.0)
    return results


def _company(test: _Test) -> dict[str, str]:
    """What ran beside the communicator that is shown."""
    said = dict(word.split("=", 1) for word in test.setting.split(", ") if word.startswith(("groups=", "overlap=")))
    groups = len({device.group for device in test.devices})
    return {"groups": f"{groups} communicators"} | said if groups > 1 else said


def _first_group(devices: Sequence[ListedRank]) -> list[ListedRank]:
    """NCCL_TESTS_SPLIT makes communicators that run beside each other; rank 0's is the one that is shown."""
    return [device for device in devices if device.group == devices[0].group]


def _wrong(values: Mapping[str, str]) -> int | None:
    """`#wrong` counts elements. `error`, of old versions, is a difference; it has an asterisk where it is too large."""
    if "error" in values:
        return 1 if values["error"].endswith("*") else None
    count = _number(values.get("#wrong", "N/A"))
    return None if count is None else int(count)


def _number(text: str) -> float | None:
    value = math.nan if text == "N/A" else float(text)
    return value if math.isfinite(value) else None


def _collective(program: str) -> str:
    return _COLLECTIVES.get(program, program)


def _result(source: str, collective: str | None, ranks: int | None, about: Mapping[str, Any], **values: Any) -> Result:
    """`about` is what a row says of both of its halves."""
    root = int(about.get("root", -1))
    op = about.get("redop", "none")
    return Result(
        source=source,
        collective=collective,
        ranks=ranks,
        size_bytes=int(about["size"]),
        dtype=dtype_name(about["type"]),
        op=None if op == "none" or collective == "sendrecv" else op,  # sendrecv_perf names an op and uses none
        root=None if root < 0 else root,
        **values,
    )


def read_json(text: str, ranks: int | None = None) -> list[Result]:
    """Results in a file that -J wrote (its version 3); the environment that it holds is not kept.

    `ranks` is for files without devices. Raises `UsageError`, with the place, where something is missing.
    """
    try:
        raw = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(
            f"line {error.lineno}, column {error.colno}: {error.msg}",
            hint="expected the JSON that nccl-tests writes with -J, whole: a run that ended early leaves a part of it",
        ) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or nested as deeply
        raise UsageError(
            f"it cannot be read: {error}", hint="expected the JSON that nccl-tests writes with -J"
        ) from None
    where = "args"
    try:
        program = _PROGRAM.search(raw["args"][0])
        collective = _collective(program[1]) if program else None
        where = "config"
        hosts = _hosts(raw["config"])
        ranks = len(hosts) or ranks
        results = []
        for index, line in enumerate(raw["results"]):
            where = f"results[{index}]"
            problem = consistency.count_problem(collective, ranks, line["size"], line["count"], line["type"])
            for half in ("out_of_place", "in_place"):
                if values := line.get(half):
                    wrong = values["nwrong"]
                    time = str(values["time"]) if "time" in values else None
                    shown = (time, str(values["alg_bw"]), str(values["bus_bw"]))
                    problem = problem or consistency.bandwidth_problem(collective, ranks, line["size"], *shown)
                    if problem:
                        raise UsageError(f"{where}: {problem}", hint=consistency.SEPARATE_WORLDS)
                    results.append(
                        _result(
                            "nccl-tests",
                            collective,
                            ranks,
                            line,
                            in_place=half == "in_place",
                            time_us=_number(values["time"]) if "time" in values else None,
                            algbw_gbps=_number(values["alg_bw"]),
                            busbw_gbps=_number(values["bus_bw"]),
                            wrong=None if wrong is None else int(wrong),
                            per_node=_per_node(hosts),
                        )
                    )
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        problem = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise UsageError(
            f"{where}: {problem}", hint="expected the JSON that nccl-tests writes with -J (version 3)"
        ) from None
    return results


def _per_node(hosts: Sequence[str]) -> tuple[int, ...]:
    """Return how many ranks are on each host, by the host of each rank; () where they are not all told."""
    return tuple(Counter(hosts).values()) if all(hosts) else ()


def _hosts(config: Mapping[str, Any]) -> list[str]:
    """Return the host of each rank of rank 0's communicator. Only the first device of each process is listed."""
    devices = config["devices"]
    if not devices:
        return []
    per_process = int(config["nthreads"]) * int(config["ngpus"])
    if problem := consistency.first_devices_problem((device["rank"] for device in devices), per_process):
        raise UsageError(f"config: {problem}", hint=consistency.SEPARATE_WORLDS)
    listed = [device for device in devices if device["group"] == devices[0]["group"]]
    all_listed = any(device["rank"] % per_process for device in listed)
    return [str(device.get("hostname") or "") for device in listed for _ in range(1 if all_listed else per_process)]
