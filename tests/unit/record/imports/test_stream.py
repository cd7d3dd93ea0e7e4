"""A JSON file read piece by piece gives what json.loads gives, wherever its pieces end."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from commbench.errors import UsageError
from commbench.record.imports import stream

DOCUMENT = {
    "a": 12.5,
    "nodes": [{"x": [1, {"y": "}],\u00e9"}]}, -1.5e3, "s", None],
    "b": {"nodes": [1]},
    "empty": [],
    "c": True,
}


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1 << 20])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("indent", [None, 2])
def test_pieces(chunk: int, packed: bool, indent: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "_CHUNK", chunk)
    data = json.dumps(DOCUMENT, indent=indent, ensure_ascii=False).encode()
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(data) if packed else data)
    found = list(stream.items(path, frozenset({"nodes"})))
    assert [one.value for one in found if one.listed] == DOCUMENT["nodes"]
    assert {one.key: one.value for one in found if not one.listed} == {
        key: value for key, value in DOCUMENT.items() if key != "nodes"
    }


@pytest.mark.parametrize("chunk", [5])
def test_a_file_that_was_cut_anywhere_ends_too_early(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "_CHUNK", chunk)
    data = json.dumps(DOCUMENT, indent=1).encode()
    path = tmp_path / "file"
    for end in range(len(data)):
        path.write_bytes(data[:end])
        with pytest.raises(UsageError, match="ends too early"):
            list(stream.items(path, frozenset({"nodes"})))


def test_a_list_alone_is_events(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("[1, 2]")
    assert [one.value for one in stream.items(tmp_path / "file", frozenset())] == [1, 2]


def test_a_value_of_any_length_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "_CHUNK", 64)
    monkeypatch.setattr(stream, "_MOST_VALUE", 1000)
    (tmp_path / "file").write_text('{"nodes": ["' + "x" * 5000 + '"]}')
    with pytest.raises(UsageError, match="a value of more than"):
        list(stream.items(tmp_path / "file", frozenset({"nodes"})))
