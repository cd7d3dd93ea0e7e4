"""Formats of other programs: their results, read so that they can be drawn beside ours, and ours in their layout."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from commbench.errors import UsageError
from commbench.formats import imb, nccl_tests, osu, rccl_tests
from commbench.formats.log import Log, with_signs
from commbench.formats.result import Result

__all__ = ["Log", "Result", "read"]

_KNOWN = (
    "the text or the JSON (-J) of nccl-tests, the text, JSON or CSV of rccl-tests, the text of an OSU collective"
    " latency test, or of a collective of the Intel MPI Benchmarks"
)


def read(path: Path, ranks: int | None = None, nodes: int | None = None) -> Log:
    """The results in a file, and what was passed over in it; the format is recognised by what it holds.

    `ranks` is how many ranks ran, and `nodes` on how many nodes, as many on each, for files that do not say. Raises
    `UsageError`, naming the file, the line where there is one, and what was expected.
    """
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise UsageError(f"cannot read {str(path)!r}: {error.strerror}", hint=f"give {_KNOWN}") from error
    try:
        log = _read(with_signs(text), ranks)
    except UsageError as error:
        raise UsageError(f"{path}: {error}", hint=error.hint) from None
    if not log.results:
        raise UsageError(f"{path}: there are no results in it", hint="it may be of a run that ended early")
    if nodes:
        log.results = _on_nodes(log.results, nodes, path)
    return log


def _on_nodes(results: Sequence[Result], nodes: int, path: Path) -> list[Result]:
    """Return the results of a file that does not say its nodes with those that the user says.

    They are those of its largest test: IMB runs each test on a part of the ranks first, and does not say on which.
    """
    most = max((result.ranks or 0 for result in results), default=0)
    if most % nodes:
        raise UsageError(f"{path}: its {most} ranks do not divide by --nodes {nodes}",
                         hint="--nodes N: as many ranks on each")  # fmt: skip
    per_node = (most // nodes,) * nodes
    return [
        replace(result, per_node=per_node) if result.ranks == most and not result.per_node else result
        for result in results
    ]


def _read(text: str, ranks: int | None) -> Log:
    start = text.lstrip()
    if start.startswith(("[", "{")) and '"algBw"' in text:
        return rccl_tests.read_json(text)
    if start.startswith(rccl_tests.CSV_HEADER):
        return rccl_tests.read_csv(text)
    if start.startswith("{"):
        return Log(nccl_tests.read_json(text, ranks))
    if nccl_tests.HEADER.search(text):
        return nccl_tests.read_text(text, ranks)
    if imb.HEADER.search(text):
        return imb.read_text(text)
    if re.search(r"#\s*OSU\b", text):
        if ranks is None:
            raise UsageError("OSU does not print how many ranks ran", hint="say it: --ranks N")
        return osu.read_text(text, ranks)
    raise UsageError("the format is unknown", hint=f"give {_KNOWN}")
