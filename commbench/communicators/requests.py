"""What a caller asks for: tensors and counts, checked before a library sees them. Nothing here talks to other ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import index
from typing import NamedTuple

import torch

from commbench import collectives
from commbench.communicators.select import Matrix, defaults, size_of
from commbench.errors import UsageError, unknown
from commbench.layout import Layout
from commbench.spec import Value
from commbench.transports.gloo import KINDS, OPS

_STRIDED = torch.strided
_NAMES = {kind: name for name, kind in KINDS.items()}  # dtypes that can be combined


class CallContext(NamedTuple):
    """The rank, group and device that calls are made on."""

    rank: int
    size: int
    layout: Layout
    device: torch.device

    on_cpu: bool
    gpu: int | None  # its index

    def fine(self, tensor: torch.Tensor) -> bool:
        """Return whether nothing is wrong with it, in half a microsecond. It may be right although this says no."""
        return (
            isinstance(tensor, torch.Tensor)
            and (tensor.is_cpu if self.on_cpu else tensor.get_device() == self.gpu)
            and tensor.layout is _STRIDED
            and tensor.is_contiguous()
            and not tensor.requires_grad
        )


class CallRequest(NamedTuple):
    """A call that has been checked."""

    collective: str
    out: torch.Tensor
    inp: torch.Tensor
    size_bytes: int  # nccl-tests' column; 0 where the ranks do not know it
    key: tuple[object, ...] = ()  # what differs between calls on the same tensors
    dtype: str = "uint8"  # of a reduction
    arguments: tuple[tuple[str, Value], ...] = ()
    in_place: bool = False
    counts: tuple[list[int], list[int]] | None = None  # of all_to_allv: bytes received and sent, by rank
    matrix: Matrix | None = None  # bytes from rank i to rank j


def all_to_all(context: CallContext, out: torch.Tensor, inp: torch.Tensor) -> CallRequest:
    _check("all_to_all", context, out, inp)
    if _is_done(context, out, inp):
        return CallRequest("all_to_all", out, inp, inp.nbytes, in_place=True)
    _check_equal_blocks("all_to_all", out, inp, context.size)
    return CallRequest("all_to_all", out, inp, inp.nbytes)


def all_to_allv(
    context: CallContext, out: torch.Tensor, inp: torch.Tensor, received: Sequence[int], sent: Sequence[int],
    matrix: Sequence[Sequence[int]] | None = None,
) -> CallRequest:  # fmt: skip
    name = "all_to_allv"
    _check(name, context, out, inp)
    if out.dim() == 0 or out.shape[1:] != inp.shape[1:]:
        raise UsageError(
            f"{name}: out is {tuple(out.shape)}, inp is {tuple(inp.shape)}",
            hint="counts are of rows, so all dimensions but the first are the same in both",
        )
    for what, counts, which, tensor in (("received", received, "out", out), ("sent", sent, "inp", inp)):
        check_counts(name, what, counts, context.size)
        if sum(counts) != tensor.shape[0]:
            raise UsageError(
                f"{name}: {what} adds up to {sum(counts)} rows, and {which} has {tensor.shape[0]}",
                hint=f"give {which} as many rows as {what} says",
            )
    if _is_done(context, out, inp):
        return CallRequest(name, out, inp, inp.nbytes, in_place=True)
    _check_no_overlap(name, out, inp)
    row = inp.itemsize
    for length in inp.shape[1:]:
        row *= length
    # Numpy's integers would wrap around.
    nbytes = [index(count) * row for count in received], [index(count) * row for count in sent]
    key = tuple(received), tuple(sent)
    if matrix is None:
        return CallRequest(name, out, inp, 0, key, counts=nbytes)
    if len(matrix) != context.size:
        raise UsageError(f"{name}: matrix has {len(matrix)} rows", hint=f"{context.size} rows, one for each rank")
    for src, line in enumerate(matrix):
        check_counts(name, f"row {src} of matrix", line, context.size)
    mine, column = list(matrix[context.rank]), [line[context.rank] for line in matrix]
    if mine != list(sent) or column != list(received):
        raise UsageError(
            f"{name}: by matrix rank {context.rank} sends {mine} and receives {column}, by the counts it sends "
            f"{list(sent)} and receives {list(received)}",
            hint="matrix[i][j] is what rank i sends to rank j, in rows, the same on all ranks: see exchange_counts",
        )
    known = tuple(tuple(int(count) * row for count in line) for line in matrix)
    return CallRequest(name, out, inp, size_of(known), key, counts=nbytes, matrix=known)


def _is_done(context: CallContext, out: torch.Tensor, inp: torch.Tensor) -> bool:
    """Return whether an exchange has nothing to do: of one rank with itself, in place."""
    return context.size == 1 and out.data_ptr() == inp.data_ptr() and out.nbytes == inp.nbytes


def all_gather(context: CallContext, out: torch.Tensor, inp: torch.Tensor) -> CallRequest:
    _check("all_gather", context, out, inp)
    in_place = _is_own_part("all_gather", context, out, inp, ("out", "inp"))
    return CallRequest("all_gather", out, inp, out.nbytes, in_place=in_place)


def reduce_scatter(context: CallContext, out: torch.Tensor, inp: torch.Tensor, op: str = "sum") -> CallRequest:
    _check("reduce_scatter", context, out, inp)
    dtype = _reduction_dtype("reduce_scatter", inp, op)
    in_place = _is_own_part("reduce_scatter", context, inp, out, ("inp", "out"))
    return CallRequest("reduce_scatter", out, inp, inp.nbytes, (op,), dtype, (("op", op),), in_place)


def all_reduce(
    context: CallContext, out: torch.Tensor, inp: torch.Tensor | None = None, op: str = "sum"
) -> CallRequest:
    inp = out if inp is None else inp
    _check("all_reduce", context, out, inp)
    dtype = _reduction_dtype("all_reduce", inp, op)
    in_place = out.data_ptr() == inp.data_ptr() and out.numel() == inp.numel()
    if not in_place:
        _check_equal_blocks("all_reduce", out, inp, 1)
    return CallRequest("all_reduce", out, inp, inp.nbytes, (op,), dtype, (("op", op),), in_place)


def broadcast(context: CallContext, tensor: torch.Tensor, root: int = 0) -> CallRequest:
    _check("broadcast", context, tensor)
    if not 0 <= root < context.size:
        raise UsageError(f"broadcast: root is {root}", hint=f"the ranks of the group are 0 .. {context.size - 1}")
    return CallRequest("broadcast", tensor, tensor, tensor.nbytes, (root,), arguments=(("root", root),), in_place=True)


def tp_all_to_all(
    context: CallContext, out: torch.Tensor, inp: torch.Tensor, tp: int | None = None, tp_input: str = "replicated"
) -> CallRequest:
    name = "tp_all_to_all"
    _check(name, context, out, inp)
    if tp_input not in ("replicated", "partial"):
        raise UsageError(f"{name}: tp_input is {tp_input!r}", hint="replicated or partial")
    dtype = _reduction_dtype(name, inp, "sum") if tp_input == "partial" else "uint8"
    asked: dict[str, Value] = {"tp_input": tp_input, **({} if tp is None else {"tp": tp})}
    arguments = settle_arguments(name, context.layout, inp.nbytes, asked)
    _check_equal_blocks(name, out, inp, context.size // int(dict(arguments)["tp"]))
    return CallRequest(name, out, inp, inp.nbytes, (tp, tp_input), dtype, arguments)


def settle_arguments(
    name: str, layout: Layout, size_bytes: int, given: Mapping[str, Value]
) -> tuple[tuple[str, Value], ...]:
    """Return the arguments of a collective by name, as calls have them, where `given` says a part of them.

    Raises `UsageError` for one that the collective does not have, and where the layout does not allow them.
    """
    collective = collectives.get(name)
    for key in given:
        if key not in collective.arguments:
            raise unknown(f"argument of {name}", key, collective.arguments)
    arguments: Mapping[str, Value] = {**defaults(name), **given}
    if name == "tp_all_to_all":
        try:
            _, arguments = collective.settle(size_bytes, layout, arguments)
        except ValueError as error:
            raise UsageError(
                f"{name}: {error}", hint="tp divides the ranks of a node, and is less than all ranks"
            ) from error
    return tuple(sorted(arguments.items()))


def check_counts(name: str, what: str, counts: Sequence[int], ranks: int) -> None:
    """Raise `UsageError` where `counts` are not one of 0 or more for each of the ranks."""
    if len(counts) != ranks or min(counts) < 0:
        raise UsageError(f"{name}: {what} is {list(counts)}", hint=f"{ranks} counts of 0 or more, one for each rank")


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Return the same memory as flat bytes, in no graph of autograd's."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    return tensor.view(-1).view(torch.uint8)


def _check(name: str, context: CallContext, *tensors: torch.Tensor) -> None:
    """Raise `UsageError` for what no collective can do with: the wrong kind, device, layout or dtype."""
    if all(map(context.fine, tensors)) and tensors[0].dtype is tensors[-1].dtype:
        return
    what = ("out", "inp") if len(tensors) == 2 else ("tensor",)
    for which, tensor in zip(what, tensors, strict=True):
        if not isinstance(tensor, torch.Tensor):
            raise UsageError(f"{name}: {which} is a {type(tensor).__name__}", hint="give torch tensors")
        if tensor.device != context.device:
            raise UsageError(
                f"{name}: {which} is on {tensor.device}, and this communicator is on {context.device}",
                hint=f"move it with .to({str(context.device)!r}), or make it with comm.empty()",
            )
        if tensor.layout is not torch.strided or not tensor.is_contiguous():
            strides = f", strides {tensor.stride()}" if tensor.layout is torch.strided else f", {tensor.layout}"
            raise UsageError(
                f"{name}: {which} is not contiguous: shape {tuple(tensor.shape)}{strides}",
                hint="call .contiguous() yourself: commbench never copies unasked",
            )
        if tensor.requires_grad and torch.is_grad_enabled():
            raise UsageError(
                f"{name}: {which} requires a gradient, which would be lost here",
                hint=f"comm.autograd.{name}(inp) carries it; else call under torch.no_grad(), or with .detach()",
            )
    if tensors[0].dtype is not tensors[-1].dtype:
        raise UsageError(f"{name}: out is {tensors[0].dtype}, inp is {tensors[1].dtype}", hint="give both one dtype")


def _reduction_dtype(name: str, tensor: torch.Tensor, op: str) -> str:
    """Return the dtype's name, as specs have it."""
    if op not in OPS:
        raise UsageError(f"{name}: op is {op!r}", hint=f"one of {', '.join(OPS)}")
    if tensor.dtype not in _NAMES:
        raise UsageError(f"{name} does not combine {tensor.dtype}", hint=f"one of {', '.join(map(str, _NAMES))}")
    return _NAMES[tensor.dtype]


