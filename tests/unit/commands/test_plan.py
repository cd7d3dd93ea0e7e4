"""`commbench plan` as it is typed: the answer first, a table that fits, JSON, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from commbench.cli import _main

QWEN = ("plan", "qwen3-30b-a3b", "gpu=h100", "nodes=2", "inter_gbs=400", "micro_batch=1", "recompute=none,redo")


def test_the_sentence_comes_first_and_the_table_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert _main([*QWEN, "--top", "3", "--emit", "megatron", "current=ep8,redo"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("# answer: ") and " is best:" in lines[0]
    told = [line for line in lines if not line.startswith(("# next", "# megatron", "#   commbench "))]
    assert max(map(len, told)) <= 100
    assert any("what you run now is rank " in line for line in lines)
    ranks = [line.split()[0] for line in lines if line.startswith("   ")]
    assert ranks[:3] == ["1", "2", "3"] and len(ranks) == 4, "and what runs now"
    assert any(line.startswith("--expert-model-parallel-size") for line in lines)


def test_the_answer_is_short_and_ends_with_what_tells_the_lines_apart(capsys: pytest.CaptureFixture[str]) -> None:
    assert _main(["plan", "qwen3-30b-a3b", "gpu=h100", "nodes=2", "inter_gbs=400"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if not line.startswith("#")]
    assert 1 < len(rows) <= 5 and len(lines) <= 45
    layouts = [(words[1], words[3]) for words in map(str.split, rows)]  # tp and ep
    assert len(set(layouts)) == len(layouts)
    commands = [line for line in lines if line.startswith("#   commbench plan qwen3-30b-a3b gpu=h100 nodes=2 ")]
    assert len(commands) == len(rows) and all(line.endswith(" --emit megatron") for line in commands)
    assert _main(commands[1].removeprefix("#   commbench ").split()) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("--"), "and it can be typed"


def test_json_is_a_strategy_a_line_and_the_answer_last(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    picture = tmp_path / "plan.svg"
    assert _main([*QWEN, "--format", "json", "--plot", str(picture)]) == 0
    *rows, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert set(last) == {"answer", "format"} and last["answer"]["group"][0] == 1
    needed = {"rank", "tp", "pp", "cp", "ep", "etp", "dp", "schedule", "exchange", "step_ms", "step_ms_low",
              "step_ms_high", "p_best", "memory_gib", "binds"}  # fmt: skip
    assert needed <= rows[0].keys()
    assert all(row["tp"] * row["pp"] * row["cp"] * row["dp"] == 16 for row in rows)
    assert sum(row["p_best"] for row in rows) == pytest.approx(1)
    text = picture.read_text()
    assert "GiB of a GPU" in text and "nodes" in text, "text is text in it"


def test_a_recipe_of_ours_ends_with_lines_to_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text("nodes: 1\ngpus_per_node: 2\nmemory_gb: 141\npeak_tflops: 989\n"
                       "links: {intra: {gbs: 360, alpha_us: 5}}\n")  # fmt: skip
    assert _main(["plan", "table1-scaled", f"cluster={cluster}", "trainer=commbench", "--format", "json"]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["answer"]["commands"][0].startswith("commbench train table1-scaled nodes=1 ranks_per_node=2 ")


@pytest.mark.parametrize(
    "words",
    [
        ["nosuch", "gpu=h100", "nodes=1"],
        ["qwen3-30b-a3b", "gpu=h100", "nodes=2"],
        ["monta-2x70b", "gpu=a800", "nodes=1"],
        ["qwen3-30b-a3b", "gpu=h100", "nodes=1", "--emit", "nemo"],
        ["qwen3-30b-a3b", "gpu=h100", "nodes=1", "--plot", "plan.gif"],
        ["qwen3-30b-a3b", "gpu=h100", "nodes=1", "--columns", "nosuch"],
    ],
)
def test_what_cannot_be_is_one_error_and_one_hint(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert _main(["plan", *words]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert [line.split(":")[0] for line in told.err.splitlines()] == ["error", "hint"]
