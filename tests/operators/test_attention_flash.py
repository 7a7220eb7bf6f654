"""What attention hands to flash-attn, and what it keeps from it, on a CPU: the package's two
functions are played by the formula, under the rules that upstream documents.

Run: pytest tests/operators/test_attention_flash.py
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from archsearch import operators
from archsearch.operators import backends
from archsearch.operators.attention import kernel
from archsearch.operators.attention.reference import attend
from archsearch.operators.attention.reference import attend_causal
from archsearch.operators.backends import Request
from archsearch.operators.base import Phase
from archsearch.operators.layer import Mixer
from archsearch.operators.sequence import SequenceInfo

WIDTH = 64
CASES = [
    pytest.param("attention", {"num_heads": 4, "head_dim": 16, "num_kv_heads": 2}, id="attention"),
    pytest.param("attention", {"num_heads": 3, "head_dim": 24, "qk_norm": True}, id="qk_norm"),
    pytest.param("sliding_window", {"head_dim": 16, "window": 16}, id="window"),
    pytest.param("sliding_window", {"head_dim": 16, "window": 100}, id="wide_window"),
]


def flash_attn_func(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, window_size: tuple[int, int]
) -> Tensor:
    assert causal
    assert q.shape[:2] == k.shape[:2]
    assert all(tensor.stride(-1) == 1 for tensor in (q, k, v))
    left, right = window_size
    assert right == (-1 if left == -1 else 0)
    return attend_causal(q, k, v, None if left == -1 else left + 1)


def flash_attn_with_kvcache(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, *, cache_seqlens: Tensor, causal: bool
) -> Tensor:
    assert causal
    assert cache_seqlens.dtype == torch.int32
    assert cache_seqlens.max() <= k_cache.shape[1], "reads behind the cache"
    # aligned at the bottom right: the last query sees all of its row's keys
    ends = cache_seqlens[:, None] - q.shape[1] + 1 + torch.arange(q.shape[1])
    return attend(q, k_cache, v_cache, torch.arange(k_cache.shape[1]) < ends[:, :, None])


@pytest.fixture(autouse=True)
def played(monkeypatch: pytest.MonkeyPatch) -> None:
    package: Any = ModuleType("flash_attn")
    package.flash_attn_func = flash_attn_func
    package.flash_attn_with_kvcache = flash_attn_with_kvcache
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setattr(backends, "_lacks", lambda backend, device: "")
    monkeypatch.setattr(kernel, "refuses", lambda request, head_dim: "")


def make(name: str, settings: dict[str, Any]) -> Mixer:
    operator = operators.get(name)
    mixer = operator.build(operator.configure(WIDTH, **settings))
    mixer.init_weights(torch.Generator().manual_seed(0))
    return mixer


def tokens(length: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, length, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("name", "settings"), CASES)
@pytest.mark.parametrize("length", [1, 16, 17, 50])
def test_training_equals_the_reference(name: str, settings: dict[str, Any], length: int) -> None:
    mixer, x = make(name, settings), tokens(length).requires_grad_()
    results = {}
    for backend in ("flash_attn", "reference"):
        with backends.override(backend), backends.recorded() as used:
            y = mixer(x)
        assert used == {name: backend}
        results[backend] = (y, *torch.autograd.grad(y.square().sum(), [x, *mixer.parameters()]))
    torch.testing.assert_close(results["flash_attn"], results["reference"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_prompts_in_pieces_and_steps_equal_one_pass(name: str, settings: dict[str, Any]) -> None:
    mixer, x = make(name, settings), tokens(60)
    with torch.inference_mode(), backends.override("flash_attn"):
        state = mixer.init_state(2, 60, torch.float32, "cpu")
        pieces = [mixer(x[:, :21], state=state)]
        seq = SequenceInfo.padded([24, 24], 24, starts=torch.tensor([21, 21]))
        pieces.append(mixer(x[:, 21:45], state=state, seq=seq))
        for t in range(45, 60):
            position = torch.full((2,), t)
            y = mixer.mix_step(x[:, t], state, position, torch.ones(2, dtype=torch.bool))
            pieces.append(y[:, None])
    with backends.override("reference"):
        expected = mixer(x)
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_padding_after_a_continued_prompt_stays_within_the_cache(
    name: str, settings: dict[str, Any]
) -> None:
    mixer, x = make(name, settings), tokens(40)
    with torch.inference_mode(), backends.override("flash_attn"):
        state = mixer.init_state(2, 30, torch.float32, "cpu")
        mixer(x[:, :28], state=state, seq=SequenceInfo.padded([28, 5], 28))
        # row 0 has room for two tokens only, row 1 gets twelve
        more = SequenceInfo.padded([2, 12], 12, starts=torch.tensor([28, 5]))
        with backends.recorded() as used:
            y = mixer(x[:, 28:40], state=state, seq=more)
    assert "masked_attention" in used
    for row, (begin, count) in enumerate(((28, 2), (5, 12))):
        text = torch.cat([x[row, :begin], x[row, 28 : 28 + count]])[None]
        expected = mixer(text)[0, begin:]
        torch.testing.assert_close(y[row, :count], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("dtype", "head_dim", "reason"),
    [
        (torch.float32, 64, "it computes in 16-bit types only"),
        (torch.bfloat16, 20, "multiple of 8 and at most 256; here it is 20"),
        (torch.float16, 264, "multiple of 8 and at most 256; here it is 264"),
    ],
)
def test_refusals_name_what_is_wrong(
    dtype: torch.dtype, head_dim: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    for phase in operators.PHASES:
        assert reason in kernel.refuses(Request("attention", phase, "cuda", dtype), head_dim)


class Build:
    """An installed flash-attn whose kernels raise `error`, if there is one; counts its calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: RuntimeError | None) -> None:
        self.error, self.calls, self.gpu = error, 0, 0
        monkeypatch.undo()
        package: Any = ModuleType("flash_attn")
        package.flash_attn_func = package.flash_attn_with_kvcache = self.call
        monkeypatch.setitem(sys.modules, "flash_attn", package)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: self.gpu)
        zeros, ones = torch.zeros, torch.ones
        monkeypatch.setattr(torch, "zeros", lambda *size, device, **rest: zeros(*size, **rest))
        monkeypatch.setattr(torch, "ones", lambda *size, device="cpu", **rest: ones(*size, **rest))

    def call(self, q: Tensor, *inputs: Tensor, **settings: Any) -> Tensor:
        self.calls += 1
        if self.error is not None:
            raise self.error
        return q.clone()

    def refusal(self, phase: Phase) -> str:
        return kernel.refuses(Request("attention", phase, "cuda", torch.float16), 64)


