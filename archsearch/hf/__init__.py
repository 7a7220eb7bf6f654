"""The transformers skin. Importing it makes the Auto classes know these models:

import archsearch.hf
model = AutoModelForCausalLM.from_pretrained("nvidia/Nemotron-Flash-1B")
"""

from transformers import AutoConfig
from transformers import AutoModelForCausalLM

from archsearch.hf.cache import StateCache
from archsearch.hf.callbacks import WeightNormCallback
from archsearch.hf.config import ArchSearchConfig
from archsearch.hf.modeling import ArchSearchForCausalLM
from archsearch.hf.nemotron_flash import NemotronFlashForCausalLM
from archsearch.hf.nemotron_flash_config import NemotronFlashConfig

__all__ = [
    "ArchSearchConfig",
    "ArchSearchForCausalLM",
    "NemotronFlashConfig",
    "NemotronFlashForCausalLM",
    "StateCache",
    "WeightNormCallback",
]

for _config, _model in (
    (ArchSearchConfig, ArchSearchForCausalLM),
    (NemotronFlashConfig, NemotronFlashForCausalLM),
):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModelForCausalLM.register(_config, _model, exist_ok=True)
