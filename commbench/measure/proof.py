"""The proof of an algorithm: on many layouts every block arrives, and the messages are those that it declares.

Ranks are threads over the scripted transport, which sends and delivers at the latest moment that is allowed. So no GPU
and no network is needed, it takes seconds, and what a timed run would show now and then shows always.
"""

from __future__ import annotations

import inspect
import itertools
import threading
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from commbench import collectives
from commbench.algorithms.base import Algorithm
from commbench.errors import said
from commbench.layout import Layout
from commbench.measure import buffers, diagnosis
from commbench.measure.verify import Checker
from commbench.spec import Spec, Step
from commbench.transports.scripted.mesh import Deadlock, thread_meshes
from commbench.transports.scripted.transport import Scripted

LAYOUTS = ((1, 2), (2, 1), (1, 3), (3, 1), (2, 2), (1, 5), (2, 3), (3, 2), (1, 7), (2, 4), (3, 3), (3, 5), (4, 4))
_SMALL = ((2, 2), (1, 4))  # layouts for blocks below 16 bytes
_SEED = 5
_TOO_LONG_S = 60.0  # for two calls of a few hundred bytes
_CALLS = ("the first call", "the second call")
_SPLITS: tuple[Mapping[str, Any], ...] = ({}, {"splits": "linear"}, {"splits": "zipf", "alpha": 1.5})


@dataclass(slots=True)
class LayoutProof:
    """What was found on one layout."""

    layout: Layout
    refused: str = ""  # why nothing could run there, in the algorithm's or the collective's words
    runs: int = 0  # calls of all ranks with their own size, dtype and parameters
    messages: int | None = None  # of the first of them, all ranks together; None: steps() says nothing
    nbytes: int = 0
    wrong: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _OnRank:
    """What one rank has done, and what went wrong there."""

    transport: Scripted
    wrong: str = ""
    error: Exception | None = None


def prove(algorithm: Algorithm) -> list[LayoutProof]:
    """Run an algorithm on every layout of `LAYOUTS`, and return what was found on each."""
    return [_on_layout(algorithm, Layout(*shape)) for shape in LAYOUTS]


def first_wrong(algorithm: Algorithm) -> str:
    """Return in one line the first thing that is wrong with an algorithm; "" where it is proved."""
    proofs = prove(algorithm)
    for proof in proofs:
        if proof.wrong:
            return f"on layout {proof.layout}, {proof.wrong[0]}"
    if not any(proof.runs for proof in proofs):
        return f"it runs on no layout: {proofs[-1].refused}"
    return ""


def _on_layout(algorithm: Algorithm, layout: Layout) -> LayoutProof:
    proof = LayoutProof(layout)
    for spec in _specs(algorithm, layout):
        if isinstance(spec, str):
            proof.refused = proof.refused or spec
            continue
        proof.wrong = examine(algorithm, spec)
        proof.runs += 1
        if proof.runs == 1 and (steps := algorithm.steps(spec)) is not None:
            sends = [send for step in steps for send in step.sends]
            proof.messages, proof.nbytes = len(sends), sum(send.nbytes for send in sends)
        if proof.wrong:
            proof.wrong[:] = [f"{_name(spec)}: {text}" for text in proof.wrong[:3]]
            break
    return proof


def _name(spec: Spec) -> str:
    words = [f"{spec.size_bytes} B", spec.dtype, *(f"{key}={value}" for key, value in spec.params.items())]
    return ", ".join(words)


def _specs(algorithm: Algorithm, layout: Layout) -> Iterator[Spec | str]:
    """Yield what to run on a layout, or in words why it cannot be run."""
    tries = {key: [value, *algorithm.tries.get(key, ())] for key, (value, _) in algorithm.params.items()}
    params = [dict(zip(tries, values, strict=True)) for values in itertools.product(*tries.values())]
    asked = _SPLITS if algorithm.collective == "all_to_allv" else ({},)
    for arguments, given in itertools.product(asked, [dict(items) for items in dict.fromkeys(map(_items, params))]):
        yield spec_of(algorithm, layout, size_bytes=layout.ranks * 16 * 5, asked=arguments, params=given)
    if (layout.nodes, layout.ranks_per_node) in _SMALL:
        for dtype, part in (("uint8", 1), ("bf16", 2), ("fp32", 4), ("uint8", 8)):
            yield spec_of(algorithm, layout, size_bytes=layout.ranks * part, asked={}, params=params[0], dtype=dtype)


