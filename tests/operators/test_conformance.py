"""Every operator of the table keeps the contract, under its default config and under variants.

Run: pytest tests/operators/test_conformance.py -k mamba2
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch import nn

from archsearch import operators
from archsearch.operators import Shape
from archsearch.operators import backends
from archsearch.operators.base import OperatorConfig
from archsearch.operators.layer import Mixer
from archsearch.operators.layer import State
from archsearch.operators.sequence import SequenceInfo

WIDTH = 128
LENGTHS = (1, 63, 64, 65, 130)
TOLERANCE = 2e-5

# what the defaults do not reach: a window shorter than the text, other activations, ...
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "attention": [
        {"qkv_bias": True, "qk_norm": True, "num_kv_heads": 2},
        {"num_heads": 3, "head_dim": 32, "num_kv_heads": 3},
    ],
    "sliding_window": [{"window": 16}, {"window": 40, "num_kv_heads": 2}],
    "mla": [
        {"num_heads": 3, "head_dim": 24, "rope_head_dim": 8, "v_head_dim": 16, "kv_lora_rank": 40},
        {
            "q_lora_rank": 48,
            "v_head_dim": 128,
            "rope": {"type": "ntk", "original_max_position": 64},
        },
    ],
    "mamba": [{"d_state": 4, "expand": 1, "d_conv": 2, "dt_rank": 3, "conv_bias": False}],
    "mamba2": [
        {"num_groups": 2, "head_dim": 32, "d_state": 16, "chunk_size": 16},
        {"d_state": 24, "expand": 1, "d_conv": 2, "conv_bias": False, "chunk_size": 128},
    ],
    "mamba3": [
        {"num_groups": 2, "head_dim": 32, "d_state": 16, "chunk_size": 16, "out_norm": True},
        {"d_state": 22, "expand": 1, "rope_fraction": 1.0, "state_dtype": "model"},
    ],
    "deltanet": [
        {"num_heads": 3, "head_dim": 17, "v_head_dim": 24, "conv_size": 2},
        {"head_dim": 128, "conv_size": 1, "norm_eps": 1e-3},
    ],
    "gated_deltanet": [
        {"num_heads": 2, "num_v_heads": 4, "head_dim": 24, "v_head_dim": 17},
        {"num_v_heads": 4, "use_gate": False, "conv_size": 3},
    ],
    "gated_deltaproduct": [
        {"num_heads": 2, "num_v_heads": 4, "head_dim": 24, "v_head_dim": 17},
        {"num_householder": 3, "use_gate": False, "conv_size": 3, "allow_neg_eigval": False},
    ],
    "kda": [
        {"num_heads": 3, "head_dim": 24, "v_head_dim": 17, "conv_size": 2},
        {"head_dim": 128, "conv_size": 1, "norm_eps": 1e-3},
    ],
    "gla": [
        {"num_heads": 3, "head_dim": 32, "k_head_dim": 24, "gate_rank": 8},
        {"k_head_dim": 64, "gate_normalizer": 1.0},
    ],
    "retention": [
        {"num_heads": 3, "head_dim": 24, "v_head_dim": 20},
        {"rope": {"type": "ntk", "original_max_position": 64}, "norm_eps": 1e-3},
    ],
    "rwkv7": [
        {"head_dim": 32, "decay_rank": 8, "rate_rank": 4, "gate_rank": 16},
        {"head_dim": 128, "norm_eps": 1e-6},
    ],
    "ffn": [{"activation": "relu2", "intermediate_size": 96}],
}

CASES = [
    pytest.param(operator.name, variant, id=f"{operator.code}-{index}")
    for operator in operators.OPERATORS
    for index, variant in enumerate([{}, *VARIANTS.get(operator.name, [])])
]


def make(name: str, variant: dict[str, Any], seed: int = 0) -> tuple[OperatorConfig, Mixer]:
    operator = operators.get(name)
    config = operator.configure(WIDTH, **variant)
    mixer = operator.build(config)
    mixer.init_weights(torch.Generator().manual_seed(seed))
    # off the initial values, where gates and norms are neutral and hide mistakes
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return config, mixer


def tokens(batch: int, length: int, seed: int = 2) -> Tensor:
    return torch.randn(batch, length, WIDTH, generator=torch.Generator().manual_seed(seed))


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    assert actual.shape == expected.shape, f"{actual.shape} != {expected.shape}"
    error = (actual - expected).norm() / expected.norm().clamp(min=1e-9)
    assert error < tolerance, f"relative error {error:.2e} >= {tolerance:.0e}"


def new_state(mixer: Mixer, batch: int, max_len: int) -> State:
    return mixer.init_state(batch, max_len, torch.float32, "cpu")


def decode(mixer: Mixer, x: Tensor, state: State, start: int = 0) -> Tensor:
    """The mixer's outputs, token by token."""
    active = torch.ones(len(x), dtype=torch.bool)
    steps = [
        mixer.mix_step(x[:, t], state, torch.full((len(x),), start + t), active)
        for t in range(x.shape[1])
    ]
    return torch.stack(steps, dim=1)


