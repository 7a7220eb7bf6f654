"""Everything that decides a run, as one frozen value that is saved beside its results."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from typing import Any
from typing import Literal

from pydantic import BaseModel
from pydantic import ConfigDict
from pydantic import Field
from pydantic import ValidationError
from pydantic import field_validator
from pydantic import model_validator

from archsearch.operators import Shape
from archsearch.operators.base import sentence
from archsearch.space import SearchSpace
from archsearch.space import get_space
from archsearch.train.recipe import Recipe

SamplerName = Literal["evolution", "nsga2", "tpe", "random"]
Objective = Literal["loss", "latency_us", "parameters", "state_bytes"]

# provenance, not part of what a run is
_NOT_COMPARED = ("versions",)


class RunConfig(BaseModel):
    """What is searched, how, against what, and with which data and table.

    target_latency_ms: bound on the predicted time of one decode step, in which each of
    `batch` rows with `context` tokens behind it gets one token. seeds: architectures
    (notation) proposed first. baselines: units that are repeated into models of the winner's
    latency. Seeds of training are the run's seed for every candidate: the same data order.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    space: str
    space_version: int
    widths: tuple[int, ...] = Field(min_length=1)
    codes: tuple[str, ...] = Field(min_length=1)
    width: Literal["largest", "choice"] = "largest"
    max_layers: int = Field(default=30, ge=1)
    fields: dict[str, Any] = Field(default_factory=dict)
    sampler: SamplerName = "evolution"
    population: int = Field(default=12, ge=2)
    tournament: int = Field(default=4, ge=1)
    seeds: tuple[str, ...] = ()
    objectives: tuple[Objective, ...] = ("loss", "latency_us")
    target_latency_ms: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    max_parameters: int | None = Field(default=None, gt=0)
    max_state_bytes: int | None = Field(default=None, gt=0)
    batch: int = Field(default=1, ge=1)
    context: int = Field(default=1024, ge=1)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    seed: int = Field(default=0, ge=0, lt=2**63)
    table: str
    table_id: str
    data: str
    data_fingerprint: str
    tokenizer: str = "bytes"
    recipe: Recipe
    baselines: tuple[str, ...] = ("a f", "m2 f", "m2")
    versions: dict[str, str] = Field(default_factory=dict)

    @field_validator("objectives")
    @classmethod
    def _loss_first(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or value[0] != "loss" or len(set(value)) != len(value):
            raise ValueError("objectives must start with loss and name each one once")
        return value

    @model_validator(mode="after")
    def _tournament_fits(self) -> RunConfig:
        if self.tournament > self.population:
            raise ValueError(
                f"tournament must be at most the population {self.population}; "
                f"got {self.tournament}"
            )
        return self

    @classmethod
    def create(cls, **fields: Any) -> RunConfig:
        """Make a config from a user's values; raises ValueError with one clear sentence."""
        try:
            return cls(**fields)
        except ValidationError as error:
            raise ValueError(sentence(error, "run config")) from None

    @property
    def shape(self) -> Shape:
        """The decode step that candidates are timed for."""
        return Shape("decode", self.batch, self.context, self.dtype)

    @property
    def limits(self) -> dict[str, float]:
        """Upper bounds by the name of the cost that they bound."""
        target = self.target_latency_ms
        bounds = {
            "latency_us": None if target is None else target * 1000.0,
            "parameters": self.max_parameters,
            "state_bytes": self.max_state_bytes,
        }
        return {name: float(bound) for name, bound in bounds.items() if bound is not None}

    def make_space(self) -> SearchSpace:
        """Build the search space; raises ValueError where it is not the version of this run."""
        space = get_space(
            self.space,
            widths=self.widths,
            codes=self.codes,
            max_layers=self.max_layers,
            width=self.width,
            fields=self.fields,
        )
        if space.version != self.space_version:
            raise ValueError(
                f"run {self.name!r} was made by version {self.space_version} of the space "
                f"{self.space!r}; this archsearch has version {space.version}"
            )
        return space


def difference(saved: RunConfig, given: RunConfig) -> str | None:
    """Say in one clause what differs between two configs, or None where a run may go on."""
    old, new = saved.model_dump(mode="json"), given.model_dump(mode="json")
    for name, value in old.items():
        if name in _NOT_COMPARED or value == new[name]:
            continue
        if name == "recipe":
            part = next(key for key in value if value[key] != new[name][key])
            return f"recipe.{part} was {value[part]!r} and is now {new[name][part]!r}"
        return f"{name} was {value!r} and is now {new[name]!r}"
    return None


def to_toml(config: RunConfig) -> str:
    """Write the config as TOML: a bound that is not set is left out."""
    return "\n".join(_table_lines(config.model_dump(mode="json", exclude_none=False), ())) + "\n"


def from_toml(text: str) -> RunConfig:
    """Read what `to_toml` wrote; raises ValueError with one clear sentence."""
    try:
        fields = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"not valid TOML: {error}") from None
    nested = {key: _restore_none(value) for key, value in fields.items() if _is_table(value)}
    return RunConfig.create(**{**fields, **nested})


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping)


def _restore_none(table: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _restore_none(value) if _is_table(value) else None if value == "none" else value
        for key, value in table.items()
    }


def _table_lines(table: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    lines = [f"[{'.'.join(path)}]"] if path else []
    for key, value in table.items():
        # TOML has no null; a recipe's None differs from its default, so it is spelled out
        if not _is_table(value) and (value is not None or path):
            lines.append(f"{key} = {_scalar(value)}")
    for key, value in table.items():
        if _is_table(value):
            lines += ["", *_table_lines(value, (*path, key))]
    return lines


def _scalar(value: Any) -> str:
    if value is None:
        return '"none"'
    if isinstance(value, list):
        return f"[{', '.join(map(_scalar, value))}]"
    # JSON's strings, numbers and booleans are TOML's
    return json.dumps(value, ensure_ascii=False)
