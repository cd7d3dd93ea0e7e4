"""Advice on a layer: its arithmetic by hand, what is likely best, one screen, and words that cannot be meant."""

from __future__ import annotations

import json
import math

import pytest

from commbench import algorithms
from commbench.cli import _main
from commbench.find import advice, layer
from commbench.layout import Layout
from commbench.sweep.keys import KEYS
from commbench.sweep.recipes import parse_overrides

LAYER = "tokens=4096 model_dim=4096 top_k=2 experts=16 ep=8"


def test_what_a_layer_sends_by_hand() -> None:
    shape = layer.read(f"{LAYER} nodes=2 layers=12 capacity_factor=1.25".split())
    assert shape.slots == 2 * 320  # K floor(f T / E) = 2 x floor(1.25 x 256)
    assert shape.size_bytes == 16 * 640 * 4096 * 2
    assert shape.block_bytes == shape.size_bytes // 8
    assert (shape.inter_bytes, shape.intra_bytes) == (shape.size_bytes // 2, shape.size_bytes * 3 // 8)
    assert shape.exchanges == 48
    dropless = layer.read(f"{LAYER} capacity_factor=0 dtype=fp32".split())
    assert (dropless.collective, dropless.size_bytes) == ("all_to_allv", 4096 * 2 * 4096 * 4)


def test_the_trade_of_2d_is_that_of_its_messages() -> None:
    """For each message between nodes that 2D saves it sends one block more inside a node."""
    from commbench.spec import Spec

    spec = Spec(collective="all_to_all", dtype="fp32", size_bytes=12 * 16, layout=Layout(3, 4), params={"window": 1})
    counts = {}
    for name in ("pairwise", "2d_intra_first"):
        steps = algorithms.TABLE["all_to_all", name].steps(spec)
        assert steps is not None
        sent = [send for step in steps for send in step.sends if send.src == 0]
        inside = [send for send in sent if send.dst < 4]
        counts[name] = len(sent) - len(inside), sum(send.nbytes for send in inside) // spec.block_bytes
    saved = counts["pairwise"][0] - counts["2d_intra_first"][0]
    assert saved == (3 - 1) * (4 - 1) == counts["2d_intra_first"][1] - counts["pairwise"][1]


@pytest.mark.parametrize(
    ("words", "best"),
    [
        ("tokens=4096 model_dim=4096 nodes=2", "direct"),
        ("tokens=64 model_dim=1024 nodes=2", "2d_intra_first"),
        ("tokens=512 model_dim=2048 nodes=2", ""),
        ("tokens=4096 model_dim=4096 nodes=8", "direct"),
        ("tokens=4096 model_dim=4096", "direct"),
        ("tokens=16 model_dim=64", "bruck"),
        ("tokens=16 model_dim=64 capacity_factor=0", "direct"),
    ],
)
def test_what_is_likely_best_exists_and_runs(words: str, best: str) -> None:
    shape = layer.read([*words.split(), "top_k=2", "experts=16", "ep=8"])
    found = layer.likely(shape)
    assert found.algorithm == best and found.reason
    assert not best or (shape.collective, best) in algorithms.TABLE
    assert "a rule of thumb until it is measured" in " ".join(advice.text(shape, 100, gpus=False).split())


@pytest.mark.parametrize("gpus", [True, False])
@pytest.mark.parametrize("more", ["", "nodes=2 layers=48", "capacity_factor=0 nodes=4 dtype=fp32"])
def test_it_is_one_screen_whose_commands_have_known_keys(more: str, gpus: bool) -> None:
    shape = layer.read([*LAYER.split(), *more.split()])
    lines = advice.text(shape, 100, gpus=gpus).splitlines()
    assert len(lines) <= 30 and max(map(len, lines)) <= 100
    for line in advice.commands(shape, gpus=gpus):
        _, command, recipe, *words = line.split()
        typed = parse_overrides([word for word in words if "=" in word and not word.startswith("budget=")])
        assert typed.values.keys() <= KEYS.keys() and command in ("tune", "sweep") and recipe == "quick"
        smallest, largest = (int(words[words.index(flag) + 1]) for flag in ("-b", "-e"))
        assert largest == shape.size_bytes and math.log2(largest / smallest) == 2


def test_json_has_the_same_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert _main(["advise", *LAYER.split(), "--format", "json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["size_bytes"] == 64 << 20 and said["bytes_per_step"] == 4 * said["size_bytes"]
    assert said["likely"]["algorithm"] == "direct" and said["likely"]["measured"] is False
    assert len(said["commands"]) == 2 and said["layer"]["model_dim"] == 4096


@pytest.mark.parametrize(
    ("line", "error", "hint"),
    [
        ("", "not set: tokens, model_dim, top_k, experts, ep", "commbench advise tokens=4096"),
        ("tokns=4096", "unknown key 'tokns'", "did you mean"),
        ("4096", "unexpected argument '4096'", "KEY=VALUE"),
        ("tokens=0", "tokens is 0", "a whole number from 1"),
        ("tokens=abc", "tokens is 'abc'", "a whole number from 1"),
        (f"{LAYER} dtype=fp8", "unknown dtype 'fp8'", "fp16"),
        (f"{LAYER} ep=7", "experts=16 do not divide among ep=7 ranks", "multiple of ep"),
        (f"{LAYER} nodes=3", "ep=8 ranks do not divide among nodes=3", "nodes divides ep"),
        (f"{LAYER} top_k=17", "top_k=17 is above experts=16", "experts at most"),
        (f"{LAYER} capacity_factor=nan", "capacity_factor is nan", "a number from 0"),
        (f"{LAYER} capacity_factor=0.0001", "leaves an expert no slot", "0: dropless"),
    ],
)
def test_what_cannot_be_meant_is_one_line_and_a_hint(
    line: str, error: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _main(["advise", *line.split()]) == 2
    said, hinted = capsys.readouterr().err.splitlines()
    assert error in said and hint in hinted
