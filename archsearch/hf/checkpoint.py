"""Loading and saving: transformers' own ways, made strict, with a checkpoint's own names.

transformers reports what does not fit and goes on; here that is an error.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any
from typing import ClassVar
from typing import Self

import torch
from torch import Tensor
from torch import nn
from transformers import PreTrainedModel

from archsearch.hf.config import ArchSearchConfig
from archsearch.hf.names import EMBEDDING
from archsearch.hf.names import HEAD
from archsearch.hf.names import rename
from archsearch.model import HybridLM
from archsearch.space import ArchSpec

# what finds a config's file, and the weights' too
HUB_OPTIONS = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "proxies",
    "revision",
    "subfolder",
    "token",
)
# what from_pretrained takes that a config would take for itself
MODEL_OPTIONS = ("dtype", "torch_dtype")
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# how many names an error lists
SHOWN = 5


class CheckpointModel(PreTrainedModel):  # type: ignore[misc]
    """A `HybridLM`, called `model`, that is read from and written to checkpoints."""

    config_class: ClassVar[type[ArchSearchConfig]] = ArchSearchConfig
    base_model_prefix = "model"
    _tied_weights_keys: ClassVar[dict[str, str]] = {HEAD: EMBEDDING}

    def __init__(self, config: ArchSearchConfig) -> None:
        config.check()
        super().__init__(config)
        spec = config.to_spec()
        self.model = HybridLM(spec)
        self.file_names = self.names_in_file(spec)
        if self.file_names:
            self.register_load_state_dict_pre_hook(_take_file_names)
        self.post_init()

    @classmethod
    def names_in_file(cls, spec: ArchSpec) -> dict[str, str]:
        """Our name -> a checkpoint's name of every tensor, where they are not the same."""
        return {}

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any
    ) -> Self | tuple[Self, dict[str, Any]]:
        """transformers' own. Raises ValueError that names tensors which are missing, unexpected,
        of another shape, or not finite."""
        config, kwargs = cls._load_config(pretrained_model_name_or_path, kwargs)
        names = cls.names_in_file(config.to_spec())
        patterns = {f"^{re.escape(theirs)}$": ours for ours, theirs in names.items()}
        wants_report = kwargs.pop("output_loading_info", False)
        kwargs["key_mapping"] = {**(kwargs.get("key_mapping") or {}), **patterns}
        # told below, together with everything else that does not fit
        kwargs["ignore_mismatched_sizes"] = True
        model, report = super().from_pretrained(
            pretrained_model_name_or_path,
            *args,
            config=config,
            output_loading_info=True,
            **kwargs,
        )
        check_loaded(model, report, names)
        if config.tie_word_embeddings:
            model._tie_what_was_loaded(names.get(HEAD, HEAD))
        return (model, report) if wants_report else model

    @classmethod
    def _load_config(
        cls, source: Any, options: dict[str, Any]
    ) -> tuple[ArchSearchConfig, dict[str, Any]]:
        """The config, and the options that are left for the weights."""
        config = options.pop("config", None)
        if isinstance(config, ArchSearchConfig):
            if chosen := options.pop("attn_implementation", None):
                config = copy.deepcopy(config)
                config.attn_implementation_new = chosen
            return config, options
        mine = {name: options.pop(name) for name in MODEL_OPTIONS if name in options}
        hub = {name: options.pop(name) for name in HUB_OPTIONS if name in options}
        config, rest = cls.config_class.from_pretrained(
            config or source, return_unused_kwargs=True, **hub, **options
        )
        return config, {**rest, **hub, **mine}

    def save_pretrained(
        self,
        save_directory: Any,
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """transformers' own, with the checkpoint's names."""
        if self.file_names and not getattr(self, "_hf_peft_config_loaded", False):
            tensors = dict(self.state_dict() if state_dict is None else state_dict)
            if self.config.tie_word_embeddings:
                tensors.pop(HEAD, None)
            state_dict, kwargs["save_original_format"] = rename(tensors, self.file_names), False
        super().save_pretrained(save_directory, is_main_process, state_dict, **kwargs)

    def init_weights(self) -> None:
        """Draw all weights; none where there is no memory yet, which from_pretrained fills."""
        if not self.model.embed.weight.is_meta:
            self.model.init_weights(torch.initial_seed() % 2**63)
        self.tie_weights()

    def _tie_what_was_loaded(self, name: str) -> None:
        """Tie a head that came along in the file; ValueError if it is not the embedding."""
        head, embedding = self.model.head.proj.weight, self.model.embed.weight
        if head is embedding or head.is_meta:
            return
        if not torch.equal(head, embedding):
            raise ValueError(
                f"tie_word_embeddings is true, but {name} differs from the embedding;"
                " set it to false"
            )
        self.model.tie()


def _take_file_names(
    model: CheckpointModel, state_dict: dict[str, Tensor], prefix: str, *args: Any
) -> None:
    """A hook: load_state_dict takes a checkpoint's names too, as Trainer passes them."""
    for ours, theirs in model.file_names.items():
        if prefix + theirs in state_dict:
            state_dict[prefix + ours] = state_dict.pop(prefix + theirs)


def check_loaded(model: nn.Module, report: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """Raise ValueError for tensors that were missing, unexpected or of another shape, and for
    weights that are not finite; `report` is transformers' loading info, `names` gives a tensor
    its name in the file."""
    problems = []
    if missing := [names.get(key, key) for key in report["missing_keys"]]:
        problems.append(f"missing {shorten(missing)}")
    if unexpected := report["unexpected_keys"]:
        problems.append(f"unexpected {shorten(unexpected)}")
    if wrong := report["mismatched_keys"]:
        shapes = [
            f"{names.get(key, key)} {tuple(found)} instead of {tuple(expected)}"
            for key, found, expected in wrong
        ]
        problems.append(f"of another shape {shorten(shapes)}")
    if problems:
        raise ValueError(f"the checkpoint does not fit its config: {'; '.join(problems)}")
    if bad := [names.get(key, key) for key, tensor in model.named_parameters() if broken(tensor)]:
        raise ValueError(f"the checkpoint holds weights that are not finite: {shorten(bad)}")


def broken(tensor: torch.Tensor) -> bool:
    """Whether a weight holds NaN or infinity; False where that cannot be seen."""
    if tensor.is_meta or tensor.dtype not in FLOATS:
        return False
    # a sum is not finite if a term is not, and makes no copy
    return not math.isfinite(tensor.detach().sum(dtype=torch.float64).item())


def shorten(items: Iterable[str]) -> str:
    """The first few of the sorted items and the number of the others."""
    listed = sorted(items)
    more = len(listed) - SHOWN
    return ", ".join(listed[:SHOWN]) + (f" and {more} more" if more > 0 else "")
