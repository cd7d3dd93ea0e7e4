"""dispatch and combine with a payload: what travels, what must arrive, and that a mistake of the quantiser is seen."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from commbench import algorithms, collectives, payloads
from commbench.algorithms import quantised
from commbench.collectives.dispatch import TokenDispatch, fields_of
from commbench.collectives.payload import payload_of
from commbench.cost_model import loads
from commbench.layout import Layout
from commbench.payloads import arrays
from commbench.records import Status
from commbench.spec import traffic_split
from commbench.transports.cuda.device import BlockGenerator
from tests.support.planted_rows import PAYLOADS as HOPPING
from tests.support.planted_rows import planted_scale, spec_of
from tests.unit.collectives.test_payload import LOSSY, _another_scale, _no_scale, _one_code, _row_before
from tests.unit.measure.test_planted_faults import case_of_any, measure


@pytest.mark.parametrize("payload", LOSSY)
@pytest.mark.parametrize("output", ["expert", "rank"])
def test_a_row_arrives_as_the_quantiser_makes_it_of_the_row_that_was_sent(payload: str, output: str) -> None:
    """Rows of 1 block and a part of one, and longer than a piece of data; weights and numbers come as they are."""
    for width in (200, 20_000):
        spec = spec_of("dispatch", "per_rank", 2, 2, payload=payload, output=output, model_dim=width, tokens=4)
        of, found = TokenDispatch(), payload_of(spec)
        assert found is not None
        plain = dataclasses.replace(spec, arguments={k: v for k, v in spec.arguments.items() if k != "payload"})
        sent = [of.input_pattern(spec, rank, seed=3).whole(7) for rank in range(4)]
        for rank in range(4):
            arrived = of.expected_pattern(spec, rank, seed=3).whole(7)
            fields, row = fields_of(spec, rank), 2 * width
            rows = arrived[: len(fields.token) * row].reshape(-1, row)
            given = np.stack([sent[source][token * row :][:row] for source, token in zip(*fields[:2], strict=True)])
            assert np.array_equal(rows, arrays.round_trip(given, "bf16", found)) and not np.array_equal(rows, given)
            said = slice(len(rows) * row, None)
            assert np.array_equal(arrived[said], of.expected_pattern(plain, rank, seed=3).whole(7)[said])
            assert len(arrived[said])


@pytest.mark.parametrize(("collective", "name"), HOPPING)
def test_every_algorithm_moves_it_and_what_it_declares(tmp_path: Path, collective: str, name: str) -> None:
    case = case_of_any(collective, name, dtype="bf16", arguments={"payload": "int8", "row_bytes": 64})
    assert loads.of_case(case) is None  # quantising takes time that no message does
    measurement, _ = measure(tmp_path, case, [])
    assert (measurement.status, measurement.reason) == (Status.OK, "")


@pytest.mark.parametrize("mistake", [_another_scale, _no_scale, _one_code, _row_before])
@pytest.mark.parametrize("collective", ["dispatch", "combine"])
def test_a_mistake_of_the_quantiser_is_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, collective: str, mistake: Any
) -> None:
    case = case_of_any(collective, "per_rank", dtype="bf16", arguments={"payload": "fp8", "row_bytes": 512})
    monkeypatch.setattr(quantised, "arrays", SimpleNamespace(quantise=arrays.quantise, dequantise=mistake))
    measurement, _ = measure(tmp_path, dataclasses.replace(case, size_bytes=512 * 12), [])
    assert measurement.status is Status.WRONG_RESULT


@pytest.mark.parametrize(("collective", "name"), HOPPING)
def test_a_neighbours_scale_is_seen(collective: str, name: str) -> None:
    hits = [planted_scale(collective, name, at, seed) for seed, at in enumerate((0, 4))]
    assert any(struck for struck, _ in hits) and all(seen for struck, seen in hits if struck)


@pytest.mark.parametrize("payload", payloads.TABLE)
def test_a_combine_is_right_to_the_bit_whatever_the_hops(payload: str) -> None:
    """Quantised again between hops: its numbers stay what they are. In fp32, whose bits show each rounding."""
    from commbench.measure import proof

    for collective, name in HOPPING:
        for output in ("expert", "rank") if collective == "combine" and name != "per_choice" else ():
            spec = spec_of("combine", name, 2, 3, payload=payload, output=output, dtype="fp32", top_k=5, experts=12)
            assert proof.examine(algorithms.get("combine", name), spec) == []
    many = spec_of("combine", "per_choice", 2, 2, top_k=22, dtype="fp32", payload=payload)
    assert bool(collectives.get("combine").unsupported(many)) == (payload == "bf16")


@pytest.mark.parametrize(("collective", "name"), HOPPING)
def test_bytes_between_nodes_are_those_of_rows_on_the_wire(collective: str, name: str) -> None:
    """Rows of 1024 bf16: 2048 B, as fp8 1024 codes and 8 scales."""
    sent = []
    for asked in ({}, {"payload": "fp8"}):
        spec = spec_of(collective, name, 2, 2, counts="cached", model_dim=1024, tokens=16, **asked)
        steps = algorithms.get(collective, name).steps(collectives.get(collective).on_wire(spec))
        assert steps is not None or name == "all_gather"
        sent.append(traffic_split([send for step in steps or [] for send in step.sends], Layout(2, 2))["inter"])
    assert sent[1] * 2048 == sent[0] * 1056


def test_the_library_cannot_add_up_payloads_and_others_are_refused_in_words() -> None:
    spec = spec_of("combine", "all_gather", 2, 2, payload="fp8")
    assert "not as payload=fp8" in algorithms.get("combine", "all_gather").unsupported(spec)
    of = collectives.get("dispatch")
    assert "of fp32, fp16, bf16" in of.unsupported(
        dataclasses.replace(spec_of("dispatch", "per_rank", 2, 2, payload="int8"), dtype="int32")
    )
    assert "payload" not in spec_of("dispatch", "per_rank", 2, 2).arguments  # so that old cases keep their id


@pytest.mark.parametrize("collective", ["dispatch", "combine"])
def test_data_are_made_on_the_device_too(collective: str) -> None:
    spec = spec_of(collective, "per_rank", 2, 2, payload="int8", model_dim=136, tokens=9)
    on_device, of = BlockGenerator(torch.device("cpu")), collectives.get(collective)
    for pattern in (of.input_pattern(spec, 1, seed=5), of.expected_pattern(spec, 1, seed=5)):
        array = torch.empty(pattern.nbytes, dtype=torch.uint8)
        on_device.fill(array, pattern, 9, invert=False)
        assert np.array_equal(array.numpy(), pattern.whole(9))
