"""Tally: calls of one rank by kind, in bounded memory, however many sizes and splits a program has.

Kinds are told apart by what is the same in every step. Where a program sends other sizes each time, the first ones are
kept and the rest is merged by class of size (a factor of two). Of uneven exchanges the splits of some calls are kept,
chosen by their number alone: so all ranks keep the same calls, and what each rank sent to each can be put together.
"""

from __future__ import annotations

from commbench.record.trace import TracedCalls

MOST_SIZES = 32  # of one site, before they are merged
MOST_KINDS = 4096  # of a rank, before sites are merged too
MOST_SPLITS = 512  # of a rank, before only their sizes are kept
_FIRST_KEPT = 16  # exchanges of a site in a group, whose splits are all kept
_PER_OCTAVE = 8  # of the next ones about so many between n and 2 n

Splits = tuple[int, ...]
Base = tuple[int, str, str, bool, str]  # group, collective, dtype, async, site


def keeps_splits(number: int) -> bool:
    """Return whether the splits of the exchange with this number, from 0, are kept.

    Drawn by a hash, as every 8th call would always be of the same layer.
    """
    if number < _FIRST_KEPT:
        return True
    mixed = (number * 0x9E3779B97F4A7C15) & (2**64 - 1)
    return (mixed >> 32) % (1 << (number.bit_length() - 1) >> (_PER_OCTAVE.bit_length() - 1)) == 0


class Entry:
    """Calls of one kind so far. Times in microseconds."""

    __slots__ = (
        "base", "count", "device_count", "device_us", "host_us", "merged", "nbytes", "received", "sampled", "sent",
        "sequences", "setup", "wait_count", "wait_us",
    )  # fmt: skip

    def __init__(self, base: Base, sent: Splits | None, received: Splits | None, *, merged: bool) -> None:
        self.base, self.sent, self.received, self.merged = base, sent, received, merged
        self.count = self.nbytes = 0  # bytes of all calls
        self.host_us = 0.0
        self.wait_us, self.wait_count = 0.0, 0  # of the calls whose wait was seen, how many those are
        self.device_us, self.device_count = 0.0, 0
        self.sampled = False  # whether some waits alone are seen, by events
        self.sequences: list[int] = []
        self.setup: tuple[int, float, float] = (0, 0.0, 0.0)  # count, host and wait when the first step ended

    def line(self, rank: int) -> TracedCalls:
        """Return the line of a trace. What only some calls were timed for stands for all of them."""
        group, collective, dtype, async_op, site = self.base
        setup_count, setup_host_us, setup_wait_us = self.setup
        device = self.device_us / self.device_count if self.device_count else None
        wait = self.wait_us * self.count / self.wait_count if self.wait_count else None
        if wait is not None and self.sampled:  # the first calls were not timed
            setup_wait_us = wait * setup_count / self.count
        return TracedCalls(
            rank=rank,
            group=group,
            collective=collective,
            dtype=dtype,
            nbytes=round(self.nbytes / self.count),
            sent=None if self.sent is None else list(self.sent),
            received=None if self.received is None else list(self.received),
            async_op=async_op,
            site=site,
            count=self.count,
            host_us=round(self.host_us, 3),
            device_us=None if device is None else round(device * self.count, 3),
            wait_us=None if wait is None else round(wait, 3),
            setup_count=setup_count,
            setup_host_us=round(setup_host_us, 3),
            setup_device_us=None if device is None else round(device * setup_count, 3),
            setup_wait_us=None if wait is None else round(min(setup_wait_us, wait), 3),
            sequences=self.sequences or None,
            merged=self.merged,
        )


class Tally:
    """All kinds of calls of one rank."""

    def __init__(self) -> None:
        self._entries: dict[tuple[object, ...], Entry] = {}
        self._sizes: dict[Base, int] = {}  # kept of each
        self._numbers: dict[tuple[int, str], int] = {}  # uneven exchanges so far, by group and site
        self._splits = 0
        self._first_step_ended = False

    def count(self, base: Base, nbytes: int, sent: Splits | None = None, received: Splits | None = None) -> Entry:
        """Count one call, and return the entry to which its times are to be added."""
        key = (base, nbytes) if sent is None else (base, sent, received)
        number = -1
        if sent is not None:
            number = self._numbers.get((base[0], base[4]), 0)
            self._numbers[base[0], base[4]] = number + 1
        entry = self._entries.get(key)
        if entry is None:
            entry = self._new(base, nbytes, sent, received, keeps_splits(number) if number >= 0 else True, key)
        elif number >= 0 and keeps_splits(number):
            entry.sequences.append(number)
        entry.count += 1
        entry.nbytes += nbytes
        return entry

    def _new(
        self, base: Base, nbytes: int, sent: Splits | None, received: Splits | None, kept: bool, key: tuple[object, ...]
    ) -> Entry:
        """Return the entry of a kind not seen before, or of the class with which it is merged."""
        full = len(self._entries) >= MOST_KINDS
        if sent is not None:
            kept = kept and not full and self._splits < MOST_SPLITS
            if kept:
                self._splits += 1
                entry = self._entries[key] = Entry(base, sent, received, merged=False)
                entry.sequences.append(self._numbers[base[0], base[4]] - 1)
                return entry
        else:
            self._sizes[base] = self._sizes.get(base, 0) + 1
            if not full and self._sizes[base] <= MOST_SIZES:
                entry = self._entries[key] = Entry(base, None, None, merged=False)
                return entry
        if full:
            base = (*base[:4], "")
        merged_key = (base, "merged", nbytes.bit_length())
        entry = self._entries.get(merged_key) or Entry(base, None, None, merged=True)
        self._entries[merged_key] = entry
        return entry

    def end_first_step(self) -> None:
        """Remember what all has cost until now."""
        if not self._first_step_ended:
            self._first_step_ended = True
            for entry in self._entries.values():
                entry.setup = (entry.count, entry.host_us, entry.wait_us)

    def lines(self, rank: int) -> list[TracedCalls]:
        """Return the lines of a trace, of this rank."""
        return [entry.line(rank) for entry in self._entries.values()]
