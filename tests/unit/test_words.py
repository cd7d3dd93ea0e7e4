"""What users read is plain English: no word of the code's own, and one term for one thing."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import REPOSITORY

# What is not said, and what is said instead.
NOT_SAID = {
    r"outer": "set-up",
    r"told(?! apart)": "known, given, said",
    r"pieces": "chunks of a block, shards of a weight, units of bytes",
    r"halves|flights|aside|spoken|watched|heard": "the field's word",
    r"meeting": "rendezvous",
    r"suspects?": "candidates",
    r"hold waiting": "include waiting",
    r"not hold 1": "exclude 1",
    r"default is back": "above that, the default is used",
    r"mend\w*": "repair, remove",
    r"(?<!there )(is|are) no (whole|finite|multiples?|launcher|algorithm|profile|trace|text|list|folder)": "is not a",
}
WRONG = re.compile(rf"\b({'|'.join(NOT_SAID)})\b", re.IGNORECASE)


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Literals with a blank, which people may read, and the docstrings of commands, which are their help."""
    tree = ast.parse(path.read_text())
    docstrings = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            command = isinstance(node, ast.FunctionDef) and any(
                "command" in ast.dump(one) for one in node.decorator_list
            )
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and not command:
                docstrings.add(id(first.value))
    for node in ast.walk(tree):
        literal = isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
        if literal and " " in node.value:
            yield node.lineno, node.value


def wrong_words() -> Iterator[str]:
    for folder in ("commbench", "moe_ref"):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            for line, text in prose(path):
                for found in WRONG.finditer(text):
                    yield f"{path.relative_to(REPOSITORY)}:{line}: {found[0]!r} in {text.strip()[:60]!r}"


def test_no_word_of_the_code_is_said() -> None:
    assert list(wrong_words()) == []


def test_the_words_are_found(tmp_path: Path) -> None:
    path = tmp_path / "m.py"
    path.write_text('"""told."""\ndef f():\n    """held."""\n    return f"{1} is no profile", "it was told", "told"\n')
    assert {text for _, text in prose(path) if WRONG.search(text)} == {" is no profile", "it was told"}
    path.write_text('@click.command()\ndef f():\n    """What is told."""\n')
    assert [text for _, text in prose(path) if WRONG.search(text)] == ["What is told."]
