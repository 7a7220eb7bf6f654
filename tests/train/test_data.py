"""The split shares no document, and a batch is a pure function of seed and number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from archsearch.train import data
from archsearch.train.sources import Document
from archsearch.train.tokenizer import ByteTokenizer


def corpus(count: int = 50, size: int = 100) -> list[Document]:
    return [Document(f"{i}.txt", chr(ord("A") + i) * size) for i in range(count)]


def made(documents: list[Document], **options: float) -> data.TokenData:
    held_out = options.get("held_out", 0.1)
    max_bytes = int(options.get("max_bytes", 10**6))
    return data.from_documents(
        documents, ByteTokenizer(), name="test", held_out=held_out, max_bytes=max_bytes
    )


def test_split_is_by_document_and_stable() -> None:
    train, held_out = data.split(corpus(), 0.1)
    assert len(held_out) == 5
    assert {d.key for d in train} | {d.key for d in held_out} == {d.key for d in corpus()}
    assert not {d.key for d in train} & {d.key for d in held_out}
    again, again_held = data.split(corpus()[::-1], 0.1)
    assert {d.key for d in again_held} == {d.key for d in held_out}
    assert {d.key for d in again} == {d.key for d in train}


def test_split_keeps_the_order_of_the_corpus() -> None:
    for part in data.split(corpus(), 0.3):
        assert [d.text[0] for d in part] == sorted(d.text[0] for d in part)


def test_one_file_is_split_at_line_ends() -> None:
    text = "".join(f"line {i}\n" for i in range(1000))
    train, held_out = data.split([Document("one.txt", text)], 0.1)
    assert 0.05 < sum(len(d.text) for d in held_out) / len(text) < 0.2
    assert all(d.text.startswith("line ") and d.text.endswith("\n") for d in train + held_out)
    assert sorted("".join(d.text for d in train + held_out)) == sorted(text)


def test_one_long_line_is_split_all_the_same() -> None:
    train, held_out = data.split([Document("one.txt", "x" * 1000)], 0.1)
    assert sum(len(d.text) for d in train) + sum(len(d.text) for d in held_out) == 1000
    assert held_out


def test_a_huge_document_is_not_held_out() -> None:
    documents = [*corpus(30), Document("huge.txt", "z" * 50_000)]
    assert "huge.txt" in {d.key for d in data.split(documents, 0.1)[0]}


def test_documents_end_with_a_separator() -> None:
    tokens = made(corpus(50, size=3))
    assert tokens.train.dtype == np.uint16
    assert bytes(tokens.train[:8].tolist()) in (b"AAA\0BBB\0", b"BBB\0CCC\0", b"AAA\0CCC\0")
    assert len(tokens.train) + len(tokens.held_out) == 50 * 4
    assert tokens.bytes_per_token == 1.0


def test_budget_cuts_the_corpus_and_says_so() -> None:
    whole, cut = made(corpus()), made(corpus(), max_bytes=2550)
    assert not whole.truncated
    assert cut.truncated
    assert cut.num_documents == 26
    assert cut.train_bytes + cut.held_out_bytes == 2550 + 26
    exact = made(corpus(), max_bytes=5000)
    assert not exact.truncated
    assert exact.fingerprint == whole.fingerprint


def test_budget_never_splits_a_character() -> None:
    tokens = made([Document("a", "é" * 3000)], max_bytes=1001)
    assert sum(int((part == 0xC3).sum()) for part in (tokens.train, tokens.held_out)) == 500


def test_batch_is_a_pure_function_of_seed_and_number() -> None:
    tokens = made(corpus())
    shape = {"batch_size": 4, "seq_len": 16}
    first = tokens.batch(3, seed=0, **shape)
    assert first.shape == (4, 17)
    assert first.dtype == torch.long
    tokens.batch(7, seed=0, **shape)
    torch.manual_seed(1)
    assert torch.equal(first, tokens.batch(3, seed=0, **shape))
    assert not torch.equal(first, tokens.batch(4, seed=0, **shape))
    assert not torch.equal(first, tokens.batch(3, seed=1, **shape))


def test_batch_holds_windows_of_the_training_part() -> None:
    tokens = made([Document(f"{i}", f"{i:05d}" * 20) for i in range(60)])
    text = bytes(tokens.train.tolist())
    for row in tokens.batch(0, batch_size=8, seq_len=30, seed=0):
        assert bytes(row.tolist()) in text


def test_held_out_windows_are_fixed_and_predict_each_token_once() -> None:
    tokens = made(corpus())
    windows = tokens.held_out_windows(10, 10**9)
    assert windows.shape == ((len(tokens.held_out) - 1) // 10, 11)
    assert (
        windows[:, 1:].flatten().tolist()
        == tokens.held_out[1 : windows.shape[0] * 10 + 1].tolist()
    )
    few = tokens.held_out_windows(10, 40)
    assert few.shape == (4, 11)
    assert torch.equal(few, windows[torch.arange(4) * len(windows) // 4])
    assert len(tokens.held_out_windows(10, 1)) == 1


def test_fingerprint_sees_text_and_split() -> None:
    tokens = made(corpus())
    assert tokens.fingerprint == made(corpus()).fingerprint
    assert tokens.fingerprint != made(corpus(), held_out=0.2).fingerprint
    assert tokens.fingerprint != made(corpus(51)).fingerprint
    assert tokens.describe()["sha256"] == tokens.fingerprint


def test_default_corpus_loads_quickly_and_describes_itself() -> None:
    tokens = data.load(max_bytes=500_000)
    described = tokens.describe()
    assert described["source"] == "stdlib"
    assert described["tokenizer"] == "bytes"
    assert described["truncated"] is True
    assert described["bytes"] == described["train_tokens"] + described["held_out_tokens"]
    assert 0.05 < described["held_out_tokens"] / described["bytes"] < 0.2


def test_empty_and_small_corpora_are_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(" \n")
    with pytest.raises(ValueError, match=r"corpus '.*' is empty"):
        data.load(path)
    path.write_text("hello world\n" * 3)
    tokens = data.load(path)
    for call in (
        lambda: tokens.check(256),
        lambda: tokens.batch(0, batch_size=1, seq_len=256, seed=0),
        lambda: tokens.held_out_windows(256, 1),
    ):
        with pytest.raises(ValueError, match="too small for sequences of 256 tokens"):
            call()
    with pytest.raises(ValueError, match="max_bytes must be positive; got 0"):
        data.load(path, max_bytes=0)
    with pytest.raises(ValueError, match="held_out must lie between 0 and 1; got 1"):
        data.load(path, held_out=1)
