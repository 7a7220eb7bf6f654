"""transformers' generate(): the cached path equals the uncached forward pass in fp32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TextStreamer
from transformers import TokenizersBackend
from transformers import set_seed

from archsearch.hf import ArchSearchConfig
from archsearch.hf import ArchSearchForCausalLM
from archsearch.hf import NemotronFlashForCausalLM
from archsearch.hf import StateCache
from archsearch.space import parse

IDS = torch.tensor([[11, 12, 13, 14, 15, 16, 17], [21, 22, 23, 24, 25, 26, 27]])
OPTIONS: dict[str, Any] = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None}


def ragged(side: str) -> tuple[list[Tensor], Tensor, Tensor]:
    texts = [torch.arange(30, 30 + n) for n in (2, 6, 3)]
    ids, mask = torch.zeros(3, 6, dtype=torch.long), torch.zeros(3, 6, dtype=torch.long)
    for row, text in enumerate(texts):
        where = slice(None, len(text)) if side == "right" else slice(-len(text), None)
        ids[row, where], mask[row, where] = text, 1
    return texts, ids, mask


def by_hand(model: ArchSearchForCausalLM, text: Tensor, count: int) -> list[int]:
    """Greedy tokens of repeated uncached forward passes."""
    new: list[int] = []
    with torch.inference_mode():
        for _ in range(count):
            ids = torch.cat([text, torch.tensor(new, dtype=torch.long)])
            new.append(int(model(ids[None]).logits[0, -1].argmax()))
    return new


def test_greedy(model: NemotronFlashForCausalLM) -> None:
    new = model.generate(IDS, **OPTIONS)[:, 7:]
    assert new.tolist() == [by_hand(model, row, 20) for row in IDS]
    assert len(set(new.flatten().tolist())) > 5


@pytest.mark.parametrize("pattern", ["gd f w f", "m1 gla f", "r7 ret f", "a f"])
def test_any_architecture(pattern: str) -> None:
    torch.manual_seed(0)
    spec = parse(f"{pattern} @64", vocab_size=97, num_meta_tokens=2)
    model = ArchSearchForCausalLM(ArchSearchConfig.from_spec(spec, pad_token_id=0)).eval()
    texts, ids, mask = ragged("left")
    new = model.generate(ids, attention_mask=mask, **OPTIONS)[:, 6:]
    assert new.tolist() == [by_hand(model, text, 20) for text in texts]


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_of_different_lengths(
    model: NemotronFlashForCausalLM, side: str, use_cache: bool
) -> None:
    texts, ids, mask = ragged(side)
    new = model.generate(ids, attention_mask=mask, use_cache=use_cache, **OPTIONS)[:, 6:]
    assert new.tolist() == [by_hand(model, text, 20) for text in texts]


def test_rows_stop_on_their_own(model: NemotronFlashForCausalLM) -> None:
    free = model.generate(IDS, **OPTIONS)[:, 7:].tolist()
    stop = free[0][4]
    rows = model.generate(IDS, **{**OPTIONS, "eos_token_id": stop})[:, 7:].tolist()
    for row, full in zip(rows, free, strict=True):
        end = full.index(stop) + 1 if stop in full else len(row)
        assert row == (full[:end] + [0] * len(full))[: len(row)]


def test_sampling_is_the_same_with_and_without_cache(model: NemotronFlashForCausalLM) -> None:
    drawn = []
    for use_cache in (True, False):
        set_seed(5)
        options = {**OPTIONS, "do_sample": True, "top_k": 20, "temperature": 0.8}
        drawn.append(model.generate(IDS, use_cache=use_cache, **options))
    assert torch.equal(*drawn)
    assert not torch.equal(drawn[0], model.generate(IDS, **OPTIONS))


def test_beam_search(model: NemotronFlashForCausalLM) -> None:
    _, ids, mask = ragged("left")
    options = {**OPTIONS, "num_beams": 4, "num_return_sequences": 2, "attention_mask": mask}
    cached, plain = (model.generate(ids, use_cache=flag, **options) for flag in (True, False))
    assert torch.equal(cached, plain)
    assert not torch.equal(cached[::2], model.generate(ids, attention_mask=mask, **OPTIONS))


def test_prompt_embeddings_chunks_and_token_types(model: NemotronFlashForCausalLM) -> None:
    expected = model.generate(IDS, **OPTIONS)
    types = torch.zeros_like(IDS)
    assert torch.equal(model.generate(IDS, token_type_ids=types, **OPTIONS), expected)
    assert torch.equal(model.generate(IDS, prefill_chunk_size=3, **OPTIONS), expected)
    embedded = model.get_input_embeddings()(IDS)
    assert torch.equal(model.generate(inputs_embeds=embedded, **OPTIONS), expected[:, 7:])


def test_second_turn_continues_the_cache(model: NemotronFlashForCausalLM) -> None:
    cache = StateCache()
    first = model.generate(IDS[:1], past_key_values=cache, **OPTIONS)
    assert cache.get_seq_length() == first.shape[1] - 1
    longer = torch.cat([first, torch.tensor([[41, 42, 43]])], 1)
    second = model.generate(longer, past_key_values=cache, **OPTIONS)
    assert second[0, longer.shape[1] :].tolist() == by_hand(model, longer[0], 20)


def test_cache_is_used_whatever_the_released_files_say(model: NemotronFlashForCausalLM) -> None:
    output = model.generate(IDS, return_dict_in_generate=True, **OPTIONS)
    assert isinstance(output.past_key_values, StateCache)
    assert not model.config.use_cache


def test_two_calls_are_two_prompts(model: NemotronFlashForCausalLM) -> None:
    first = model.generate(IDS[:1], **OPTIONS)
    model.generate(IDS[1:], **OPTIONS)
    assert torch.equal(model.generate(IDS[:1], **OPTIONS), first)


def test_streaming(model: NemotronFlashForCausalLM, capsys: pytest.CaptureFixture[str]) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = Tokenizer(WordLevel({f"w{i}": i for i in range(97)}, unk_token="w0"))
    words.pre_tokenizer = Whitespace()
    tokenizer = TokenizersBackend(tokenizer_object=words)
    batch = tokenizer("w11 w12 w13", return_tensors="pt", return_token_type_ids=True)
    streamer = TextStreamer(tokenizer, skip_prompt=True)
    new = model.generate(**batch, streamer=streamer, **OPTIONS)[0, 3:]
    assert capsys.readouterr().out.split() == [f"w{token}" for token in new.tolist()]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache_implementation": "static"}, "cache_implementation must be None"),
        ({"prompt_lookup_num_tokens": 3}, "assisted generation is not supported"),
    ],
)
def test_what_generate_cannot_do(
    model: NemotronFlashForCausalLM, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        model.generate(IDS[:1], **OPTIONS, **options)
