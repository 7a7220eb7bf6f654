"""What an architecture is: `ArchSpec`, checked as a whole and resolved into operator configs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any
from typing import Self

from pydantic import BaseModel
from pydantic import ConfigDict
from pydantic import Field
from pydantic import JsonValue
from pydantic import ValidationError
from pydantic import field_validator
from pydantic import model_validator

from archsearch import operators
from archsearch.operators import OperatorConfig
from archsearch.operators.base import sentence
from archsearch.operators.common.rope import RopeConfig
from archsearch.space.notation import write_pattern

# fields of the spec that fill the same field of an operator's config
INHERITED = ("rope", "norm_eps", "max_position")


class LayerSpec(BaseModel):
    """One pre-norm residual layer: an operator, by name or code, and what differs from the
    operator's defaults at this width."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    operator: str
    config: dict[str, JsonValue] = Field(default_factory=dict)

    @field_validator("operator")
    @classmethod
    def _known_operator(cls, value: str) -> str:
        return operators.get(value).name

    @field_validator("config")
    @classmethod
    def _no_width(cls, value: dict[str, JsonValue]) -> dict[str, JsonValue]:
        if "hidden_size" in value:
            raise ValueError("hidden_size is the architecture's, a layer cannot change it")
        return value


class ArchSpec(BaseModel):
    """A whole language model: embedding, layers, final norm and head."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = ""
    vocab_size: int = Field(default=131072, gt=0)
    hidden_size: int = Field(gt=0)
    layers: tuple[LayerSpec, ...]
    num_meta_tokens: int = Field(default=0, ge=0)
    tie_embeddings: bool = True
    norm_eps: float = Field(default=1e-6, gt=0)
    head_norm: bool = False
    max_position: int = Field(default=4096, gt=0)
    rope: RopeConfig = RopeConfig()

    @classmethod
    def create(cls, **fields: Any) -> Self:
        """The constructor, with a ValueError of one sentence that names the layer at fault."""
        try:
            return cls(**fields)
        except ValidationError as error:
            raise ValueError(_sentence(error)) from None

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read `model_dump_json` or `resolved_json`; raises ValueError with one sentence."""
        try:
            fields = json.loads(text)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"the architecture is not JSON: {error}") from None
        if not isinstance(fields, dict):
            raise ValueError(
                f"the architecture must be a JSON object; got {type(fields).__name__}"
            )
        return cls.create(**fields)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with `update` applied and checked, which pydantic's own would not do."""
        del deep
        return self.create(**{**self.model_dump(), **(update or {})})

    def __hash__(self) -> int:
        return hash(self.id)

    @model_validator(mode="after")
    def _layers_resolve(self) -> Self:
        assert len(self.configs) == len(self.layers)
        return self

    @cached_property
    def configs(self) -> tuple[OperatorConfig, ...]:
        """Every layer's complete operator config."""
        return tuple(self._resolve(index, layer) for index, layer in enumerate(self.layers))

    def _resolve(self, index: int, layer: LayerSpec) -> OperatorConfig:
        operator = operators.get(layer.operator)
        fields = operator.config.model_fields
        inherited = {name: getattr(self, name) for name in INHERITED if name in fields}
        try:
            return operator.configure(self.hidden_size, **{**inherited, **layer.config})
        except ValueError as error:
            raise ValueError(f"layers[{index}]: {error}") from None

    @property
    def num_layers(self) -> int:
        """Layers, every mixer and every FFN counted as one."""
        return len(self.layers)

    @cached_property
    def notation(self) -> str:
        """The short form; it carries operators and width, not what a layer overrides."""
        return write_pattern(tuple(layer.operator for layer in self.layers), self.hidden_size)

    @cached_property
    def id(self) -> str:
        """12 hex digits that depend on everything but the name."""
        fields = self.resolved()
        del fields["name"]
        canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    def resolved(self) -> dict[str, Any]:
        """The spec as plain JSON values, every layer with its complete config."""
        fields = self.model_dump(mode="json", exclude={"layers"})
        fields["layers"] = [
            {
                "operator": layer.operator,
                "config": config.model_dump(mode="json", exclude={"hidden_size"}),
            }
            for layer, config in zip(self.layers, self.configs, strict=True)
        ]
        return fields

    def resolved_json(self, indent: int | None = None) -> str:
        """`resolved` as JSON: what other tools read; `from_json` takes it back, same id."""
        return json.dumps(self.resolved(), indent=indent)


def _sentence(error: ValidationError) -> str:
    """Like the operators' `sentence`, with a layer named by its place in the list."""
    first = error.errors()[0]
    place, message = first["loc"], first["msg"].removeprefix("Value error, ")
    if not place:
        return message
    if place[:1] != ("layers",) or len(place) < 2:
        return sentence(error, "architecture")
    layer = f"layers[{place[1]}]"
    field = ".".join(str(part) for part in place[2:])
    if first["type"] == "extra_forbidden":
        return f"{layer} has no field {field!r}"
    if first["type"] == "missing":
        return f"{layer} needs a field {field!r}"
    return f"{layer}: {message}"
