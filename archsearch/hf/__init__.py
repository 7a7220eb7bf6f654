"""The transformers skin. Importing it makes the Auto classes know these models:

import archsearch.hf
model = AutoModelForCausalLM.from_pretrained("nvidia/Nemotron-Flash-1B")
"""

from transformers import AutoConfig
from transformers import AutoModelForCausalLM
from transformers import configuration_utils

from archsearch.hf.cache import StateCache
from archsearch.hf.callbacks import WeightNormCallback
from archsearch.hf.config import ArchSearchConfig
from archsearch.hf.modeling import ArchSearchForCausalLM
from archsearch.hf.nemotron_flash import NemotronFlashForCausalLM
from archsearch.hf.nemotron_flash_config import NemotronFlashConfig
from archsearch.hf.released_keys import OPERATORS

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

# Trainer reads the config.json of a checkpoint by the base class, which checks layers' names
if _allowed := getattr(configuration_utils, "ALLOWED_ATTN_LAYER_TYPES", None):
    configuration_utils.ALLOWED_ATTN_LAYER_TYPES = (*_allowed, *OPERATORS)
