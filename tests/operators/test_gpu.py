"""On a GPU: every operator gives what it gives on a CPU, and its decode step can be captured.

Run on a machine with a GPU: make gpu
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from archsearch import operators
from archsearch.model import build
from archsearch.operators.sequence import SequenceInfo
from archsearch.space import parse

# poisoned memory asks for determinism, and PyTorch's own attention tells that its gradients vary
VARIES = "ignore:Memory Efficient attention defaults to a non-deterministic:UserWarning"
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings(VARIES)]
WIDTH = 128


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual.cpu() - expected.cpu()).norm() / expected.cpu().norm())


@pytest.fixture(autouse=True)
def exact_matmuls() -> None:
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("name", operators.names())
@pytest.mark.parametrize("length", [1, 65, 200])
def test_forward_and_gradients_equal_the_cpu(name: str, length: int) -> None:
    operator = operators.get(name)
    mixer = operator.build(operator.configure(WIDTH))
    mixer.init_weights(torch.Generator().manual_seed(0))
    x = torch.randn(2, length, WIDTH, generator=torch.Generator().manual_seed(1))
    results = []
    for device in ("cpu", "cuda"):
        mixer = mixer.to(device)
        given = x.to(device).detach().requires_grad_()
        y = mixer(
            given, seq=SequenceInfo.padded([length, (length + 1) // 2], length, device=device)
        )
        (gradient,) = torch.autograd.grad(y.square().sum(), given)
        results.append((y.detach(), gradient))
    (y_cpu, gradient_cpu), (y_gpu, gradient_gpu) = results
    assert relative(y_gpu, y_cpu) < 1e-4
    assert relative(gradient_gpu, gradient_cpu) < 1e-3


@pytest.mark.parametrize("name", operators.names())
def test_one_captured_step_decodes_like_the_forward_pass(name: str) -> None:
    code = operators.get(name).code
    model = build(parse(f"{code} f @{WIDTH}", vocab_size=97, num_meta_tokens=3), device="cuda")
    ids = torch.randint(0, 97, (3, 40), generator=torch.Generator().manual_seed(2)).cuda()
    with torch.inference_mode():
        expected = model(ids)
        state = model.init_state(3, 60)
        model.prefill(ids[:, :30], state)
        token = ids[:, 30].clone()
        saved = [{k: v.clone() for k, v in layer.tensors.items()} for layer in state.layers]
        position = state.position.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            model.step(token, state)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = model.step(token, state)
        for layer, tensors in zip(state.layers, saved, strict=True):
            for key, value in tensors.items():
                layer[key].copy_(value)
        state.position.copy_(position)
        for t in range(30, 40):
            token.copy_(ids[:, t])
            graph.replay()
            assert relative(logits, expected[:, t]) < 1e-4, f"token {t}"
