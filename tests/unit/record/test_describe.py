"""A trace in words, and as a picture."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from commbench.layout import Layout
from commbench.output.answer import traced
from commbench.plots import program_trace
from commbench.record import describe
from commbench.record.exchanges import TracedExchange, exchanges
from commbench.record.ways import layout_of, several_ways
from tests.support import traces

ONE = TracedExchange(
    collective="all_to_all", site="moe.py:214", async_op=True, dtype="bf16", ranks=8, groups=1, calls=96,
    nbytes=24 * 2**20, least_bytes=24 * 2**20, most_bytes=24 * 2**20, time_us=31_000, exposed_us=12_000, late_us=0,
    skew=1.7,
)  # fmt: skip


def test_an_exchange_is_a_sentence() -> None:
    said = describe.sentence(ONE, 100_000)
    assert said == (
        "96 all-to-alls of 24 MiB a step over 8 ranks: 31 % of the step, 12 % exposed; skew 1.7; moe.py:214"
    )
    alone = replace(ONE, calls=1.0, groups=2, least_bytes=2**20, late_us=6000, skew=1.0, site="", time_us=None)
    assert describe.sentence(alone, 100_000) == (
        "1 all-to-all of 1 MiB to 24 MiB (mean 24 MiB) a step over 8 ranks in 2 groups: 12 % exposed, "
        "50 % of that for ranks that come later; the backward pass, or a thread of torch"
    )
    assert "31 ms, 12 ms exposed" in describe.sentence(ONE, None)
    assert "nobody could see how long" in describe.sentence(replace(ONE, time_us=None, exposed_us=None), 1.0)


def test_the_answer_says_what_can_be_saved_and_what_to_do_next() -> None:
    trace = traces.planted()
    found = exchanges(trace)
    said = traced.answer(trace, found, Path("my trace"))
    assert said.command == "commbench tune 'my trace' budget=10m --out p.json"
    # two exchanges of 500 us: of an even one 1 us is waited for the other rank
    waits = traced.waits(trace, found)
    assert waits.tunable_us == 1001.5 and waits.late_us == 1.0 and waits.waits_seen and waits.step_us == 50000.0
    assert str(said) == (
        "a faster all-to-all can save 1 ms of a step of 50 ms at the most (2 %); 500 us (1 % of a step) is waited for "
        "sums: reductions=true tunes them, too, and adds in another order"
    )
    late = [replace(one, late_us=(one.exposed_us or 0) / 2) for one in found]
    assert "501 us more is waited for ranks that come later" in str(traced.answer(trace, late, Path("t")))
    unseen = [replace(one, exposed_us=None) for one in found]
    assert "could not be seen" in str(traced.answer(trace, unseen, Path("t")))
    one_step = traces.planted(steps=1)
    assert "it has no steps" in str(traced.answer(one_step, exchanges(one_step), Path("t")))


def test_nothing_to_tune_is_an_answer() -> None:
    trace = replace(traces.planted(groups=()), hosts=["a"] * 4)  # no two nodes, so that sums have one way
    said = traced.answer(trace, exchanges(trace), Path("t"))
    assert str(said).startswith("nothing of this can be tuned: the program calls no all-to-all") and not said.command
    assert said.next == "keep the program as it is"


def test_a_program_that_waits_for_sums_alone_is_told_how_to_tune_them() -> None:
    trace = traces.planted(groups=())
    said = traced.answer(trace, exchanges(trace), Path("t"))
    assert "all else than sums has one way to be done" in str(said) and "500 us (1 % of a step)" in str(said)
    assert said.command == "commbench tune t reductions=true budget=10m --out p.json"
    trace = traces.planted(groups=((0, 3), (1, 2)))
    assert [one.tunable for one in exchanges(trace) if one.collective == "all_reduce"] == [True]
    assert several_ways("all_reduce", Layout(2, 2)) and not several_ways("all_reduce", Layout(2, 1))
    assert several_ways("all_to_all", Layout(1, 2)) and not several_ways("broadcast", Layout(2, 2))
    assert layout_of(trace, [0, 1, 2]) == Layout(3, 1) and layout_of(trace, [0, 2]) == Layout(2, 1)


def test_a_reader_is_told_what_lacks() -> None:
    records = traces.records()
    whole = describe.table(traces.planted(), exchanges(traces.planted()))
    assert whole[0] == "# 4 ranks on 2 x 2, gloo, 10 steps of 50 ms; the first, and what was before, is not counted"
    assert len(whole) == 1 + 3
    from commbench.record.consolidate import consolidate

    part = consolidate(records[:3], status="unfinished")
    told = "\n".join(describe.notes(part))
    assert "nothing was recorded of rank 3" in told and "did not end well" in told


def test_a_picture(tmp_path: Path) -> None:
    for number, trace in enumerate(
        [traces.planted(), traces.planted(ranks=16, groups=((0, 1),)), traces.planted(steps=1)]
    ):
        (png,) = program_trace.draw(trace, exchanges(trace), tmp_path / str(number))
        said = " ".join(re.findall("<!-- (.*?) -->", png.with_suffix(".svg").read_text()))
        assert ("A faster all-to-all can save" if number != 2 else "The program waits") in said
        assert png.name == "trace.png" and png.stat().st_size > 10_000 and png.with_suffix(".svg").exists()
    assert program_trace.draw(replace(traces.planted(), calls=[]), [], tmp_path) == []
