"""The short form of a layer pattern: `(d f m2 f a f m2 f)x2 (d f m2 f)x2 @2048`.

pattern = { item } [ "@" hidden size ]
item    = ( code | "(" item { item } ")" ) [ "x" repeats ]
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import NoReturn

from archsearch import operators
from archsearch.names import suggestion

MAX_LAYERS = 512
_TOKEN = re.compile(r"\s*(?:(?P<width>@\s*\d+)|(?P<sign>[()@])|(?P<word>\w+)|(?P<other>\S))")
_REPEATED = re.compile(r"(?P<code>\w*?)x(?P<count>\d+)")


@dataclass(frozen=True, slots=True)
class Pattern:
    """Operator names in order, and the hidden size where the text gives it."""

    operators: tuple[str, ...]
    hidden_size: int | None


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str  # code, (, ), repeat, width, end
    text: str
    position: int
    value: int = 0


def read_pattern(text: str) -> Pattern:
    """Parse the short form; a bad string raises a ValueError that points at the place."""
    return _Parser(text).pattern()


def write_pattern(names: tuple[str, ...], hidden_size: int | None = None) -> str:
    """The shortest spelling of a pattern, repeats folded; names or codes are taken."""
    codes = tuple(operators.get(name).code for name in names)
    parts = [_fold(codes)] if codes else []
    if hidden_size is not None:
        parts.append(f"@{hidden_size}")
    return " ".join(parts)


class _Parser:
    """Recursive descent over the tokens of one string."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.codes = {key for op in operators.OPERATORS for key in (op.name, op.code)}
        self.tokens = self.split()
        self.index = 0

    def pattern(self) -> Pattern:
        names = self.items()
        hidden_size = None
        if self.next.kind == "width":
            hidden_size = self.take().value
            if hidden_size < 1:
                self.fail(self.tokens[self.index - 1], "the hidden size must be positive")
        elif not names:
            self.fail(self.next, f"expected {self.known()} or '('")
        if self.next.kind == ")":
            self.fail(self.next, "this ')' closes no group")
        if self.next.kind != "end":
            self.fail(self.next, "expected the end of the pattern")
        return Pattern(tuple(names), hidden_size)

    def items(self) -> list[str]:
        names: list[str] = []
        while self.next.kind in ("code", "(", "repeat"):
            names += self.item()
            if len(names) > MAX_LAYERS:
                self.fail(self.tokens[self.index - 1], f"more than {MAX_LAYERS} layers")
        return names

    def item(self) -> list[str]:
        token = self.take()
        if token.kind == "repeat":
            self.fail(token, "a repeat must follow an operator code or a group")
        names = [operators.get(token.text).name] if token.kind == "code" else self.group(token)
        if self.next.kind == "repeat":
            repeat = self.take()
            if repeat.value < 1:
                self.fail(repeat, "the repeat must be at least 1")
            if repeat.value * len(names) > MAX_LAYERS:
                self.fail(repeat, f"more than {MAX_LAYERS} layers")
            names = names * repeat.value
        return names

    def group(self, opening: _Token) -> list[str]:
        names = self.items()
        if self.next.kind == "end":
            self.fail(opening, "this '(' is never closed")
        if self.next.kind != ")" or not names:
            what = self.known() if not names else "another operator code or ')'"
            self.fail(self.next, f"expected {what}")
        self.take()
        return names

    @property
    def next(self) -> _Token:
        return self.tokens[self.index]

    def take(self) -> _Token:
        self.index += 1
        return self.tokens[self.index - 1]

    def split(self) -> list[_Token]:
        tokens: list[_Token] = []
        for match in _TOKEN.finditer(self.text):
            kind, position = str(match.lastgroup), match.start(str(match.lastgroup))
            found = match[kind]
            if kind == "word":
                tokens += self.word(found, position)
            elif kind == "width":
                tokens.append(_Token("width", found, position, int(found[1:])))
            else:
                tokens.append(_Token(found, found, position))
                if found == "@":
                    self.fail(tokens[-1], "expected the hidden size after '@', as in @2048")
                if kind == "other":
                    self.fail(tokens[-1], f"expected {self.known()}, '(', ')' or '@'")
        return [*tokens, _Token("end", "", len(self.text))]

    def word(self, found: str, position: int) -> list[_Token]:
        """Tokens of one word: a code, a code with its repeat, or a repeat alone."""
        if found in self.codes:
            return [_Token("code", found, position)]
        code, count = found, None
        if match := _REPEATED.fullmatch(found):
            code, count = match["code"], int(match["count"])
        tokens = []
        if code:
            if code not in self.codes:
                hint = suggestion(code, sorted(self.codes), cutoff=0.5)
                unknown = _Token("code", code, position)
                self.fail(unknown, f"unknown operator {code!r}; {hint}expected {self.known()}")
            tokens.append(_Token("code", code, position))
        if count is not None:
            where = position + len(code)
            tokens.append(_Token("repeat", found[len(code) :], where, count))
        return tokens

    def known(self) -> str:
        return f"an operator code ({', '.join(op.code for op in operators.OPERATORS)})"

    def fail(self, token: _Token, message: str) -> NoReturn:
        line = self.text.replace("\n", " ").replace("\t", " ")
        raise ValueError(f"bad pattern: {message}\n  {line}\n  {' ' * token.position}^")


@lru_cache(maxsize=4096)
def _fold(codes: tuple[str, ...]) -> str:
    """Shortest spelling of `codes`; the plain one wins ties."""
    # best[i] spells codes[i:]: its first item is one code or a repeated unit
    best = [""] * (len(codes) + 1)
    for begin in reversed(range(len(codes))):
        best[begin] = _joined(codes[begin], best[begin + 1])
        for size in range(1, (len(codes) - begin) // 2 + 1):
            unit = codes[begin : begin + size]
            repeats, end = 1, begin + size
            if codes[end : end + size] != unit or _repeats(unit):
                continue
            while codes[end : end + size] == unit:
                repeats, end = repeats + 1, end + size
                text = codes[begin] if size == 1 else f"({_fold(unit)})"
                spelled = _joined(f"{text}x{repeats}", best[end])
                if len(spelled) < len(best[begin]):
                    best[begin] = spelled
    return best[0]


def _joined(first: str, rest: str) -> str:
    return f"{first} {rest}" if rest else first


def _repeats(codes: tuple[str, ...]) -> bool:
    """Whether a shorter unit, repeated, gives `codes`: folding that unit is never longer."""
    length = len(codes)
    return any(codes[:p] * (length // p) == codes for p in range(1, length // 2 + 1))
