"""The DPO loss and its gradient against TRL's trainer, on one batch of equal token ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from personalign.alignment.preference import Preference
from personalign.policy import lora
from personalign.policy.logprobs import Branches, answer_logprobs
from personalign.policy.lora import LoRAConfig
from personalign.policy.policy import Policy
from personalign.policy.tiny import byte_tokenizer, random_llama

pytest.importorskip("trl")
TARGETS = ("q_proj", "v_proj", "down_proj")
ROWS = [
    Branches((5, 6, 7, 8), ((30, 31, 2), (40, 41, 42, 43, 2))),
    Branches((9, 10), ((50, 2), (51, 52, 53))),
    Branches((11, 12, 13, 14, 15, 16), ((60, 61, 62, 63, 64, 65), (70,))),
]


def their_trainer(folder: Path) -> Any:
    from datasets import Dataset
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    settings = DPOConfig(output_dir=str(folder), beta=0.1, use_cpu=True, bf16=False, report_to=[], disable_tqdm=True)
    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=list(TARGETS))
    one = {"prompt": "a", "chosen": "b", "rejected": "c"}
    return DPOTrainer(
        model=random_llama(32, 2, 4, 2, 512, 0),
        args=settings,
        train_dataset=Dataset.from_list([one]),
        processing_class=byte_tokenizer(),
        peft_config=config,
    )


def their_loss(trainer: Any) -> torch.Tensor:
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    examples = [
        {"prompt_ids": list(r.prompt), "chosen_ids": list(r.answers[0]), "rejected_ids": list(r.answers[1])}
        for r in ROWS
    ]
    trainer.model.eval()
    loss: torch.Tensor = trainer.compute_loss(trainer.model, DataCollatorForPreference(pad_token_id=2)(examples))
    return loss


def test_loss_and_gradient_equal_trls(tiny: Policy, tmp_path: Path) -> None:
    tiny.add_adapter("a", LoRAConfig(4, 8.0, 0.0, TARGETS))
    torch.manual_seed(0)
    trainer = their_trainer(tmp_path)
    theirs = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    ours = {}
    with torch.no_grad():
        for path, layer in lora.layers(tiny.model):
            for side in "AB":
                name = f"base_model.model.{path}.lora_{side}.default.weight"
                parameter = getattr(layer.delta("a"), side)
                theirs[name].copy_(parameter.normal_(0, 0.1))
                ours[name] = parameter
    assert ours.keys() == theirs.keys()
    expected = their_loss(trainer)
    expected.backward()

    reference = torch.stack([torch.stack([a.sum() for a in answer_logprobs(tiny, [row])]) for row in ROWS])
    objective = Preference(tiny, {"a": ROWS}, {"a": reference}, {"a": (("a", 1.0),)}, 0.1)
    loss, figures = objective({"a": [0, 1, 2]})
    loss.backward()
    assert abs(float(loss) - float(expected)) < 1e-5
    assert abs(float(loss) - 0.6931) > 0.01  # the adapter does something
    assert set(figures) == {"accuracy", "margin"}
    for name, parameter in ours.items():
        assert parameter.grad is not None and theirs[name].grad is not None
        torch.testing.assert_close(parameter.grad, theirs[name].grad, atol=1e-4, rtol=1e-4)


def test_imitation_adds_what_transformers_says_of_the_chosen_answers(tiny: Policy) -> None:
    tiny.add_adapter("a", LoRAConfig(4, 8.0, 0.0, TARGETS))
    for parameter in lora.parameters(tiny.model, "a"):
        torch.nn.init.normal_(parameter, std=0.1)
    reference = torch.zeros(len(ROWS), 2)
    losses = [
        float(Preference(tiny, {"a": ROWS}, {"a": reference}, {"a": (("a", 1.0),)}, 0.1, imitation=w)({"a": [0, 2]})[0])
        for w in (0.0, 0.5)
    ]
    expected = []
    for row in (ROWS[0], ROWS[2]):
        ids = torch.tensor([row.prompt + row.answers[0]])
        labels = torch.tensor([(-100,) * len(row.prompt) + row.answers[0]])
        with tiny.using((("a", 1.0),)), torch.no_grad():
            expected.append(float(tiny.model(ids, labels=labels).loss))
    assert losses[1] - losses[0] == pytest.approx(0.5 * sum(expected) / 2, abs=1e-5)
