"""The data of reductions must tell faults: any rank left out, doubled or exchanged, any part or call mixed up."""

from __future__ import annotations

import numpy as np
import pytest

from commbench import collectives
from commbench.data import OPS, Bytes, Pattern, decode
from commbench.layout import Layout
from commbench.spec import DTYPES, Spec

SEED = 5


def spec_of(op: str, dtype: str, ranks: int) -> Spec:
    return Spec(
        collective="all_reduce", dtype=dtype, size_bytes=ranks * 1024, layout=Layout(1, ranks), arguments={"op": op}
    )


def inputs(spec: Spec, salt: int = 1) -> list[Bytes]:
    collective = collectives.get("all_reduce")
    blocks = list(collective.input_blocks(spec, 0, seed=SEED))
    pools = [collective.input_pool(spec, rank) for rank in range(spec.ranks)]
    return [Pattern(blocks, spec.itemsize, pool).whole(salt) for pool in pools]


def expected(spec: Spec) -> Bytes:
    collective = collectives.get("all_reduce")
    blocks = collective.expected_blocks(spec, 0, seed=SEED)
    return Pattern(blocks, spec.itemsize, collective.expected_pool(spec, 0)).whole(1)


def combined(spec: Spec, parts: list[Bytes]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """In the dtype's own arithmetic."""
    kinds = {"fp32": np.float32, "fp16": np.float16, "int32": np.int32, "uint8": np.uint8}
    values = [decode(part, spec.dtype) for part in parts]
    total = values[0].astype(kinds.get(spec.dtype, np.float32))
    for value in values[1:]:
        total = OPS[str(spec.arguments["op"])](total, value.astype(total.dtype))
    return total.astype(np.int64)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ranks", [2, 3, 4, 5, 8, 16])
@pytest.mark.filterwarnings("ignore:overflow")
def test_any_fault_is_seen_in_many_elements(op: str, dtype: str, ranks: int) -> None:
    spec = spec_of(op, dtype, ranks)
    mine = inputs(spec)
    right = decode(expected(spec), dtype)
    assert np.array_equal(combined(spec, mine), right), "the dtype does not have these numbers exactly"
    faults = {
        "a rank left out": mine[:-1] if ranks > 2 else [mine[0]],
        "a rank in place of another": [*mine[:-1], mine[0]],
        "the last call's data of a rank": [*mine[:-1], inputs(spec, salt=2)[-1]],
        "parts of a rank exchanged": [*mine[:-1], np.concatenate([mine[-1][1024:], mine[-1][:1024]])],
    }
    if not (dtype == "fp16" and op == "prod" and ranks > 15):
        for name, parts in faults.items():
            differing = np.mean(combined(spec, parts) != right)
            assert differing > (0.2 if op in ("sum", "prod") else 0.02), f"{name}: {differing:.3f} of the elements"


def test_a_wrong_type_is_seen() -> None:
    for dtype, other in (("int32", np.uint8), ("uint8", np.int8), ("fp32", np.int32)):
        for op in ("min", "max"):
            spec = spec_of(op, dtype, 4)
            total = inputs(spec)[0].view(other)
            for part in inputs(spec)[1:]:
                total = OPS[op](total, part.view(other))
            right = expected(spec)
            assert not np.array_equal(total.view(np.uint8), right), f"{op} on {dtype} done as {other.__name__}"
