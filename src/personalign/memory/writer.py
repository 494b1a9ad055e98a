"""Profiles written by the policy itself: many at once by the one decoder, each kept on disk by what it was made of."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from personalign.plans import Chat, Plan, Sampling, Stream, Tokens
from personalign.runtime import traces
from personalign.runtime.files import content_hash, write_atomic
from personalign.runtime.progress import track
from personalign.types import Messages, Response

if TYPE_CHECKING:
    from personalign.policy.policy import Policy

FOLDER = "profiles"
# Up to the last sentence that is whole.
WHOLE = re.compile(r".*[.!?\u3002\uff01\uff1f]", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Draft:
    """A profile that is to be written: whose, its number among theirs, the ids of the events it is written from, oldest
    first, and the prompt that tells them."""

    user: str
    version: int
    events: tuple[str, ...]
    prompt: Messages


@dataclass(frozen=True, slots=True)
class Profile:
    """What the policy wrote; "" where it had nothing to say."""

    version: int
    events: tuple[str, ...]
    text: str


class Writer:
    """Greedy answers of the untouched base to the drafts' prompts: a profile is the same before training and after.

    Every profile begins with `opening`, which stands in the answer already. A profile is kept below its user, by the
    hash of the weights, the prompt's tokens, the limit, and the events; a damaged file counts as none.
    """

    def __init__(self, cache: str, opening: str, max_new_tokens: int, batch_size: int) -> None:
        self._cache, self._opening = cache, opening
        self._sampling = Sampling(max_new_tokens=max_new_tokens)
        self._batch_size = batch_size

    def write(self, drafts: Sequence[Draft], policy: Policy) -> list[Profile]:
        """The profiles in the order of the drafts. What lacks one of a decoder's group is written anew as a whole
        group, so that an interrupted call that is made again ends as an uninterrupted one."""
        from personalign.decoding.decoder import Decoder
        from personalign.decoding.rows import Job, prompt_ids
        from personalign.policy.reference import fingerprint

        weights = fingerprint(policy, ())
        named = {f"profile {draft.version} of user {draft.user}": draft for draft in drafts}
        plans = {name: self._plan(draft, policy) for name, draft in named.items()}
        made_of = {name: [weights, prompt_ids(policy, plan.streams[0])] for name, plan in plans.items()}
        files = {name: self._file(draft, made_of[name]) for name, draft in named.items()}
        found = {name: _read(file) for name, file in files.items()}
        decoder = Decoder(policy, self._batch_size)
        groups = decoder.groups([Job(name, plan) for name, plan in plans.items()])
        missing = [group for group in groups if any(found[job.request] is None for job in group)]
        with track("writing profiles", sum(map(len, missing)), "profiles") as bar:
            for group in missing:
                for response in decoder.generate(group):
                    name = response.request
                    found[name] = self._keep(named[name], response, files[name])
                bar.advance(len(group))
        return [profile for profile in found.values() if profile is not None]

    def forget(self, user: str) -> None:
        traces.forget(self._cache, user)

    def _plan(self, draft: Draft, policy: Policy) -> Plan:
        opening = Tokens(tuple(policy.encode_answer(self._opening)[:-1]))
        return Plan((Stream((Chat(draft.prompt), opening)),), sampling=self._sampling)

    def _keep(self, draft: Draft, response: Response, file: Path) -> Profile:
        profile = Profile(draft.version, draft.events, self._text(response))
        write_atomic(file, json.dumps(asdict(profile), ensure_ascii=False))
        return profile

    def _text(self, response: Response) -> str:
        """The profile on one line; where the limit cut it, up to the end of its last sentence, if it has one."""
        if not response.text.strip():
            return ""
        text = " ".join((self._opening + response.text).split())
        whole = WHOLE.match(text) if response.stop == "length" else None
        return whole[0] if whole else text

    def _file(self, draft: Draft, made_of: Sequence[object]) -> Path:
        name = content_hash([*made_of, self._sampling.max_new_tokens, draft.version, draft.events])
        return traces.folder(self._cache, draft.user) / FOLDER / f"{name[:32]}.json"


def _read(file: Path) -> Profile | None:
    try:
        row = json.loads(file.read_bytes())
        return Profile(int(row["version"]), tuple(map(str, row["events"])), str(row["text"]))
    except (OSError, ValueError, LookupError, TypeError):
        return None
