"""How an uneven exchange splits: bytes from each rank to each rank, from a rule, a matrix file, or a routing trace."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from commbench.collectives import routing_trace
from commbench.errors import UsageError
from commbench.spec import Arguments, Value

Matrix = npt.NDArray[np.int64]

RULES = ("even", "linear", "zipf")
CHOICES = (*RULES, "matrix", "trace")
_DIGITS = 15  # of a count: sums of a whole matrix must fit into 64 bits
_MOST_TOKENS = 10**9
ROW_BYTES = 16  # of a rule, where nothing says how long a token is: what nccl-tests aligns to


def settle(size_bytes: int, ranks: int, arguments: Arguments) -> tuple[int, Arguments]:
    """The exchange whose busiest rank moves at most `size_bytes`: its size, and the arguments that describe it.

    The size is nccl-tests' column, the maximum over ranks of max(bytes sent, bytes received), own block included.
    Where `send_bytes` is given it fixes what each rank sends, and the size follows; a matrix and a trace fix all.
    Raises `ValueError`, in words, where this cannot be on so many ranks.
    """
    splits = arguments["splits"]
    kept: dict[str, Value] = {"splits": splits}
    if splits in ("matrix", "trace"):
        kept |= _of_file(str(splits), ranks, arguments)
        return size_of(counts(ranks, kept)), kept
    kept["row_bytes"] = row = int(arguments.get("row_bytes") or ROW_BYTES)
    if splits == "zipf":
        kept["alpha"] = float(arguments["alpha"])
        kept["experts"] = int(arguments.get("experts") or ranks)
    if given := int(arguments.get("send_bytes") or 0):
        kept["send_bytes"] = given // row * row
        return size_of(counts(ranks, kept)), kept
    shares = _shares(ranks, kept)
    rows = int(size_bytes / row / max(1.0, shares.sum(axis=0).max()))
    unit = ranks if splits == "even" else 1
    for fewer in range(rows // unit * unit, 0, -unit):  # rounding to whole rows may have made it a row too many
        kept["send_bytes"] = fewer * row
        size = size_of(counts(ranks, kept))
        if size <= size_bytes:
            return size, kept
    return 0, {**kept, "send_bytes": 0}


def counts(ranks: int, arguments: Arguments) -> Matrix:
    """Bytes from rank i to rank j in row i, column j, of settled arguments. Shared: do not write to it."""
    return _counts(ranks, tuple(sorted(arguments.items())))


def size_of(matrix: Matrix) -> int:
    """The most that one rank sends or receives, own block included."""
    return int(max(matrix.sum(axis=1).max(), matrix.sum(axis=0).max()))


@functools.lru_cache(maxsize=64)
def _counts(ranks: int, items: tuple[tuple[str, Value], ...]) -> Matrix:
    arguments = dict(items)
    if "matrix" in arguments:
        matrix = np.array(json.loads(str(arguments["matrix"])), dtype=np.int64)
    else:
        row = int(arguments["row_bytes"])
        matrix = _whole_rows(_shares(ranks, arguments), int(arguments["send_bytes"]) // row) * row
    matrix.setflags(write=False)
    return matrix


def _shares(ranks: int, arguments: Arguments) -> npt.NDArray[np.float64]:
    """Return, of what rank i sends, the part that goes to rank j."""
    splits = arguments["splits"]
    if splits == "even":
        return np.full((ranks, ranks), 1 / ranks)
    if splits == "linear":
        # Each rank sends 1, 2, .. n parts, and as rows are shifted each rank receives 1, 2, .. n parts too: pairs
        # differ, sums do not.
        parts = (np.arange(ranks)[:, None] + np.arange(ranks)) % ranks + 1
        shifted: npt.NDArray[np.float64] = parts / (ranks * (ranks + 1) / 2)
        return shifted
    experts, alpha = int(arguments["experts"]), float(arguments["alpha"])
    if experts % ranks:
        raise ValueError(f"experts={experts} do not divide among {ranks} ranks")
    if alpha < 0:
        raise ValueError(f"alpha={alpha}: the exponent of Zipf's law is not negative")
    popularity = np.arange(1, experts + 1, dtype=np.float64) ** -alpha
    # Which experts are hot is drawn once and for all, so that the hot one is not always on rank 0.
    placed = popularity[np.random.default_rng(0).permutation(experts)] / popularity.sum()
    return np.tile(placed.reshape(ranks, -1).sum(axis=1), (ranks, 1))


def _whole_rows(shares: npt.NDArray[np.float64], rows: int) -> Matrix:
    """`rows` rows of each rank shared out by largest remainder; ties go to the next ranks of the sender, in turn."""
    ranks = len(shares)
    exact = shares * rows
    whole = np.floor(exact + 1e-9).astype(np.int64)
    for src in range(ranks):
        missing = rows - int(whole[src].sum())
        distance = (np.arange(ranks) - src) % ranks
        order = np.lexsort((distance, -(exact[src] - whole[src]).round(9)))
        whole[src, order[:missing]] += 1
    return whole


def _of_file(splits: str, ranks: int, arguments: Arguments) -> dict[str, Value]:
    if not arguments.get(splits):
        raise UsageError(
            f"splits={splits} needs a file", hint=f"write {splits}=FILE; its form is in docs/reference/formats.md"
        )
    content = json.loads(str(arguments[splits]))
    if splits == "matrix":
        if len(content) != ranks:
            raise ValueError(f"the matrix is for {len(content)} ranks, not {ranks}")
        return {"matrix": json.dumps(content, separators=(",", ":"))}
    step = int(arguments.get("step") or 0)
    if not 0 <= step < len(content):
        raise UsageError(f"step={step}: the trace has steps 0 .. {len(content) - 1}", hint="name one of them")
    if isinstance(content[step], str):
        content[step] = routing_trace.counts(content[step], ranks, int(arguments.get("experts") or 0))
    tokens = np.array(content[step], dtype=np.int64)
    if len(tokens) != ranks or tokens.shape[1] % ranks:
        raise ValueError(f"step {step} of the trace is for {len(tokens)} ranks and {tokens.shape[1]} experts, "
                         f"which does not fit {ranks} ranks")  # fmt: skip
    if not arguments.get("row_bytes"):
        raise UsageError("a trace counts tokens, and nothing says how long one is",
                         hint="set model_dim, or row_bytes")  # fmt: skip
    row = int(arguments["row_bytes"])
    by_rank = tokens.reshape(ranks, ranks, -1).sum(axis=2) * row
    return {"step": step, "row_bytes": row, "matrix": json.dumps(by_rank.tolist(), separators=(",", ":"))}


def read_matrix(path: str) -> str:
    """A matrix file as JSON: square, cells apart by blanks, cell j of line i the bytes from rank i to rank j.

    This is the form of nccl-tests' NCCL_TESTS_ALLTOALLV_MATRIX_FILE. Raises `UsageError`, naming line and cell.
    """
    lines = [line for line in _text(path, "matrix").splitlines() if line.strip() and not line.startswith("#")]
    return json.dumps(_square(path, [line.split() for line in lines]))


def read_trace(path: str) -> str:
    """A routing trace as JSON. In the file, a line is a step: `{"counts": [[..], ..]}`, tokens from each rank to each
    expert (or rank); other fields are ignored. An .npz file has the experts of each token instead. Raises `UsageError`,
    naming the line.
    """
    if routing_trace.is_npz(path):
        return routing_trace.read(path)
    steps = []
    for number, line in enumerate(_text(path, "trace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            rows = json.loads(line)["counts"]
            width = len(rows[0])
            good = width > 0 and all(
                len(row) == width and all(type(n) is int and 0 <= n < _MOST_TOKENS for n in row) for row in rows
            )
        except (ValueError, KeyError, TypeError, IndexError, RecursionError):
            good = False
        if not good:
            raise UsageError(f"{path}, line {number}: no step of a routing trace",
                             hint='a line is {"counts": [[tokens to each expert], one list a rank]}')  # fmt: skip
        steps.append(rows)
    if not steps:
        raise UsageError(f"{path}: the trace is empty", hint='a line is {"counts": [[..], ..]}')
    return json.dumps(steps, separators=(",", ":"))


def _text(path: str, what: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot read the {what} {path!r}: {error.strerror}", hint=f"{what}=FILE") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"the {what} {path!r} is not text: {error.reason}", hint=f"{what}=FILE") from error


def _square(path: str, rows: Sequence[Sequence[str]]) -> list[list[int]]:
    if not rows:
        raise UsageError(f"{path}: the matrix is empty", hint="one line per sending rank, one cell per receiving rank")
    for i, row in enumerate(rows):
        if len(row) != len(rows):
            raise UsageError(
                f"{path}: rank {i} has {len(row)} cells, but there are {len(rows)} lines, so {len(rows)} are needed",
                hint="the matrix is square: one line per sending rank, one cell per receiving rank",
            )
        for j, cell in enumerate(row):
            if not cell.isascii() or not cell.isdigit():
                raise UsageError(
                    f"{path}: the cell from rank {i} to rank {j} is {cell!r}",
                    hint="a cell is a whole number of bytes, 0 or more",
                )
            if len(cell) > _DIGITS:
                raise UsageError(
                    f"{path}: the cell from rank {i} to rank {j} is {cell}, more bytes than any machine has",
                    hint="a cell is a whole number of bytes",
                )
    matrix = [[int(cell) for cell in row] for row in rows]
    if not any(map(any, matrix)):
        raise UsageError(f"{path}: every cell is 0", hint="somebody has to send something")
    return matrix
