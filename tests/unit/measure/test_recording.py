"""What an algorithm declares is held against what it sends, in each measurement, before anything is timed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from commbench import algorithms
from commbench.records import Status
from commbench.spec import Send, Spec, Step
from tests.unit.measure.test_planted_faults import case_of, measure

Steps = list[Step]


def half_the_bytes(steps: Steps) -> Steps:
    halves = [tuple(send._replace(nbytes=send.nbytes // 2) for send in step.sends) for step in steps]
    return [dataclasses.replace(step, sends=sends) for step, sends in zip(steps, halves, strict=True)]


def one_more_message(steps: Steps) -> Steps:
    return [dataclasses.replace(steps[0], sends=(*steps[0].sends, Send(2, 1, 16))), *steps[1:]]


def one_message_less(steps: Steps) -> Steps:
    return [dataclasses.replace(steps[0], sends=steps[0].sends[1:]), *steps[1:]]


def another_name(steps: Steps) -> Steps:
    return [dataclasses.replace(steps[0], name="other"), *steps[1:]]


def to_the_wrong_rank(steps: Steps) -> Steps:
    first, second, *rest = steps[0].sends
    return [dataclasses.replace(steps[0], sends=(first._replace(dst=second.dst), second, *rest)), *steps[1:]]


@pytest.mark.parametrize(
    "lie",
    [half_the_bytes, one_more_message, one_message_less, another_name, to_the_wrong_rank],
    ids=lambda f: f.__name__,
)
@pytest.mark.parametrize("name", ["direct", "bruck", "2d_pipelined", "symm_store"])
def test_a_lie_has_no_numbers(
    name: str, lie: Callable[[Steps], Steps], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    algorithm = algorithms.get("all_to_all", name)
    honest = algorithm.steps

    def steps(spec: Spec) -> Steps:
        known = honest(spec)
        assert known
        return lie(known)

    monkeypatch.setattr(algorithm, "steps", steps, raising=False)
    measurement, _ = measure(tmp_path, case_of(name, (2, 2)), [])
    assert measurement.status is Status.DECLARATION_MISMATCH
    assert measurement.time_us is None and measurement.samples == 0
    assert measurement.reason.startswith(f"{name} does not send what its steps() declare: rank ")


def test_it_says_what_was_declared_and_what_was_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm = algorithms.get("all_to_all", "direct")
    honest = algorithm.steps
    monkeypatch.setattr(algorithm, "steps", lambda spec: half_the_bytes(honest(spec) or []), raising=False)
    case = case_of("direct", (2, 2))
    measurement, _ = measure(tmp_path, case, [])
    block = case.size_bytes // 4
    text = (
        f"3 messages, {3 * block // 2} B declared, 3, {3 * block} B sent; "
        f"declared and not sent: {block // 2} B to rank 1 in step 'all'; "
        f"sent and not declared: {block} B to rank 1 in step 'all'"
    )
    assert measurement.reason == f"direct does not send what its steps() declare: rank 0: {text}"


def test_where_a_library_chooses_the_way_nothing_is_declared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm = algorithms.get("all_to_all", "direct")
    monkeypatch.setattr(algorithm, "steps", lambda spec: None, raising=False)
    measurement, _ = measure(tmp_path, case_of("direct", (2, 2)), [])
    assert measurement.status is Status.OK
