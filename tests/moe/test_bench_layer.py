"""The comparison of the announcement's layer, on a CPU and with ways that only pretend: it gets one go on a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from commbench.errors import UsageError
from moe_ref import dispatch
from tests.bench import moe, steps
from tests.bench.fairseq import Fairseq

SMALL = ["--device", "cpu", "--width", "8", "--hidden", "8", "--rounds", "6", "--product", "16"]


def rows(tmp_path: Path, *words: str) -> tuple[dict[str, Any], dict[tuple[str, int, str], dict[str, Any]]]:
    out = tmp_path / "moe.json"
    assert moe.main([*SMALL, "--tokens", "16,32", "--dtypes", "bf16", "--out", str(out), *words]) == 0
    report = json.loads(out.read_text())
    return report, {(row["dtype"], row["tokens"], row["way"]): row for row in report["rows"]}


def test_every_way_is_compared_at_every_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report, found = rows(tmp_path, "--fp32-tokens", "16")
    cases = [("bf16", 16), ("bf16", 32), ("fp32", 16)]
    assert set(found) == {(*case, way) for case in cases for way in moe.WAYS}
    for (dtype, tokens, way), row in found.items():
        assert row["status"] == "ok" and row["ms"] > 0 and row["samples"] == 6, row
        assert ("ratio" in row) == (way != "sparse")
        # Two products forward and four back, of 2 x 8 x 8 each, for every token twice.
        assert row["bound_ms"] == pytest.approx(6 * 2 * 64 * 2 * tokens / report["flops"][dtype] * 1e3)
    assert [entry["tokens"] for entry in report["stages"]] == [32]
    stages = report["stages"][0]["ms"]
    assert list(stages) == ["gate", "index", "dispatch", "experts", "combine", "combine backward", "experts backward",
                            "dispatch backward", "gate backward"]  # fmt: skip
    assert capsys.readouterr().out.count("| fairseq_einsum_tc |") == 3


class Misrouted(dispatch.EinsumDispatcher):
    def combine(self, buffer: Tensor) -> Tensor:
        return super().combine(buffer).flip(0)


class WithoutGradient(dispatch.EinsumDispatcher):
    def dispatch(self, x_TD: Tensor) -> Tensor:
        return super().dispatch(x_TD.detach())


class TooLarge(dispatch.EinsumDispatcher):
    def dispatch(self, x_TD: Tensor) -> Tensor:
        if len(x_TD) > 16:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().dispatch(x_TD)


class TooLargeBeside(dispatch.EinsumDispatcher):
    """Fits when it is checked, and no longer beside what the others keep."""

    calls = 0

    def dispatch(self, x_TD: Tensor) -> Tensor:
        TooLargeBeside.calls += 1
        if TooLargeBeside.calls > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().dispatch(x_TD)


@pytest.mark.parametrize("way", [Misrouted, WithoutGradient])
def test_a_wrong_way_has_no_numbers(
    way: type[dispatch.EinsumDispatcher], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(dispatch.TABLE, "fairseq_einsum", way)
    _, found = rows(tmp_path)
    for tokens in (16, 32):
        row = found["bf16", tokens, "fairseq_einsum"]
        assert row["status"] == "wrong_result" and "from sparse" in row["reason"] and "ms" not in row
        assert found["bf16", tokens, "fairseq_einsum_tc"]["status"] == "ok"


@pytest.mark.parametrize("way", [TooLarge, TooLargeBeside])
def test_out_of_memory_ends_a_row_only(
    way: type[dispatch.EinsumDispatcher], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    TooLargeBeside.calls = 0
    monkeypatch.setitem(dispatch.TABLE, "fairseq_einsum_tc", way)
    _, found = rows(tmp_path)
    tokens = 32 if way is TooLarge else 16
    row = found["bf16", tokens, "fairseq_einsum_tc"]
    assert row["status"] == "out_of_memory" and "ms" not in row
    for name in ("sparse", "fairseq_einsum"):
        assert found["bf16", tokens, name]["status"] == "ok" and found["bf16", tokens, name]["samples"] == 6


def test_a_step_taken_apart_is_the_same_step() -> None:
    """Gradients of the stages, one after the other, are those of the whole."""
    figure = moe.Figure(width=8, hidden=8)
    (layer,) = moe.layers(figure, "fp32", torch.device("cpu"), ("sparse",)).values()
    x_TD, grad_TD = moe.inputs(figure, "fp32", 16, torch.device("cpu"))
    layer(x_TD).y.backward(grad_TD)
    whole = [parameter.grad.clone() for parameter in layer.experts.parameters() if parameter.grad is not None]
    moe.forget(layer, x_TD)
    routing = layer.gate(x_TD)
    moves = dispatch.get("sparse")(routing)
    names: list[str] = []

    def take(name: str, call: Any) -> Any:
        names.append(name)
        return call()

    tape = steps.through(take, [("a", moves.dispatch), ("b", layer.experts), ("c", moves.combine)], x_TD)
    steps.back(take, tape, grad_TD)
    assert names == ["a", "b", "c", "c backward", "b backward", "a backward"]
    assert len(whole) == 4
    for parameter, right in zip(layer.experts.parameters(), whole, strict=True):
        torch.testing.assert_close(parameter.grad, right)


def test_stages_without_an_input_gradient_stop_where_nothing_is_asked() -> None:
    names: list[str] = []
    weight = torch.ones(2, requires_grad=True)
    tape = steps.through(lambda name, call: (names.append(name), call())[1],
                       [("copy", lambda x: 2 * x), ("scale", lambda x: weight * x)], torch.ones(2))  # fmt: skip
    steps.back(lambda name, call: (names.append(name), call())[1], tape, torch.ones(2))
    assert names == ["copy", "scale", "scale backward"] and weight.grad is not None


def test_fairseqs_own_layer_needs_its_files_and_a_gpu(tmp_path: Path) -> None:
    (like,) = moe.layers(moe.Figure(width=8, hidden=8), "fp32", torch.device("cpu"), ("sparse",)).values()
    with pytest.raises(UsageError, match=r"no moe_layer.py, top2gate.py in .*fairseq.modules.moe") as found:
        Fairseq(tmp_path, like)
    assert "branch moe" in str(found.value.hint)
    with pytest.raises(UsageError, match="--fairseq on a CPU"):
        moe.main([*SMALL, "--fairseq", str(tmp_path)])
