"""`commbench prove`: an algorithm, ours or from outside, on many layouts, without a GPU and without a network."""

from __future__ import annotations

import json
import shlex
import sys
import textwrap
from collections.abc import Sequence

from commbench import algorithms
from commbench.algorithms import outside
from commbench.algorithms.base import Algorithm
from commbench.errors import EXIT_FAILED, EXIT_OK, unknown
from commbench.measure.proof import LayoutProof, prove

_WIDTH = 100
_TWO_LEVELS = (2, 4)  # among the layouts of a proof what is most like 4x2
_MOST_RANKS = 4  # of a first sweep


def run(words: Sequence[str], format_: str) -> int:
    """Return the exit code: 0 all are proved, 1 one is wrong. Raises `UsageError` for what is no algorithm."""
    wrong = 0
    for word in words:
        for algorithm in _algorithms(word):
            proofs = prove(algorithm)
            proved = any(proof.runs for proof in proofs) and not any(proof.wrong for proof in proofs)
            wrong += not proved
            write = _write_json if format_ == "json" else _write_text
            write(algorithm, word, proofs, proved)
    return EXIT_FAILED if wrong else EXIT_OK


def _algorithms(word: str) -> list[Algorithm]:
    """Return the algorithm of a file; of a name those of every collective that has one so called."""
    if outside.is_file(word):
        return [algorithms.get(*outside.load(word).key)]
    if not any(name == word for _, name in algorithms.TABLE) and outside.find_installed(word) is None:
        raise unknown("algorithm", word, {name for _, name in algorithms.TABLE}, hint="a name, or ./FILE.py:CLASS")
    return [algorithm for (_, name), algorithm in algorithms.TABLE.items() if name == word]


def _answer(algorithm: Algorithm, proofs: Sequence[LayoutProof], proved: bool) -> str:
    runs = [proof for proof in proofs if proof.runs]
    refused = len(proofs) - len(runs)
    left = f"; it refuses {refused}" if refused else ""
    if not runs:
        return f"{algorithm.name} is not proved: it refuses all {len(proofs)} layouts"
    if not proved:
        bad = [str(proof.layout) for proof in proofs if proof.wrong]
        right = len(runs) - len(bad)
        hint = ". If it cannot run there, let unsupported(spec) say so" if right else ""
        return f"{algorithm.name} is wrong on {', '.join(bad)}, and right on {right} layouts{left}{hint}"
    what = ", and the messages of steps()" if runs[0].messages is not None else "; it declares no messages"
    return f"{algorithm.name} is proved on {len(runs)} layouts: right results{what}{left}"


def _write_text(algorithm: Algorithm, word: str, proofs: Sequence[LayoutProof], proved: bool) -> None:
    lines = [f"# {algorithm.name}, an algorithm of {algorithm.collective}", "layout  result"]
    lines += [f"{proof.layout!s:<8}{'wrong' if proof.wrong else _right(proof)}" for proof in proofs]
    for text in _first_wrong(proofs):
        lines += textwrap.wrap(text, _WIDTH, subsequent_indent="  ")
    lines += textwrap.wrap(f"answer: {_answer(algorithm, proofs, proved)}", _WIDTH, subsequent_indent="  ")
    if proved:
        lines.append(f"next: {next_step(algorithm, word, proofs)}")
    sys.stdout.write("\n".join(lines) + "\n")


def next_step(algorithm: Algorithm, word: str, proofs: Sequence[LayoutProof]) -> str:
    """Return the sweep that measures a proved algorithm beside others, where it can run."""
    layouts = [(proof.layout.nodes, proof.layout.ranks_per_node) for proof in proofs if proof.runs]
    first = algorithms.names(algorithm.collective)[0]
    keys = [] if algorithm.collective == "all_to_all" else [f"collective={algorithm.collective}"]
    if algorithm.one_sided:
        recipe, names = "quick_gpu", [first, word]
    elif not keys and _TWO_LEVELS in layouts:
        recipe, names, keys = "2d_overhead", [first, "2d_intra_first", word], ["layout=4x2", "link=100mbit"]
    else:
        recipe, names = "quick", [first, word]
        small = [(nodes, m) for nodes, m in layouts if nodes * m <= _MOST_RANKS] or layouts[:1]
        keys = [*keys, "layout={}x{}".format(*small[-1])]
    return shlex.join(["commbench", "sweep", recipe, *keys, f"algorithm={','.join(dict.fromkeys(names))}"])


def _first_wrong(proofs: Sequence[LayoutProof]) -> list[str]:
    """Return what is wrong on the first layout on which anything is."""
    proof = next((proof for proof in proofs if proof.wrong), None)
    return [] if proof is None else [f"{proof.layout}, {text}" for text in proof.wrong]


def _right(proof: LayoutProof) -> str:
    if not proof.runs:
        return f"not run: {proof.refused}"
    if proof.messages is None:
        return "right"
    return f"right: {proof.messages} messages, {proof.nbytes} B, as declared"


def _write_json(algorithm: Algorithm, word: str, proofs: Sequence[LayoutProof], proved: bool) -> None:
    line = {
        "algorithm": algorithm.name,
        "collective": algorithm.collective,
        "proved": proved,
        "layouts": [
            {
                "nodes": proof.layout.nodes,
                "ranks_per_node": proof.layout.ranks_per_node,
                "cases": proof.runs,
                "messages": proof.messages,
                "bytes": proof.nbytes,
                "refused": proof.refused,
                "wrong": proof.wrong,
            }
            for proof in proofs
        ],
        "answer": _answer(algorithm, proofs, proved),
    }
    sys.stdout.write(json.dumps(line) + "\n")
