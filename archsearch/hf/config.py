"""`ArchSearchConfig`: any `ArchSpec` as a transformers config."""

from __future__ import annotations

from typing import Any
from typing import ClassVar
from typing import Self

from transformers import PreTrainedConfig

from archsearch.names import suggestion
from archsearch.space import ArchSpec

# what attn_implementation_new may say -> the backend it forces; None: the best that serves
ATTENTION = {
    "flash_attention_2": None,
    "fused_mha": None,
    "sdpa": "sdpa",
    "eager": "reference",
}


class ArchSearchConfig(PreTrainedConfig):  # type: ignore[misc]
    """An architecture, and what transformers wants to know beside it.

    `arch` is the architecture as plain JSON values; `vocab_size` and `tie_word_embeddings`,
    where given, replace its own. `attn_implementation_new` is a preference of implementation.
    """

    model_type = "archsearch"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    def __init__(
        self,
        *,
        arch: dict[str, Any] | None = None,
        vocab_size: int | None = None,
        tie_word_embeddings: bool | None = None,
        attn_implementation: str | None = None,
        attn_implementation_new: str = "flash_attention_2",
        pad_token_id: int | None = None,
        bos_token_id: int | None = None,
        eos_token_id: int | list[int] | None = None,
        use_cache: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.pad_token_id, self.bos_token_id = pad_token_id, bos_token_id
        self.eos_token_id, self.use_cache = eos_token_id, use_cache
        self.attn_implementation_new = attn_implementation or attn_implementation_new
        self.arch = arch
        if arch is not None:
            spec = ArchSpec.create(**arch)
            self.arch = spec.resolved()
            self.vocab_size = spec.vocab_size if vocab_size is None else vocab_size
            tied = spec.tie_embeddings if tie_word_embeddings is None else tie_word_embeddings
            self.tie_word_embeddings = tied
            self.hidden_size, self.num_hidden_layers = spec.hidden_size, spec.num_layers
            self.max_position_embeddings = spec.max_position
            self.check()

    # transformers makes a dataclass of every config, whose own comparison would see no field
    __eq__ = PreTrainedConfig.__eq__

    @classmethod
    def from_spec(cls, spec: ArchSpec, **kwargs: Any) -> Self:
        """The config of an architecture; `kwargs` are the constructor's."""
        return cls(arch=spec.resolved(), **kwargs)

    def to_spec(self) -> ArchSpec:
        """The architecture; raises ValueError where the config has none."""
        if self.arch is None:
            raise ValueError("the config has no architecture; make it by from_spec")
        changed = {"vocab_size": self.vocab_size, "tie_embeddings": self.tie_word_embeddings}
        return ArchSpec.create(**{**self.arch, **changed})

    def attention_backend(self) -> str | None:
        """The backend that attention is forced to; None where the best that serves is taken."""
        chosen = self.attn_implementation_new
        if chosen not in ATTENTION:
            hint = suggestion(str(chosen), ATTENTION)
            raise ValueError(
                f"attn_implementation_new must be one of {list(ATTENTION)}; {hint}got {chosen!r}"
            )
        return ATTENTION[chosen]

    def check(self) -> None:
        """Raise ValueError for what cannot be built."""
        self.attention_backend()
        self.to_spec()

    def validate(self) -> None:
        """What transformers calls before it saves: its own check rejects the layers' names."""
        self.check()
