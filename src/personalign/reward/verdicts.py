"""An endpoint that is asked for verdicts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from personalign.contracts import UserError
from personalign.runtime.endpoint import Endpoint, start
from personalign.runtime.progress import track

Reads = Callable[[str], float | None]


@dataclass(frozen=True)
class Verdicts:
    """What `endpoint` thinks: `reads` makes a number of a reply, or None where it holds no verdict.

    A reply that cannot be read, or that was cut, is asked for once more with the reminder below the prompt.
    """

    endpoint: Endpoint
    max_tokens: int
    temperature: float | None
    reminder: str
    reads: Reads

    def ask(self, prompts: Sequence[str]) -> list[float]:
        """The verdict on each prompt; one that recurs, or is kept from another time, is not asked for again.

        Raises UserError for an endpoint that does not answer and for a second reply without a verdict; all replies
        before it have been kept.
        """
        unique = list(dict.fromkeys(prompts))
        known = {prompt: self._kept(prompt) for prompt in unique}
        found = {prompt: value for prompt, value in known.items() if value is not None}
        missing = [prompt for prompt in unique if prompt not in found]
        if missing:
            with track("judging", len(missing), "questions") as bar:
                for prompt, value in self.endpoint.each(missing, self._verdict):
                    found[prompt] = value
                    bar.advance()
        return [found[prompt] for prompt in prompts]

    def _content(self, prompt: str) -> list[object]:
        return [prompt, self.temperature, self.max_tokens]

    def _kept(self, prompt: str) -> float | None:
        reply = (self.endpoint.kept(self._content(prompt)) or {}).get("reply")
        return None if reply is None else self.reads(str(reply))

    def _verdict(self, prompt: str, stop: threading.Event) -> float:
        for asked in (prompt, f"{prompt}\n\n{self.reminder}"):
            messages = [{"role": "user", "content": asked}]
            reply = self.endpoint.say(messages, self.max_tokens, stop, temperature=self.temperature)
            value = None if reply.cut else self.reads(reply.text)
            if value is not None:
                self.endpoint.keep(self._content(prompt), {"reply": reply.text})
                return value
        how = f"was cut at max_tokens={self.max_tokens} (raise it) and" if reply.cut else "holds none, and"
        raise UserError(
            f"judge: model {self.endpoint.model} was asked twice for a verdict; its reply {how} begins "
            f"{start(reply.text)}: choose a model that follows the prompt, or change the prompt"
        )
