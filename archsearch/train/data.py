"""Token data: a corpus split into train and held-out, and batches as a pure function.

Legend: B rows, T tokens predicted per row, N held-out windows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from archsearch.train.sources import Document
from archsearch.train.sources import documents
from archsearch.train.tokenizer import Tokenizer
from archsearch.train.tokenizer import load_tokenizer

MAX_BYTES = 8_000_000
HELD_OUT = 0.1

# a corpus of fewer documents is cut into about so many pieces, so that it can be split
_MIN_DOCUMENTS = 20
_NUM_PIECES = 40
_ENCODE_AT_ONCE = 256


@dataclass(frozen=True, eq=False, kw_only=True)
class TokenData:
    """Token ids of a corpus, in two parts that share no document.

    `train` and `held_out` are 1-D and unsigned; `held_out_bytes` is the text behind
    `held_out` in UTF-8, a document's end counted as one byte; `truncated` tells that the
    corpus goes on where the byte budget ended.
    """

    name: str
    tokenizer: str
    vocab_size: int
    train: NDArray[np.unsignedinteger[Any]]
    held_out: NDArray[np.unsignedinteger[Any]]
    train_bytes: int
    held_out_bytes: int
    num_documents: int
    truncated: bool = False

    @property
    def bytes_per_token(self) -> float:
        """Bytes of held-out text per held-out token."""
        return self.held_out_bytes / max(len(self.held_out), 1)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of both token streams and their split."""
        digest = hashlib.sha256(f"{self.vocab_size} {len(self.train)}\n".encode())
        for part in (self.train, self.held_out):
            digest.update(part.astype(part.dtype.newbyteorder("<"), copy=False).data)
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Where the tokens come from, as plain values for a log or a run's record."""
        return {
            "source": self.name,
            "tokenizer": self.tokenizer,
            "vocab_size": self.vocab_size,
            "documents": self.num_documents,
            "bytes": self.train_bytes + self.held_out_bytes,
            "train_tokens": len(self.train),
            "held_out_tokens": len(self.held_out),
            "bytes_per_token": self.bytes_per_token,
            "truncated": self.truncated,
            "sha256": self.fingerprint,
        }

    def check(self, seq_len: int) -> None:
        """Raise ValueError if either part is too small for one window of `seq_len` tokens."""
        if min(len(self.train), len(self.held_out)) <= seq_len:
            raise ValueError(
                f"corpus {self.name!r} is too small for sequences of {seq_len} tokens: it has"
                f" {len(self.train)} training and {len(self.held_out)} held-out tokens, and each"
                f" part needs at least {seq_len + 1}"
            )

    def batch(self, index: int, *, batch_size: int, seq_len: int, seed: int) -> Tensor:
        """Training batch number `index` as int64 [B,T+1]: windows at random places, a pure
        function of (seed, index). Raises ValueError if the corpus is too small."""
        self.check(seq_len)
        generator = np.random.default_rng([seed, index])
        starts = generator.integers(len(self.train) - seq_len, size=batch_size)
        return _windows(self.train, starts, seq_len)

    def held_out_windows(self, seq_len: int, max_tokens: int) -> Tensor:
        """Fixed windows int64 [N,T+1] that predict at most `max_tokens` tokens (at least one
        window), spread evenly over the held-out part, no token predicted twice."""
        self.check(seq_len)
        available = (len(self.held_out) - 1) // seq_len
        count = min(available, max(max_tokens // seq_len, 1))
        return _windows(self.held_out, np.arange(count) * available // count * seq_len, seq_len)


def _windows(
    ids: NDArray[np.unsignedinteger[Any]], starts: NDArray[np.int64], seq_len: int
) -> Tensor:
    """ids[start : start + T + 1] for every start."""
    return torch.from_numpy(ids[starts[:, None] + np.arange(seq_len + 1)].astype(np.int64))


def load(
    source: str | Path = "stdlib",
    *,
    tokenizer: str | Path | Tokenizer = "bytes",
    column: str | None = None,
    max_bytes: int = MAX_BYTES,
    held_out: float = HELD_OUT,
) -> TokenData:
    """Read at most `max_bytes` of a corpus (see `sources.documents`) and tokenise it.

    About `held_out` of the text is set apart by document. Raises ValueError, OSError or
    ImportError with one clear sentence.
    """
    if max_bytes < 1:
        raise ValueError(f"max_bytes must be positive; got {max_bytes}")
    if isinstance(tokenizer, str | Path):
        tokenizer = load_tokenizer(tokenizer)
    stream = documents(source, column=column, max_bytes=max_bytes)
    return from_documents(
        stream, tokenizer, name=str(source), max_bytes=max_bytes, held_out=held_out
    )


def from_documents(
    stream: Iterable[Document],
    tokenizer: Tokenizer,
    *,
    name: str,
    max_bytes: int = MAX_BYTES,
    held_out: float = HELD_OUT,
) -> TokenData:
    """Split and tokenise a stream of documents; raises ValueError if it has no text."""
    if not 0 < held_out < 1:
        raise ValueError(f"held_out must lie between 0 and 1; got {held_out}")
    read, truncated = _within(stream, max_bytes)
    if not read:
        raise ValueError(f"corpus {name!r} is empty: it has no text to train on")
    train, held = split(read, held_out)
    train_ids, train_bytes = _encode(train, tokenizer)
    held_ids, held_bytes = _encode(held, tokenizer)
    return TokenData(
        name=name,
        tokenizer=tokenizer.name,
        vocab_size=tokenizer.vocab_size,
        train=train_ids,
        held_out=held_ids,
        train_bytes=train_bytes,
        held_out_bytes=held_bytes,
        num_documents=len(read),
        truncated=truncated,
    )


def _within(stream: Iterable[Document], max_bytes: int) -> tuple[list[Document], bool]:
    """The documents that have text, up to `max_bytes`, the last one cut; and whether one was."""
    read: list[Document] = []
    room = max_bytes
    for document in stream:
        encoded = document.text.encode("utf-8", "replace")
        if len(encoded) > room:
            text = encoded[:room].decode("utf-8", "ignore")
            return [*read, Document(document.key, text)] if text else read, True
        room -= len(encoded)
        if document.text and not document.text.isspace():
            read.append(document)
    return read, False


def split(read: Sequence[Document], held_out: float) -> tuple[list[Document], list[Document]]:
    """Set about `held_out` of the text apart, whole documents in the order of a hash of their
    keys. A corpus of few documents is cut into pieces at line ends first."""
    total = sum(len(document.text) for document in read)
    if len(read) < _MIN_DOCUMENTS:
        size = max(total // _NUM_PIECES, 1)
        read = [piece for document in read for piece in _pieces(document, size)]
    target = held_out * total
    chosen: set[int] = set()
    taken = 0
    for index in sorted(range(len(read)), key=lambda index: _rank(read[index])):
        # one document much larger than its share would starve the training part
        if taken + len(read[index].text) <= 1.5 * target:
            chosen.add(index)
            taken += len(read[index].text)
        if taken >= target:
            break
    train = [document for index, document in enumerate(read) if index not in chosen]
    return train, [read[index] for index in sorted(chosen)]


def _rank(document: Document) -> bytes:
    return hashlib.sha256(document.key.encode("utf-8", "replace")).digest()


def _pieces(document: Document, size: int) -> Iterator[Document]:
    """Pieces of about `size` characters that end with a line where there is one to end."""
    text, begin = document.text, 0
    while begin < len(text):
        end = begin + size
        if end < len(text):
            end = text.rfind("\n", begin, end) + 1 or end
        yield Document(f"{document.key}@{begin}", text[begin:end])
        begin = end


def _encode(
    part: Sequence[Document], tokenizer: Tokenizer
) -> tuple[NDArray[np.unsignedinteger[Any]], int]:
    """Ids of all documents in a row, and the bytes of text behind them."""
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    end = [] if tokenizer.separator is None else [tokenizer.separator]
    pieces = [np.empty(0, dtype)]
    num_bytes = len(end) * len(part)
    for begin in range(0, len(part), _ENCODE_AT_ONCE):
        texts = [document.text for document in part[begin : begin + _ENCODE_AT_ONCE]]
        num_bytes += sum(len(text.encode("utf-8", "replace")) for text in texts)
        for ids in tokenizer.encode(texts):
            pieces += [ids.astype(dtype), np.array(end, dtype)]
    return np.concatenate(pieces), num_bytes
