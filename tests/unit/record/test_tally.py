"""A rank's calls in bounded memory."""

from __future__ import annotations

from commbench.record import tally
from commbench.record.tally import Tally, keeps_splits

BASE = (0, "all_to_all", "bf16", False, "moe.py:20")
UNEVEN = (0, "all_to_allv", "bf16", False, "moe.py:30")


def test_calls_of_one_kind_are_one_line() -> None:
    table = Tally()
    for _ in range(1000):
        entry = table.count(BASE, 4096)
        entry.host_us += 2
    (line,) = table.lines(3)
    assert (line.rank, line.nbytes, line.count, line.host_us, line.wait_us, line.merged) == (
        3,
        4096,
        1000,
        2000,
        None,
        False,
    )


def test_many_sizes_are_merged_by_class_and_no_byte_is_lost() -> None:
    table = Tally()
    sizes = [1000 + 8 * number for number in range(5000)]
    for size in sizes:
        table.count(BASE, size)
    lines = table.lines(0)
    assert len(lines) < tally.MOST_SIZES + 10
    assert sum(line.count for line in lines) == len(sizes)
    assert abs(sum(line.count * line.nbytes for line in lines) / sum(sizes) - 1) < 1e-3
    merged = [line for line in lines if line.merged]
    assert merged and all(2 ** (line.nbytes.bit_length() - 1) <= line.nbytes for line in merged)


def test_many_splits_are_merged_and_what_is_kept_is_kept_by_all_ranks() -> None:
    tables = Tally(), Tally()
    for number in range(20_000):
        tables[0].count(UNEVEN, number + 1, (number, 1), (number, 0))
        tables[1].count(UNEVEN, 100, (50, 50), (50, 50))  # whose splits never change
    kept = [sorted(number for line in table.lines(0) for number in line.sequences or ()) for table in tables]
    assert kept[0] == kept[1] and kept[0][:16] == list(range(16))
    assert 60 < len(kept[0]) < 200 and kept[0][-1] > 10_000
    assert len(tables[0].lines(0)) < 250 and len(tables[1].lines(0)) == 1
    assert sum(line.count for line in tables[0].lines(0)) == 20_000


def test_what_is_kept_is_not_always_of_the_same_layer() -> None:
    """12 layers call from one line, one after the other."""
    layers = [number % 12 for number in range(100_000) if keeps_splits(number)]
    assert len({*layers[16:]}) == 12


def test_sites_are_merged_where_there_are_too_many() -> None:
    table = Tally()
    for number in range(2 * tally.MOST_KINDS):
        table.count((0, "all_gather", "fp32", False, f"generated.py:{number}"), 1024)
    assert len(table.lines(0)) <= tally.MOST_KINDS + 1
    assert sum(line.count for line in table.lines(0)) == 2 * tally.MOST_KINDS


def test_what_some_calls_were_timed_for_stands_for_all() -> None:
    table = Tally()
    for number in range(10):
        entry = table.count(BASE, 1024)
        if number % 5 == 0:
            entry.device_us += 30
            entry.device_count += 1
    table.end_first_step()
    table.count(BASE, 1024)
    (line,) = table.lines(0)
    assert line.device_us == 330 and line.setup_device_us == 300 and line.setup_count == 10
