"""The released methods by their names, with what was unsound in them mended (no graph on a CPU:
the engine's own tests cover that)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from archsearch.hf import NemotronFlashForCausalLM

IDS = torch.tensor([[11, 12, 13, 14, 15, 16, 17], [21, 22, 23, 24, 25, 26, 27]])
OPTIONS: dict[str, Any] = {"do_sample": False, "eos_token_id": None}


def expected(model: NemotronFlashForCausalLM, ids: Tensor, count: int, **options: Any) -> Tensor:
    """transformers' greedy text without any cache."""
    return model.generate(ids, max_new_tokens=count, use_cache=False, **OPTIONS, **options)


def test_second_prompt_is_a_fresh_one(model: NemotronFlashForCausalLM) -> None:
    state = model.init_cuda_graph_generation(max_new_tokens=12, batch_size=2, device="cpu")
    for ids in (IDS, IDS + 30, IDS):
        text = model.generate_with_cuda_graph(ids, state, max_new_tokens=12, temperature=0)
        assert torch.equal(text, expected(model, ids, 12))


def test_resuming_continues_every_operator(model: NemotronFlashForCausalLM) -> None:
    state = model.init_cuda_graph_generation(max_new_tokens=30, batch_size=2, max_prompt=20)
    first = model.generate_with_cuda_graph(IDS, state, max_new_tokens=10, temperature=0)
    more = torch.tensor([[41, 42, 43], [44, 45, 46]])
    second = model.generate_with_cuda_graph(
        more, state, max_new_tokens=10, temperature=0, resume=True
    )
    whole = expected(model, torch.cat([first, more], 1), 10)
    assert torch.equal(second, whole[:, first.shape[1] :])


def test_generate_with_cache_twice(model: NemotronFlashForCausalLM) -> None:
    for ids in (IDS, IDS[:1] + 40):
        text = model.generate_with_cache(ids, max_new_tokens=9, temperature=0)
        assert torch.equal(text, expected(model, ids, 9))


@pytest.mark.parametrize("side", ["left", "right"])
def test_prompts_of_different_lengths(model: NemotronFlashForCausalLM, side: str) -> None:
    mask = torch.ones_like(IDS)
    mask[0, slice(0, 4) if side == "left" else slice(3, None)] = 0
    ids = IDS * mask
    text = model.generate_with_cache(ids, max_new_tokens=9, temperature=0, attention_mask=mask)
    assert torch.equal(text, expected(model, ids, 9, attention_mask=mask))


def test_rows_stop_on_their_own(model: NemotronFlashForCausalLM) -> None:
    free = model.generate_with_cache(IDS, max_new_tokens=12, temperature=0)[:, 7:].tolist()
    stop = free[0][3]
    text = model.generate_with_cache(IDS, max_new_tokens=12, temperature=0, eos_token_id=stop)
    for row, full in zip(text[:, 7:].tolist(), free, strict=True):
        end = full.index(stop) + 1 if stop in full else 12
        assert row == (full[:end] + [0] * 12)[: len(row)]


def test_profiling_takes_all_tokens_and_tells_the_time(
    model: NemotronFlashForCausalLM, capsys: pytest.CaptureFixture[str]
) -> None:
    state = model.init_cuda_graph_generation(max_new_tokens=12, batch_size=2)
    options: dict[str, Any] = {"max_new_tokens": 12, "temperature": 0, "profiling": True}
    free = model.generate_with_cache(IDS, max_new_tokens=12, temperature=0)
    text, seconds = model.generate_with_cuda_graph(
        IDS, state, eos_token_id=int(free[0, 9]), verbose=True, **options
    )
    assert torch.equal(text, free)
    assert 0 < seconds < 60
    assert "tokens per second" in capsys.readouterr().out


def test_sampling_follows_its_seed(model: NemotronFlashForCausalLM) -> None:
    texts = [
        model.generate_with_cache(IDS, max_new_tokens=12, temperature=1.5, seed=seed)
        for seed in (0, 0, 1)
    ]
    assert torch.equal(texts[0], texts[1])
    assert not torch.equal(texts[0], texts[2])


@pytest.mark.parametrize(
    ("ids", "options", "message"),
    [
        (torch.arange(3, 30)[None], {}, r"holds 24 tokens per row"),
        (IDS[:1], {"max_new_tokens": 18}, r"holds 24 tokens per row; 7 are used and 18 more"),
        (IDS, {}, "the session has 1 rows; got 2 prompts"),
        (IDS[:1, :0], {}, "at least one token"),
        (IDS[:1] + 90, {}, r"0\.\.96"),
        (IDS[:1], {"top_p": 0.0}, "top_p must lie in"),
        (IDS[:1], {"attention_mask": torch.ones(1, 3)}, "one entry per token"),
    ],
)
def test_bad_input_leaves_the_state_usable(
    model: NemotronFlashForCausalLM, ids: Tensor, options: dict[str, Any], message: str
) -> None:
    state = model.init_cuda_graph_generation(max_new_tokens=10, max_prompt=14)
    with pytest.raises(ValueError, match=message):
        model.generate_with_cuda_graph(ids, state, **{"max_new_tokens": 5, **options})
    text = model.generate_with_cuda_graph(IDS[:1], state, max_new_tokens=5, temperature=0)
    assert torch.equal(text, expected(model, IDS[:1], 5))


def test_nothing_to_resume(model: NemotronFlashForCausalLM) -> None:
    state = model.init_cuda_graph_generation()
    with pytest.raises(ValueError, match="no text to continue"):
        model.generate_with_cuda_graph(IDS[:1], state, resume=True)


def test_device_is_the_models(model: NemotronFlashForCausalLM) -> None:
    with pytest.raises(ValueError, match="device must be the model's, 'cpu'; got 'cuda'"):
        model.init_cuda_graph_generation(device="cuda")


@pytest.mark.gpu
def test_graph_on_a_gpu(model: NemotronFlashForCausalLM) -> None:
    model.to("cuda")
    state = model.init_cuda_graph_generation(max_new_tokens=40, batch_size=2, device="cuda")
    for ids in (IDS.cuda(), IDS.cuda() + 30):
        text = model.generate_with_cuda_graph(ids, state, max_new_tokens=40, temperature=0)
        assert torch.equal(text, expected(model, ids, 40))
        assert torch.equal(text, model.generate(ids, max_new_tokens=40, **OPTIONS))
