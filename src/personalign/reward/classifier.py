"""A sequence classifier of transformers as reward model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from personalign.contracts import NaturalInt, PositiveInt, Reward, UserError
from personalign.types import Request, Score, UserState


class Classifier(Reward):
    """One output of a sequence classifier, raw or as a probability, on request and answer.

    PAD's table 2 is measured so (arXiv 2410.04070, section 4: helpful, harmless and humor models). The user
    plays no part: such a reward is one dimension of a preference. Only safetensors are read.
    """

    needs = ()
    provides = ()
    paper = "arXiv 2410.04070, section 4"
    node = "personalized rewarding / parameter"

    def __init__(
        self,
        *,
        name: str,
        revision: str | None,
        output: NaturalInt,
        scale: Literal["logit", "probability"],
        template: str,
        dimension: str,
        max_tokens: PositiveInt,
        batch_size: PositiveInt,
    ) -> None:
        self.name, self.revision, self.output, self.scale = name, revision, output, scale
        self.template, self.dimension = template, dimension
        self.max_tokens, self.batch_size = max_tokens, batch_size
        self._loaded: tuple[Any, Any] | None = None

    def score(self, request: Request, state: UserState, responses: Sequence[str]) -> list[Score]:
        return self.score_all([(request, state, responses)])[0]

    def score_all(self, asked: Sequence[tuple[Request, UserState, Sequence[str]]]) -> list[list[Score]]:
        """All answers in batches of similar length; the order of the batch changes no score."""
        texts = [self._text(request, text) for request, _, answers in asked for text in answers]
        values = iter(self._values(texts))
        return [[self._score(next(values)) for _ in answers] for _, _, answers in asked]

    def _score(self, value: float) -> Score:
        return Score(value, {self.dimension: value})

    def _text(self, request: Request, answer: str) -> str:
        asked = "\n".join(m.content for m in request.messages if m.role == "user")
        before, _, rest = self.template.partition("{request}")
        middle, _, after = rest.partition("{answer}")
        return before + asked + middle + answer + after

    def _values(self, texts: list[str]) -> list[float]:
        import torch

        tokenizer, model = self._load()
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        values = [0.0] * len(texts)
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            inputs = tokenizer(
                [texts[i] for i in batch],
                padding=True,
                truncation=True,
                max_length=self.max_tokens,
                return_tensors="pt",
            )
            with torch.inference_mode():
                logits = model(**inputs.to(model.device)).logits.float()
            found = logits.softmax(-1) if self.scale == "probability" else logits
            for i, row in zip(batch, found.tolist(), strict=True):
                values[i] = row[self.output]
        return values

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            from safetensors import SafetensorError
            from transformers import AutoModelForSequenceClassification, AutoTokenizer

            options: dict[str, Any] = {"trust_remote_code": False, "revision": self.revision}
            try:
                tokenizer = AutoTokenizer.from_pretrained(self.name, **options)
                model = AutoModelForSequenceClassification.from_pretrained(self.name, use_safetensors=True, **options)
            except (OSError, ValueError, SafetensorError) as error:
                reason = str(error).strip().splitlines()[0]
                raise UserError(f"reward model {self.name!r} could not be loaded: {reason}") from error
            if self.output >= model.config.num_labels:
                raise UserError(f"reward model {self.name!r} has {model.config.num_labels} outputs: no {self.output}")
            self._loaded = (tokenizer, model.eval())
        return self._loaded
