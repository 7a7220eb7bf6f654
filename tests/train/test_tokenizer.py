"""Bytes, tokenizer files and transformers folders give ids that decode to the text again."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import tokenizers
import transformers

from archsearch.train.tokenizer import load_tokenizer

SIZE = 270
TEXT = "def add(a, b):\n    return a + b  # naïve ☃\n"


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=SIZE,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 50, trainer)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def test_bytes_round_trip() -> None:
    tokenizer = load_tokenizer("bytes")
    (ids,) = tokenizer.encode([TEXT])
    assert bytes(ids.tolist()) == TEXT.encode()
    assert tokenizer.decode([*ids.tolist(), 0]) == TEXT
    assert (tokenizer.vocab_size, tokenizer.separator) == (256, 0)


def test_bytes_accept_lone_surrogates() -> None:
    (ids,) = load_tokenizer("bytes").encode(["a\ud800b"])
    assert bytes(ids.tolist()) == b"a?b"


def test_tokenizer_file_and_folder(tokenizer_file: Path) -> None:
    for name in (tokenizer_file, str(tokenizer_file), tokenizer_file.parent):
        tokenizer = load_tokenizer(name)
        first, second = tokenizer.encode([TEXT, "a"])
        assert tokenizer.decode(first.tolist()) == TEXT
        assert len(first) < len(TEXT)
        assert len(second) == 1
        assert int(first.max()) < tokenizer.vocab_size == SIZE
        assert tokenizer.separator == 0


def test_vocabulary_and_merges(tokenizer_file: Path, tmp_path: Path) -> None:
    tokenizers.Tokenizer.from_file(str(tokenizer_file)).model.save(str(tmp_path))
    tokenizer, same = load_tokenizer(tmp_path), load_tokenizer(tokenizer_file)
    (ids,) = tokenizer.encode([TEXT])
    assert ids.tolist() == same.encode([TEXT])[0].tolist()
    assert tokenizer.decode(ids.tolist()) == TEXT
    assert (tokenizer.vocab_size, tokenizer.separator) == (same.vocab_size, same.separator)


def test_transformers_folder(tokenizer_file: Path, tmp_path: Path) -> None:
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer_file), eos_token="<|endoftext|>"
    )
    made.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    (ids,) = tokenizer.encode([TEXT])
    assert ids.tolist() == load_tokenizer(tokenizer_file).encode([TEXT])[0].tolist()
    assert tokenizer.decode(ids.tolist()) == TEXT
    assert (tokenizer.vocab_size, tokenizer.separator) == (SIZE, 0)


def test_bad_tokenizers_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    broken = tmp_path / "tokenizer.json"
    broken.write_text("{}")
    with pytest.raises(ValueError, match=r"cannot load tokenizer '.*tokenizer\.json'") as caught:
        load_tokenizer(broken)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="there is no such file"):
        load_tokenizer(tmp_path / "missing.json")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match=r"it must be 'bytes', a tokenizer.json") as caught:
        load_tokenizer(empty)
    assert "\n" not in str(caught.value)


def test_a_name_that_cannot_be_loaded_is_one_sentence_without_a_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def offline(name: str) -> None:
        logging.getLogger("huggingface_hub.utils").warning("retrying %s", name)
        raise OSError("cannot connect\nsecond line")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", offline)
    with pytest.raises(ValueError, match=r"cannot load tokenizer 'nope': .* cannot connect$"):
        load_tokenizer("nope")
    assert not caplog.records
