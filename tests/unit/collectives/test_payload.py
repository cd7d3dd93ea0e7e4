"""Exchanges with a payload: what travels, what must arrive, and that a mistake of the quantiser is no result."""

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
from commbench.algorithms.base import BoundBase
from commbench.algorithms.quantised import QuantisedBound
from commbench.collectives.payload import PayloadBlocks, payload_of
from commbench.data import CHUNK_BYTES, Bytes
from commbench.layout import Layout
from commbench.payloads import arrays
from commbench.records import Case, Status
from commbench.spec import DTYPES, Spec
from commbench.sweep import checks
from commbench.transports.base import Done, Work
from commbench.transports.cuda.device import BlockGenerator
from tests.unit.measure.test_planted_faults import KINDS, case_of, measure

LOSSY = [name for name in payloads.TABLE if name != "bf16"]


def spec_of(
    collective: str, dtype: str, payload: str, size: int, layout: tuple[int, int] = (2, 2), **asked: Any
) -> Spec:
    of, ranks = collectives.get(collective), Layout(*layout)
    defaults = {key: item.default for key, item in of.arguments.items() if item.default is not None}
    size_bytes, arguments = of.settle(size, ranks, {**defaults, "payload": payload, **asked})
    return Spec(collective=collective, dtype=dtype, size_bytes=size_bytes, layout=ranks, arguments=arguments)


def messages(data: Bytes, sizes: list[int]) -> list[Bytes]:
    return np.split(data, np.cumsum(sizes)[:-1])


@pytest.mark.parametrize("size", [1, 5, 33, 1000, CHUNK_BYTES, 3 * CHUNK_BYTES + 520])
@pytest.mark.parametrize("payload", payloads.TABLE)
def test_what_must_arrive_is_what_the_quantiser_makes_of_what_was_sent(payload: str, size: int) -> None:
    for dtype in ("fp32", "bf16", "fp16"):
        spec = spec_of("all_to_all", dtype, payload, 4 * 16 * size)
        of = collectives.get("all_to_all")
        if of.unsupported(spec) or (found := payload_of(spec)) is None:
            continue
        assert isinstance(of, PayloadBlocks)
        sent = {rank: of.input_pattern(spec, rank, seed=3).whole(7) for rank in range(spec.ranks)}
        for rank in range(spec.ranks):
            arrived = of.expected_pattern(spec, rank, seed=3).whole(7)
            for source, message in enumerate(messages(arrived, of.received(spec, rank))):
                block = messages(sent[source], of.sent(spec, source))[rank]
                assert np.array_equal(message, arrays.round_trip(block[None], dtype, found)[0]), (dtype, rank, source)
                assert size < 5 or not np.array_equal(message, block)


def test_data_of_ranks_and_calls_differ() -> None:
    spec = spec_of("all_to_all", "fp32", "int8", 4 * 1024)
    of = collectives.get("all_to_all")
    blocks = {
        block.tobytes()
        for salt in range(20)
        for rank in range(4)
        for block in of.input_pattern(spec, rank, seed=0).whole(salt).reshape(4, -1)
    }
    assert len(blocks) == 20 * 4 * 4


