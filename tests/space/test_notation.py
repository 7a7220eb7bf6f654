"""The short form: what it spells, how it is printed, and where a bad one is wrong."""

from __future__ import annotations

import random

import pytest

from archsearch import operators
from archsearch.space import parse
from archsearch.space.notation import read_pattern
from archsearch.space.notation import write_pattern

CODES = tuple(operator.code for operator in operators.OPERATORS)


def codes(text: str) -> str:
    return " ".join(operators.get(name).code for name in read_pattern(text).operators)


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("a f", "a f"),
        ("(a f)x2 w", "a f a f w"),
        ("((a)x2 f)x2", "a a f a a f"),
        ("ax3 fx1", "a a a f"),
        ("(a f) x2", "a f a f"),
        (" a(w f)x2 f ", "a w f w f f"),
        ("attention ffnx2", "a f f"),
    ],
)
def test_spells(text: str, spelled: str) -> None:
    assert codes(text) == spelled


def test_width() -> None:
    assert read_pattern("a @2048").hidden_size == 2048
    assert read_pattern("a").hidden_size is None
    assert read_pattern("@64").operators == ()


@pytest.mark.parametrize(
    ("spelled", "text"),
    [
        ("a f a f", "a f a f"),
        ("a f a f a f", "(a f)x3"),
        ("w a a a a", "w ax4"),
        ("a a f w a a f w", "(a a f w)x2"),
        ("a a a f w a a a f w", "(ax3 f w)x2"),
        ("f", "f"),
        ("", ""),
    ],
)
def test_prints_the_shortest(spelled: str, text: str) -> None:
    assert write_pattern(tuple(spelled.split())) == text


def test_released_pattern_is_printed_as_published() -> None:
    text = "(d f m2 f a f m2 f)x2 (d f m2 f)x2 @2048"
    assert parse(text).notation == text


def test_print_and_parse_are_inverse() -> None:
    rng = random.Random(0)
    for _ in range(300):
        known = rng.sample(CODES, rng.randint(1, len(CODES)))
        unit = tuple(rng.choice(known) for _ in range(rng.randint(1, 8)))
        tail = tuple(rng.choice(known) for _ in range(rng.randint(0, 12)))
        pattern = unit * rng.randint(1, 4) + tail
        text = write_pattern(pattern, 512)
        spelled = tuple(operators.get(name).code for name in read_pattern(text).operators)
        assert spelled == pattern
        assert len(text) <= len(" ".join((*pattern, "@512")))


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("a q f", 2, "unknown operator 'q'"),
        ("a mm2 f", 2, "did you mean 'm2'?"),
        ("(a f", 0, "never closed"),
        ("a f)", 3, "closes no group"),
        ("a () f", 3, "expected an operator code (a, "),
        ("a @", 2, "as in @2048"),
        ("a @0", 2, "must be positive"),
        ("a @64 f", 6, "expected the end"),
        ("(a @64)", 3, "expected another operator code or ')'"),
        ("x2 a", 0, "a repeat must follow"),
        ("a x2 x2", 5, "a repeat must follow"),
        ("a fx0", 3, "at least 1"),
        ("a & f", 2, "expected an operator code"),
        ("((ax20)x20)x20", 11, "more than 512 layers"),
        ("", 0, "expected an operator code"),
    ],
)
def test_shows_where_it_is_wrong(text: str, column: int, message: str) -> None:
    with pytest.raises(ValueError, match="bad pattern") as caught:
        read_pattern(text)
    first, line, caret = str(caught.value).split("\n")
    assert message in first
    assert line == f"  {text}"
    assert caret == " " * (column + 2) + "^"
