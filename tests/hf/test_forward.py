"""Padding, packing and the other ways in which transformers describes a batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DataCollatorWithFlattening

from archsearch.hf import ArchSearchConfig
from archsearch.hf import ArchSearchForCausalLM
from archsearch.hf import NemotronFlashForCausalLM
from archsearch.hf import StateCache
from archsearch.operators.backends import recorded
from archsearch.space import parse

LENGTHS = (9, 4, 14)
assert_close = partial(torch.testing.assert_close, atol=1e-4, rtol=1e-4)


def texts() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(1, 97, (length,), generator=generator) for length in LENGTHS]


def padded(side: str, value: int = 0) -> tuple[Tensor, Tensor]:
    """ids and mask [3,14]."""
    ids = torch.full((len(LENGTHS), max(LENGTHS)), value)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts()):
        where = slice(None, len(text)) if side == "right" else slice(-len(text), None)
        ids[row, where], mask[row, where] = text, 1
    return ids, mask


@pytest.fixture
def single_losses(model: NemotronFlashForCausalLM) -> list[float]:
    return [model(text[None], labels=text[None]).loss.item() for text in texts()]


def mean(losses: list[float]) -> float:
    """Of all tokens that have one before them."""
    counts = [length - 1 for length in LENGTHS]
    return sum(x * n for x, n in zip(losses, counts, strict=True)) / sum(counts)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_equal_single_ones(
    model: NemotronFlashForCausalLM, single_losses: list[float], side: str
) -> None:
    ids, mask = padded(side, value=5)
    output = model(ids, attention_mask=mask, labels=ids)
    for row, text in enumerate(texts()):
        alone = model(text[None]).logits[0]
        assert_close(output.logits[row, mask[row].bool()], alone)
    assert output.loss.item() == pytest.approx(mean(single_losses), rel=1e-5)


@pytest.mark.parametrize("form", ["position_ids", "cu_seq_lens", "seq_idx"])
def test_packed_rows_equal_single_ones(
    model: NemotronFlashForCausalLM, single_losses: list[float], form: str
) -> None:
    collate = DataCollatorWithFlattening(
        return_tensors="pt",
        return_position_ids=form == "position_ids",
        return_flash_attn_kwargs=form == "cu_seq_lens",
        return_seq_idx=form == "seq_idx",
    )
    batch: dict[str, Any] = collate([{"input_ids": text.tolist()} for text in texts()])
    assert model(**batch).loss.item() == pytest.approx(mean(single_losses), rel=1e-5)
    # the collator's labels leave the first tokens out; with plain ones the model must
    batch["labels"] = batch["input_ids"]
    assert model(**batch).loss.item() == pytest.approx(mean(single_losses), rel=1e-5)


def test_packed_and_padded_at_once(model: NemotronFlashForCausalLM) -> None:
    first, second, third = texts()
    ids = torch.zeros(2, 17, dtype=torch.long)
    ids[0, 4:], ids[1, :14] = torch.cat([first, second]), third
    mask = torch.zeros_like(ids)
    mask[0, 4:], mask[1, :14] = 1, 1
    positions = torch.zeros_like(ids)
    positions[0, 4:] = torch.cat([torch.arange(9), torch.arange(4)])
    positions[1, :14] = torch.arange(14)
    logits = model(ids, attention_mask=mask, position_ids=positions).logits
    assert_close(logits[0, 4:13], model(first[None]).logits[0])
    assert_close(logits[0, 13:], model(second[None]).logits[0])
    assert_close(logits[1, :14], model(third[None]).logits[0])


def test_loss_ignores_what_labels_ignore(model: NemotronFlashForCausalLM) -> None:
    text = texts()[2][None]
    labels = text.masked_fill(torch.arange(14) < 10, -100)
    logits = model(text).logits
    expected = torch.nn.functional.cross_entropy(logits[0, 9:13], text[0, 10:])
    assert_close(model(text, labels=labels).loss, expected)
    summed = model(text, labels=labels, num_items_in_batch=8).loss
    assert_close(summed, expected * 4 / 8)


def test_logits_to_keep(model: NemotronFlashForCausalLM) -> None:
    ids, mask = padded("right")
    every = model(ids, attention_mask=mask).logits
    last = model(ids, attention_mask=mask, logits_to_keep=1).logits
    for row, length in enumerate(LENGTHS):
        assert_close(last[row, 0], every[row, length - 1])
    assert_close(model(ids, logits_to_keep=3).logits, model(ids).logits[:, -3:])
    some = torch.tensor([0, 5])
    assert_close(model(ids, logits_to_keep=some).logits, model(ids).logits[:, some])


def test_embeddings_in_place_of_ids(model: NemotronFlashForCausalLM) -> None:
    ids, mask = padded("left")
    embedded = model.get_input_embeddings()(ids)
    expected = model(ids, attention_mask=mask).logits
    assert_close(model(inputs_embeds=embedded, attention_mask=mask).logits, expected)
    cached = model(inputs_embeds=embedded, attention_mask=mask, use_cache=True).logits
    assert_close(cached[mask.bool()], expected[mask.bool()])


def test_token_type_ids_have_no_effect(model: NemotronFlashForCausalLM) -> None:
    ids = texts()[0][None]
    types = torch.ones_like(ids)
    assert torch.equal(model(ids, token_type_ids=types).logits, model(ids).logits)


def test_output_as_a_tuple(model: NemotronFlashForCausalLM) -> None:
    ids = texts()[0][None]
    loss, logits = model(ids, labels=ids, return_dict=False)
    assert loss.dim() == 0 and logits.shape == (1, 9, 97)


@pytest.mark.parametrize("parts", [(9, 5), (1, 1, 12), (14,)])
def test_reading_in_parts_equals_reading_at_once(
    model: NemotronFlashForCausalLM, parts: tuple[int, ...]
) -> None:
    ids = texts()[2][None].repeat(2, 1)
    cache, logits, begin = StateCache(room=2), [], 0
    for size in parts:
        output = model(ids[:, begin : begin + size], past_key_values=cache)
        logits.append(output.logits)
        begin += size
        assert cache.get_seq_length() == begin
    assert_close(torch.cat(logits, 1), model(ids).logits)


def test_a_padded_batch_is_continued(model: NemotronFlashForCausalLM) -> None:
    ids, mask = padded("left")
    output = model(ids, attention_mask=mask, use_cache=True)
    more = torch.tensor([[7, 8, 9]]).repeat(3, 1)
    longer = torch.cat([mask, torch.ones_like(more)], 1)
    cache = output.past_key_values
    logits = model(more, attention_mask=longer, past_key_values=cache).logits
    for row, text in enumerate(texts()):
        expected = model(torch.cat([text, more[row]])[None]).logits[0, -3:]
        assert_close(logits[row], expected)


def test_no_cache_and_no_lost_gradient_unless_asked_for(model: NemotronFlashForCausalLM) -> None:
    ids = texts()[0][None]
    assert model(ids).past_key_values is None
    assert model(ids).logits.requires_grad
    with pytest.raises(ValueError, match="labels need use_cache=False"):
        model(ids, labels=ids, use_cache=True)


def test_head_norms_follow_the_weights(model: NemotronFlashForCausalLM) -> None:
    ids = texts()[0][None]
    with torch.no_grad():
        before = model(ids).logits
        model.get_output_embeddings().weight[7] *= 3
        after = model(ids).logits
    assert_close(after[..., 7], before[..., 7])


def test_attention_can_be_chosen(write_checkpoint: Callable[..., Path]) -> None:
    ids = texts()[0][None]
    used = {}
    for name in ("sdpa", "eager", "fused_mha", "flash_attention_2"):
        for option in ("attn_implementation", "attn_implementation_new"):
            model = NemotronFlashForCausalLM.from_pretrained(write_checkpoint(), **{option: name})
            assert model.config.attn_implementation_new == name
            with torch.no_grad(), recorded() as ran:
                model(ids)
            used[name] = ran["attention"]
    assert used == {
        "sdpa": "sdpa",
        "eager": "reference",
        "fused_mha": "sdpa",
        "flash_attention_2": "sdpa",
    }


def test_vocabulary_can_grow(model: NemotronFlashForCausalLM, tmp_path: Path) -> None:
    model.resize_token_embeddings(101)
    assert model.model.spec.vocab_size == model.config.vocab_size == 101
    assert model(torch.tensor([[99, 100]])).logits.shape == (1, 2, 101)
    model.save_pretrained(tmp_path / "grown")
    again = NemotronFlashForCausalLM.from_pretrained(tmp_path / "grown")
    assert again.get_output_embeddings().weight.shape == (101, 128)
    general = ArchSearchForCausalLM(ArchSearchConfig.from_spec(parse("a f @64", vocab_size=9)))
    general.resize_token_embeddings(11)
    general.save_pretrained(tmp_path / "general")
    assert ArchSearchForCausalLM.from_pretrained(tmp_path / "general").model.spec.vocab_size == 11


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "give either input_ids or inputs_embeds"),
        (
            {"input_ids": torch.ones(1, 3).long(), "inputs_embeds": torch.ones(1, 3, 128)},
            "give either input_ids or inputs_embeds",
        ),
        (
            {"input_ids": torch.ones(1, 3).long(), "attention_mask": torch.ones(1, 1, 3, 3)},
            r"one entry per token, shape \(1, 3\); got \(1, 1, 3, 3\)",
        ),
        (
            {"input_ids": torch.ones(1, 3).long(), "output_hidden_states": True},
            "output_hidden_states is not supported",
        ),
        (
            {"input_ids": torch.ones(1, 3).long(), "past_key_values": object()},
            "past_key_values must be a StateCache, .*; got object",
        ),
        (
            {
                "input_ids": torch.ones(1, 3).long(),
                "attention_mask": torch.zeros(1, 3),
                "use_cache": True,
            },
            "must have at least one token",
        ),
        (
            {
                "input_ids": torch.ones(2, 3).long(),
                "cu_seq_lens_q": torch.tensor([0, 3, 6]),
            },
            "cu_seq_lens_q describes a batch of one row; got 2 rows",
        ),
    ],
)
def test_bad_input(model: NemotronFlashForCausalLM, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(**inputs)


def test_bad_continuation_leaves_the_cache_usable(model: NemotronFlashForCausalLM) -> None:
    ids = texts()[2][None]
    cache = model(ids[:, :5], use_cache=True).past_key_values
    with pytest.raises(ValueError, match=r"must cover the 5 tokens of the cache .* 7 columns"):
        model(ids[:, 5:7], attention_mask=torch.ones(1, 2), past_key_values=cache)
    with pytest.raises(ValueError, match="the cache has 1 rows; got 2"):
        model(ids[:, 5:7].repeat(2, 1), past_key_values=cache)
    with pytest.raises(ValueError, match="cannot be cropped"):
        cache.crop(-1)
    logits = model(ids[:, 5:], past_key_values=cache).logits
    assert_close(logits, model(ids).logits[:, 5:])
