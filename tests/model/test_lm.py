"""HybridLM: prefill and step equal the forward pass, for any stack, padding and meta tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from archsearch import operators
from archsearch.model import build
from archsearch.model import normalize_weights_
from archsearch.model.fused_head import refuses_head
from archsearch.operators.backends import Request
from archsearch.operators.sequence import SequenceInfo
from archsearch.space import ArchSpec
from archsearch.space import count
from archsearch.space import parse

PATTERNS = ["(a f)x2 @64", "d f m2 f a f m2 f @64", "m1 w gd gla ret r7 f @64", "mla m3 f @64"]


def spec_of(pattern: str, meta: int = 5, **fields: object) -> ArchSpec:
    return parse(pattern, vocab_size=97, num_meta_tokens=meta, head_norm=True, **fields)


def ids_of(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 97, (batch, length), generator=torch.Generator().manual_seed(seed))


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    error = (actual - expected).norm() / expected.norm()
    assert error < 1e-4, f"relative error {error:.2e}"


@pytest.mark.parametrize("meta", [0, 5])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_prefill_and_steps_equal_forward(pattern: str, meta: int) -> None:
    model = build(spec_of(pattern, meta))
    ids = ids_of(2, 30)
    with torch.inference_mode():
        expected = model(ids)
        state = model.init_state(2, 30)
        first = model.prefill(ids[:, :20], state)
        assert_close(first, expected[:, 19])
        for t in range(20, 30):
            assert_close(model.step(ids[:, t], state), expected[:, t])
    assert state.position.tolist() == [30 + meta] * 2


@pytest.mark.parametrize("pattern", PATTERNS)
def test_ragged_prompts_and_continued_ones(pattern: str) -> None:
    model = build(spec_of(pattern))
    ids = ids_of(3, 24)
    lengths = torch.tensor([24, 1, 13])
    with torch.inference_mode():
        state = model.init_state(3, 60)
        logits = model.prefill(ids, state, lengths=lengths)
        for row, length in enumerate(lengths.tolist()):
            assert_close(logits[row], model(ids[row : row + 1, :length])[0, -1])
        # one row starts afresh (with meta tokens) while the others go on
        state.reset(torch.tensor([1]))
        more = ids_of(3, 9, seed=1)
        counts = torch.tensor([9, 4, 2])
        logits = model.prefill(more, state, lengths=counts)
        before = {0: ids[0, :24], 1: ids[1, :0], 2: ids[2, :13]}
        for row, old in before.items():
            text = torch.cat([old, more[row, : counts[row]]])[None]
            assert_close(logits[row], model(text)[0, -1])


@pytest.mark.parametrize("pattern", PATTERNS)
def test_packed_segments_equal_single_sequences(pattern: str) -> None:
    model = build(spec_of(pattern))
    ids = ids_of(2, 40)
    sizes = [[10, 17, 3], [40]]
    logits = model(ids, seq=SequenceInfo.packed(sizes, 40))
    for row, row_sizes in enumerate(sizes):
        begin = 0
        for size in row_sizes:
            alone = model(ids[row : row + 1, begin : begin + size])
            assert_close(logits[row, begin : begin + size], alone[0])
            begin += size


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(side: str) -> None:
    model = build(spec_of(PATTERNS[1]))
    ids = ids_of(2, 20)
    logits = model(ids, seq=SequenceInfo.padded([20, 6], 20, side=side))
    where = slice(0, 6) if side == "right" else slice(14, 20)
    assert_close(logits[1, where], model(ids[1:, where])[0])


def test_parameter_count_is_exact() -> None:
    for pattern in PATTERNS:
        for tied in (True, False):
            spec = spec_of(pattern, tie_embeddings=tied)
            assert build(spec).num_parameters() == count.parameters(spec)


def test_a_tied_head_never_has_memory_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of(PATTERNS[0], tie_embeddings=True)
    made: list[torch.Size] = []
    empty_like = torch.empty_like

    def recorded(tensor: torch.Tensor, **where: Any) -> torch.Tensor:
        made.append(tensor.shape)
        return empty_like(tensor, **where)

    monkeypatch.setattr(torch, "empty_like", recorded)
    model = build(spec)
    assert model.head.proj.weight is model.embed.weight
    assert made.count(model.embed.weight.shape) == 1


def test_state_bytes_are_exact() -> None:
    for pattern in PATTERNS:
        spec = spec_of(pattern)
        state = build(spec).init_state(2, 50)
        assert state.num_bytes == count.state_bytes(spec, 50, batch=2)


def test_head_norm_divides_and_survives_a_zero_row() -> None:
    model = build(spec_of(PATTERNS[0]))
    weight = model.head.proj.weight
    with torch.no_grad():
        weight[3] = 0
    h = torch.randn(2, 64, generator=torch.Generator().manual_seed(1))
    logits = model.head(h)
    assert torch.isfinite(logits).all()
    assert not logits[:, 3].any()
    unit = weight / weight.norm(dim=1, keepdim=True).clamp(min=1e-12)
    assert_close(logits, model.head.norm(h) @ unit.T)
    logits.square().sum().backward()
    assert weight.grad is not None
    assert torch.isfinite(weight.grad).all()
    assert not weight.grad[3].any()


def test_cached_head_norms_follow_the_weight() -> None:
    model = build(spec_of(PATTERNS[0]))
    h = torch.randn(2, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = model.head(h)
        model.head.proj.weight.mul_(3.0)
        assert_close(model.head(h), before)


def test_head_norms_made_while_generating_serve_training() -> None:
    model = build(spec_of(PATTERNS[0]))
    model.head.proj.weight.requires_grad_(False)
    with torch.inference_mode():
        model(ids_of(1, 3))
    model(ids_of(1, 3)).sum().backward()
    assert model.head.norm.weight.grad is not None


def test_a_prompt_for_some_rows_leaves_the_others() -> None:
    model = build(spec_of(PATTERNS[2]))
    ids, more = ids_of(3, 10), ids_of(2, 4, seed=1)
    with torch.inference_mode():
        state = model.init_state(3, 20)
        model.prefill(ids, state)
        before = [{k: v.clone() for k, v in layer.tensors.items()} for layer in state.layers]
        rows = torch.tensor([2, 0])
        logits = model.prefill(more, state, lengths=torch.tensor([4, 1]), rows=rows)
        assert_close(logits[0], model(torch.cat([ids[2], more[0]])[None])[0, -1])
        assert_close(logits[1], model(torch.cat([ids[0], more[1, :1]])[None])[0, -1])
        for layer, tensors in zip(state.layers, before, strict=True):
            assert all(torch.equal(layer[name][1], old[1]) for name, old in tensors.items())
        assert state.position.tolist() == [16, 15, 19]
        with pytest.raises(ValueError, match="these are 2 rows; got 3 prompts"):
            model.prefill(ids, state, rows=rows)


def test_a_prompt_that_does_not_fit_is_seen_behind_idle_rows() -> None:
    """The host knows only a bound of how long rows are where some were idle."""
    model = build(spec_of(PATTERNS[0], meta=0))
    with torch.inference_mode():
        state = model.init_state(2, 12)
        model.prefill(ids_of(2, 4), state)
        for _ in range(4):
            model.step(ids_of(2, 1)[:, 0], state, torch.tensor([False, False]))
        with pytest.raises(ValueError, match="4 are used and 9 more do not fit"):
            model.prefill(ids_of(2, 9), state)
        model.prefill(ids_of(2, 8), state)
    assert state.position.tolist() == [12, 12]


def test_weight_normalisation_rows_and_columns() -> None:
    model = build(spec_of(PATTERNS[2]))
    embedding = model.embed.weight.clone()
    normalize_weights_(model)
    for layer in model.decoder:
        modules = dict(layer.mixer.named_modules())
        for names, dim in ((layer.mixer.READS, 1), (layer.mixer.WRITES, 0)):
            for name in names:
                if name in modules:
                    norms = modules[name].get_parameter("weight").norm(dim=dim)
                    assert_close(norms, torch.ones_like(norms))
    assert torch.equal(model.embed.weight, embedding)


def test_same_seed_same_weights() -> None:
    first, second, other = (build(spec_of(PATTERNS[2]), seed=seed) for seed in (4, 4, 5))
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(first.embed.weight, other.embed.weight)


@pytest.mark.parametrize("operator", operators.names())
def test_every_weight_is_drawn(operator: str) -> None:
    """A model is made without memory first: what nobody draws would stay NaN."""
    model = build(spec_of(operators.get(operator).code + " @128"))
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert not list(model.buffers()), "a buffer would have to be filled as well"


def test_forward_refuses_to_continue_a_prompt() -> None:
    model = build(spec_of(PATTERNS[0]))
    seq = SequenceInfo.padded([4, 4], 4, starts=torch.tensor([3, 0]))
    with pytest.raises(ValueError, match="continue prompts by prefill"):
        model(ids_of(2, 4), seq=seq)


def test_bad_requests_leave_the_state_usable() -> None:
    model = build(spec_of(PATTERNS[1]))
    ids = ids_of(2, 12)
    state = model.init_state(2, 12)
    with torch.inference_mode():
        with pytest.raises(ValueError, match="has 2 rows; got 1 prompts"):
            model.prefill(ids[:1], state)
        with pytest.raises(ValueError, match="got an empty one"):
            model.prefill(ids[:, :0], state)
        with pytest.raises(ValueError, match="holds 17 tokens per row"):
            model.prefill(ids_of(2, 13), state)
        assert_close(model.prefill(ids, state), model(ids)[:, -1])
        with pytest.raises(ValueError, match="17 are used and 1 more do not fit"):
            model.step(ids[:, 0], state)


def test_a_hooked_head_is_called() -> None:
    head = build(spec_of("f @64")).head
    request = Request("head", "decode", "cuda", torch.float32)
    assert refuses_head(head, "triton", request) == ""
    head.register_forward_hook(lambda *_: None)
    assert "hooks" in refuses_head(head, "triton", request)
    assert refuses_head(head, "torch", request) == ""