@pytest.mark.parametrize(("name", "variant"), CASES)
class TestConformance:
    def test_config_round_trips(self, name: str, variant: dict[str, Any]) -> None:
        config, _ = make(name, variant)
        assert type(config).model_validate_json(config.model_dump_json()) == config

    def test_config_rejects_unknown_keys(self, name: str, variant: dict[str, Any]) -> None:
        del variant
        with pytest.raises(ValueError, match="has no field 'colour'"):
            operators.get(name).configure(WIDTH, colour="red")

    @pytest.mark.parametrize("length", LENGTHS)
    def test_shape_is_kept(self, name: str, variant: dict[str, Any], length: int) -> None:
        _, mixer = make(name, variant)
        y = mixer(tokens(2, length))
        assert y.shape == (2, length, WIDTH)
        assert torch.isfinite(y).all()

    def test_future_does_not_change_the_past(self, name: str, variant: dict[str, Any]) -> None:
        _, mixer = make(name, variant)
        x = tokens(2, 130)
        changed = x.clone()
        changed[:, 70:] = tokens(2, 60, seed=9)
        assert_close(mixer(changed)[:, :70], mixer(x)[:, :70], 1e-6)

    @pytest.mark.parametrize("length", LENGTHS)
    def test_fast_form_equals_reference(
        self, name: str, variant: dict[str, Any], length: int
    ) -> None:
        _, mixer = make(name, variant)
        x = tokens(2, length).requires_grad_()
        results, fast = {}, mixer.backend(x)
        for backend in ("reference", fast):
            with backends.override(backend):
                y = mixer(x)
                weight = tokens(2, length, seed=5)
                gradients = torch.autograd.grad((y * weight).sum(), [x, *mixer.parameters()])
            results[backend] = (y.detach(), *gradients)
        # of a single token a norm removes the scale: gradients that nearly cancel keep the
        # rounding of the large ones
        largest = max(float(gradient.norm()) for gradient in results["reference"][1:])
        floor = 0.1 * largest if length == 1 else 1e-6
        labels = ["y", "x", *(label for label, _ in mixer.named_parameters())]
        for label, actual, expected in zip(
            labels, results[fast], results["reference"], strict=True
        ):
            assert torch.isfinite(actual).all(), f"{label} is not finite"
            error = (actual - expected).norm() / max(float(expected.norm()), floor)
            assert error < 1e-4, f"{label}: relative error {error:.2e}"

    @pytest.mark.parametrize("length", LENGTHS)
    def test_forward_equals_steps(self, name: str, variant: dict[str, Any], length: int) -> None:
        _, mixer = make(name, variant)
        x = tokens(2, length)
        assert_close(decode(mixer, x, new_state(mixer, 2, length)), mixer(x), 1e-4)

    def test_prefill_then_steps(self, name: str, variant: dict[str, Any]) -> None:
        _, mixer = make(name, variant)
        x = tokens(2, 100)
        state = new_state(mixer, 2, 100)
        first = mixer(x[:, :70], state=state)
        rest = decode(mixer, x[:, 70:], state, start=70)
        assert_close(torch.cat([first, rest], dim=1), mixer(x), 1e-4)

    def test_prompt_continues_in_pieces(self, name: str, variant: dict[str, Any]) -> None:
        _, mixer = make(name, variant)
        x = tokens(2, 120)
        state = new_state(mixer, 2, 120)
        pieces = []
        for begin, end in ((0, 1), (1, 66), (66, 69), (69, 120)):
            starts = torch.full((2,), begin)
            seq = SequenceInfo.padded([end - begin] * 2, end - begin, starts=starts)
            pieces.append(mixer(x[:, begin:end], state=state, seq=seq))
        assert_close(torch.cat(pieces, dim=1), mixer(x), 1e-4)

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_padding_does_not_leak(self, name: str, variant: dict[str, Any], side: str) -> None:
        _, mixer = make(name, variant)
        lengths = [90, 3, 64]
        x = torch.full((3, 90, WIDTH), 1e4)  # large where padded: a leak would show
        alone = []
        for row, length in enumerate(lengths):
            text = tokens(1, length, seed=row)
            where = slice(0, length) if side == "right" else slice(90 - length, 90)
            x[row, where] = text[0]
            alone.append(mixer(text)[0])
        seq = SequenceInfo.padded(lengths, 90, side=side)
        state = new_state(mixer, 3, 91)
        y = mixer(x, state=state, seq=seq)
        assert_close(mixer(x, seq=seq), y)
        # the state stands at each row's last real token: the next token must agree
        following = tokens(3, 1, seed=20)
        active = torch.ones(3, dtype=torch.bool)
        stepped = mixer.mix_step(following[:, 0], state, torch.tensor(lengths), active)
        for row, length in enumerate(lengths):
            where = slice(0, length) if side == "right" else slice(90 - length, 90)
            assert_close(y[row, where], alone[row], 1e-4)
            longer = torch.cat([x[row, where], following[row]])[None]
            assert_close(stepped[row], mixer(longer)[0, -1], 1e-4)

    def test_packed_segments_do_not_leak(self, name: str, variant: dict[str, Any]) -> None:
        _, mixer = make(name, variant)
        sizes = [[30, 1, 65], [64, 10]]
        x = tokens(2, 100)
        y = mixer(x, seq=SequenceInfo.packed(sizes, 100))
        for row, row_sizes in enumerate(sizes):
            begin = 0
            for size in row_sizes:
                alone = mixer(x[row : row + 1, begin : begin + size])
                assert_close(y[row, begin : begin + size], alone[0], 1e-4)
                begin += size
            assert not y[row, begin:].any()

    def test_layer_step_and_inactive_rows(self, name: str, variant: dict[str, Any]) -> None:
        _, mixer = make(name, variant)
        x = tokens(3, 20)
        state = new_state(mixer, 3, 32)
        mixer(x, state=state)
        before = {key: tensor.clone() for key, tensor in state.tensors.items()}
        h, norm = tokens(3, 1, seed=7)[:, 0], nn.RMSNorm(WIDTH)
        active = torch.tensor([True, False, True])
        position = torch.tensor([20, 20, 20])
        out = mixer.step(h, state, position, active, norm)
        assert torch.equal(out[1], h[1])
        assert not torch.equal(out[0], h[0])
        for key, tensor in before.items():
            assert torch.equal(state[key][1], tensor[1]), f"{key} of an inactive row changed"
        fresh = new_state(mixer, 3, 32)
        mixer(x, state=fresh)
        expected = h + mixer.mix_step(norm(h), fresh, position, torch.ones(3, dtype=torch.bool))
        assert_close(out[[0, 2]], expected[[0, 2]])

    def test_rows_at_different_positions(self, name: str, variant: dict[str, Any]) -> None:
        _, mixer = make(name, variant)
        x = tokens(2, 60)
        state = new_state(mixer, 2, 80)
        mixer(x, state=state, seq=SequenceInfo.padded([60, 7], 60))
        active = torch.ones(2, dtype=torch.bool)
        y = mixer.mix_step(x[:, 0], state, torch.tensor([60, 7]), active)
        for row, length in enumerate((60, 7)):
            alone = torch.cat([x[row, :length], x[row, :1]])[None]
            assert_close(y[row], mixer(alone)[0, -1], 1e-4)

    def test_state_resets_and_reorders(self, name: str, variant: dict[str, Any]) -> None:
        _, mixer = make(name, variant)
        x = tokens(3, 10)
        state = new_state(mixer, 3, 16)
        mixer(x, state=state)
        state.reorder(torch.tensor([2, 0, 0]))
        active = torch.ones(3, dtype=torch.bool)
        following = tokens(3, 1, seed=3)[:, 0]
        y = mixer.mix_step(following, state, torch.full((3,), 10), active)
        for row, former in enumerate((2, 0, 0)):
            alone = torch.cat([x[former], following[row : row + 1]])[None]
            assert_close(y[row], mixer(alone)[0, -1], 1e-4)
        state.reset(torch.tensor([1]))
        y = mixer.mix_step(following, state, torch.tensor([11, 0, 11]), active)
        assert_close(y[1], mixer(following[1][None, None])[0, 0], 1e-4)

    def test_costs_are_exact(self, name: str, variant: dict[str, Any]) -> None:
        config, mixer = make(name, variant)
        operator = operators.get(name)
        count = sum(parameter.numel() for parameter in mixer.parameters())
        for phase in operators.PHASES:
            cost = operator.cost(config, Shape(phase, batch=3, context=50))
            assert cost.parameters == count
            assert cost.state_bytes == new_state(mixer, 3, 50).num_bytes
            assert cost.flops > 0
            assert cost.bytes >= 4 * count

    def test_weight_norm_roles_cover_the_matrices(
        self, name: str, variant: dict[str, Any]
    ) -> None:
        _, mixer = make(name, variant)
        linears = {n for n, module in mixer.named_modules() if isinstance(module, nn.Linear)}
        roles = {*mixer.READS, *mixer.WRITES}
        assert mixer.WRITES, "something must write to the residual stream"
        assert not set(mixer.READS) & set(mixer.WRITES)
        assert linears <= roles, f"no role: {sorted(linears - roles)}"

    def test_choices_are_valid(self, name: str, variant: dict[str, Any]) -> None:
        del variant
        operator = operators.get(name)
        for field, values in operator.choices(WIDTH).items():
            for value in values:
                operator.configure(WIDTH, **{field: value})