@pytest.mark.parametrize(("payload", "bytes_on_wire"), [("int8", 4 * 1056), ("mxfp8", 4 * 1056), ("bf16", 4 * 2048)])
def test_algorithms_are_asked_for_what_is_on_the_wire(payload: str, bytes_on_wire: int) -> None:
    of = collectives.get("all_to_all")
    wire = of.on_wire(spec_of("all_to_all", "fp32", payload, 4 * 4096))
    assert (wire.size_bytes, wire.dtype, wire.arguments) == (bytes_on_wire, "uint8", {})
    spec = spec_of("all_to_allv", "bf16", payload, 1 << 16, splits="zipf", row_bytes=512)
    uneven = collectives.get("all_to_allv")
    assert isinstance(uneven, PayloadBlocks)
    if payload == "bf16":
        assert uneven.on_wire(spec) is spec  # as it is
    else:
        there = uneven.on_wire(spec)
        expected = [payloads.TABLE[payload].row_bytes(nbytes // 2) for nbytes in uneven.sent(spec, 1)]
        assert uneven.sent(there, 1) == expected


def test_no_payload_is_no_argument_so_that_old_cases_keep_their_id() -> None:
    assert spec_of("all_to_all", "fp32", "none", 4096).arguments == {}
    assert "payload" not in spec_of("all_to_allv", "fp32", "none", 4096).arguments


def with_payload(algorithm: str, payload: str, **other: Any) -> Case:
    case = case_of(algorithm, (2, 2), blocks=40, **other)
    return dataclasses.replace(case, arguments={"payload": payload})


@pytest.mark.parametrize("algorithm", [name for name in algorithms.names("all_to_all") if not name.startswith("symm")])
def test_every_algorithm_moves_it_and_what_it_declares(tmp_path: Path, algorithm: str) -> None:
    measurement, _ = measure(tmp_path, with_payload(algorithm, "int8"), [])
    assert (measurement.status, measurement.reason) == (Status.OK, "")


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_of_the_library_is_no_result(tmp_path: Path, kind: str) -> None:
    fault = {"kind": kind, "rank": 1, "from_op": 4}
    measurement, _ = measure(tmp_path, with_payload("direct", "fp8", dtype="bf16"), [fault])
    assert measurement.status is Status.WRONG_RESULT
    assert "wrong element" in measurement.reason


def _another_scale(wire: Bytes, values: int, dtype: str, payload: payloads.Payload, out: Bytes) -> Bytes:
    changed = wire.copy()
    scales = changed[:, payload.scales_at(values) :][:, : -(-values // payload.block) * payload.scale_bytes]
    scales[...] = np.roll(scales, payload.scale_bytes, axis=1)
    return arrays.dequantise(changed, values, dtype, payload, out)


def _no_scale(wire: Bytes, values: int, dtype: str, payload: payloads.Payload, out: Bytes) -> Bytes:
    changed = wire.copy()
    changed[:, payload.scales_at(values) :] = 0
    return arrays.dequantise(changed, values, dtype, payload, out)


def _one_code(wire: Bytes, values: int, dtype: str, payload: payloads.Payload, out: Bytes) -> Bytes:
    changed = wire.copy()
    changed[-1, values // 2] ^= 1
    return arrays.dequantise(changed, values, dtype, payload, out)


def _row_before(wire: Bytes, values: int, dtype: str, payload: payloads.Payload, out: Bytes) -> Bytes:
    return arrays.dequantise(np.roll(wire, 1, axis=0), values, dtype, payload, out)


@pytest.mark.parametrize("mistake", [_another_scale, _no_scale, _one_code, _row_before])
@pytest.mark.parametrize("payload", LOSSY)
def test_a_mistake_of_the_quantiser_is_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, payload: str, mistake: Any
) -> None:
    case = dataclasses.replace(with_payload("direct", payload), size_bytes=4 * 4096)
    monkeypatch.setattr(quantised, "arrays", SimpleNamespace(quantise=arrays.quantise, dequantise=mistake))
    measurement, _ = measure(tmp_path, case, [])
    assert measurement.status is Status.WRONG_RESULT


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"dtype": "int32"}, "of fp32, fp16, bf16"), ({"overlap": "matmul"}, "before the call ends"),
     ({"dtype": "fp16", "arguments": {"payload": "bf16"}}, "saves no byte")],
)  # fmt: skip
def test_what_cannot_travel_so_is_skipped_in_words(change: dict[str, Any], reason: str) -> None:
    case = dataclasses.replace(with_payload("direct", "int8"), setup=case_of("direct", (2, 2)).setup)
    case = dataclasses.replace(case, setup=dataclasses.replace(case.setup, transport="gloo"))
    assert checks.skip_reason(case) == ""
    assert reason in checks.skip_reason(dataclasses.replace(case, **change))


class _Copy(BoundBase):
    def start(self, out: Any, inp: Any) -> Work:
        out[...] = inp
        return Done()


@pytest.mark.parametrize("payload", LOSSY)
def test_tensors_go_the_same_way_as_arrays(payload: str) -> None:
    """One rank alone, whose exchange is a copy; an uneven one, whose messages differ and may be empty."""
    matrix = np.diag([512, 512, 0, 96]).tolist()
    spec = spec_of("all_to_allv", "bf16", payload, 0, (1, 4), splits="matrix", matrix=str(matrix))
    of = collectives.get("all_to_allv")
    rank, found = 3, payloads.TABLE[payload]
    given = of.input_pattern(spec, rank, seed=1).whole(0)
    held = [torch.empty(of.input_bytes(of.on_wire(spec), rank), dtype=torch.uint8) for _ in range(2)]
    bound = QuantisedBound(_Copy(), spec, rank, (held[0], held[1]))  # type: ignore[arg-type]
    out = torch.zeros(len(given), dtype=torch.uint8)
    bound.start(out, torch.from_numpy(given)).wait()  # type: ignore[arg-type]
    assert np.array_equal(out.numpy(), arrays.round_trip(given[None], "bf16", found)[0])
    assert len(given) == 96
    scratch = quantised.scratch_bytes(algorithms.get("all_to_allv", "direct"), spec)
    assert scratch == 2 * found.row_bytes(512 // DTYPES["bf16"])


@pytest.mark.parametrize("size", [4096, CHUNK_BYTES + 520])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_data_of_payloads_are_made_on_the_device_too(dtype: str, size: int) -> None:
    of, arguments = collectives.get("all_to_all"), {"payload": "int8"}
    spec = Spec(collective="all_to_all", dtype=dtype, size_bytes=4 * size, layout=Layout(2, 2), arguments=arguments)
    on_device = BlockGenerator(torch.device("cpu"))
    for pattern in (of.input_pattern(spec, 1, seed=5), of.expected_pattern(spec, 1, seed=5)):
        array = torch.empty(pattern.nbytes, dtype=torch.uint8)
        on_device.fill(array, pattern, 9, invert=True)
        assert np.array_equal(array.numpy(), ~pattern.whole(9))
        on_device.fill(array, pattern, 9, invert=False)
        assert np.array_equal(array.numpy(), pattern.whole(9))
        array[777] += 1
        (seen,) = on_device.read([on_device.compare(array, pattern, 9)])
        assert (seen.elements, seen.at) == (1, 777 // spec.itemsize * spec.itemsize)
