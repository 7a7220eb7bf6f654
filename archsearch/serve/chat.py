"""A conversation: messages in, pieces of an answer out, on one session."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from archsearch.generate import GREEDY
from archsearch.generate import Sampling
from archsearch.generate import Session
from archsearch.serve.messages import UNREADABLE
from archsearch.serve.messages import Message
from archsearch.serve.messages import Words


@dataclass(slots=True)
class Pace:
    """How the last answer came: its tokens, the seconds that decoding them took, and those that
    reading the message took."""

    tokens: int = 0
    decode_s: float = 0.0
    prefill_s: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        """New tokens per second of decoding."""
        return self.tokens / self.decode_s if self.decode_s else 0.0


class Chat:
    """One conversation on a session of one row; later messages continue what it has read."""

    def __init__(
        self,
        session: Session,
        words: Words,
        *,
        sampling: Sampling = GREEDY,
        seed: int = 0,
        system: str | None = None,
    ) -> None:
        if session.batch_size != 1:
            raise ValueError(f"a chat needs a session of one row; got {session.batch_size}")
        self.session, self.words = session, words
        self.sampling, self.seed = sampling, seed
        self.opening = [Message("system", system)] if system else []
        self.messages = list(self.opening)
        self.pace = Pace()
        # the text that the session holds, "" where it does not hold that of the messages
        self._held = ""
        # an end token follows it
        self._ended = False

    @property
    def used(self) -> int:
        """Tokens that the session holds."""
        return self.session.lengths[0]

    def reset(self) -> None:
        """Forget everything that was said."""
        self.messages = list(self.opening)
        self.session.reset()
        self._held = ""

    def say(self, text: str, max_new_tokens: int) -> Iterator[str]:
        """The pieces of the answer to `text`; who stops reading keeps what was heard.

        Raises ValueError, with nothing said, where the session has no room for message and
        answer.
        """
        asked = [*self.messages, Message("user", text)]
        rendered = self.words.render(asked)
        self._read(rendered)
        if not self.session.room:
            self._held = ""
            raise ValueError(f"the conversation fills all {self.session.max_len} tokens")
        self.messages = asked
        return self._answer(rendered, min(max_new_tokens, self.session.room))

    def _read(self, rendered: str) -> None:
        """Bring the session to the end of the rendered conversation."""
        held = self._held
        if held and self.session.begun and rendered.startswith(held):
            more = rendered[len(held) :]
            # the session has read the token that a template writes here
            for end in self.words.ends if self._ended else ():
                more = more.removeprefix(end)
            self.session.extend([self.words.encode(more, begins=False)])
        else:
            self.session.prompt([self.words.encode(rendered, begins=True)])
        self._held = rendered

    def _answer(self, rendered: str, max_new_tokens: int) -> Iterator[str]:
        """Decode an answer; keeps messages and pace up to date as it goes."""
        tokens: list[int] = []
        self.pace = Pace(prefill_s=self.session.prefill_s)
        self.messages = [*self.messages, Message("assistant", "")]
        said, self._ended = "", False
        before = time.perf_counter()
        for (new,) in self.session.stream(
            max_new_tokens, self.sampling, self.words.stop, self.seed
        ):
            tokens += new
            self.pace.tokens = len(tokens)
            self.pace.decode_s += time.perf_counter() - before
            self._ended = tokens[-1] in self.words.stop
            whole = self.words.decode(tokens[:-1] if self._ended else tokens)
            cut = self._cut(whole)
            self.messages[-1] = Message("assistant", whole[:cut])
            # what was cut is in the session: the next message is read with all before it
            self._held = rendered + whole if cut == len(whole) else ""
            piece = self._certain(whole[:cut])[len(said) :]
            said += piece
            yield piece
            if cut < len(whole):
                return
            before = time.perf_counter()
        yield self.messages[-1].text[len(said) :].rstrip(UNREADABLE)

    def _cut(self, text: str) -> int:
        """Where the answer ends: before what another speaker would say."""
        places = [text.find(cut) for cut in self.words.cuts]
        return min((place for place in places if place >= 0), default=len(text))

    def _certain(self, text: str) -> str:
        """The answer so far without an end that may yet turn out to be another speaker's
        beginning, or half a letter."""
        for cut in self.words.cuts:
            for size in range(len(cut) - 1, 0, -1):
                text = text.removesuffix(cut[:size])
        return text.rstrip(UNREADABLE)
