"""Text to token ids: bytes, or any tokenizer of the `tokenizers` and `transformers` libraries."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from archsearch.train import hub

Ids = NDArray[np.generic]

# what the usual tokenizers call the end of a document, for files that do not say it
_END_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>")

_FILES = ("tokenizer.json", "vocab.json")
_CONFIGS = ("tokenizer_config.json", "config.json")


class Tokenizer(Protocol):
    """`separator` is the id put after every document (None: nothing is put there)."""

    name: str
    vocab_size: int
    separator: int | None

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Ids of each text, without special tokens."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`."""


class ByteTokenizer:
    """UTF-8 bytes: 256 ids. Byte 0, which text does not contain, ends a document, so that
    the vocabulary needs no 257th entry."""

    name = "bytes"
    vocab_size = 256
    separator: int | None = 0

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Bytes of each text."""
        return [np.frombuffer(text.encode("utf-8", "replace"), np.uint8) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD, separators vanish."""
        return bytes(i for i in ids if i).decode("utf-8", "replace")


class FileTokenizer:
    """A `tokenizer.json` of the `tokenizers` library, or a folder with one, or with the
    `vocab.json` and `merges.txt` of byte-level BPE that came before (GPT-2)."""

    def __init__(self, path: Path) -> None:
        try:
            self._tokenizer = _read(path)
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"cannot load tokenizer {str(path)!r}: {_line(error)}") from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self.name = str(path)
        # ids may have holes: the largest one counts
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        self.separator: int | None = next(
            (vocabulary[token] for token in _END_TOKENS if token in vocabulary), None
        )

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Ids of each text, without special tokens."""
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.uint32) for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens left out."""
        return str(self._tokenizer.decode(list(ids)))


class TransformersTokenizer:
    """Whatever `transformers.AutoTokenizer` loads from a folder or by name."""

    def __init__(self, name: str) -> None:
        import transformers

        try:
            with hub.quiet():
                self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(name)
        except Exception as error:  # many kinds: network, missing files, unknown classes
            raise ValueError(
                f"cannot load tokenizer {name!r}: it must be 'bytes', a tokenizer.json, a folder"
                f" with one, or a name that transformers can load; {_line(error)}"
            ) from None
        self.name = name
        self.vocab_size = max(self._tokenizer.get_vocab().values(), default=-1) + 1
        self.separator: int | None = self._tokenizer.eos_token_id

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Ids of each text, without special tokens."""
        rows = self._tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return [np.array(ids, np.uint32) for ids in rows]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens left out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))


def load_tokenizer(name: str | Path = "bytes") -> Tokenizer:
    """Load "bytes", a tokenizer.json, a folder, or a transformers name; raises ValueError."""
    if str(name) == "bytes":
        return ByteTokenizer()
    path = Path(name)
    # what a folder's config says (class, end token) is for transformers to read
    has_config = any((path / config).is_file() for config in _CONFIGS)
    if path.is_file() or (not has_config and any((path / file).is_file() for file in _FILES)):
        return FileTokenizer(path)
    if path.suffix == ".json":
        raise ValueError(f"cannot load tokenizer {str(name)!r}: there is no such file")
    return TransformersTokenizer(str(name))


def _read(path: Path) -> Any:
    """The `tokenizers.Tokenizer` of a file or folder."""
    import tokenizers

    file = path / "tokenizer.json" if path.is_dir() else path
    if file.is_file():
        return tokenizers.Tokenizer.from_file(str(file))
    vocab, merges = str(path / "vocab.json"), str(path / "merges.txt")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(vocab, merges))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    return tokenizer


def _line(error: Exception) -> str:
    """First line of an error's message."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(" :")
