"""`NemotronFlashForCausalLM`: the skin with the released names."""

from __future__ import annotations

from typing import Any
from typing import ClassVar
from typing import Self

from archsearch.hf.config import ArchSearchConfig
from archsearch.hf.modeling import ArchSearchForCausalLM
from archsearch.hf.names import released_names
from archsearch.hf.nemotron_flash_config import NemotronFlashConfig
from archsearch.space import ArchSpec


class NemotronFlashForCausalLM(ArchSearchForCausalLM):
    """NVIDIA's Nemotron-Flash: reads and writes the released config.json and tensor names."""

    config_class: ClassVar[type[ArchSearchConfig]] = NemotronFlashConfig

    def __init__(self, config: ArchSearchConfig) -> None:
        super().__init__(config)
        self.generation_config.use_cache = True

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Self | tuple[Self, dict[str, Any]]:
        """See `ArchSearchForCausalLM.from_pretrained`."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        # the released files say False, since the released generate() cannot use a cache
        model.generation_config.use_cache = True
        return loaded

    @classmethod
    def names_in_file(cls, spec: ArchSpec) -> dict[str, str]:
        """See `ArchSearchForCausalLM.names_in_file`: the released names."""
        return released_names(spec)
