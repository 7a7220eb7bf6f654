"""A conversation reads each message once, and holds what a fresh reading of it all would hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers import decoders
from tokenizers import models
from tokenizers import pre_tokenizers
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from archsearch.generate import Session
from archsearch.model import HybridLM
from archsearch.model import build
from archsearch.serve import Chat
from archsearch.serve import Message
from archsearch.serve.messages import ByteWords
from archsearch.serve.messages import PretrainedWords
from archsearch.serve.messages import plain
from archsearch.space import parse

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def model_of(vocab: int = 300) -> HybridLM:
    return build(parse("d f m2 a f @64", vocab_size=vocab, num_meta_tokens=2, head_norm=True))


def tokenizer_of(template: str | None) -> PreTrainedTokenizerFast:
    """Every byte a token, and two special ones."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, "</s>": 1} | {letter: i + 2 for i, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", chat_template=template
    )


class Script:
    """A session that says what it is told to, and remembers what it has read."""

    batch_size, prefill_s, begun = 1, 0.0, False

    def __init__(self, answers: Sequence[Sequence[int]], max_len: int = 1000) -> None:
        self.answers, self.max_len = list(answers), max_len
        self.held: list[int] = []
        self.prompts = 0

    @property
    def lengths(self) -> list[int]:
        return [len(self.held)]

    @property
    def room(self) -> int:
        return self.max_len - len(self.held)

    def prompt(self, ids: list[list[int]]) -> None:
        if len(ids[0]) > self.max_len:
            raise ValueError("does not fit")
        self.held, self.begun, self.prompts = list(ids[0]), True, self.prompts + 1

    def extend(self, ids: list[list[int]]) -> None:
        if len(ids[0]) > self.room:
            raise ValueError("does not fit")
        self.held += ids[0]

    def stream(self, count: int, sampling: Any, stop: Sequence[int], seed: int) -> Any:
        answer = self.answers.pop(0)[:count]
        for begin in range(0, len(answer), 3):
            self.held += answer[begin : begin + 3]
            yield [answer[begin : begin + 3]]


def talk(session: Any, words: Any, turns: Sequence[str]) -> tuple[Chat, list[str]]:
    chat = Chat(session, words)
    return chat, ["".join(chat.say(turn, 100)) for turn in turns]


@pytest.mark.parametrize("template", [TEMPLATE, None])
def test_the_session_holds_what_a_fresh_reading_gives(template: str | None) -> None:
    tokenizer = tokenizer_of(template)
    words = PretrainedWords(tokenizer)
    answers = ["fine, thanks", "yes\nno"]
    encoded = [[*words.encode(answer, begins=False), 1] for answer in answers]
    session = Script(encoded)
    chat, heard = talk(session, words, ["how are you?", "sure?"])
    assert heard == answers
    assert session.prompts == 1, "the second message continues the first"
    said = [Message("user", "how are you?"), Message("assistant", answers[0])]
    said += [Message("user", "sure?"), Message("assistant", answers[1])]
    assert chat.messages == said
    whole = tokenizer.decode(session.held)
    if template is None:
        assert whole == (
            "<s>User: how are you?\nAssistant:fine, thanks</s>\nUser: sure?\nAssistant:yes\nno</s>"
        )
    else:
        turns = [{"role": m.role, "content": m.text} for m in said]
        assert whole == tokenizer.apply_chat_template(turns, tokenize=False)


def test_an_answer_without_an_end_gets_one_from_the_template() -> None:
    tokenizer = tokenizer_of(TEMPLATE)
    words = PretrainedWords(tokenizer)
    session = Script([words.encode("abcdefg", begins=False), [1]])
    chat = Chat(session, words)
    pieces = chat.say("go", 100)
    assert next(pieces) == "abc"
    pieces.close()
    assert "".join(chat.say("on", 100)) == ""
    assert tokenizer.decode(session.held) == (
        "<s><user>go</s><assistant>abc</s><user>on</s><assistant></s>"
    )
    assert session.prompts == 1


def test_another_speaker_ends_an_answer() -> None:
    tokenizer = tokenizer_of(None)
    words = PretrainedWords(tokenizer)
    session = Script([words.encode("hi\nUser: me", begins=False), [1]])
    chat, heard = talk(session, words, ["hello", "so"])
    assert heard == ["hi", ""]
    # what was cut must not be part of the conversation
    assert session.prompts == 2
    assert tokenizer.decode(session.held) == (
        "<s>User: hello\nAssistant:hi\nUser: so\nAssistant:</s>"
    )
    assert chat.messages[1] == Message("assistant", "hi")


def test_letters_of_several_tokens_come_whole() -> None:
    words = PretrainedWords(tokenizer_of(None))
    chat, heard = talk(Script([words.encode("grüße, 世界", begins=False)]), words, ["x"])
    assert heard == ["grüße, 世界"]
    assert chat.pace.tokens == len("grüße, 世界".encode())


def test_a_message_that_does_not_fit_was_not_said() -> None:
    words = PretrainedWords(tokenizer_of(TEMPLATE))
    session = Script([words.encode("ab", begins=False), [5, 1]], max_len=80)
    chat = Chat(session, words, system="be nice")
    list(chat.say("x", 100))
    with pytest.raises(ValueError, match="does not fit"):
        chat.say("y" * 100, 100)
    assert [m.role for m in chat.messages] == ["system", "user", "assistant"]
    list(chat.say("z", 100))
    assert session.prompts == 1
    assert [m.text for m in chat.messages] == ["be nice", "x", "ab", "z", words.decode([5])]


def test_on_a_real_session() -> None:
    model = model_of()
    session = Session(model, batch_size=1, max_len=200)
    words = PretrainedWords(tokenizer_of(TEMPLATE))
    chat, heard = talk(session, words, ["how are you?", "sure?"])
    assert chat.used == session.lengths[0] <= 200
    assert chat.pace.tokens > 0
    assert chat.pace.tokens_per_s > 0
    chat.reset()
    assert chat.messages == []
    assert "".join(chat.say("how are you?", 100)) == heard[0]


def test_a_full_conversation() -> None:
    session = Session(model_of(), batch_size=1, max_len=30)
    chat = Chat(session, ByteWords())
    rendered = len(plain([Message("user", "hello")]))
    assert len("".join(chat.say("hello", 1000))) == 30 - rendered
    with pytest.raises(ValueError, match="more do not fit"):
        chat.say("again", 5)
    chat.reset()
    list(chat.say("hello", 5))
    with pytest.raises(ValueError, match="needs a session of one row"):
        Chat(Session(model_of(), batch_size=2, max_len=30), ByteWords())
