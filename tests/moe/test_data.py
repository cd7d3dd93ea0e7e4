"""TextDataset as bytes: the split, batches that follow from seed and step, the entropy, and errors in words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from commbench.errors import UsageError
from moe_ref.data import TextDataset, sample


@pytest.fixture
def counting(tmp_path: Path) -> Path:
    """Bytes of which every window of 4 is another one."""
    path = tmp_path / "text"
    path.write_bytes(b"".join(f"{number:04d}".encode() for number in range(1000)))
    return path


def test_what_is_held_out_is_never_trained_on(counting: Path) -> None:
    text = TextDataset(counting, context=16, validation=0.25)
    assert len(text.train) == 3000 and len(text.held_out) == 1000
    held_out = {bytes(text.held_out[i : i + 17]) for i in range(1000 - 16)}
    for step in range(50):
        inputs_BS, targets_BS = text.batch(8, seed=1, step=step)
        assert inputs_BS.dtype == torch.int64 and inputs_BS.shape == targets_BS.shape == (8, 16)
        assert torch.equal(inputs_BS[:, 1:], targets_BS[:, :-1])
        for first, row in zip(inputs_BS[:, 0].tolist(), targets_BS.tolist(), strict=True):
            assert bytes([first, *row]) not in held_out
    inputs_BS, targets_BS = text.validation(10)
    assert {bytes([a, *b]) for a, b in zip(inputs_BS[:, 0].tolist(), targets_BS.tolist(), strict=True)} < held_out
    assert torch.equal(inputs_BS, text.validation(10)[0])


def test_a_batch_follows_from_the_seed_and_the_step(counting: Path) -> None:
    text, again = TextDataset(counting, context=16), TextDataset(counting, context=16)
    one = text.batch(8, seed=1, step=2)[0]
    assert torch.equal(one, again.batch(8, seed=1, step=2)[0])
    assert not torch.equal(one, text.batch(8, seed=1, step=3)[0])
    assert not torch.equal(one, text.batch(8, seed=2, step=2)[0])


def test_places_of_a_batch_never_change() -> None:
    """A run that goes on after an upgrade has to find the batches that it would have had."""
    assert [int(raw) for raw in np.random.Philox(key=[7, 3]).random_raw(3)] == PHILOX


PHILOX = [8893702929424106994, 13357943582879616415, 927023405073346982]


def test_all_places_come(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(bytes(range(40)))
    text = TextDataset(path, context=4, validation=0.2)
    starts = {int(row[0]) for step in range(60) for row in text.batch(4, seed=0, step=step)[0]}
    assert starts == set(range(32 - 4))


def test_entropy_is_of_the_bytes_alone(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"abcd" * 64)
    assert TextDataset(path, context=4).entropy() == pytest.approx(2)
    path.write_bytes(b"a" * 512)
    assert TextDataset(path, context=4).entropy() == 0


def test_the_text_is_a_memory_map(counting: Path) -> None:
    assert isinstance(TextDataset(counting, context=4).all, np.memmap)


def test_the_sample_is_there_with_where_it_is_from() -> None:
    text = TextDataset(context=128)
    assert 300_000 < len(text.all) < 1_200_000
    assert 4 < text.entropy() < 5
    said = sample().with_suffix(".md").read_text()
    assert "public domain" in said and str(len(text.all)) in said.replace(",", "").replace(" ", "")


def test_texts_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    short, empty = tmp_path / "short", tmp_path / "empty"
    short.write_bytes(b"x" * 100)
    empty.touch()
    with pytest.raises(UsageError, match="cannot read the text"):
        TextDataset(tmp_path / "none", context=4)
    with pytest.raises(UsageError, match="cannot read the text"):
        TextDataset(tmp_path, context=4)
    with pytest.raises(UsageError, match="100 bytes, 90 to train on and 10 held out"):
        TextDataset(short, context=16)
    with pytest.raises(UsageError, match="0 bytes"):
        TextDataset(empty, context=16)
    with pytest.raises(UsageError, match="validation is 1"):
        TextDataset(short, context=4, validation=1)
    with pytest.raises(UsageError, match="3 sequences of 4 bytes"):
        TextDataset(short, context=4).validation(3)
