"""`NemotronFlashForCausalLM`: the skin with the released names."""

from __future__ import annotations

from typing import ClassVar

from archsearch.hf.config import ArchSearchConfig
from archsearch.hf.modeling import ArchSearchForCausalLM
from archsearch.hf.names import released_names
from archsearch.hf.nemotron_flash_config import NemotronFlashConfig
from archsearch.space import ArchSpec


class NemotronFlashForCausalLM(ArchSearchForCausalLM):
    """NVIDIA's Nemotron-Flash: reads and writes the released config.json and tensor names."""

    config_class: ClassVar[type[ArchSearchConfig]] = NemotronFlashConfig

    @classmethod
    def names_in_file(cls, spec: ArchSpec) -> dict[str, str]:
        """See `ArchSearchForCausalLM.names_in_file`: the released names."""
        return released_names(spec)
