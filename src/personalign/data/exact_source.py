"""Where a pool comes from: the shipped file, a named one, or the bound sampler by way of the cache."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

from personalign.contracts import Sampler, UserError
from personalign.data.exact_pool import FORMAT, SHIPPED, Pool, Prompt, read_pool, write_pool
from personalign.plans import Sampling
from personalign.runtime.files import content_hash
from personalign.types import Message, Request


@dataclass
class Source:
    """A pool of `sampling.n` answers to each of `prompts`, found or made when it is first read.

    `place` is a path, "shipped", or None: then the shipped pool serves the model and the sampling that it was
    made with, and others are sampled once and kept in `cache` under the hash of all that determines them.
    """

    place: str | None
    model: Mapping[str, object]
    sampling: Sampling
    prompts: Sequence[Prompt]
    cache: str
    sampler: Sampler | None = None

    def answers(self, prompt: Prompt) -> tuple[str, ...]:
        return self.pool.answers[prompt.text][: self.sampling.n]

    @cached_property
    def pool(self) -> Pool:
        """Raises UserError where it is damaged or too small, or there is none and no sampler is bound."""
        path = self._path()
        if self.place is None and not path.exists():
            self._sample(path)
        pool = read_pool(path)
        self._check(pool, path)
        return pool

    def _path(self) -> Path:
        if self.place is not None:
            return SHIPPED if self.place == "shipped" else Path(self.place).expanduser()
        if self._fits(read_pool(SHIPPED)):
            return SHIPPED
        texts = [prompt.text for prompt in self.prompts]
        key = content_hash([FORMAT, self.model, asdict(self.sampling), texts])[:16]
        return Path(self.cache).expanduser() / "pools" / f"{key}.jsonl.gz"

    def _fits(self, shipped: Pool) -> bool:
        """Whether the shipped pool is of this model and drawn like this: more answers, another seed will do."""
        drawn, model = shipped.header["sampling"], shipped.header["model"]
        keys = ("temperature", "top_k", "top_p", "max_new_tokens")
        alike = all(drawn[key] == getattr(self.sampling, key) for key in keys)
        same = model["name"] == self.model.get("name") and self.model.get("revision") is None
        return alike and same and self.sampling.n <= drawn["n"]

    def _sample(self, path: Path) -> None:
        if self.sampler is None:
            raise UserError("this model has no pool of answers yet: run an experiment, or data.pool=shipped")
        answers = sample(self.sampler, self.prompts, self.sampling)
        write_pool(path, header(self.model, self.sampling), answers)

    def _check(self, pool: Pool, path: Path) -> None:
        for prompt in self.prompts:
            if (found := len(pool.answers.get(prompt.text, ()))) < self.sampling.n:
                raise UserError(
                    f"{path}: {found} answers to {prompt.text!r} where data.samples_per_prompt is "
                    f"{self.sampling.n}; lower it, or set data.pool=null to have them sampled"
                )


def sample(sampler: Sampler, prompts: Sequence[Prompt], sampling: Sampling) -> dict[str, list[str]]:
    """The sampler's answers by the prompt's text, without the space around them."""
    requests = [
        Request(id=prompt.id, user="pool", messages=(Message("user", prompt.text),), split=prompt.split)
        for prompt in prompts
    ]
    texts = sampler(requests, sampling)
    return {p.text: [text.strip() for text in some] for p, some in zip(prompts, texts, strict=True)}


def header(model: Mapping[str, object], sampling: Sampling) -> dict[str, object]:
    """What a pool tells of its making: model, sampling and versions."""
    versions = {"python": sys.version.split()[0]}
    versions |= {name: version(name) for name in ("torch", "transformers")}
    return {"model": dict(model), "sampling": asdict(sampling), "versions": versions}