def _check_equal_blocks(name: str, out: torch.Tensor, inp: torch.Tensor, blocks: int) -> None:
    if out.numel() != inp.numel():
        raise UsageError(
            f"{name}: out has {out.numel()} elements {tuple(out.shape)}, inp has {inp.numel()} {tuple(inp.shape)}",
            hint="give both the same number of elements",
        )
    if inp.numel() % blocks:
        raise UsageError(
            f"{name}: {inp.numel()} elements {tuple(inp.shape)} are no {blocks} equal blocks",
            hint=f"pad to a multiple of {blocks} elements, or use all_to_allv",
        )
    _check_no_overlap(name, out, inp)


def _is_own_part(
    name: str, context: CallContext, whole: torch.Tensor, part: torch.Tensor, names: tuple[str, str]
) -> bool:
    """Return whether `part` is this rank's own part of `whole`, which has those of all ranks.

    Raises `UsageError` where the sizes do not fit, or the two overlap otherwise.
    """
    if whole.numel() != part.numel() * context.size:
        raise UsageError(
            f"{name}: {names[0]} has {whole.numel()} elements {tuple(whole.shape)}, {names[1]} has {part.numel()} "
            f"{tuple(part.shape)}",
            hint=f"with {context.size} ranks {names[0]} has {context.size} times the elements of {names[1]}",
        )
    if part.data_ptr() == whole.data_ptr() + context.rank * part.nbytes:
        return True
    _check_no_overlap(name, whole, part)
    return False


def _check_no_overlap(name: str, one: torch.Tensor, two: torch.Tensor) -> None:
    at, other = one.data_ptr(), two.data_ptr()
    if one.nbytes and two.nbytes and at < other + two.nbytes and other < at + one.nbytes:
        raise UsageError(f"{name}: out and inp overlap in memory", hint="give it a buffer apart: torch.empty_like(inp)")
