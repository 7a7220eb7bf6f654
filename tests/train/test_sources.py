"""Every kind of corpus gives its documents in a fixed order, and bad ones one clear sentence."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from archsearch.train.sources import Document
from archsearch.train.sources import documents


def read(source: str | Path, **options: Any) -> list[Document]:
    return list(documents(source, **options))


def write_json_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    return path


def test_stdlib_is_real_code_in_order_without_tests() -> None:
    found = read("stdlib", max_bytes=1_000_000)
    keys = [document.key for document in found]
    assert keys == sorted(keys)
    assert "argparse.py" in keys
    assert "json/decoder.py" in keys
    assert not [key for key in keys if "test" in key.split("/")[:-1] or "site-packages" in key]
    text = {document.key: document.text for document in found}
    assert "def " in text["json/decoder.py"]


def test_text_file(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("naïve\n")
    assert read(path) == [Document("book.txt", "naïve\n")]
    assert read(str(path)) == read(path)


def test_folder_is_read_recursively_in_path_order(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / "b" / "z.md").write_text("z")
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "image.png").write_bytes(b"\0\1")
    (tmp_path / ".git" / "config.txt").write_text("hidden")
    write_json_lines(tmp_path / "b" / "c.jsonl", [{"text": "one"}, {"text": "two"}])
    assert read(tmp_path) == [
        Document("a.txt", "a"),
        Document("b/c.jsonl#0", "one"),
        Document("b/c.jsonl#1", "two"),
        Document("b/z.md", "z"),
    ]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_records_by_column(tmp_path: Path, suffix: str) -> None:
    rows = [{"content": "one", "title": "A"}, {"content": "two", "title": "B"}]
    path = tmp_path / f"data{suffix}"
    if suffix == ".jsonl":
        write_json_lines(path, rows)
    else:
        pd.DataFrame(rows).to_parquet(path)
    assert [document.text for document in read(path)] == ["one", "two"]
    assert [document.text for document in read(path, column="title")] == ["A", "B"]
    with pytest.raises(ValueError, match="has no column 'body'; it has content, title"):
        read(path, column="body")


def test_missing_usual_columns_are_named(tmp_path: Path) -> None:
    path = write_json_lines(tmp_path / "data.jsonl", [{"body": "x"}])
    with pytest.raises(ValueError, match="has no column 'text' or 'content'; it has body"):
        read(path)


def test_text_is_not_read_beyond_the_budget(tmp_path: Path) -> None:
    path = tmp_path / "large.txt"
    path.write_text("x" * 1000)
    assert len(read(path, max_bytes=10)[0].text) == 11


def test_bytes_that_are_not_utf8_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes(b"caf\xe9")
    assert read(path)[0].text == "caf\ufffd"


def test_bad_sources_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"corpus 'stdlb' must be .* did you mean 'stdlib'\?"):
        documents("stdlb")
    with pytest.raises(ValueError, match=r"existing file or folder$"):
        documents(tmp_path / "missing.txt")
    with pytest.raises(ValueError, match="corpus '' must be"):
        documents("")
    with pytest.raises(ValueError, match="has no text"):
        read(tmp_path)
    unknown = tmp_path / "model.bin"
    unknown.write_bytes(b"x")
    with pytest.raises(ValueError, match=r"suffix '\.bin' is not known; known are .*\.txt"):
        read(unknown)
    binary = tmp_path / "binary.txt"
    binary.write_bytes(b"a\0b")
    with pytest.raises(ValueError, match="binary content"):
        read(binary)


def test_bad_records_are_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        read(path)
    write_json_lines(path, [["a"]])
    with pytest.raises(ValueError, match="one object per row; row 0"):
        read(path)
    write_json_lines(path, [{"text": "a"}, {"text": None}])
    with pytest.raises(ValueError, match="must hold strings; row 1 has None"):
        read(path)
    parquet = tmp_path / "data.parquet"
    parquet.write_bytes(b"not parquet, but long enough to look")
    with pytest.raises(ValueError, match="is not a Parquet file"):
        read(parquet)


def test_hub_source_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def load_dataset(path: str, name: str | None, *, split: str, streaming: bool) -> Any:
        asked.append((path, name, split, streaming))
        return iter([{"text": "one"}, {"text": "two"}])

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert read("hf:org/name") == [Document("org/name#0", "one"), Document("org/name#1", "two")]
    read("hf:org/name:raw:validation")
    read("hf:org/name::test")
    assert asked == [
        ("org/name", None, "train", True),
        ("org/name", "raw", "validation", True),
        ("org/name", None, "test", True),
    ]
    with pytest.raises(ValueError, match="must look like"):
        documents("hf:org/name:raw:test:more")


def test_hub_source_without_datasets_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'archsearch\[data\]'"):
        documents("hf:org/name")


def test_hub_failures_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*arguments: Any, **options: Any) -> Any:
        raise ConnectionError("no network\nsecond line")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(ValueError, match=r"cannot load corpus 'hf:org/name': no network$"):
        documents("hf:org/name")