def _items(params: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    return tuple(params.items())


def spec_of(
    algorithm: Algorithm,
    layout: Layout,
    *,
    size_bytes: int,
    asked: Mapping[str, Any],
    params: Mapping[str, int],
    dtype: str = "fp32",
) -> Spec | str:
    """Return the spec of a call, or in words why the collective or the algorithm cannot do it."""
    collective = collectives.get(algorithm.collective)
    defaults = {key: item.default for key, item in collective.arguments.items() if item.default is not None}
    try:
        size, arguments = collective.settle(size_bytes, layout, {**defaults, **algorithm.demands, **asked})
    except ValueError as error:
        return str(error)
    spec = Spec(
        collective=algorithm.collective,
        dtype=dtype,
        size_bytes=size,
        layout=layout,
        params=params,
        arguments=arguments,
        buffers="symmetric" if algorithm.one_sided else "plain",
    )
    return collective.unsupported(spec) or algorithm.unsupported(spec) or spec


def examine(algorithm: Algorithm, spec: Spec) -> list[str]:
    """Call an algorithm twice on all ranks; return in words what is wrong with it. Empty: nothing is."""
    try:
        steps = algorithm.steps(spec)
        wrong = [] if steps is None else _of_steps(steps, spec)
    except Exception as error:
        return [f"steps() raises {said(error)}"]
    if wrong:
        return wrong
    ranks = _run(algorithm, spec)
    if failed := [rank for rank in ranks if rank.error is not None]:
        # Where one rank fails, the others wait for it: what they say is no news.
        first = next((rank for rank in failed if not isinstance(rank.error, Deadlock)), failed[0])
        assert first.error is not None
        if isinstance(first.error, Deadlock):
            return [f"ranks wait for each other for ever: rank {first.transport.rank} {first.error}"]
        return [f"rank {first.transport.rank} raises {said(first.error)}{_place(algorithm, first.error)}"]
    if unended := [rank.wrong for rank in ranks if rank.transport.pending]:
        return unended[:1]
    if steps is not None:
        wrong += _of_messages(algorithm, steps, [rank.transport for rank in ranks])
    wrong += [rank.wrong for rank in ranks if rank.wrong][:1]
    allocated, said_bytes = {sum(rank.transport.allocated) for rank in ranks}, algorithm.scratch_bytes(spec)
    if allocated != {said_bytes}:
        wrong.append(f"prepare() allocates {max(allocated)} B on a rank, and scratch_bytes() says {said_bytes} B")
    return wrong


def _place(algorithm: Algorithm, error: Exception) -> str:
    """Return where in the algorithm's own file an error was raised."""
    file = inspect.getsourcefile(type(algorithm))
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f", in {frames[-1].name}(), line {frames[-1].lineno} of {Path(frames[-1].filename).name}" if frames else ""


def _of_steps(steps: Sequence[Step], spec: Spec) -> list[str]:
    """Return what no steps can be."""
    known: list[str] = []
    for step in steps:
        if step.name in known:
            return [f"steps() has two steps named {step.name!r}"]
        if late := [name for name in step.after if name not in known]:
            return [f"step {step.name!r} comes after {late[0]!r}, which steps() does not list before it"]
        known.append(step.name)
        for send in step.sends:
            if not (0 <= send.src < spec.ranks and 0 <= send.dst < spec.ranks):
                where = f"from rank {send.src} to rank {send.dst} in step {step.name!r}"
                return [f"steps() sends {where}, and there are ranks 0 to {spec.ranks - 1}"]
            if send.src == send.dst or send.nbytes <= 0:
                return [f"step {step.name!r} sends {send.nbytes} B from rank {send.src} to rank {send.dst}: no message"]
    return []


def _run(algorithm: Algorithm, spec: Spec) -> list[_OnRank]:
    """Make two calls on all ranks, which are threads."""
    meshes = thread_meshes(spec.ranks)
    shape = spec.layout.nodes, spec.layout.ranks_per_node
    ranks = [_OnRank(Scripted({"layout": shape})) for _ in meshes]

    def body(rank: int) -> None:
        mine = ranks[rank]
        try:
            mine.transport.attach(meshes[rank])
            mine.transport.counting = True
            mine.wrong = _calls(algorithm, spec, mine.transport)
        except Exception as error:
            mine.error = error
        finally:
            meshes[rank].leave()

    threads = [threading.Thread(target=body, args=(rank,), daemon=True) for rank in range(spec.ranks)]
    for thread in threads:
        thread.start()
    for rank, thread in enumerate(threads):
        thread.join(_TOO_LONG_S)
        if thread.is_alive():
            ranks[rank].error = TimeoutError(f"it does not come back within {_TOO_LONG_S:g} s")
    return ranks


def _calls(algorithm: Algorithm, spec: Spec, transport: Any) -> str:
    """Call it by `start`, then by what `bind` gives; return in words what is wrong with the output or the input."""
    collective = collectives.get(spec.collective)
    ((out, inp),) = buffers.allocate(transport, collective, spec, transport.rank, 1, one_sided=algorithm.one_sided)
    transport.allocated.clear()
    bound = algorithm.prepare(transport.world, spec)
    (ready,) = bound.bind([(out, inp)])
    checker = Checker(transport, collective, spec, transport.rank, _SEED)
    text = ""
    for salt, call in enumerate((lambda: bound.start(out, inp), ready)):
        checker.poison(out, salt)
        checker.fill_input(inp, salt)  # which in place is a part of the output
        assert spec.in_place or checker.count_wrong(out, salt) == len(out) // spec.itemsize
        transport.log.clear()
        transport.began.clear()
        if (work := call()) is not None:
            work.wait()
        if transport.pending:
            left = ", ".join(repr(exchange.step) for exchange in transport.pending)
            return f"rank {transport.rank} never waits for what it started in step {left}"
        (difference,) = checker.read([checker.compare(out, salt)])
        if difference.elements and not text:
            seen = diagnosis.examine(checker, difference, salt)
            text = diagnosis.describe(transport.rank, seen, _CALLS, list(range(spec.ranks)))
        if not spec.in_place and bytes(inp) != checker.input.whole(salt).tobytes():  # type: ignore[call-overload]
            text = text or f"rank {transport.rank} has written to its input, which is the caller's"
    bound.close()
    return text


def _of_messages(algorithm: Algorithm, steps: Sequence[Step], transports: Sequence[Scripted]) -> list[str]:
    """Compare what was sent, and in which order, with what was declared."""
    seen = Counter(entry for transport in transports for entry in transport.log)
    declared = Counter((step.name, *send) for step in steps for send in step.sends)
    if seen != declared:
        return [_difference(declared, seen)]
    before = all_before(steps)
    for transport in transports:
        for place, (name, flying) in enumerate(transport.began):
            where = f"rank {transport.rank} starts step {name!r}"
            if flying and not algorithm.concurrent:
                return [f"{where} while {flying[0]!r} is in flight: wait for that first, or set concurrent = True"]
            finished = {other for other, _ in transport.began[:place]} - set(flying)
            if early := sorted(before[name] - finished):
                return [f"{where} before it has waited for {early[0]!r}, after which steps() has it"]
            if late := sorted(finished - before[name]):
                return [f"{where} after it has waited for {late[0]!r}, and steps() does not say so in after="]
            kinds = [other.partition("-")[0] for other in (*flying, name)]
            if len(kinds) > len(set(kinds)):
                return [f"{where} while another exchange of its kind is in flight"]
    return []


def _difference(declared: Counter[tuple[str, int, int, int]], seen: Counter[tuple[str, int, int, int]]) -> str:
    """Say which message is not as declared."""
    totals = [f"{sum(each.values())} messages of {_bytes(each)} B" for each in (declared, seen)]
    text = f"steps() declares {totals[0]} in all, and {totals[1]} are sent"
    said_alone, sent_alone = sorted(declared - seen), sorted(seen - declared)
    for step, src, dst, nbytes in said_alone[:1]:
        text += f"; step {step!r}, rank {src} to rank {dst}: {nbytes} B declared"
        others = [entry for entry in sent_alone if entry[:3] == (step, src, dst)]
        text += f", {others[0][3]} B sent" if others else " and not sent"
    for step, src, dst, nbytes in sent_alone[:1] if not said_alone else ():
        text += f"; step {step!r}, rank {src} to rank {dst}: {nbytes} B sent and not declared"
    return text


def _bytes(messages: Counter[tuple[str, int, int, int]]) -> int:
    return sum(entry[3] * count for entry, count in messages.items())


def all_before(steps: Sequence[Step]) -> dict[str, set[str]]:
    """Return of each step what is finished before it begins."""
    before: dict[str, set[str]] = {}
    for step in steps:
        before[step.name] = set(step.after).union(*(before[name] for name in step.after))
    return before
