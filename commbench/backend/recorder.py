"""CallRecorder: the observer that counts and times the calls of this process, and writes them down every few seconds.

On the host every call and every wait is timed. On a GPU some calls are, by events on the stream that the program
waits with: how long that stands still is what the program waits. A file is written at the end of a step, by the wall
clock: so all ranks write after the same one, and none waits for another's disk.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import platform
import sys
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.optim.optimizer import register_optimizer_step_post_hook

import commbench
from commbench import variables
from commbench.backend import observer
from commbench.backend.observer import GroupInfo, ObservedCall, ObservedWork
from commbench.record import rank_file
from commbench.record.rank_file import RankRecord
from commbench.record.sites import Sites
from commbench.record.tally import Entry, Tally

_DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "": "none"}
_MOST_STEPS = 8192  # that are kept
_MOST_GROUPS = 4096
_UNNAMED = ("", "undefined", "default_pg")  # descriptions that torch gives where the program gives none
_SLOTS_S = (0.5, 5.0)  # between two writes: at first, and later
_EARLY_S = 10.0
_FIRST_SAMPLED, _SAMPLED_EVERY = 4, 16  # calls of a kind that events time; the first ones connect ranks
_MOST_SEEN = 4096  # descriptions whose kinds are found at once
_MOST_PENDING = 64  # samples whose events have not happened yet


# A call under way: its kind, when it began, and a torch.cuda.Event where it is sampled on a GPU. No class, as each call
# makes one.
_Token = tuple[Entry, int, Any]


class _Sample(NamedTuple):
    """Events around one call on a GPU, and around what its stream waits for it."""

    entry: Entry
    work: Any  # dist.Work, which has more methods than its stubs; None of a call that the program's stream makes
    start: Any  # torch.cuda.Event, as the other two
    waits: Any
    ends: Any
    asynchronous: bool


class _KnownCall:
    """A description that the wrapper has given before, and the kinds of calls it stands for."""

    __slots__ = ("call", "entries")

    def __init__(self, call: ObservedCall) -> None:
        self.call = call  # kept alive, as another one would have its identity
        self.entries: dict[str, Entry] = {}  # by site


class CallRecorder:
    """What this process has called so far."""

    def __init__(self, folder: Path, salt: str = "", environ: Mapping[str, str] = os.environ) -> None:
        """Write into `folder`. salt: leave out hosts and paths; hosts are then told apart by a hash with it."""
        self._folder = folder
        self._salt = salt
        self._environ = environ
        self._tally = Tally()
        self._sites = Sites(names_only=bool(salt))
        self._seen: dict[int, _KnownCall] = {}  # by identity
        self._groups: dict[int, tuple[GroupInfo, int]] = {}  # by identity, as to hash all ranks takes long
        self._known: dict[tuple[str, tuple[int, ...]], int] = {}  # description, ranks -> place in the file
        self._rank = self._size = 0
        self._moved: dict[str, str] = {}  # the transport of each device whose tensors were sent
        self._steps: list[list[float]] = []
        self._ended = 0
        self._began_s = self._last_s = time.perf_counter()
        self._clock: weakref.ref[Any] | None = None  # the optimizer whose steps count
        self._explicit = False
        self._pending: list[_Sample] = []
        self._slot = 0
        self._pid = os.getpid()

    # What the wrapper tells.

    def group_created(self, group: GroupInfo) -> None:
        if not self._groups:
            self._rank = group.ranks[group.rank]
            self._size = dist.get_world_size() if dist.is_initialized() else len(group.ranks)
        name = "" if group.description in _UNNAMED else group.description
        if (name, group.ranks) in self._known or len(self._known) < _MOST_GROUPS:
            self._groups[id(group)] = group, self._known.setdefault((name, group.ranks), len(self._known))

    def begin(self, call: ObservedCall) -> _Token | None:
        site = self._sites.find(sys._getframe(1))
        seen = self._seen.get(id(call))
        entry = seen.entries.get(site) if seen is not None and seen.call is call else None
        if entry is not None:
            entry.count += 1
            entry.nbytes += call.nbytes
        else:
            entry = self._count(call, site)
            if entry is None:
                return None
        start = None
        if entry.sampled and entry.count % _SAMPLED_EVERY == _FIRST_SAMPLED:
            start = None if torch.cuda.is_current_stream_capturing() else _event()
        return entry, time.perf_counter_ns(), start

    def _count(self, call: ObservedCall, site: str) -> Entry | None:
        """Count a call that is not of a kind which its description has stood for before."""
        found = self._groups.get(id(call.group))
        if found is None:  # of more groups than are kept
            return None
        if call.nbytes and call.device not in self._moved:
            self._moved[call.device] = _transport(call)
        base = (found[1], call.collective, _DTYPES.get(call.dtype, call.dtype), call.asynchronous, site)
        entry = self._tally.count(base, call.nbytes, call.sent, call.received)
        entry.sampled = call.device == "cuda"
        if call.sent is None and not entry.merged:  # those are described, or counted, otherwise each time
            if len(self._seen) >= _MOST_SEEN:
                self._seen.clear()
            seen = self._seen.get(id(call))
            if seen is None or seen.call is not call:
                seen = self._seen[id(call)] = _KnownCall(call)
            seen.entries[site] = entry
        return entry

    def end(self, token: _Token | None, work: dist.Work | None) -> dist.Work | None:
        if token is None:
            return work
        entry, began_ns, start = token
        called_ns = time.perf_counter_ns()
        entry.host_us += (called_ns - began_ns) / 1e3
        if work is None:
            if start is not None and len(self._pending) < _MOST_PENDING:  # the stream itself has made the call
                self._pending.append(_Sample(entry, None, start, start, _event(), asynchronous=False))
            return None
        if entry.base[3] or entry.sampled:
            return _RecordedWork(work, token, self)
        # torch would wait at once, and finds it done: a work of our own around it would cost more than the call.
        try:
            work.wait()
        except Exception as error:
            return _FailedWork(work, error)
        entry.wait_us += (time.perf_counter_ns() - called_ns) / 1e3
        entry.wait_count += 1
        return work

    def failed(self, token: _Token | None, error: BaseException) -> None:
        self.write()

    # What the program waits.

    def waited(self, token: _Token, work: ObservedWork, timeout: tuple[Any, ...], named: Mapping[str, Any]) -> bool:
        """Wait for a call as the program does, and look at the clock before and after."""
        entry, _, start = token
        if entry.sampled:
            waits = _event() if start is not None else None
            done = work.inner.wait(*timeout, **named)
            if waits is not None and len(self._pending) < _MOST_PENDING:
                self._pending.append(_Sample(entry, work.inner, start, waits, _event(), entry.base[3]))
            return bool(done)
        began_ns = time.perf_counter_ns()
        done = work.inner.wait(*timeout, **named)
        entry.wait_us += (time.perf_counter_ns() - began_ns) / 1e3
        entry.wait_count += 1
        return bool(done)

    def _collect(self) -> None:
        """Take over what events have seen; those that have not happened yet wait for the next step."""
        later = []
        for sample in self._pending:
            if not sample.ends.query():
                later.append(sample)
                continue
            entry = sample.entry
            entry.wait_us += 1e3 * sample.waits.elapsed_time(sample.ends)
            entry.wait_count += 1
            took_us = _duration_us(sample)
            if took_us is not None:
                entry.device_us += took_us
                entry.device_count += 1
        self._pending = later

    # Steps.

    def optimizer_stepped(self, optimizer: Any) -> None:
        """End a step where this is the first optimizer that has ever stepped."""
        clock = self._clock() if self._clock is not None else None
        if clock is None:
            self._clock = weakref.ref(optimizer)
        elif clock is not optimizer:
            return
        if not self._explicit:
            self.step_ended()

    def step_said(self) -> None:
        """End a step where the program says so: optimizers do not count from then on."""
        self._explicit = True
        self.step_ended()

    def step_ended(self) -> None:
        now_s = time.perf_counter()
        self._steps.append([self._ended, round((now_s - self._last_s) * 1e6, 1)])
        self._last_s = now_s
        self._ended += 1
        self._tally.end_first_step()
        if len(self._steps) > _MOST_STEPS:
            self._steps = [*self._steps[:-1][::2], self._steps[-1]]
        if self._pending:
            self._collect()
        self._write_in_time(now_s)

    # The file.

    def _write_in_time(self, now_s: float) -> None:
        slot = int(time.time() / _SLOTS_S[now_s - self._began_s > _EARLY_S])
        if slot != self._slot:
            self._slot = slot
            self.write()

    def write(self) -> None:
        """Write what is known now; nothing in a process that was forked, or before the first call."""
        if not self._groups or os.getpid() != self._pid:
            return
        rank_file.write(
            self._folder,
            RankRecord(
                rank=self._rank,
                ranks=self._size,
                host=self._host(),
                transport=self._moved.get("cuda") or next(iter(self._moved.values()), ""),
                gpu=torch.cuda.get_device_name() if "cuda" in self._moved else "",
                versions={"commbench": commbench.__version__, "torch": str(torch.__version__)},
                group_names=[name for name, _ in self._known],
                group_ranks=[list(ranks) for _, ranks in self._known],
                calls=self._tally.lines(self._rank),
                steps=self._steps,
            ),
        )

    def _host(self) -> str:
        """Return the host's name. A node of an emulated cluster is a host of its own."""
        name = platform.node()
        if self._environ.get(variables.FABRIC):
            name += f"/{self._rank // max(1, int(self._environ.get('LOCAL_WORLD_SIZE') or 1))}"
        return hashlib.blake2b((self._salt + name).encode(), digest_size=8).hexdigest() if self._salt else name


