"""Biases and activations of sorted rows: references by hand, and the kernels by triton's interpreter."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from commbench_kernels import activations

from tests.conftest import REPOSITORY, environment


def test_biases_and_relu_by_hand() -> None:
    rows, bias = (
        torch.tensor([[1.0, -4.0], [2.0, 2.0], [3.0, 3.0]]),
        torch.tensor([[1.0, 1.0], [9.0, 9.0], [-5.0, 0.0]]),
    )
    counts = torch.tensor([2, 0, 1])
    out, kept = activations.biased_reference(rows, bias, counts, "relu")
    assert out.tolist() == [[2, 0], [3, 3], [0, 3]] and torch.equal(out, kept)
    by_rows, by_bias = activations.biased_backward_reference(torch.ones(3, 2), kept, counts, "relu")
    assert by_rows.tolist() == [[1, 0], [1, 1], [0, 1]]
    assert by_bias.tolist() == [[2, 1], [0, 0], [0, 1]]


def test_silu_times_up_by_hand() -> None:
    gate, up = torch.tensor([0.0, 50.0, -50.0]), torch.tensor([3.0, 2.0, 7.0])
    assert activations.silu_mul_reference(gate, up).tolist() == pytest.approx([0, 100, 0], abs=1e-9)
    by_gate, by_up = activations.silu_mul_backward_reference(torch.ones(3), gate, up)
    assert by_gate.tolist() == pytest.approx([1.5, 2, 0], abs=1e-9)
    assert by_up.tolist() == pytest.approx([0, 50, 0], abs=1e-9)


def test_the_kernels_are_their_references_by_the_interpreter() -> None:
    pytest.importorskip("triton")
    done = subprocess.run([sys.executable, "-m", "tests.kernels.activations"], cwd=REPOSITORY, capture_output=True,
                          text=True, env=environment(REPOSITORY / "kernels", TRITON_INTERPRET="1"),
                          timeout=250)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["102"]
