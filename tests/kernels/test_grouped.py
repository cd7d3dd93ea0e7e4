"""Grouped products: references by hand, and the kernels by triton's interpreter."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from commbench_kernels import grouped

from tests.conftest import REPOSITORY, environment


def test_each_row_meets_its_experts_weight_by_hand() -> None:
    rows, counts = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([1, 0, 2])
    weight = torch.tensor([[[10.0, 20.0]], [[7.0, 7.0]], [[1.0, -1.0]]])
    assert grouped.grouped_mm_reference(rows, weight, counts).tolist() == [[10, 20], [2, -2], [3, -3]]
    grad = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    assert grouped.grouped_mm_by_weight_reference(rows, grad, counts).tolist() == [[[1, 0]], [[0, 0]], [[3, 5]]]


def test_the_kernels_are_their_references_by_the_interpreter() -> None:
    pytest.importorskip("triton")
    done = subprocess.run([sys.executable, "-m", "tests.kernels.grouped"], cwd=REPOSITORY, capture_output=True,
                          text=True, env=environment(REPOSITORY / "kernels", TRITON_INTERPRET="1"),
                          timeout=250)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["30"]