class _RecordedWork(ObservedWork):
    """The work of a recorded call. The first wait of it is the program's; others find it done."""

    def __init__(self, inner: dist.Work, token: _Token, recorder: CallRecorder) -> None:
        dist.Work.__init__(self)  # as the base does, which would be one more call
        self.inner = inner
        self.token: _Token | None = token
        self.recorder = recorder

    def wait(self, *timeout: Any, **named: Any) -> bool:
        token = self.token
        if token is None:
            return bool(self.inner.wait(*timeout, **named))
        self.token = None
        return self.recorder.waited(token, self, timeout, named)


class _FailedWork(ObservedWork):
    """The work of a call for which the recorder has waited in vain: the program's own wait meets the same error."""

    def __init__(self, inner: dist.Work, error: Exception) -> None:
        super().__init__(inner)
        self.error = error

    def wait(self, *timeout: Any, **named: Any) -> bool:
        raise self.error


def _event() -> Any:
    event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def _duration_us(sample: _Sample) -> float | None:
    """Return what a call took on the GPU; None where that cannot be told."""
    try:
        if sample.work is None:
            return 1e3 * float(sample.start.elapsed_time(sample.ends))
        return 1e3 * float(sample.work._get_duration())  # with TORCH_NCCL_ENABLE_TIMING
    except (RuntimeError, AttributeError):
        return None if sample.asynchronous else 1e3 * sample.start.elapsed_time(sample.ends)


def _transport(call: ObservedCall) -> str:
    """Return what carries a call: nccl of `cpu:gloo,cuda:nccl` on a GPU."""
    of_device = dict(part.split(":", 1) for part in call.group.backend.split(",") if ":" in part)
    return of_device.get(call.device, call.group.backend)


_recorder: CallRecorder | None = None


def recorder() -> CallRecorder:
    """Return the recorder of this process, which writes where COMMBENCH_RECORD says."""
    global _recorder
    if _recorder is None:
        folder = Path(os.environ[variables.RECORD])
        made = _recorder = CallRecorder(folder, os.environ.get(variables.RECORD_SALT, ""))
        register_optimizer_step_post_hook(lambda optimizer, args, kwargs: _safely(made.optimizer_stepped, optimizer))
        atexit.register(_safely, made.write)
    return _recorder


def step_ended() -> None:
    """End a step of the program, where it is recorded."""
    if _recorder is not None:
        _safely(_recorder.step_said)


def _safely(function: Callable[..., None], *given: Any) -> None:
    """Call what a program does not ask for, so that it never fails because of it: as where the disk is full."""
    if observer.current is not None:
        try:
            function(*given)
        except Exception as error:
            observer.drop(error)