@pytest.fixture
def fresh_probe() -> Iterator[None]:
    kernel._lacks.cache_clear()
    yield
    kernel._lacks.cache_clear()


@pytest.mark.usefixtures("fresh_probe")
@pytest.mark.parametrize("phase", operators.PHASES)
def test_a_build_that_lacks_a_kernel_says_so(
    phase: Phase, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = RuntimeError("This build does not support fp16.\nException raised from ...")
    assert Build(monkeypatch, error).refusal(phase) == (
        "the installed build lacks head width 64 in float16 (This build does not support fp16.)"
    )


@pytest.mark.usefixtures("fresh_probe")
@pytest.mark.parametrize("phase", operators.PHASES)
def test_a_full_memory_is_not_taken_for_a_lack(
    phase: Phase, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = Build(monkeypatch, torch.OutOfMemoryError("CUDA out of memory."))
    with pytest.raises(torch.OutOfMemoryError):
        build.refusal(phase)
    build.error = None
    assert build.refusal(phase) == ""


@pytest.mark.usefixtures("fresh_probe")
def test_every_gpu_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    build = Build(monkeypatch, RuntimeError("FlashAttention only supports Ampere GPUs or newer."))
    assert "Ampere" in build.refusal("prefill")
    build.gpu, build.error = 1, None
    assert build.refusal("prefill") == build.refusal("prefill") == ""
    build.gpu = 0
    assert "Ampere" in build.refusal("prefill")
    assert build.calls == 2
