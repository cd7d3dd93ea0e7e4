"""The proof of an algorithm tells what is wrong with it: five common mistakes, and some others, in words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from commbench import algorithms
from commbench.algorithms import outside
from commbench.commands import prove
from commbench.measure import proof
from commbench.sweep import prepare
from commbench.sweep.plan import expand
from tests.conftest import REPOSITORY, here

EXAMPLE = (REPOSITORY / "examples" / "hypercube.py").read_text()
WAIT = "            work.wait()\n"
SCATTER = "            slots[:, theirs] = self._arrived.reshape(-1, bit, self._block)\n"
SCRATCH = "    def scratch_bytes(self, spec: Spec) -> int:\n        return spec.size_bytes"
LATE = """\
            for one in late if k or self._comm.size == 2 else ():
                one.wait()
"""
# What is changed in the example, and what is said of it.
MISTAKES = {
    "half the bytes declared": (
        [("spec.size_bytes // 2) for src", "spec.size_bytes // 4) for src")],
        "1x2, 160 B, fp32: steps() declares 2 messages of 80 B in all, and 2 messages of 160 B are sent; step "
        "'round-0', rank 0 to rank 1: 40 B declared, 80 B sent",
    ),
    "a block swapped": (
        [(SCATTER, SCATTER.replace("theirs]", "1 - theirs]"))],
        "1x2, 160 B, fp32: rank 0 has 40 wrong elements after the first call, the first of them in byte 0 of block 0, "
        "which is rank 0's; it holds rank 1's data in the first call",
    ),
    "a wait forgotten": ([(WAIT, "")], "1x2, 160 B, fp32: rank 0 never waits for what it started in step 'round-0'"),
    "a wait that comes too late": (
        [(WAIT + SCATTER + "        return Done()", SCATTER + "        return work"), ("Comm, Done, ", "Comm, ")],
        "1x2, 160 B, fp32: rank 0 has 20 wrong elements after the first call, the first of them in byte 0 of block 1, "
        "which is rank 1's; what is there is no rank's data",
    ),
    "wrong layout accepted": (
        [('f"{n} ranks: hypercube needs a power of two" if n & (n - 1) else ""', '"" if n else "no rank"')],
        "1x3, 240 B, fp32: steps() sends from rank 2 to rank 3 in step 'round-0', and there are ranks 0 to 2",
    ),
    "less scratch declared": (
        [(SCRATCH, SCRATCH + " // 2")],
        "1x2, 160 B, fp32: prepare() allocates 160 B on a rank, and scratch_bytes() says 80 B",
    ),
    "scratch too small": (
        [(SCRATCH, SCRATCH + " // 2"), ("comm.empty(spec.size_bytes // 2)", "comm.empty(spec.size_bytes // 4)")],
        "1x2, 160 B, fp32: rank 0 raises ValueError: cannot reshape array of size 40 into shape (1,80), in start(), "
        "line 50 of my.py",
    ),
    "the input is written to": (
        [("        return Done()", "        inp[:] = out\n        return Done()")],
        "1x2, 160 B, fp32: rank 0 has written to its input, which is the caller's",
    ),
    "a message that nobody sends": (
        [("[Message(me ^ bit, self._arrived)]", "[Message(me ^ 1, self._arrived)]")],
        "2x2, 320 B, fp32: ranks wait for each other for ever: rank 0 waits for a message of rank 1 that never comes",
    ),
    "two rounds in flight": (
        [
            (WAIT, "            late.append(work)\n" + LATE),
            ("        me = ", "        late: list[Work] = []\n        me = "),
        ],
        "2x2, 320 B, fp32: rank 0 starts step 'round-1' while 'round-0' is in flight: wait for that first, or set "
        "concurrent = True",
    ),
    "an order that is not declared": (
        [("(steps[-1].name,) if steps else ()", "()")],
        "2x2, 320 B, fp32: rank 0 starts step 'round-1' after it has waited for 'round-0', and steps() does not say "
        "so in after=",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_a_mistake_is_told(mistake: str, tmp_path: Path) -> None:
    edits, expected = MISTAKES[mistake]
    text = EXAMPLE
    for before, after in edits:
        assert before in text
        text = text.replace(before, after)
    (tmp_path / "my.py").write_text(text)
    result = here("prove", "my.py", cwd=tmp_path)
    assert result.returncode == 1, result.stdout
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 100
    told = " ".join(line.strip() for line in lines[15:])
    assert told.partition(" answer: ")[0].startswith(expected)
    refused = here("sweep", "quick", "transport=scripted", "algorithm=direct,./my.py", cwd=tmp_path)
    first = expected.partition(", ")
    assert refused.stderr.startswith(f"error: hypercube is not proved: on layout {first[0]}, {first[2]}"[:90])
    assert refused.returncode == 2 and not (tmp_path / "results").exists()


def test_what_the_example_is_told(tmp_path: Path) -> None:
    (tmp_path / "my.py").write_text(EXAMPLE)
    result = here("prove", "my.py:Hypercube", cwd=tmp_path)
    assert result.returncode == 0
    lines = result.stdout.splitlines()
    assert lines[2:5] == [
        "1x2     right: 2 messages, 160 B, as declared",
        "2x1     right: 2 messages, 160 B, as declared",
        "1x3     not run: 3 ranks: hypercube needs a power of two",
    ]
    assert lines[15:] == [
        "answer: hypercube is proved on 5 layouts: right results, and the messages of steps(); it refuses 8",
        "next: commbench sweep 2d_overhead layout=4x2 link=100mbit algorithm=direct,2d_intra_first,my.py:Hypercube",
    ]


@pytest.mark.parametrize(
    ("collective", "name", "step"),
    [
        ("all_to_all", "bruck", "2d_overhead layout=4x2 link=100mbit algorithm=direct,2d_intra_first,bruck"),
        ("all_to_all", "2d_intra_first", "2d_overhead layout=4x2 link=100mbit algorithm=direct,2d_intra_first"),
        ("all_to_all", "symm_store", "quick_gpu algorithm=direct,symm_store"),
        ("all_to_allv", "counts_first", "quick collective=all_to_allv layout=2x2 algorithm=direct,counts_first"),
        ("dispatch", "per_node", "quick collective=dispatch layout=2x2 algorithm=per_choice,per_node"),
        ("broadcast", "direct", "quick collective=broadcast layout=2x2 algorithm=direct"),
    ],
)
def test_the_next_step_of_a_proof_runs(collective: str, name: str, step: str) -> None:
    algorithm = algorithms.get(collective, name)
    text = prove.next_step(algorithm, name, proof.prove(algorithm))
    assert text == f"commbench sweep {step}"
    _, configs = prepare.configure(step.split())
    cases = [item for item in expand(configs) if item.case.algorithm == name]
    assert cases and (algorithm.one_sided or not any(item.skip for item in cases))


def test_ours_are_proved() -> None:
    """In the sizes, dtypes and parameters that an algorithm from outside is run with; test_algorithms has more."""
    for name in algorithms.names("all_to_all"):
        assert proof.first_wrong(algorithms.get("all_to_all", name)) == ""


def test_an_algorithm_that_never_runs_is_not_proved(tmp_path: Path) -> None:
    (tmp_path / "my.py").write_text(EXAMPLE.replace("if n & (n - 1)", "if n"))
    never = algorithms.get(*outside.load(str(tmp_path / "my.py")).key)
    assert proof.first_wrong(never) == "it runs on no layout: 16 ranks: hypercube needs a power of two"
    outside.forget()


def test_the_guide_has_the_example_and_what_mistakes_are_told() -> None:
    page = (REPOSITORY / "docs" / "guide" / "own-algorithm.md").read_text()
    assert f"```python\n{EXAMPLE}```\n" in page
    said = re.findall(r"`([^`]+)`", page.partition("| mistake | what is said |")[2].partition("## 3.")[0])
    told = " ".join(expected for _, expected in MISTAKES.values())
    assert len(said) == 7
    assert [text for text in said if text not in told] == ["If it cannot run there, let unsupported(spec) say so"]
