"""What nccl-tests calls a type or an operation is taken by the options that are its own too."""

from __future__ import annotations

import pytest

from commbench.commands.nccl_tests import key_value
from commbench.spec import DTYPES

NAMES = {"float": "fp32", "half": "fp16", "bfloat16": "bf16", "int32": "int32", "uint8": "uint8", "int8": "uint8"}


@pytest.mark.parametrize(("theirs", "ours"), NAMES.items())
def test_types(theirs: str, ours: str) -> None:
    assert key_value("dtype", theirs) == ours and ours in DTYPES


def test_other_values_are_left_alone() -> None:
    assert key_value("op", "all") == "sum,prod,min,max"
    assert [key_value("op", "sum"), key_value("dtype", "fp32"), key_value("root", "float")] == ["sum", "fp32", "float"]
