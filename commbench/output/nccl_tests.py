"""Our rows in the layout of nccl-tests' text, for the programs that read it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from commbench.layout import Layout
from commbench.output.describe import describe_emulated, describe_layout
from commbench.records import Fabric, Row, Status
from commbench.spec import DTYPES
from commbench.units import format_size, gbps

_LAYOUT_OF = "2.19"
_PROGRAMS = {"all_to_all": "alltoall", "all_to_allv": "alltoallv"}
_TYPES = {"fp32": "float", "fp16": "half", "bf16": "bfloat16"}
_COUNT_PER_RANK = ("all_to_all", "all_to_allv", "all_gather", "reduce_scatter")
# Of a half that was not measured: what C prints for a number that there is none of. Readers that take columns by
# their place get a float from it and none mistakes it for a time; those that want digits pass over the line.
_NOT_CHECKED = "  N/A"  # one character less than its column, as nccl-tests has it
_NOT_MEASURED = f"  {'nan':>7}  {'nan':>6}  {'nan':>6}  {_NOT_CHECKED}"


def write(rows: Sequence[Row], meta: Mapping[str, Any]) -> str:
    """`rows` as tests of nccl-tests, one for each setting that it has no column for, above all the algorithm.

    Sizes are sorted; out-of-place and in-place rows of one case share a line. Times are `time_us_mean`, which is
    what nccl-tests shows by default (-a 1). A case without numbers is a comment with its reason. `meta` is run.json.
    """
    lines = [
        f"# commbench {meta['commbench_version']}, run {meta['run_id']}, in the layout of nccl-tests {_LAYOUT_OF}",
        f"# {meta['machine_text']}",
        "# time: mean over ranks, as nccl-tests shows it (-a 1); median over samples and launches; algbw and busbw "
        "follow from it",
        "# nan: not measured; warmup iters -1: see the run; host names, process ids and bus ids are placeholders",
    ]
    tests: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        tests.setdefault(_setting(row), []).append(row)
    for members in tests.values():
        lines += _test(members)
    return "\n".join(lines) + "\n"


def float_text(value: float, width: int) -> str:
    """Two decimals, then one, then none, then an exponent: the first that fits in `width` characters (6 or 7)."""
    for decimals in (2, 1, 0):
        text = f"{value:{width}.{decimals}f}"
        if len(text) <= width:
            return text
    return f"{value:{width}.{1 if width >= 7 else 0}e}"


def _setting(row: Row) -> tuple[Any, ...]:
    """All that tells cases apart but the size and where the output lies."""
    return (
        *(row.collective, row.label, row.transport, row.mode, row.buffers, row.cache, row.dtype),
        *(row.ranks, row.nodes, row.groups, row.overlap, row.emulation, row.binding_text, tuple(row.env.items())),
        tuple((name, value) for name, value in row.arguments.items() if name != "send_bytes"),  # which follows the size
    )


def _test(rows: Sequence[Row]) -> list[str]:
    if all(row.status is Status.SKIPPED for row in rows):  # no test: say why, and no more
        return [_describe(rows[0]), *(_failure(row) for row in rows)]
    first = next(row for row in rows if row.status is not Status.SKIPPED)
    program = f"{_PROGRAMS.get(first.collective, first.collective)}_perf"
    measured = [numbers[2] for row in rows if (numbers := _numbers(row))]
    average = sum(measured) / len(measured) if measured else math.nan
    wrong = sum(row.status is Status.WRONG_RESULT for row in rows)
    return [
        f"# Collective test starting: {program}",
        _parameters(rows),
        _describe(first),
        "#",
        "# Using devices",
        *_devices(first),
        "#",
        *_HEADER,
        *_table(rows),
        *(_failure(row) for row in rows if _numbers(row) is None),
        f"# {'Out of bounds values':<20} : {wrong} {'FAILED' if wrong else 'OK'}",
        f"# {'Avg bus bandwidth':<20} : {average:g} ",
        "#",
        f"# Collective test concluded: {program}",
        "#",
        "",
    ]


def _parameters(rows: Sequence[Row]) -> str:
    sizes = sorted({row.size_bytes for row in rows})
    # All timed calls of the case with the most of them: their number differs between sizes.
    calls = max(row.samples * (row.calls_per_sample or 0) for row in rows)
    graph = max(row.calls_per_sample or 0 if row.mode == "graph" else 0 for row in rows)
    return (
        f"# nThread 1 nGpus 1 minBytes {sizes[0]} maxBytes {sizes[-1]} step: {_step(sizes)} warmup iters: -1 "
        f"iters: {calls} agg iters: 1 validation: 1 graph: {graph} unalign: 0"
    )


def _step(sizes: Sequence[int]) -> str:
    """0 where no one step leads from each size to the next."""
    if len(factors := {after / before for before, after in itertools.pairwise(sizes)}) == 1:
        (factor,) = factors
        if factor.is_integer():
            return f"{int(factor)}(factor)"
    steps = {after - before for before, after in itertools.pairwise(sizes)}
    return f"{steps.pop() if len(steps) == 1 else 0}(bytes)"


def _describe(row: Row) -> str:
    """What nccl-tests has no column for."""
    words = [
        f"{row.label} over {row.transport}",
        row.mode,
        f"{row.buffers} buffers",
        f"{row.cache} cache",
        describe_layout(row.nodes, row.ranks, row.fabric),
        *([describe_emulated(asdict(row))] if row.fabric == Fabric.EMULATED else []),
        *([] if row.groups == "world" else [f"groups={row.groups}"]),
        *([] if row.overlap == "none" else [f"overlap={row.overlap}"]),
        *([row.binding_text] if row.binding_text else []),
        *(f"{name}={value}" for settings in (row.arguments, row.env) for name, value in settings.items()),
    ]
    return f"# commbench: {', '.join(words)}"


def _devices(row: Row) -> list[str]:
    layout = Layout(row.nodes, row.ranks // row.nodes)
    group_of = {rank: index for index, ranks in enumerate(layout.partition(row.groups)) for rank in ranks}
    return [
        f"#  Rank {rank:2d} Group {group_of[rank]:2d} Pid {0:6d} on {f'node{layout.node(rank)}':>10} "
        f"device {layout.local(rank):2d} [0000:00:00] {row.transport}"
        for rank in range(row.ranks)
    ]


_HEADER = (
    f"# {'':>10}  {'':>12}  {'':>8}  {'':>6}  {'':>6}           out-of-place                       in-place          ",
    f"# {'size':>10}  {'count':>12}  {'type':>8}  {'redop':>6}  {'root':>6}"
    + 2 * f"  {'time':>7}  {'algbw':>6}  {'busbw':>6}  {'#wrong':>6}"
    + " ",
    f"# {'(B)':>10}  {'(elements)':>12}  {'':>8}  {'':>6}  {'':>6}"
    + 2 * f"  {'(us)':>7}  {'(GB/s)':>6}  {'(GB/s)':>6}  {'':>6}"
    + " ",
)


def _table(rows: Sequence[Row]) -> list[str]:
    halves: dict[int, dict[bool, str]] = {}
    for row in rows:
        if numbers := _numbers(row):
            time_us, algbw, busbw = numbers
            wrong = _NOT_CHECKED if row.wrong is None else f"{row.wrong:6g}"
            text = f"  {float_text(time_us, 7)}  {float_text(algbw, 6)}  {float_text(busbw, 6)}  {wrong}"
            halves.setdefault(row.size_bytes, {})[row.in_place] = text
    first = rows[0]
    ranks = first.group_size or first.ranks
    shared = ranks if first.collective in _COUNT_PER_RANK else 1
    op, root = first.arguments.get("op", "none"), first.arguments.get("root", -1)
    return [
        f"{size:12d}  {size // shared // DTYPES[first.dtype]:12d}  {_TYPES.get(first.dtype, first.dtype):>8}  {op:>6}  "
        f"{root:6}{half.get(False, _NOT_MEASURED)}{half.get(True, _NOT_MEASURED)}"
        for size, half in sorted(halves.items())
    ]


def _numbers(row: Row) -> tuple[float, float, float] | None:
    """Time in microseconds, algbw and busbw in GB/s; busbw is to algbw as it is in the row."""
    if row.status is not Status.OK or not row.time_us_mean or not row.algbw_gbps:
        return None
    algbw = gbps(row.size_bytes, row.time_us_mean)
    return row.time_us_mean, algbw, math.nan if row.busbw_gbps is None else algbw * row.busbw_gbps / row.algbw_gbps


def _failure(row: Row) -> str:
    place = "in place" if row.in_place else "out of place"
    return f"# {row.status}: {format_size(row.size_bytes)} {place}: {' '.join(row.reason.split())}"
