"""One model's opinion of another model's tokens, when the two cut texts differently.

The event "the base's next token is t" is a statement on text: what is written goes on such that the base's tokenizer
cuts it with t next. Its probability under a guide with other tokens is a sum over the guide's token sequences. As in
exact byte-level probabilities (Phan et al., arXiv 2410.09303) and coverings (Vieira et al., arXiv 2412.03719) we take

    p(t | y) = sum of p(tau | y) over tau such that
        tau covers the text of t: all of it, and without its last token not all of it;
        tau is as the guide's tokenizer cuts that text;
        the base's tokenizer cuts the text of tau with t first.

The last line goes beyond both papers, which sum over all texts that begin with t: it keeps a base token "th" from
being given what belongs to "the". With equal vocabularies, in whatever order, only tau = (t) is left, so that
p(t | y) is the guide's own. What tau spells beyond t is all that is seen of the text to come, where the base's
tokenizer might look further: that is the approximation, with these:
* Texts are cut from the last place on at which both tokenizers do, without what stands before it.
* The guide's own cut of exactly this text always counts: without it text that the base would have cut otherwise,
  such as a sampled rare segmentation, could be written by nobody.
* Where the two find no common place for LONGEST bytes, the guide's own cut of what is written is taken as settled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from personalign.policy.scripts import Ids
from personalign.policy.spelling import Spelling

if TYPE_CHECKING:
    from personalign.policy.policy import Policy

LONGEST = 32  # bytes
KEPT = 1 << 16  # tails whose covers are kept


class Covering:
    """How a guide's tokens spell a base's. `same` has the special tokens that mean the same in both."""

    def __init__(self, base: Spelling, guide: Spelling, same: Mapping[int, int]) -> None:
        self.base, self.guide, self.same = base, guide, same
        self.covers = lru_cache(KEPT)(self._covers)

    def read(self, tail: Ids) -> bool:
        """Whether the guide can read a token at all."""
        return tail[-1] in self.same or tail[-1] in self.base.texts

    def _covers(self, tail: Ids) -> tuple[Ids, ...]:
        """The guide's token sequences tau for base tokens since the last common place; () where it can spell none."""
        if tail[-1] in self.same:
            own = self.own(tail[:-1])
            return ((*own, self.same[tail[-1]]),) if own or len(tail) == 1 else ()
        own = self.own(tail)
        if not own:
            return ()
        return (own, *self._beyond(tail, self.base.spell(tail), own))

    def own(self, tail: Ids) -> Ids:
        """The guide's own cut of the text; of a token that both have, that token, special ones included."""
        if tail and tail[-1] in self.same:
            return (*self.own(tail[:-1]), self.same[tail[-1]])
        text = self.base.spell(tail)
        if len(tail) == 1 and text in self.guide.ids:
            return (self.guide.ids[text],)
        return self.guide.cut([text])[0] if text else ()

    def _beyond(self, tail: Ids, text: bytes, own: Ids) -> list[Ids]:
        """Covers whose last token goes beyond the text."""
        longer = dict.fromkeys(
            text[:j] + token
            for j in range(len(text))
            for token in self.guide.longer(text[j:])
            if j or token not in self.base.ids  # the base would have cut that one as its own
        )
        spelled = zip(longer, self.guide.cut(list(longer)), strict=True)
        covers = {whole: ids for whole, ids in spelled if ids and len(self.guide.spell(ids[:-1])) < len(text)}
        cuts = self.base.cut(list(covers))
        return [ids for ids, cut in zip(covers.values(), cuts, strict=True) if cut[: len(tail)] == tail]

    def settled(self, tail: Ids) -> tuple[Ids, Ids]:
        """What the guide can read of written base tokens, in its own; and those whose spelling is still open."""
        covers = self.covers(tail)
        if not covers or len(self.base.spell(tail)) > LONGEST:
            return self.own(tail), ()
        sure = shared(covers)
        if sure == covers[0]:
            return sure, ()
        places = {len(self.base.spell(tail[:i])): i for i in range(len(tail))}
        known = next(n for n in range(len(sure), -1, -1) if len(self.guide.spell(sure[:n])) in places)
        return sure[:known], tail[places[len(self.guide.spell(sure[:known]))] :]


def covering(base: Policy, guide: Policy) -> Covering:
    """Special tokens are the same that have the same text; the end of text is the guide's, whatever its text, and so
    is what else stops the base.

    Raises UserError for a tokenizer whose tokens are no bytes.
    """
    mine, theirs = Spelling(base.tokenizer, base.label), Spelling(guide.tokenizer, guide.label)
    known = {text: i for i, text in theirs.specials.items()}
    same = {i: known[text] for i, text in mine.specials.items() if text in known}
    end = guide.tokenizer.eos_token_id
    ends = dict.fromkeys(base.stop_ids, end)
    return Covering(mine, theirs, {**ends, **same, base.tokenizer.eos_token_id: end})


def shared(covers: Sequence[Ids]) -> Ids:
    """What all begin with."""
    low, high = min(covers), max(covers)
    length = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    return low[:length]
