"""Conversations as text, and text as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from typing import NamedTuple
from typing import Protocol

# stands for bytes that are no text, or not yet
UNREADABLE = "\N{REPLACEMENT CHARACTER}"
SPEAKERS = {"system": "", "user": "User: ", "assistant": "Assistant:"}


class Message(NamedTuple):
    """What was said; `role` is system, user or assistant."""

    role: str
    text: str


class Words(Protocol):
    """What a conversation needs of a tokenizer: `stop` are the tokens that end an answer, which
    as text are `ends`; `cuts` are texts that end it too, since another speaker begins."""

    stop: tuple[int, ...]
    ends: tuple[str, ...]
    cuts: tuple[str, ...]

    def encode(self, text: str, *, begins: bool) -> list[int]:
        """Tokens of `text`, which may begin a conversation."""

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of an answer, without the tokens that end it."""

    def render(self, messages: Sequence[Message]) -> str:
        """The text that asks for an answer to `messages`."""


def plain(messages: Sequence[Message]) -> str:
    """Lines of "User: ..." and "Assistant: ...", the last of which waits to be completed."""
    lines = [SPEAKERS[message.role] + message.text for message in messages]
    return "\n".join([*lines, SPEAKERS["assistant"]])


class ByteWords:
    """UTF-8 bytes, for models that were never trained: a token that is no byte is shown as
    some letter."""

    stop: tuple[int, ...] = ()
    ends: tuple[str, ...] = ()
    cuts: tuple[str, ...] = ()

    def encode(self, text: str, *, begins: bool) -> list[int]:
        """Bytes of `text`."""
        del begins
        return list(text.encode("utf-8", "replace"))

    def decode(self, tokens: Sequence[int]) -> str:
        """A letter, digit or sign for each token."""
        return "".join(chr(token if 32 <= token < 127 else 32 + token % 95) for token in tokens)

    def render(self, messages: Sequence[Message]) -> str:
        """See `plain`."""
        return plain(messages)


class PretrainedWords:
    """A tokenizer of `transformers`, with its chat template where it has one."""

    def __init__(self, tokenizer: Any, ends: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        self.stop: tuple[int, ...] = tuple(dict.fromkeys([*own, *ends]))
        self.ends: tuple[str, ...] = tuple(tokenizer.decode([token]) for token in self.stop)
        self.has_template = bool(getattr(tokenizer, "chat_template", None))
        self.cuts: tuple[str, ...] = (
            () if self.has_template else ("\n" + SPEAKERS["user"].rstrip(),)
        )

    def encode(self, text: str, *, begins: bool) -> list[int]:
        """Tokens of `text`; a template writes the token that begins a text itself."""
        special = begins and not self.has_template
        ids = self._tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
        return [int(token) for token in ids]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`, special ones left out."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def render(self, messages: Sequence[Message]) -> str:
        """By the tokenizer's chat template, or else `plain`."""
        if not self.has_template:
            return plain(messages)
        turns = [{"role": message.role, "content": message.text} for message in messages]
        return str(
            self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        )
