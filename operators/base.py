"""What an operator is, without torch: its config, its cost and its place in the table."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING
from typing import Any
from typing import Literal

from pydantic import BaseModel
from pydantic import ConfigDict
from pydantic import Field
from pydantic import ValidationError
from pydantic import model_validator

if TYPE_CHECKING:
    from archsearch.operators.layer import Mixer

Phase = Literal["decode", "prefill", "train"]
PHASES: tuple[Phase, ...] = ("decode", "prefill", "train")
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
StateDtype = Literal["float32", "model"]


def derived(**constraints: Any) -> Any:
    """A positive integer field that `fill` computes from the width when it is not given."""
    return Field(default=0, gt=0, validate_default=True, **constraints)


def sentence(error: ValidationError, what: str) -> str:
    """Say in one sentence what was wrong with the first bad field and what is allowed."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{what} has no field {field!r}"
    message = first["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if not field:
        return f"{what}: {message}"
    if first["type"] == "missing":
        return f"{what} needs a field {field!r}"
    hint = ""
    if first["type"] == "literal_error":
        near = get_close_matches(str(first["input"]), first["ctx"]["expected"].split("'"), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{what}: {field} is wrong: {message}; got {first['input']!r}{hint}"


class OperatorConfig(BaseModel):
    """Validated, frozen settings of one operator. Only `hidden_size` is required:
    everything else has a default, or one that `fill` derives from the width."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden_size: int = Field(gt=0)

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("hidden_size"), int):
            known = {name: value for name, value in values.items() if value is not None}
            for name, value in known.items():
                field = cls.model_fields.get(name)
                # `fill` computes with these before pydantic checks them
                if field is not None and field.annotation is int and type(value) is not int:
                    raise ValueError(f"{name} must be an integer; got {value!r}")
            return cls.fill(known)
        return values

    @classmethod
    def fill(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Return `values` with the fields that depend on others filled in."""
        return values


def default_head_dim(hidden_size: int) -> int:
    """Head width when none is given: 128, and 64 below hidden size 1024."""
    return 128 if hidden_size >= 1024 else 64


def divide_heads(hidden_size: int, head_dim: int) -> int:
    """Number of heads that fill `hidden_size`; raises ValueError where they do not divide it."""
    if head_dim < 1 or hidden_size % head_dim:
        raise ValueError(
            f"hidden_size must be a multiple of the head width {head_dim}; got {hidden_size}"
        )
    return hidden_size // head_dim


def fill_heads(values: dict[str, Any]) -> int:
    """Fill in the head width, and as many heads as fill the hidden size; returns the width."""
    hidden = values["hidden_size"]
    head_dim: int = values.setdefault("head_dim", default_head_dim(hidden))
    if "num_heads" not in values:
        values["num_heads"] = divide_heads(hidden, head_dim)
    return head_dim


@dataclass(frozen=True, slots=True)
class Shape:
    """The work that a cost or a latency is asked for.

    decode: one new token for each of `batch` rows that have `context` tokens behind them;
    prefill and train: `batch` rows of `context` tokens.
    """

    phase: Phase = "decode"
    batch: int = 1
    context: int = 1024
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.phase not in PHASES:
            raise ValueError(f"phase must be one of {list(PHASES)}; got {self.phase!r}")
        if self.dtype not in DTYPE_BYTES:
            raise ValueError(f"dtype must be one of {list(DTYPE_BYTES)}; got {self.dtype!r}")
        if self.batch < 1 or self.context < 1:
            raise ValueError(
                f"batch and context must be positive; got {self.batch} and {self.context}"
            )

    @property
    def tokens(self) -> int:
        """Tokens that this shape computes."""
        return self.batch if self.phase == "decode" else self.batch * self.context

    @property
    def element_bytes(self) -> int:
        """Bytes of one weight or activation."""
        return DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class Cost:
    """What one layer costs at one `Shape`: `flops` and `bytes` moved for all its tokens,
    `state_bytes` kept for all its rows at that context, `parameters` of the mixer (the
    pre-norm not counted)."""

    parameters: int
    flops: int
    bytes: int
    state_bytes: int


def layer_cost(
    config: OperatorConfig,
    shape: Shape,
    *,
    parameters: int,
    matmul_parameters: int,
    mixing_flops: float = 0.0,
    state_bytes: int = 0,
    state_read_bytes: int | None = None,
) -> Cost:
    """Assemble a `Cost`.

    `mixing_flops` is the mean over the tokens of the shape of what mixing one token costs
    beside the projections; `state_bytes` is per row; `state_read_bytes` is what one decoded
    token reads of it (default: all of it, and writes it back as well).
    """
    flops = shape.tokens * (2 * matmul_parameters + mixing_flops)
    weights = parameters * shape.element_bytes
    activations = 2 * shape.tokens * config.hidden_size * shape.element_bytes
    if shape.phase == "decode":
        state = 2 * state_bytes if state_read_bytes is None else state_read_bytes
    else:
        state = state_bytes
    moved = weights + activations + shape.batch * state
    passes = 3 if shape.phase == "train" else 1
    return Cost(
        parameters=parameters,
        flops=round(passes * flops),
        bytes=passes * moved,
        state_bytes=shape.batch * state_bytes,
    )


def state_element_bytes(state_dtype: StateDtype, shape: Shape) -> int:
    """Bytes of one element of a recurrent state kept in `state_dtype`."""
    return 4 if state_dtype == "float32" else shape.element_bytes


@dataclass(frozen=True)
class Operator:
    """One row of the operator table.

    `build` makes the torch module (imported only then), `cost` counts it, `choices` gives
    the config fields that a search may vary with the values allowed at a width, `backends`
    the implementations of its forward pass in order of preference.
    """

    name: str
    code: str
    title: str
    kind: Literal["mixer", "ffn"]
    config: type[OperatorConfig]
    build: Callable[[Any], Mixer]
    cost: Callable[[Any, Shape], Cost]
    choices: Callable[[int], Mapping[str, tuple[Any, ...]]]
    backends: tuple[str, ...]
    source: str

    def configure(self, hidden_size: int, **overrides: Any) -> OperatorConfig:
        """Make this operator's config at a width; raises ValueError with one clear sentence."""
        try:
            return self.config(hidden_size=hidden_size, **overrides)
        except ValidationError as error:
            raise ValueError(sentence(error, f"{self.name} config")) from None
