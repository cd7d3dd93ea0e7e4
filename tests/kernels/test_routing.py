"""A gate's routing: the references by hand, and the kernels by triton's interpreter."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from commbench_kernels import routing

from tests.conftest import REPOSITORY, environment


def test_places_by_hand() -> None:
    """First choices of all tokens are served before second ones; expert 0 has one slot for three."""
    logits = torch.tensor([[2.0, 1.0, 0.0], [3.0, 0.0, 1.0], [0.0, 5.0, 4.0]])
    chosen = routing.choose_reference(logits, 2)
    assert chosen.experts.tolist() == [[0, 1], [0, 2], [1, 2]]
    assert (chosen.loads.tolist(), chosen.firsts.tolist()) == ([2, 2, 2], [2, 1, 0])
    places = routing.assign_reference(chosen, 1, 3, normalise="after", dtype=torch.float32)
    assert places.slots.tolist() == [[0, -1], [-1, 0], [0, -1]]
    assert places.choice.tolist() == [0, 4, 3]
    assert places.weights.tolist() == [[1, 0], [0, 1], [1, 0]]
    whole = routing.assign_reference(chosen, None, 6, normalise="never", dtype=torch.float32)
    assert whole.rows.tolist() == [[0, 3], [1, 4], [2, 5]]
    real = routing.choose_reference(logits, 2, torch.tensor([False, True, True]))
    assert (real.loads.tolist(), real.firsts.tolist()) == ([1, 1, 2], [1, 1, 0])


def test_the_kernels_are_their_references_by_the_interpreter() -> None:
    pytest.importorskip("triton")
    done = subprocess.run([sys.executable, "-m", "tests.kernels.routing"], cwd=REPOSITORY, capture_output=True,
                          text=True, env=environment(REPOSITORY / "kernels", TRITON_INTERPRET="1"),
                          timeout=250)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["72"]
