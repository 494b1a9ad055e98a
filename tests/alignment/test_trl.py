"""The losses of DPO and RLOO and their gradients against TRL's trainers, on batches of equal token ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from personalign.alignment.penalty import Penalty
from personalign.alignment.preference import Preference
from personalign.alignment.rollouts import LeaveOneOut, Prompt
from personalign.contracts import Guide
from personalign.plans import Sampling
from personalign.policy import lora
from personalign.policy.logprobs import Branches, answer_logprobs
from personalign.policy.lora import LoRAConfig
from personalign.policy.policy import Policy
from personalign.policy.tiny import byte_tokenizer, random_llama
from personalign.types import Message, Request, Score

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


def their_rloo(folder: Path, **changes: Any) -> Any:
    from datasets import Dataset
    from peft import LoraConfig
    from trl import RLOOConfig, RLOOTrainer

    settings = RLOOConfig(
        output_dir=str(folder),
        beta=0.3,
        num_generations=4,
        per_device_train_batch_size=8,
        use_cpu=True,
        bf16=False,
        report_to=[],
        disable_tqdm=True,
        **changes,
    )
    return RLOOTrainer(
        model=random_llama(32, 2, 4, 2, 512, 0),
        reward_funcs=lambda completions, **others: [float(len(text)) for text in completions],
        args=settings,
        train_dataset=Dataset.from_list([{"prompt": "a"}]),
        processing_class=byte_tokenizer(),
        peft_config=LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=list(TARGETS)),
    )


@pytest.mark.parametrize("normalize", [False, True])
def test_advantages_loss_and_gradient_of_rloo_equal_trls(normalize: bool, tiny: Policy, tmp_path: Path) -> None:
    """On our answers: what TRL makes of them, from the rewards to the gradient."""
    tiny.add_adapter("a", LoRAConfig(4, 8.0, 0.0, TARGETS))
    torch.manual_seed(0)
    trainer = their_rloo(tmp_path, normalize_advantages=normalize)
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
    requests = [Request(id=text, user="u", messages=(Message("user", text),)) for text in ("Hi", "Why?")]
    prompts = [Prompt(request, tuple(tiny.encode(request.messages))) for request in requests]
    guide = Guide(lambda asked: [[Score(float(len(t))) for t in texts] for _, texts in asked], lambda asked: None)
    sampling = Sampling(temperature=1.0, max_new_tokens=12, n=4, seed=1)
    tiny.stop_ids = tuple(range(2, 60, 5))
    course = LeaveOneOut(
        tiny,
        prompts,
        guide,
        (),
        (("a", 1.0),),
        sampling=sampling,
        side_by_side=8,
        penalty=Penalty(0.3, None, 1),
        normalize=normalize,
    )
    course.begin(0, {"a": [0, 1]})
    answers = [list(answer) for row in course.made.rows for answer in row.answers]
    asked = [list(row.prompt) for row in course.made.rows for _ in row.answers]
    told = [tiny.decode(answer) for answer in answers]
    trainer._generate = lambda prompts: (asked, answers, told)
    batch = trainer._generate_and_score_completions([{"prompt": "a"}] * 8)
    torch.testing.assert_close(course.made.advantages.flatten().float(), batch["advantages"], atol=1e-4, rtol=1e-4)
    expected = trainer._compute_loss(trainer.model, batch)
    expected.backward()
    loss, figures = course({"a": [0, 1]})
    loss.backward()
    assert float(loss) == pytest.approx(float(expected), abs=1e-5)
    assert float(figures["spread"]) > 0.1
    for name, parameter in ours.items():
        assert parameter.grad is not None and theirs[name].grad is not None
        torch.testing.assert_close(parameter.grad, theirs[name].grad, atol=1e-4, rtol=1e-4)
