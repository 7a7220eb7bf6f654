"""A session says what the uncached forward pass says: token for token in fp32, and in bf16 as
nearly as the plain model does. On a GPU in CUDA graphs and long texts, on a CPU in short ones.

Run: pytest tests/generate/test_exactness.py; on a machine with a GPU: make gpu

Legend: B rows, N new tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import AbstractContextManager
from contextlib import ExitStack
from contextlib import contextmanager
from contextlib import nullcontext
from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import Tensor

from archsearch import operators
from archsearch import timing
from archsearch.generate import Session
from archsearch.model import HybridLM
from archsearch.model import build
from archsearch.operators import backends
from archsearch.space import ArchSpec
from archsearch.space import get_space
from archsearch.space import presets

FLASH = "nemotron-flash-1b"
MIXERS = [op.code for op in operators.OPERATORS if op.kind == "mixer"]
VOCAB, META = 1000, 16
# of the searched patterns, which together hold every mixer
SEED, PATTERNS, MOST_LAYERS = 2, 10, 12
WIDTH = {"cpu": 128, "cuda": 256}
NEW = {"cpu": 8, "cuda": 512}
NEW_BF16 = {"cpu": 3, "cuda": 64}
# freshly drawn layers whisper, and a greedy text repeats its last token for ever: these many
# times as loud, what is said depends on all that was said before
LOUD = 20.0
# largest error of a logit in fp32, as a share of the largest logit
LIMIT = 1e-4
# two logits that are closer than so many errors are as good as equal
TIE = 10.0
# a text with more of them compares too little, one of fewer different tokens too
MOST_TIES, FEWEST_TOKENS = 10, 20
# no token is asked for: the session draws its own
FREE = -1
# latent attention has no one backend for prompts and steps: its steps are plain anyway
PLAIN = {
    **{op.name: "torch" if "torch" in op.backends else "sdpa" for op in operators.OPERATORS},
    **dict.fromkeys(("short_conv", "head"), "torch"),
}
del PLAIN["mla"]

NAMES = [FLASH, *(f"searched-{number}" for number in range(PATTERNS))]
every_model = pytest.mark.parametrize("name", NAMES)
every_batch = pytest.mark.parametrize("lengths", [(40,), (20, 70, 5)], ids=["one", "ragged"])
# the backends that would run, and once the fused steps whether or not they are preferred
every_case = pytest.mark.parametrize(
    ("name", "backend"), [*((name, "") for name in NAMES), (FLASH, "triton")]
)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small products wait longer for a second thread than it saves."""
    with timing.cpu_threads(1):
        yield


@pytest.mark.usefixtures("one_thread")
@every_batch
@every_model
def test_greedy_tokens_are_the_forward_passes(name: str, lengths: tuple[int, ...]) -> None:
    compare_greedy(name, lengths, "cpu")


@pytest.mark.usefixtures("one_thread")
@every_batch
def test_bf16_logits_are_as_exact_as_the_plain_ones(lengths: tuple[int, ...]) -> None:
    compare_bf16(FLASH, lengths, "cpu")


def test_the_patterns_hold_every_mixer() -> None:
    held = {layer.operator for name in NAMES for layer in spec_of(name, 128).layers}
    assert held == {*operators.names()}


@pytest.fixture
def as_in_use() -> Iterator[None]:
    """Graphs as users replay them, and fp32 that is no TF32."""
    # what poisons memory would stand between the kernels, and keep races from being seen
    torch.use_deterministic_algorithms(False)
    # pytest's monkeypatch does not get on with these objects
    parts = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    before = [part.fp32_precision for part in parts]
    for part in parts:
        part.fp32_precision = "ieee"
    yield
    for part, precision in zip(parts, before, strict=True):
        part.fp32_precision = precision


@pytest.mark.gpu
@pytest.mark.usefixtures("as_in_use")
@every_batch
@every_case
def test_greedy_tokens_in_a_graph(name: str, backend: str, lengths: tuple[int, ...]) -> None:
    with asked_for(backend):
        compare_greedy(name, lengths, "cuda")


@pytest.mark.gpu
@pytest.mark.usefixtures("as_in_use")
@every_batch
@every_case
def test_bf16_logits_in_a_graph(name: str, backend: str, lengths: tuple[int, ...]) -> None:
    with asked_for(backend):
        compare_bf16(name, lengths, "cuda")


