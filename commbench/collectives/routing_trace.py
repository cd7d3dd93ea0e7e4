"""Routing traces with the experts of every token: `.npz` files, and how a step of one is kept as text in a case."""

from __future__ import annotations

import base64
import json
import zipfile
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from commbench.errors import UsageError
from commbench.spec import Arguments

_MOST_EXPERTS = 1 << 20
_HINT = "an .npz file with `experts`, whole numbers of shape [steps, ranks, tokens, top_k], -1 for none"


def is_npz(path: str) -> bool:
    """Return whether a file begins as an .npz file does."""
    try:
        with Path(path).open("rb") as file:
            return file.read(4) == b"PK\x03\x04"
    except OSError:
        return False


def read(path: str) -> str:
    """Return the steps of an .npz routing trace as JSON: a text for each. Raises `UsageError`."""
    try:
        with np.load(path, allow_pickle=False) as file:
            experts = file["experts"]
    except KeyError as error:
        raise UsageError(f"{path}: the routing trace has no array `experts`", hint=_HINT) from error
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise UsageError(f"{path}: the routing trace cannot be read: {error}", hint=_HINT) from error
    if experts.ndim != 4 or not experts.size or not np.issubdtype(experts.dtype, np.integer):
        raise UsageError(f"{path}: `experts` is {experts.dtype} of shape {[*experts.shape]}", hint=_HINT)
    if experts.min() < -1 or experts.max() >= _MOST_EXPERTS or experts.max() < 0:
        raise UsageError(f"{path}: `experts` has numbers from {experts.min()} to {experts.max()}", hint=_HINT)
    ordered = np.sort(experts, axis=3)
    if ((ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)).any():
        raise UsageError(f"{path}: a token goes twice to the same expert", hint=_HINT)
    return json.dumps([_pack(step.astype(np.int32)) for step in experts])


def counts(packed: str, ranks: int, experts: int) -> list[list[int]]:
    """Return how many tokens of each rank go to each expert in a step; experts: 0 for as many as can be seen."""
    chosen = unpack(packed)
    experts = max(experts, -(-(int(chosen.max()) + 1) // ranks) * ranks)
    return [np.bincount(rank[rank >= 0], minlength=experts).tolist() for rank in chosen]


def step_of(arguments: Arguments) -> str:
    """Return the step that `trace` and `step` name, packed. Raises `UsageError`."""
    if not arguments.get("trace"):
        raise UsageError("router=trace needs a file", hint=f"write trace=FILE: {_HINT}")
    text = str(arguments["trace"])
    if not text.startswith("["):
        return text  # settled already
    steps = json.loads(text)
    number = int(arguments.get("step") or 0)
    if not 0 <= number < len(steps):
        raise UsageError(f"step={number}: the trace has steps 0 .. {len(steps) - 1}", hint="name one of them")
    if not isinstance(steps[number], str):
        raise UsageError("this routing trace has counts, and a dispatch needs the experts of each token", hint=_HINT)
    return str(steps[number])


def _pack(experts: npt.NDArray[np.int32]) -> str:
    shape = "x".join(map(str, experts.shape))
    return f"{shape}:{base64.b85encode(zlib.compress(experts.astype('<i4').tobytes(), 9)).decode()}"


def unpack(text: str) -> npt.NDArray[np.int32]:
    """Return the experts of a step, [ranks, tokens, top_k]."""
    shape, _, packed = text.partition(":")
    raw = np.frombuffer(zlib.decompress(base64.b85decode(packed)), "<i4")
    return raw.reshape([int(size) for size in shape.split("x")]).astype(np.int32)
