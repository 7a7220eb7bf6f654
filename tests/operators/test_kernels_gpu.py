"""On a GPU: every backend of every operator against the fp32 reference, forward and gradients,
prefill and decode, at awkward lengths.

A backend that refuses a request is skipped with its reason. Run with: make gpu
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import lru_cache
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from archsearch import operators
from archsearch.operators import backends
from archsearch.operators.backends import Request
from archsearch.operators.layer import Mixer
from archsearch.operators.sequence import SequenceInfo

# warnings of the kernel packages are theirs
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]
# heads of the width that kernels were tuned for
WIDTH = 1024
LENGTHS = (1, 63, 65, 130)
# relative errors; kernels multiply fp32 as tf32, whose operands have 10 bits of mantissa
FORWARD = {torch.float32: 3e-3, torch.bfloat16: 2e-2}
BACKWARD = {torch.float32: 6e-3, torch.bfloat16: 4e-2}
PAIRS = [
    (operator.name, backend)
    for operator in operators.OPERATORS
    for backend in operator.backends
    if backend != "reference"
]


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual.float() - expected).norm() / expected.norm())


@lru_cache(maxsize=2)
def make(name: str) -> Mixer:
    operator = operators.get(name)
    mixer = operator.build(operator.configure(WIDTH))
    mixer.init_weights(torch.Generator().manual_seed(0))
    # wide enough that gates and decays leave their initial values
    for parameter in mixer.parameters():
        parameter.data.add_(
            0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        )
    return mixer.cuda()


def tokens(batch: int, length: int, seed: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, length, WIDTH, generator=generator).cuda()


def in_dtype(name: str, dtype: torch.dtype) -> Mixer:
    mixer = make(name)
    if dtype == torch.float32:
        return mixer
    operator = operators.get(name)
    copy = operator.build(operator.configure(WIDTH)).to("cuda", dtype)
    copy.load_state_dict({key: value.to(dtype) for key, value in mixer.state_dict().items()})
    return copy


def exact(name: str, dtype: torch.dtype) -> Mixer:
    """The fp32 layer whose weights are those of `dtype`, exactly."""
    operator = operators.get(name)
    copy = operator.build(operator.configure(WIDTH)).to("cuda")
    copy.load_state_dict(
        {key: value.to(dtype).float() for key, value in make(name).state_dict().items()}
    )
    return copy


def skip_if_refused(mixer: Mixer, backend: str, phase: operators.Phase, x: Tensor) -> None:
    request = Request(mixer.operator, phase, "cuda", x.dtype)
    reason = backends.why_not(backend, request, mixer.refuses)
    if reason:
        pytest.skip(f"{backend} refuses {request}, since {reason}")


@pytest.mark.parametrize("dtype", FORWARD, ids=str)
@pytest.mark.parametrize(("name", "backend"), PAIRS)
def test_forward_and_gradients(name: str, backend: str, dtype: torch.dtype) -> None:
    mixer = in_dtype(name, dtype)
    skip_if_refused(mixer, backend, "train", tokens(1, 1).to(dtype))
    for length in LENGTHS:
        given = tokens(2, length).to(dtype)
        weight = tokens(2, length, seed=3)
        seq = SequenceInfo.padded([length, (length + 1) // 2], length, device="cuda")
        results = []
        for layer, forced in ((exact(name, dtype), "reference"), (mixer, backend)):
            x = given.to(next(layer.parameters()).dtype).detach().requires_grad_()
            with backends.override(forced, name), backends.recorded() as used:
                y = layer(x, seq=seq)
            assert used[name] == forced
            inputs = [x, *layer.parameters()]
            results.append((y.detach(), torch.autograd.grad((y.float() * weight).sum(), inputs)))
        (y_exact, exact_gradients), (y, gradients) = results
        assert torch.isfinite(y).all()
        assert relative(y, y_exact) < FORWARD[dtype], f"output, {length} tokens"
        largest = max(float(gradient.norm()) for gradient in exact_gradients[1:])
        labels = ["x", *(label for label, _ in mixer.named_parameters())]
        for label, actual, expected in zip(labels, gradients, exact_gradients, strict=True):
            assert torch.isfinite(actual).all(), f"gradient of {label}, {length} tokens"
            # what nearly cancels keeps the rounding of the large gradients
            size = max(float(expected.norm()), (0.1 if length == 1 else 0.01) * largest)
            error = float((actual.float() - expected).norm()) / size
            assert error < BACKWARD[dtype], f"gradient of {label}, {length} tokens: {error:.1e}"


@pytest.mark.parametrize("dtype", FORWARD, ids=str)
@pytest.mark.parametrize(("name", "backend"), PAIRS)
@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
@torch.inference_mode()
def test_prefill_and_decode(name: str, backend: str, dtype: torch.dtype, padded: bool) -> None:
    """Prompt, continued prompt, single tokens: all equal to one pass by the reference."""
    mixer = in_dtype(name, dtype)
    x = tokens(3, 140).to(dtype)
    skip_if_refused(mixer, backend, "prefill", x)
    layer = exact(name, dtype)
    with backends.override("reference", name):
        expected = layer(x.float())
    state = mixer.init_state(3, 140, dtype, "cuda")
    lengths = torch.tensor([64, 33, 1] if padded else [64, 64, 64], device="cuda")
    more = torch.tensor([5, 65, 1] if padded else [65, 65, 65], device="cuda")
    actual = torch.zeros_like(expected)
    counts = [0, 0, 0]
    # a fresh prompt without padding, then continued ones
    for number, size in enumerate((lengths, more)):
        longest = int(size.max())
        chunk = torch.zeros(3, longest, WIDTH, device="cuda", dtype=dtype)
        starts = torch.tensor(counts, device="cuda")
        for row, count in enumerate(size.tolist()):
            chunk[row, :count] = x[row, counts[row] : counts[row] + count]
        seq = None
        if number or padded:
            given = starts if number else None
            seq = SequenceInfo.padded(size, longest, starts=given, device="cuda")
        with backends.override(backend, name):
            y = mixer(chunk, state=state, seq=seq)
        for row, count in enumerate(size.tolist()):
            actual[row, counts[row] : counts[row] + count] = y[row, :count].float()
            counts[row] += count
    everything = torch.ones(3, dtype=torch.bool, device="cuda")
    some = torch.tensor([True, False, True], device="cuda")
    # what refuses to decode hands its state to what decodes in its place
    decoding = Request(name, "decode", "cuda", dtype)
    hands_over = bool(backends.why_not(backend, decoding, mixer.refuses))
    for step in range(6):
        active = some if step == 2 else everything
        at = torch.tensor(counts, device="cuda")
        h = x[torch.arange(3, device="cuda"), at]
        kept = {key: tensor[1].clone() for key, tensor in state.tensors.items()}
        with nullcontext() if hands_over else backends.override(backend, name):
            y = mixer.mix_step(h, state, at, active)
        for row in range(3):
            if active[row]:
                actual[row, counts[row]] = y[row].float()
                counts[row] += 1
        if active is some:
            for key, tensor in state.tensors.items():
                assert torch.equal(tensor[1], kept[key]), f"{key} of an idle row changed"
    errors = {}
    for row, count in enumerate(counts):
        marks = [0, int(lengths[row]), int(lengths[row] + more[row]), count]
        for part, (begin, end) in zip(("prompt", "more", "steps"), pairwise(marks), strict=True):
            errors[row, part] = relative(actual[row, begin:end], expected[row, begin:end])
    told = ", ".join(f"row {row} {part} {error:.1e}" for (row, part), error in errors.items())
    assert max(errors.values()) < FORWARD[dtype], told


@pytest.mark.parametrize("name", operators.names())
@pytest.mark.parametrize("phase", ["decode", "prefill", "train"])
def test_preferred_backend_can_be_captured(name: str, phase: operators.Phase) -> None:
    operator = operators.get(name)
    mixer = in_dtype(name, torch.bfloat16)
    x = tokens(2, 64).to(torch.bfloat16)
    state = mixer.init_state(2, 80, torch.bfloat16, "cuda")
    at = torch.full((2,), 64, device="cuda")
    active = torch.ones(2, dtype=torch.bool, device="cuda")
    weights = list(mixer.parameters())

    def call() -> Tensor:
        if phase == "decode":
            return mixer.step(x[:, 0], state, at, active, torch.nn.Identity())
        if phase == "prefill":
            return mixer(x, state=state)
        return torch.cat([g.flatten() for g in torch.autograd.grad(mixer(x).sum(), weights)])

    with torch.inference_mode(phase != "train"):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            call()
            for tensor in state.tensors.values():
                tensor.zero_()
            expected = call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            actual = call()
        for tensor in state.tensors.values():
            tensor.zero_()
        graph.replay()
        torch.cuda.synchronize()
    assert torch.isfinite(actual).all()
    assert relative(actual, expected.float()) < 1e-2, operator.name
