"""Fine-tuning: gradient checkpointing, transformers.Trainer, LoRA, weight normalisation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import DataCollatorWithFlattening

from archsearch.hf import NemotronFlashForCausalLM
from archsearch.hf import WeightNormCallback

# transformers renames gradient checkpointing to activation checkpointing
pytestmark = pytest.mark.filterwarnings("ignore:.*will be removed in v6:FutureWarning")
IDS = torch.arange(3, 40)[None]


def gradients(model: NemotronFlashForCausalLM) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(IDS, labels=IDS).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(
    model: NemotronFlashForCausalLM, reentrant: bool
) -> None:
    model.config.attn_implementation_new = "eager"
    model.train()
    plain = gradients(model)
    assert plain.keys() == dict(model.named_parameters()).keys()
    calls = []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda *_: calls.append(1))
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    checkpointed = gradients(model)
    assert len(calls) == 2 * len(model.model.layers)
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient)
    model.gradient_checkpointing_disable()
    calls.clear()
    gradients(model)
    assert len(calls) == len(model.model.layers)


def features() -> list[dict[str, list[int]]]:
    generator = torch.Generator().manual_seed(0)
    lengths = (12, 5, 9, 16, 7, 11, 8, 6)
    return [
        {"input_ids": torch.randint(3, 97, (n,), generator=generator).tolist()} for n in lengths
    ]


def trainer(model: Any, folder: Path, **options: Any) -> Any:
    pytest.importorskip("accelerate")
    from transformers import Trainer
    from transformers import TrainingArguments

    callbacks = options.pop("callbacks", None)
    arguments = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        per_device_train_batch_size=4,
        learning_rate=3e-3,
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        seed=0,
        **{"max_steps": 6, "save_strategy": "no", **options},
    )
    return Trainer(
        model=model,
        args=arguments,
        train_dataset=features(),
        eval_dataset=features(),
        data_collator=DataCollatorWithFlattening(),
        callbacks=callbacks,
    )


def losses(run: Any) -> list[float]:
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


def test_trainer_trains_and_saves(model: NemotronFlashForCausalLM, tmp_path: Path) -> None:
    run = trainer(model, tmp_path / "run", gradient_checkpointing=True)
    run.train()
    assert losses(run)[-1] < 0.8 * losses(run)[0]
    assert run.evaluate()["eval_loss"] < losses(run)[0]
    run.save_model(str(tmp_path / "tuned"))
    tuned = NemotronFlashForCausalLM.from_pretrained(tmp_path / "tuned")
    with torch.inference_mode():
        assert torch.equal(tuned(IDS).logits, model.eval()(IDS).logits)


def test_trainer_resumes(write_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    def fresh() -> Any:
        return NemotronFlashForCausalLM.from_pretrained(write_checkpoint())

    options = {"save_strategy": "steps", "save_steps": 3, "lr_scheduler_type": "constant"}
    whole = fresh()
    trainer(whole, tmp_path / "run", **options).train()
    saved = load_file(tmp_path / "run" / "checkpoint-3" / "model.safetensors")
    assert "model.layers.0.gla.q_conv1d.weight" in saved
    resumed = fresh()
    run = trainer(resumed, tmp_path / "other", **options)
    run.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value)


def test_trainer_normalizes_weights(model: NemotronFlashForCausalLM, tmp_path: Path) -> None:
    run = trainer(model, tmp_path, max_steps=2, callbacks=[WeightNormCallback()])
    run.train()
    gla, ffn = model.model.decoder[0].mixer, model.model.decoder[1].mixer
    reads, writes = gla.get_parameter("q_proj.weight"), ffn.get_parameter("down_proj.weight")
    torch.testing.assert_close(reads.norm(dim=1), torch.ones(128))
    torch.testing.assert_close(writes.norm(dim=0), torch.ones(384))


def test_lora(model: NemotronFlashForCausalLM, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adapted = peft.get_peft_model(model, config)
    with torch.inference_mode():
        start = adapted(IDS).logits
    trainer(adapted, tmp_path / "run", gradient_checkpointing=True).train()
    adapted.eval()
    with torch.inference_mode():
        assert (adapted(IDS).logits - start).abs().max() > 0.05
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    cached, plain = (
        adapted.generate(input_ids=IDS, use_cache=flag, **options) for flag in (True, False)
    )
    assert torch.equal(cached, plain)
    adapted.save_pretrained(tmp_path / "adapter")
    merged = adapted.merge_and_unload()
    with torch.inference_mode():
        expected = merged(IDS).logits
    model.load_state_dict(before)
    again = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    with torch.inference_mode():
        torch.testing.assert_close(again(IDS).logits, expected, atol=1e-4, rtol=1e-4)
