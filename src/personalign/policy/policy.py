"""The live noun: a base model with its adapters and heads, which alignment writes and generation reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from personalign.contracts import UserError
from personalign.plans import Deltas, PolicySpec, Soft, Stream
from personalign.policy import architecture, attention, chat, joint, lora, steering
from personalign.policy.covering import Covering, covering
from personalign.policy.soft import SoftHead, SoftTokens
from personalign.types import Messages


class Guest(NamedTuple):
    """A further model, and how its tokens spell those of the policy that it is a guest of."""

    policy: Policy
    covering: Covering


class Policy:
    """A causal language model of transformers, its tokenizer, LoRA adapters, steering vectors and heads by name.

    The base is frozen; what learns are adapters, vectors and heads. `label` names the base in records and caches.
    `cache` is a folder for what frozen weights think of texts, which any run may use again. `guests` are further
    models by name, each with its own tokenizer.
    """

    def __init__(self, model: Any, tokenizer: Any, label: str, cache: Path | None = None) -> None:
        attention.install(model)
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.label = label
        self.cache = cache
        self._scale = architecture.scale(model.config.get_text_config())
        self.routing = lora.Routing()
        self.packed_head = joint.install(self.model, self.routing)
        self.configs: dict[str, lora.LoRAConfig] = {}
        self.vectors: dict[str, steering.SteeringVector] = {}
        self.heads = nn.ModuleDict()
        self._soft = SoftTokens()
        self.user_deltas: dict[str, Deltas] = {}
        self.merged: dict[Deltas, str] = {}
        self.spec = PolicySpec()
        self.guests: dict[str, Guest] = {}
        self.stop_ids = chat.stop_ids(tokenizer, model.generation_config)
        self.pad_id: int = next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None)

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.weight.dtype

    @property
    def embedding(self) -> nn.Embedding:
        module: nn.Embedding = self.model.get_input_embeddings()
        return module

    @property
    def context(self) -> int:
        """Longest prompt plus answer, in tokens; where layers see a window of them, no more than that."""
        return architecture.context(self.model.config.get_text_config())

    @property
    def learner(self) -> Policy:
        """Whom training changes, and whose heads are read: the further model where there is one."""
        return next((guest.policy for guest in self.guests.values()), self)

    def speaker(self, model: str | None) -> Policy:
        """The model of this name; None is this one."""
        return self if model is None else self.guests[model].policy

    def add_guest(self, name: str, policy: Policy) -> None:
        """A further model. Raises UserError where its tokenizer differs in kind, so that nothing could be compared."""
        self.guests[name] = Guest(policy, covering(self, policy))

    def encode(self, messages: Messages, answer_next: bool = True) -> list[int]:
        """Prompt ids through the chat template (see `chat.encode_chat`)."""
        return chat.encode_chat(self.tokenizer, messages, answer_next)

    def soft_ids(self, soft: Soft) -> tuple[int, ...]:
        """What stands for a segment of soft tokens among prompt ids: numbers below zero, equal for equal segments.

        Raises UserError where the policy has no such head.
        """
        head = next((head for name, head in self.heads.items() if name == soft.head), None)
        if not isinstance(head, SoftHead):
            raise UserError(f"the policy has no head {soft.head!r} that makes soft tokens: let a stage train it first")
        return self._soft.numbers(soft, head.tokens)

    def encode_answer(self, text: str) -> list[int]:
        """Ids of an answer with its end of text, as training and scoring see it."""
        return [*chat.encode_text(self.tokenizer, text), self.tokenizer.eos_token_id]

    def tokens(self, text: str) -> int:
        """How many tokens a text is by itself."""
        return len(chat.encode_text(self.tokenizer, text))

    def decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def inputs(self, ids: Tensor) -> dict[str, Tensor]:
        """What the model reads for ids [rows, time] on the CPU: the ids, or their embeddings where some are soft."""
        if not bool((ids < 0).any()):
            return {"input_ids": ids.to(self.device)}
        embeddings = self.embedding(ids.clamp(min=0).to(self.device))
        return {"inputs_embeds": self._soft.put(ids, embeddings, self.heads)}

    def hidden(self, **inputs: Any) -> Tensor:
        """Last hidden states [rows, time, width] under the present routing; see transformers' base models.

        Where the model scales its logits, its states are scaled instead.
        """
        states: Tensor = self.model.get_decoder()(**inputs).last_hidden_state
        return self.scaled(states)

    def scaled(self, states: Tensor) -> Tensor:
        """The model's last hidden states as the head is to read them."""
        return states if self._scale == 1.0 else states * self._scale

    def logits(self, hidden: Tensor, shares: Tensor | None = None) -> Tensor:
        """hidden [..., width] -> float32 logits [..., vocabulary]. Of states that are weighted sums, `shares` [...] are
        the sums of the weights: so often the head's bias counts."""
        head: Any = self.model.get_output_embeddings()
        packed = self.packed_head
        reader = packed if packed is not None and packed.usable(hidden) else head
        scores: Tensor = reader(hidden).float()
        if shares is not None and head.bias is not None:
            scores = scores + (shares - 1.0)[..., None] * head.bias.float()
        return scores

    def logits_at(self, hidden: Tensor, candidates: Tensor) -> Tensor:
        """hidden [rows, width], token ids [rows, k] -> float32 logits [rows, k] of those tokens alone."""
        head = self.model.get_output_embeddings()
        weight = F.embedding(candidates, head.weight)  # gathers rows in half the time that indexing takes
        scores = torch.bmm(weight.float(), hidden[:, :, None].float())[:, :, 0]
        return scores if head.bias is None else scores + head.bias[candidates].float()

    @contextmanager
    def using(self, deltas: Deltas) -> Iterator[None]:
        """Every row with these deltas; () is the base."""
        before = self.routing.slices
        self.routing.all_rows(deltas)
        try:
            yield
        finally:
            self.routing.slices = before

    def add_adapter(self, name: str, config: lora.LoRAConfig) -> list[nn.Parameter]:
        """A fresh adapter; returns its trainable parameters. Raises UserError when no layer has a target's name."""
        lora.adapt(self.model, name, config, self.routing)
        found = lora.parameters(self.model, name)
        if not found:
            raise UserError(
                f"no linear layer of {self.label} is named {', '.join(config.targets)}: set alignment's targets"
            )
        self.configs[name] = config
        self.spec = replace(self.spec, adapters=(*[a for a in self.spec.adapters if a != name], name))
        return found

    def deltas_of(self, stream: Stream) -> Deltas:
        """What a stream adds to the base. Adapters whose factors are to be merged become one, made once for each
        weight vector and kept until `reset`. Raises UserError as `lora.merge` does."""
        size = sum(abs(coefficient) for _, coefficient in stream.deltas)
        if stream.merge == "products" or not size:
            return stream.deltas
        shares = tuple((name, coefficient / size) for name, coefficient in stream.deltas)
        if shares not in self.merged:
            name = f"merged-{len(self.merged)}"
            self.configs[name] = lora.merge(self.model, name, shares, self.configs, self.routing)
            self.merged[shares] = name
        return ((self.merged[shares], size),)

    def drop_adapter(self, name: str) -> None:
        lora.drop(self.model, name)
        del self.configs[name]
        self.spec = replace(self.spec, adapters=tuple(a for a in self.spec.adapters if a != name))

    def add_vector(self, name: str, layer: int) -> steering.SteeringVector:
        """A fresh steering vector behind a layer, counted from 0. Raises UserError where there is no such layer."""
        width = self.embedding.embedding_dim
        self.vectors[name] = steering.add(self.model, name, layer, width, self.routing)
        return self.vectors[name]

    def drop_vector(self, name: str) -> None:
        steering.drop(self.model, name, self.vectors.pop(name).layer)

    def lowest_layer(self, name: str) -> int:
        """The first layer that an adapter or a steering vector changes anything in."""
        return self.vectors[name].layer if name in self.vectors else min(self.configs[name].layers or (0,))

    def reset(self) -> None:
        """Back to the base: no adapters, vectors, heads or names, in guests neither. Lets one loaded model serve many
        experiments."""
        for guest in self.guests.values():
            guest.policy.reset()
        for name in list(self.configs):
            self.drop_adapter(name)
        for name in list(self.vectors):
            self.drop_vector(name)
        self.heads = nn.ModuleDict()
        self._soft = SoftTokens()
        self.user_deltas = {}
        self.merged = {}
        self.routing.slices = []
        self.spec = PolicySpec()

    def for_user(self, user: str) -> PolicySpec:
        """The spec that serves a user: their own deltas on top where they have some, else the shared policy."""
        for name, guest in self.guests.items():
            return replace(guest.policy.for_user(user), model=name)
        own = self.user_deltas.get(user, ())
        return replace(self.spec, aligned=self.spec.aligned + own, own=own) if own else self.spec
