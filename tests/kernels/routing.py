"""The kernels of `commbench_kernels.routing` beside their references; as a program, by triton's interpreter."""

from __future__ import annotations

import itertools
import sys

import torch
from commbench_kernels import routing

SIZES = ((1, 2, 1), (7, 2, 2), (50, 5, 3), (33, 256, 8))  # T, E, K


def compare(device: str, sizes: tuple[tuple[int, int, int], ...] = SIZES) -> int:
    """How many cases were equal; an AssertionError for the first that is not."""
    found = 0
    for (tokens, experts, top_k), padded in itertools.product(sizes, (False, True)):
        generator = torch.Generator().manual_seed(tokens + experts)
        logits = torch.randn(tokens, experts, generator=generator).mul(3).round(decimals=1)  # some are equal
        real = torch.rand(tokens, generator=generator).gt(0.3).to(device) if padded else None
        logits = logits.to(device).requires_grad_()
        ours, right = (f(logits.detach(), top_k, real) for f in (routing.choose, routing.choose_reference))
        for name in ("experts", "loads", "firsts"):
            assert torch.equal(getattr(ours, name), getattr(right, name)), name
        for name in ("scores", "lse", "sums"):
            torch.testing.assert_close(getattr(ours, name), getattr(right, name), rtol=1e-5, atol=1e-6)
        for capacity, normalise in itertools.product((0, 2, 9, None), routing.NORMALISE):
            rows = int(right.loads.sum()) if capacity is None else experts * capacity
            how = {"normalise": normalise, "dtype": torch.float32, "real": real}
            places, oracle = (f(c, capacity, rows, **how) for f, c in (
                (routing.assign, ours), (routing.assign_reference, right)))  # fmt: skip
            for name in ("slots", "rows", "choice"):
                assert torch.equal(getattr(places, name), getattr(oracle, name)), (name, capacity)
            torch.testing.assert_close(places.weights, oracle.weights, rtol=1e-5, atol=1e-6)
            check_gradient(logits, top_k, capacity, rows, ours, places, how)
            found += 1
    return found


def check_gradient(
    logits: torch.Tensor, top_k: int, capacity: int | None, rows: int, ours: routing.TopKChoices,
    places: routing.SlotAssignment, how: dict[str, object],
) -> None:  # fmt: skip
    """The references are differentiable."""
    right = routing.choose_reference(logits, top_k, how["real"])  # type: ignore[arg-type]
    weights = routing.assign_reference(right, capacity, rows, **how).weights  # type: ignore[arg-type]
    given = [torch.randn_like(weights), torch.randn_like(right.sums)]
    (oracle,) = torch.autograd.grad([weights, right.sums], logits, given, allow_unused=True)
    found = routing.backward(*given, logits.detach(), ours, places.slots, normalise=how["normalise"], real=how["real"])  # type: ignore[arg-type]
    torch.testing.assert_close(found, oracle, rtol=1e-4, atol=1e-5)


if __name__ == "__main__":
    sys.stdout.write(str(compare("cpu", SIZES[:3])))
