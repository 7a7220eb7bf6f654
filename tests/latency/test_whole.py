"""A whole model measured: what is recorded, and what a GPU that is too small says."""

from __future__ import annotations

import pytest
import torch

from archsearch.latency.whole import WholeModel
from archsearch.operators import Shape
from archsearch.space import count
from archsearch.space import parse

SPEC = parse("a f m2 f @128", vocab_size=100, num_meta_tokens=3, head_norm=True)


def test_a_gpu_that_is_too_small_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**20, 2**30))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tiny GPU")
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    sentence = r"does not fit the Tiny GPU: holding its weights in float32 needs more than"
    with pytest.raises(ValueError, match=sentence):
        WholeModel(SPEC, device="cuda")
    model = WholeModel(SPEC)
    model.device = "cuda"
    with pytest.raises(ValueError, match="decode of batch 4096 at context 512 needs more than"):
        model.measure(Shape("decode", 4096, 512))

    def met(shape: Shape, budget_s: float, capacity: int | None) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model, "_measure", met)
    with pytest.raises(ValueError, match=r"of its 1\.0 GiB are free"):
        model.measure(Shape("decode", 1, 16))


def test_a_shape_in_another_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match="the model is in float32"):
        WholeModel(SPEC).measure(Shape("decode", 1, 16, "bfloat16"))


def test_a_step_finds_the_room_that_is_asked_for() -> None:
    model = WholeModel(SPEC)
    found = model.measure(Shape("decode", 2, 16), budget_s=0.0, capacity=64)
    assert found.state_bytes == count.state_bytes(SPEC, 64, 2)
    with pytest.raises(ValueError, match="capacity must exceed the context of a decode step"):
        model.measure(Shape("decode", 2, 16), capacity=16)
    with pytest.raises(ValueError, match="capacity must exceed"):
        model.measure(Shape("prefill", 2, 16), capacity=64)


@pytest.mark.gpu
@pytest.mark.parametrize("phase", ["decode", "prefill", "train"])
def test_one_graph_on_a_gpu(phase: str) -> None:
    model = WholeModel(SPEC, device="cuda", dtype="bfloat16")
    shape = Shape(phase, 2, 256, "bfloat16")  # type: ignore[arg-type]
    found = model.measure(shape, budget_s=0.05)
    assert found.timing.used_cuda_graph
    assert found.timing.kernels is None or found.timing.kernels > len(SPEC.layers)
    assert found.weight_bytes == 2 * count.parameters(SPEC)
    assert found.peak_bytes is not None
    assert found.peak_bytes > found.weight_bytes
    if phase != "train":
        assert found.state_bytes == count.state_bytes(SPEC, 256, 2, "bfloat16")
