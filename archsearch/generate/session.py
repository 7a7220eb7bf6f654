"""A conversation with a model: prompts in, tokens out, on memory that is allocated once.

A decoded token is one call of `_step`, which leaves everything on the device: on a GPU it is
recorded in a CUDA graph, several replays are queued, and the host waits once for all of them.

Legend: B rows, V vocabulary, S tokens per sync.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from archsearch import cudagraph
from archsearch.generate import prompts
from archsearch.generate.draw import Knobs
from archsearch.generate.draw import Way
from archsearch.generate.draw import chances
from archsearch.generate.draw import draw
from archsearch.generate.draw import way
from archsearch.generate.prompts import Ids
from archsearch.generate.prompts import Prompts
from archsearch.generate.sampling import GREEDY
from archsearch.generate.sampling import Sampling
from archsearch.model import HybridLM

CHUNK = 2048
# tokens of all rows that one pass of a prefill reads at most, unless rows are many
PASS_TOKENS, LEAST_CHUNK = 16384, 128
# calls that precede a recording
WARMUP = 2
# stands in the output where a row has no token
NOTHING = -1


@dataclass(frozen=True, slots=True)
class Generation:
    """New tokens of every prompt (the end token included), and how fast they came."""

    tokens: list[list[int]]
    prefill_s: float
    decode_s: float

    @property
    def tokens_per_s(self) -> float:
        """New tokens of all rows per second of decoding."""
        count = sum(len(row) for row in self.tokens)
        return count / self.decode_s if self.decode_s else 0.0


class Session:
    """Room for `batch_size` rows of `max_len` tokens each, prompts and answers together (meta
    tokens not counted).

    `tokens_per_sync` tokens are decoded between two looks at the device; prompts are read in
    passes of `chunk` tokens per row; `graph` None means a CUDA graph where there is CUDA. What
    was generated, end tokens included, is part of the text that `extend` continues.
    """

    def __init__(
        self,
        model: HybridLM,
        *,
        batch_size: int,
        max_len: int,
        tokens_per_sync: int = 8,
        chunk: int = CHUNK,
        graph: bool | None = None,
    ) -> None:
        if tokens_per_sync < 1 or chunk < 1:
            raise ValueError(
                f"tokens_per_sync and chunk must be positive; got {tokens_per_sync} and {chunk}"
            )
        self.model, self.max_len, self.tokens_per_sync = model, max_len, tokens_per_sync
        self.device = model.embed.weight.device
        self.graph = self.device.type == "cuda" if graph is None else graph
        if self.graph and self.device.type != "cuda":
            raise ValueError(f"a CUDA graph needs a CUDA device; the model is on {self.device}")
        self.state = model.init_state(batch_size, max_len)
        self.chunk = min(chunk, max(PASS_TOKENS // batch_size, LEAST_CHUNK))
        # real tokens of each row, and whether they can be continued
        self.lengths = [0] * batch_size
        self.begun = False
        self.prefill_s = 0.0
        # logits[B,V] after each row's last token
        self.logits = self._new(model.spec.vocab_size, dtype=torch.float32)
        self._active = self._new(dtype=torch.bool)
        # what the host knows of it, [] for nothing
        self._running: list[bool] = []
        self._unsure = self._new(dtype=torch.bool)
        # NaN as soon as a logit was not finite
        self._health = self._new(dtype=torch.float32)
        # a recording's own calls write as well
        self._output = self._new(tokens_per_sync + WARMUP)
        self._column = torch.zeros(1, dtype=torch.long, device=self.device)
        self._goes_on = torch.ones(model.spec.vocab_size, dtype=torch.bool, device=self.device)
        self._knobs = Knobs.new(batch_size, self.device)
        # numbers for the S positions from `_first`[B] on
        self._chance = self._new(tokens_per_sync, dtype=torch.float64)
        self._first = self._new()
        self._recordings: dict[Way, cudagraph.Recording] = {}
        self._recorded_weights: list[tuple[int, int]] = []

    @property
    def batch_size(self) -> int:
        """Number of rows."""
        return self.state.batch

    @property
    def room(self) -> int:
        """Tokens that every row can still take."""
        return self.max_len - max(self.lengths)

    @torch.inference_mode()
    def reset(self) -> None:
        """Forget everything: all rows become fresh."""
        self.begun = False
        self.state.reset()
        self.lengths = [0] * self.batch_size
        self._running = []
        # left behind where a block of steps was interrupted, or broke
        for scratch in (self._health, self._column, self._unsure):
            scratch.zero_()

    @torch.inference_mode()
    def prompt(self, ids: Ids, lengths: Sequence[int] | Tensor | None = None) -> None:
        """Begin all rows anew with token ids[B,T], of which the first `lengths`[B] count, or
        with one list of tokens per row.

        Raises ValueError, with nothing changed, for another number of rows, an empty prompt, a
        token outside the vocabulary, or a prompt longer than `max_len`.
        """
        read = self._check(ids, lengths, [0] * self.batch_size)
        self.reset()
        self._read(read)

    @torch.inference_mode()
    def extend(self, ids: Ids, lengths: Sequence[int] | Tensor | None = None) -> None:
        """Continue every row's text, what was generated included; ids and errors as `prompt`.

        Raises ValueError too where nothing was begun.
        """
        self._need_text()
        self._read(self._check(ids, lengths, self.lengths))

    @torch.inference_mode()
    def prepare(self, sampling: Sampling = GREEDY) -> None:
        """Record now the graph that generating with such sampling replays."""
        if self.graph:
            self._drop_stale()
            self._recorded(way(sampling, self.model.spec.vocab_size))

    def generate(
        self,
        max_new_tokens: int,
        sampling: Sampling = GREEDY,
        stop: Sequence[int] = (),
        seed: int = 0,
    ) -> Generation:
        """Continue every row by up to `max_new_tokens` tokens, each row to its own first token
        of `stop`; see `stream`."""
        blocks = self.stream(max_new_tokens, sampling, stop, seed)
        self.prepare(sampling)
        started = time.perf_counter()
        tokens: list[list[int]] = [[] for _ in range(self.batch_size)]
        for block in blocks:
            for row, new in zip(tokens, block, strict=True):
                row += new
        return Generation(tokens, self.prefill_s, time.perf_counter() - started)

    def stream(
        self,
        max_new_tokens: int,
        sampling: Sampling = GREEDY,
        stop: Sequence[int] = (),
        seed: int = 0,
    ) -> Iterator[list[list[int]]]:
        """As `generate`, but yields the new tokens of every row whenever the host knows them;
        who stops reading ends the text with what was yielded.

        Raises ValueError, with nothing changed, before a prompt, and for more tokens than there
        is room for. Where logits are not finite it raises ValueError and forgets everything.
        """
        self._need_text()
        vocab = self.model.spec.vocab_size
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be positive; got {max_new_tokens}")
        if max_new_tokens > self.room:
            raise ValueError(self._full(max_new_tokens, max(self.lengths)))
        if any(not 0 <= token < vocab for token in stop):
            raise ValueError(f"stop tokens must lie in 0..{vocab - 1}; got {list(stop)}")
        return self._stream(max_new_tokens, sampling, stop, seed)

    @torch.inference_mode()
    def _stream(
        self, max_new_tokens: int, sampling: Sampling, stop: Sequence[int], seed: int
    ) -> Iterator[list[list[int]]]:
        self._goes_on.fill_(True)
        self._goes_on[torch.tensor(stop, dtype=torch.long, device=self.device)] = False
        self._knobs.set(sampling)
        self._drop_stale()
        usual = way(sampling, self.model.spec.vocab_size)
        # blocks that are still to be drawn from the whole vocabulary, twice as many each time
        # that the candidates do not suffice: flat distributions are seldom alone
        whole, patience = 0, 1
        left = [max_new_tokens] * self.batch_size
        runs = [True] * self.batch_size
        while any(runs):
            count = min(n for n, running in zip(left, runs, strict=True) if running)
            how = "whole" if whole else usual
            block = self._decode(how, min(count, self.tokens_per_sync), runs, seed)
            for row, tokens in enumerate(block.tokens):
                left[row] -= len(tokens)
                runs[row] = (block.active[row] or block.unsure[row]) and left[row] > 0
            whole = max(whole - 1, 0)
            if any(block.unsure):
                whole, patience = patience, 2 * patience
            if any(block.tokens):
                yield block.tokens

    def _decode(self, how: Way, count: int, runs: list[bool], seed: int) -> _Block:
        """Queue `count` steps of the rows that run, then wait for what came out."""
        self.begun = False
        play = self._recorded(how).replay if self.graph else partial(self._step, how)
        if runs != self._running:
            self._active.copy_(torch.tensor(runs))
        if how != "greedy":
            self._chance[:, :count] = chances(seed, self.lengths, count)
            self._first.copy_(self.state.position)
        for _ in range(count):
            play()
        block = self._wait(count)
        self._running = block.active
        self.lengths = [n + len(new) for n, new in zip(self.lengths, block.tokens, strict=True)]
        self.state.longest = max(self.lengths) + self.model.spec.num_meta_tokens
        self.begun = True
        return block

    def _wait(self, count: int) -> _Block:
        """What `count` steps have written."""
        flags = torch.stack([self._active, self._unsure, self._health.isnan()], dim=1)
        written = torch.cat([flags, self._output[:, :count]], dim=1)
        # queued before the wait, so that the next steps can follow it at once
        self._column.zero_()
        self._unsure.zero_()
        rows = written.tolist()
        if any(broken for _, _, broken, *_ in rows):
            self._give_up()
        return _Block(
            [[token for token in row[3:] if token != NOTHING] for row in rows],
            [bool(active) for active, *_ in rows],
            [bool(unsure) for _, unsure, *_ in rows],
        )

    def _step(self, how: Way) -> None:
        """One token for every active row, all on the device: draw it, write it down, read it."""
        chance = self._chance
        if how != "greedy":
            chance = chance.gather(1, (self.state.position - self._first)[:, None])
        token, largest, sure = draw(how, self.logits, self._knobs, chance)
        self._health.add_(largest, alpha=0)
        active = self._active
        if sure is not None:
            # such a row waits for a way to draw that is sure
            self._unsure |= active & ~sure
            active = active & sure
        written = torch.where(active, token, NOTHING)
        self._output.index_copy_(1, self._column, written[:, None])
        self._column += 1
        logits = self.model.advance(token, self.state, active)
        torch.where(active[:, None], logits, self.logits, out=self.logits)
        torch.logical_and(active, self._goes_on.index_select(0, token), out=self._active)

    def _recorded(self, how: Way) -> cudagraph.Recording:
        """The graph of one step."""
        if how not in self._recordings:
            # rows that are not active change nothing: neither the recording nor the calls
            # before it leave a trace
            self._active.zero_()
            self._running = []
            self._first.copy_(self.state.position)
            step = partial(self._step, how)
            self._recordings[how] = cudagraph.record(step, device=str(self.device), warmup=WARMUP)
            self._column.zero_()
        return self._recordings[how]

    def _drop_stale(self) -> None:
        """Forget graphs that were recorded with other weights than the model's of now: a step
        may keep what it has made of them."""
        weights = [(p.data_ptr(), p._version) for p in self.model.parameters()]
        if weights != self._recorded_weights:
            self._recordings.clear()
            self._recorded_weights = weights

    def _read(self, read: Prompts) -> None:
        """Read prompts that were checked, in passes of `chunk` tokens per row."""
        started = time.perf_counter()
        # until the end: who interrupts this has no text
        self.begun = False
        ids = read.ids.to(self.device)
        for begin in range(0, read.longest, self.chunk):
            counts = [min(n - begin, self.chunk) for n in read.lengths]
            rows = [row for row, count in enumerate(counts) if count > 0]
            self._pass(ids[:, begin:], [counts[row] for row in rows], rows)
        self.lengths = [n + new for n, new in zip(self.lengths, read.lengths, strict=True)]
        if not bool(self.logits.isfinite().all()):
            self._give_up()
        self.begun = True
        self.prefill_s = time.perf_counter() - started

    def _pass(self, ids: Tensor, counts: list[int], rows: list[int]) -> None:
        """Read the first `counts` tokens of the given rows of ids[B,T]."""
        width = max(counts)
        lengths = None if min(counts) == width else torch.tensor(counts, device=self.device)
        if len(rows) == self.batch_size:
            self.logits.copy_(self.model.prefill(ids[:, :width], self.state, lengths=lengths))
            return
        index = torch.tensor(rows, device=self.device)
        logits = self.model.prefill(ids[index, :width], self.state, lengths=lengths, rows=index)
        self.logits.index_copy_(0, index, logits)

    def _check(
        self, ids: Ids, lengths: Sequence[int] | Tensor | None, behind: Sequence[int]
    ) -> Prompts:
        """Prompts that fit behind so many tokens of each row."""
        read = prompts.read(ids, lengths, self.model.spec.vocab_size)
        if len(read.lengths) != self.batch_size:
            raise ValueError(
                f"the session has {self.batch_size} rows; got {len(read.lengths)} prompts"
            )
        used, new = max(zip(behind, read.lengths, strict=True), key=sum)
        if used + new > self.max_len:
            raise ValueError(self._full(new, used))
        return read

    def _full(self, new: int, used: int) -> str:
        return (
            f"the session holds {self.max_len} tokens per row; {used} are used and {new} more"
            " do not fit"
        )

    def _need_text(self) -> None:
        if not self.begun:
            raise ValueError("the session has no text to continue; begin with a prompt")

    def _give_up(self) -> None:
        self.reset()
        raise ValueError(
            "the model's logits are NaN or infinite: its weights are, or they overflow"
            f" {str(self.model.embed.weight.dtype).removeprefix('torch.')}; the session is empty"
        )

    def _new(self, *size: int, dtype: torch.dtype = torch.long) -> Tensor:
        """Zeros [B, ...]."""
        return torch.zeros(self.batch_size, *size, dtype=dtype, device=self.device)


@dataclass(frozen=True, slots=True)
class _Block:
    """What came out of several steps, by row: new tokens, whether it goes on, and whether its
    next token needs a surer way to draw."""

    tokens: list[list[int]]
    active: list[bool]
    unsure: list[bool]
