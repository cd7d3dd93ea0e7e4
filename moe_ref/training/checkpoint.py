"""Checkpoints: safetensors and one manifest, there as a whole or not at all, to be read by any number of ranks.

    checkpoints/step-00000200/manifest.json          format, step, settings, and of each tensor where its pieces are
                              rank-0000.safetensors  what rank 0 had to write
    checkpoints/latest                               the name of the newest

A tensor of the model has one name and one shape, however many ranks hold pieces of it: a piece is a box in it. Whoever
reads asks for the box that it needs, and gets it from the pieces that overlap it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from commbench.errors import CorruptFile, UsageError
from commbench.files import write_atomically

FORMAT = "commbench-checkpoint"
# 1: first.
FORMAT_VERSION = 1
_MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class Box:
    """The place of a local tensor in the whole one, of `shape`: from `start` on, in each dimension."""

    shape: tuple[int, ...]
    start: tuple[int, ...]

    @staticmethod
    def whole(tensor: Tensor) -> Box:
        """Return the box of a tensor that is whole here."""
        return Box(tuple(tensor.shape), (0,) * tensor.dim())


class OtherRankFailed(UsageError):
    """Another rank could not, and says why."""


AllSucceeded = Callable[[bool], bool]  # collective: whether it is so on all ranks


def save(
    parent: Path, step: int, tensors: Mapping[str, tuple[Tensor, Box]], about: Mapping[str, Any], *,
    rank: int, ranks: int, all_succeeded: AllSucceeded, keep: int,
) -> Path:  # fmt: skip
    """Write a checkpoint of `step` below `parent`, of every rank's `tensors`; keep the newest `keep`. Collective.

    about: what the reader has to know, as JSON. Raises `UsageError` on all ranks where one cannot write; what was there
    before is still there then.
    """
    folder, temporary = parent / f"step-{step:08d}", parent / f".step-{step:08d}.tmp"
    failure = ""
    if rank == 0:
        failure = _try(lambda: _fresh(temporary))
    if all_succeeded(not failure):
        failure = _try(lambda: _write(temporary, rank, tensors))
        if all_succeeded(not failure) and rank == 0:
            failure = _try(lambda: _finish(temporary, folder, step, about, ranks))
    if not all_succeeded(not failure):
        if rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        kind, why = (UsageError, failure) if failure else (OtherRankFailed, "another rank could not write")
        raise kind(f"no checkpoint of step {step} in {str(parent)!r}: {why}",
                   hint=f"make room, then go on with: commbench train --resume {parent.parent}; the last checkpoint "
                        "is whole")  # fmt: skip
    if rank == 0:
        for old in sorted(parent.glob("step-*"))[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
    return folder


def latest(parent: Path) -> Path | None:
    """Return the newest whole checkpoint; None where there is none."""
    whole = [folder for folder in sorted(parent.glob("step-*")) if (folder / _MANIFEST).is_file()]
    return whole[-1] if whole else None


class Checkpoint:
    """A checkpoint to read from. Raises `CorruptFile` for what is damaged, cut or missing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            manifest = json.loads((folder / _MANIFEST).read_text())
            self.step, self.about = int(manifest["step"]), dict(manifest["about"])
            self._tensors: dict[str, Any] = manifest["tensors"]
            known = manifest["format"] == FORMAT and manifest["format_version"] <= FORMAT_VERSION
            sizes = dict(manifest["files"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _damaged(folder / _MANIFEST, error) from error
        if not known:
            raise UsageError(
                f"{folder} is {manifest['format']} {manifest['format_version']}, this commbench reads {FORMAT} up to "
                f"{FORMAT_VERSION}",
                hint="use the commbench version that wrote it",
            )
        for name, size in sizes.items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != size:
                found = f"{path.stat().st_size} bytes" if path.is_file() else "not there"
                raise _damaged(path, f"{found}, where the manifest says {size} bytes")
        self._files: dict[str, Any] = {}
        self.read_bytes = 0  # of tensors, so far

    def pieces(self, name: str) -> list[tuple[Box, tuple[int, ...]]]:
        """Return the pieces of a tensor as they were written: the box and the shape of each. None where it is not."""
        entry = self._tensors.get(name, {"pieces": []})
        return [(Box(tuple(entry["shape"]), tuple(one["start"])), tuple(one["length"])) for one in entry["pieces"]]

    def read(self, name: str, box: Box, length: tuple[int, ...]) -> Tensor:
        """Read the part of tensor `name` that starts at `box.start` and has the shape `length`, on the CPU.

        Raises `UsageError` where the checkpoint has no such tensor, or one of another shape.
        """
        entry = self._tensors.get(name)
        if entry is None or tuple(entry["shape"]) != box.shape:
            found = "is not in it" if entry is None else f"has the shape {entry['shape']}"
            raise UsageError(f"{self.folder} is a checkpoint of another model: {name} {found}",
                             hint=f"{list(box.shape)} is asked for")  # fmt: skip
        out: Tensor | None = None
        covered = 0
        for piece in entry["pieces"]:
            begins = [max(a, b) for a, b in zip(piece["start"], box.start, strict=True)]
            ends = [
                min(a + m, b + n) for a, m, b, n in zip(piece["start"], piece["length"], box.start, length, strict=True)
            ]
            if any(begin >= end for begin, end in zip(begins, ends, strict=True)):
                continue
            part = self._slice(piece["file"], name, begins, ends, piece["start"])
            if out is None:
                out = torch.empty(length, dtype=part.dtype)
            out[tuple(slice(a - s, b - s) for a, b, s in zip(begins, ends, box.start, strict=True))] = part
            covered += part.numel()
            self.read_bytes += part.nbytes
        if out is None or covered != out.numel():
            raise _damaged(self.folder / _MANIFEST, f"the shards of {name} do not make up the whole")
        return out

    def _slice(self, file: str, name: str, begins: list[int], ends: list[int], start: list[int]) -> Tensor:
        from safetensors import SafetensorError, safe_open

        try:
            if file not in self._files:
                self._files[file] = safe_open(self.folder / file, framework="pt")
            whole = self._files[file].get_slice(name)
            ranges = tuple(slice(a - s, b - s) for a, b, s in zip(begins, ends, start, strict=True))
            part: Tensor = whole[ranges] if ranges else self._files[file].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise _damaged(self.folder / file, error) from error
        return part


def _fresh(temporary: Path) -> None:
    for stale in temporary.parent.glob(".step-*"):  # of saves that were killed
        shutil.rmtree(stale, ignore_errors=True)
    temporary.mkdir(parents=True)


def _write(temporary: Path, rank: int, tensors: Mapping[str, tuple[Tensor, Box]]) -> None:
    from safetensors.torch import save_file

    path = temporary / f"rank-{rank:04d}.safetensors"
    save_file({name: tensor.detach().cpu().contiguous() for name, (tensor, _) in tensors.items()}, path)
    _sync(path)
    pieces = {
        name: {"shape": box.shape, "start": box.start, "length": tuple(tensor.shape)}
        for name, (tensor, box) in tensors.items()
    }
    write_atomically(temporary / f"rank-{rank:04d}.json", json.dumps(pieces))


def _finish(temporary: Path, folder: Path, step: int, about: Mapping[str, Any], ranks: int) -> None:
    """Write one manifest of all pieces, and the name by which it counts: rank 0, once all have written."""
    tensors: dict[str, Any] = {}
    files = {}
    written = sorted(temporary.glob("rank-*.json"))
    if len(written) != ranks:  # a file system that shows what others wrote later, or never
        raise OSError(f"the files of {len(written)} of {ranks} ranks are to be seen in {temporary}")
    for path in written:
        file = path.with_suffix(".safetensors")
        files[file.name] = file.stat().st_size
        for name, piece in json.loads(path.read_text()).items():
            entry = tensors.setdefault(name, {"shape": piece["shape"], "pieces": []})
            entry["pieces"].append({"file": file.name, "start": piece["start"], "length": piece["length"]})
        path.unlink()
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "step": step,
        "about": dict(about),
        "files": files,
        "tensors": tensors,
    }
    write_atomically(temporary / _MANIFEST, json.dumps(manifest, indent=1) + "\n")
    _sync(temporary)
    old = temporary.with_suffix(".old")
    if folder.exists():  # the same step once more
        os.replace(folder, old)
    os.replace(temporary, folder)
    shutil.rmtree(old, ignore_errors=True)
    _sync(folder.parent)
    write_atomically(folder.parent / "latest", folder.name + "\n")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _try(work: Callable[[], None]) -> str:
    """Do it, and return what went wrong, in words; "" for nothing. Ranks must stay together whatever happens to one."""
    from safetensors import SafetensorError

    try:
        work()
    except (OSError, SafetensorError) as error:
        return str(getattr(error, "strerror", None) or error)
    return ""


def _damaged(path: Path, why: object) -> CorruptFile:
    return CorruptFile(f"{path}: {why}", hint="the checkpoint is damaged: remove its folder to go on from an older one")