def compare_greedy(name: str, lengths: Sequence[int], device: str) -> None:
    """NEW greedy tokens per row against the forward pass; at a tie the row goes on from the token
    of the forward pass."""
    model, count = model_of(name, device, torch.float32), NEW[device]
    prompts = [text(length, seed) for seed, length in enumerate(lengths)]
    session = session_of(model, prompts, count)
    # what the rows have to say first: the forward pass's tokens up to the last tie
    held: list[list[int]] = [[] for _ in prompts]
    for _ in range(MOST_TIES + 1):
        tokens, logits = decode(session, prompts, count, held)
        ties = [
            first_tie(row, found, forward(model, prompt, row))
            for prompt, row, found in zip(prompts, tokens, logits, strict=True)
        ]
        if not any(ties):
            break
        held = [
            row[: len(tie) - 1] + tie[-1:] if tie else row
            for row, tie in zip(tokens, ties, strict=True)
        ]
    assert not any(ties), f"{name} meets more than {MOST_TIES} ties"
    fewest = min(len(set(row)) for row in tokens)
    assert fewest >= min(FEWEST_TOKENS, count // 2), f"{name} says {fewest} different tokens"


def first_tie(tokens: list[int], found: Tensor, expected: Tensor) -> list[int]:
    """The text up to the first token of N that is not the forward pass's, with the latter's in its
    place; [] where all are. Of the logits [N,V] those up to there must agree, and the two best
    ones there must be a tie."""
    best = expected.argmax(-1).tolist()
    end = next((n for n, token in enumerate(tokens) if token != best[n]), None)
    same = slice(None) if end is None else slice(end + 1)
    errors = (found - expected)[same].abs().amax(-1)
    largest = float(expected[same].abs().max())
    assert float(errors.max()) < LIMIT * largest, f"{errors.max():.1e} of {largest:.1e}"
    if end is None:
        return []
    # not the error at this place: where tokens differ, that is always as large as the gap
    first, second = expected[end].topk(2).values.tolist()
    gap, error = first - second, float(errors.median())
    assert gap < TIE * error, f"token {end} differs by {gap:.1e}; errors are {error:.1e}"
    return [*tokens[:end], best[end]]


def compare_bf16(name: str, lengths: Sequence[int], device: str) -> None:
    """Logits behind the same tokens: off those of the fp32 forward pass by hardly more than the
    plain bf16 model's, which decodes step by step."""
    count = NEW_BF16[device]
    exact, model = (model_of(name, device, kind) for kind in (torch.float32, torch.bfloat16))
    prompts = [text(length, seed) for seed, length in enumerate(lengths)]
    said = [text(count, seed) for seed in range(10, 10 + len(prompts))]
    expected = torch.stack([forward(exact, *pair) for pair in zip(prompts, said, strict=True)])
    _, found = decode(session_of(model, prompts, count), prompts, count, said)
    with plain():
        eager = session_of(model, prompts, count, graph=False)
        _, usual = decode(eager, prompts, count, said)
    error, allowed = (float((each - expected).norm()) for each in (found, usual))
    assert 0 < error <= 1.25 * allowed, f"{name}: {error / allowed:.2f} times the plain error"


@torch.inference_mode()
def decode(
    session: Session, prompts: list[list[int]], count: int, held: list[list[int]]
) -> tuple[list[list[int]], Tensor]:
    """`count` tokens per row, the first of them as `held`, the others as the session draws them,
    and the logits [B,N,V] that each was drawn from."""
    session.prompt(prompts)
    padded = [row + [FREE] * (count - len(row)) for row in held]
    wanted = torch.tensor(padded, device=session.device)
    vocab = torch.arange(session.logits.shape[1], device=session.device)
    tokens: list[list[int]] = [[] for _ in prompts]
    logits = []
    stream = session.stream(count)
    for token in wanted.split(1, dim=1):
        logits.append(session.logits.clone())
        # a greedy step draws what stands out
        outstanding = (vocab == token).float()
        session.logits.copy_(torch.where(token == FREE, session.logits, outstanding))
        for row, new in zip(tokens, next(stream), strict=True):
            row += new
    assert next(stream, None) is None
    return tokens, torch.stack(logits, dim=1)


def forward(model: HybridLM, prompt: list[int], tokens: list[int]) -> Tensor:
    """Logits [N,V] ahead of each of the tokens behind a prompt, by one pass over all of them."""
    ids = torch.tensor([[*prompt, *tokens[:-1]]], device=model.embed.weight.device)
    with torch.inference_mode(), plain():
        return model(ids)[0, len(prompt) - 1 :]


@contextmanager
def plain() -> Iterator[None]:
    """Nothing but PyTorch, prompts of latent attention left aside."""
    with ExitStack() as stack:
        for part, backend in PLAIN.items():
            stack.enter_context(backends.override(backend, part))
        yield


def asked_for(backend: str) -> AbstractContextManager[None]:
    return backends.override(backend) if backend else nullcontext()


def session_of(
    model: HybridLM, prompts: list[list[int]], count: int, graph: bool | None = None
) -> Session:
    longest = max(len(prompt) for prompt in prompts)
    # one token per sync: the logits behind each are seen
    return Session(
        model, batch_size=len(prompts), max_len=longest + count, tokens_per_sync=1, graph=graph
    )


def spec_of(name: str, width: int) -> ArchSpec:
    """Nemotron-Flash-1B's layout at this width, or one of the patterns that a search draws."""
    fields = {"vocab_size": VOCAB, "num_meta_tokens": META, "head_norm": True}
    if name == FLASH:
        return presets.get(FLASH).model_copy(update={"hidden_size": width, **fields})
    space = get_space(
        "nemotron-flash-wide",
        widths=(width,),
        codes=MIXERS,
        max_layers=MOST_LAYERS,
        fields=fields,
    )
    generator = np.random.default_rng(SEED)
    drawn = [space.sample(generator) for _ in range(PATTERNS)]
    return space.decode(drawn[int(name.removeprefix("searched-"))])


@lru_cache(maxsize=2)
def model_of(name: str, device: str, dtype: torch.dtype) -> HybridLM:
    """The same weights on every device and in every dtype: those that bf16 holds."""
    model = build(spec_of(name, WIDTH[device]), dtype=torch.bfloat16)
    with torch.no_grad():
        for layer in model.decoder:
            for matrix in layer.mixer.WRITES:
                layer.mixer.get_parameter(f"{matrix}.weight").mul_(LOUD)
    model.to(device, dtype)
    model.tie()
    return model


def text(length: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCAB, (length,), generator=generator).tolist()
