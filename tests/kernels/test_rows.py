"""Rows by index, by triton's interpreter and compiled for a GPU that need not be there."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from commbench_kernels import rows

from tests.conftest import REPOSITORY, environment


def test_a_sum_of_rows_by_hand() -> None:
    source = torch.tensor([[1.0, 2.0], [10.0, 20.0]])
    index = torch.tensor([[0, 1], [-1, 1], [-1, -1]])
    assert rows.gather_sum_reference(source, index).tolist() == [[11, 22], [10, 20], [0, 0]]
    weights = torch.tensor([[1.0, 0.5], [9.0, 2.0], [9.0, 9.0]])
    assert rows.gather_sum_reference(source, index, weights).tolist() == [[6, 12], [20, 40], [0, 0]]


def test_gradients_by_hand() -> None:
    """Row 0 is choice 1 of token 0, row 1 nobody's, row 2 choice 0 of token 1."""
    values, grad = torch.tensor([[1.0, 2.0], [5.0, 5.0], [3.0, 4.0]]), torch.tensor([[1.0, 1.0], [10.0, 0.0]])
    weights = torch.tensor([[7.0, 0.5], [2.0, 7.0]])
    index, choice = torch.tensor([[-1, 0], [2, -1]]), torch.tensor([1, -1, 2])
    by_rows, by_weights = rows.combine_backward_reference(values, grad, index, choice, weights)
    assert by_rows.tolist() == [[0.5, 0.5], [0, 0], [20, 0]]
    assert by_weights.tolist() == [[0, 3], [30, 0]]


def test_rows_to_their_places_by_hand() -> None:
    source, index = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[3, 0], [-1, 2]])
    assert rows.scatter_reference(source, index, torch.tensor([1, -1, 3, 0])).tolist() == [
        [1, 2],
        [0, 0],
        [3, 4],
        [1, 2],
    ]


def test_sums_of_segments_by_hand() -> None:
    found = rows.segment_sum_reference(torch.tensor([[1.0], [2.0], [4.0], [8.0]]), torch.tensor([2, 0, 1]))
    assert found.tolist() == [[3], [0], [4]]


def test_the_kernels_are_their_references_by_the_interpreter() -> None:
    pytest.importorskip("triton")
    done = subprocess.run([sys.executable, "-m", "tests.kernels.rows"], cwd=REPOSITORY, capture_output=True, text=True,
                          env=environment(REPOSITORY / "kernels", TRITON_INTERPRET="1"), timeout=250)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["60"]


def test_the_roofline_is_the_bytes() -> None:
    """Combine of 32768 tokens, top-2, D = 2048 in fp16: 403 MB, so 120 us at 3.35 TB/s."""
    assert rows.least_us(65536, 32768, 2048, 2, 3350) == pytest.approx(120.2, abs=0.1)
